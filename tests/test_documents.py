"""What the README and the notebooks show runs."""

import re
from pathlib import Path

import jupytext
import numpy as np
import pytest

from jaxseg import run

ROOT = Path(__file__).parents[1]


def test_the_readme_example_runs():
    (code,) = re.findall(r"```python\n(import.*?)```", (ROOT / "README.md").read_text(), re.S)
    names = {}
    exec(code, names)
    assert names["segmentation"].shape == (2, 100, 150)
    assert names["gradient"].shape == names["image"].shape


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(ROOT.glob("notebooks/*.py")), ids=lambda path: path.stem)
def test_notebooks_run(path, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXSEG_CACHE", str(tmp_path))
    names = {}
    cells = [cell for cell in jupytext.read(path).cells if cell.cell_type == "code"]
    assert len(cells) > 5
    for cell in cells:
        exec(cell.source, names)


@pytest.mark.parametrize("path", sorted(ROOT.glob("experiments/*.py")), ids=lambda p: p.stem)
def test_experiments_can_be_read_and_name_models(path):
    names = {}
    exec(path.read_text(), names)
    get_config = names["get_config"]
    arguments = [()]
    if get_config.__code__.co_argcount:
        arguments += [("cpu",)]
        with pytest.raises(ValueError, match="expected"):
            get_config("gpu")
    if "SYSTEMS" in names:
        variants = ("full", "cpu")
        arguments = [(f"{name},{variant}",) for name in names["SYSTEMS"] for variant in variants]
    for argument in arguments:
        config = get_config(*argument)
        assert config.is_locked
        info = run.Info("set", ("a", "b"), np.zeros((2, 3), np.uint8), (1.0, 1.0))
        run.build_model(config, info)
    assert "--config=experiments/" + path.name in names["__doc__"]
