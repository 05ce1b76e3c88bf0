"""Checks of what a model is given."""

from collections.abc import Mapping, Sequence
from typing import Any


def expect(name: str, value: Any, choices: Sequence[Any]) -> None:
    """ValueError unless the value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(map(str, choices))}")


def known_settings(kind: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings; ValueError unless `kind`, a NamedTuple, has all of them."""
    for name in settings:
        expect("settings", name, kind._fields)
    return dict(settings)
