"""Cases of a parametrised test that CI alone runs."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow_but(keep: int, cases: Iterable[Any]) -> list[Any]:
    """The cases of which all but the first `keep` are slow."""
    params = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [
        pytest.param(*case, marks=[pytest.mark.slow] * (i >= keep)) for i, case in enumerate(params)
    ]
