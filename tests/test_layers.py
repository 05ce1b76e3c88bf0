"""Imports only run down the floors."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "jaxseg"
FLOORS = {
    "types": set(),
    "ops": {"types"},
    "crf": {"types", "ops"},
    "nn": {"types", "ops", "crf"},
    "backbones": {"types", "ops", "crf", "nn"},
    "models": {"types", "ops", "crf", "nn", "backbones"},
    "weights": {"types"},
    "data": {"types", "ops"},
    "metrics": {"types", "ops"},
    "viz": {"types", "ops"},
    "tasks": {"types", "ops", "metrics", "viz"},
    "train": {"types"},
    "config": set(),
}
WIRING = {"__init__", "run", "cli", "main", "evaluate", "predict", "detect", "pictures"}
WIRING |= {"export", "refine", "tune_crf"}


def imported(path: Path) -> set[str]:
    """The parts of jaxseg that a file imports."""
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            parts |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            parts |= {f"{node.module}.{name.name}" for name in node.names}
    return {name.split(".")[1] for name in parts if name.startswith("jaxseg.")}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_imports_run_down(path):
    floor = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if floor in WIRING:
        return
    assert imported(path) - {floor} <= FLOORS[floor]
