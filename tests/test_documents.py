"""What the README and the notebooks show runs."""

import re
from pathlib import Path

import jupytext
import pytest

ROOT = Path(__file__).parents[1]


def test_the_readme_example_runs():
    (code,) = re.findall(r"```python\n(import.*?)```", (ROOT / "README.md").read_text(), re.S)
    names = {}
    exec(code, names)
    assert names["segmentation"].shape == (2, 100, 150)
    assert names["gradient"].shape == names["image"].shape


@pytest.mark.parametrize("path", sorted(ROOT.glob("notebooks/*.py")), ids=lambda p: p.stem)
def test_notebooks_run(path, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXSEG_CACHE", str(tmp_path))
    names = {}
    cells = [cell for cell in jupytext.read(path).cells if cell.cell_type == "code"]
    assert len(cells) > 5
    for cell in cells:
        exec(cell.source, names)


@pytest.mark.parametrize("path", sorted(ROOT.glob("experiments/*.py")), ids=lambda p: p.stem)
def test_experiments_can_be_read(path):
    names = {}
    exec(path.read_text(), names)
    variants = [(), ("cpu",)] if names["get_config"].__code__.co_argcount else [()]
    for variant in variants:
        config = names["get_config"](*variant)
        assert config.is_locked
        assert config.data.batch_size % 4 == 0
    if len(variants) > 1:
        with pytest.raises(ValueError, match='expected "full" or "cpu"'):
            names["get_config"]("gpu")
    assert "--config=experiments/" + path.name in names["__doc__"]
