"""What the commands that use a run have in common: options, and errors without tracebacks."""

import json
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from jaxseg.crf import dense
from jaxseg.run import is_detection
from jaxseg.tasks.semantic import Predict, average_scales, overlap_tiles


def make_parser(doc: str | None, *, workdir_needed: bool = True) -> ArgumentParser:
    """A parser with the options of every command on a run."""
    parser = ArgumentParser(description=doc, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=workdir_needed, help="the run's folder")
    parser.add_argument("--checkpoint", choices=["best", "last"], default="best")
    return parser


def add_care_options(parser: ArgumentParser) -> None:
    """The ways in which any semantic model can take more care; see `careful`."""
    parser.add_argument(
        "--scales", type=numbers_option, default=(1.0,), help="average over scales: 0.75,1,1.25"
    )
    parser.add_argument("--flip", action="store_true", help="average with the mirror image")
    parser.add_argument("--window", type=int, default=0, help="predict in tiles of so many pixels")
    parser.add_argument(
        "--margin", type=int, default=32, help="pixels on each side of a tile that are context only"
    )
    parser.add_argument(
        "--crf",
        nargs="?",
        const="",
        help="refine by the dense CRF: with NAME=VALUE,… or FILE.json in place of the config's "
        "settings and the usual ones; none: without the config's CRF",
    )


def careful(predict: Predict, options: Namespace, config: ConfigDict) -> tuple[Predict, dict]:
    """`predict` as the options want it, and what they are where they are not the plain ones.
    ValueError for options of semantic models where the config is a detector's."""
    used = {}
    if is_detection(config):
        _refuse_care(options, config)
        return predict, used
    if options.window:
        predict = overlap_tiles(predict, options.window, options.margin)
        used |= {"window": options.window, "margin": options.margin}
    if options.flip or options.scales != (1.0,):
        predict = average_scales(predict, options.scales, options.flip)
        used |= {"scales": options.scales, "flip": options.flip}
    settings = crf_settings(options.crf, dict(config.get("crf") or {}))
    if settings is not None:
        predict = dense.behind(predict, **dense.settings_of(settings, "crf"))
        used |= {"crf": settings}
    return predict, used


def _refuse_care(options: Namespace, config: ConfigDict) -> None:
    """ValueError for anything of `add_care_options`, and for a CRF in the config."""
    asked = {
        "--scales": options.scales != (1.0,),
        "--flip": options.flip,
        "--window": options.window,
        "--crf": options.crf not in (None, "none"),
        "config.crf": config.get("crf") and options.crf != "none",
    }
    for name, wanted in asked.items():
        if wanted:
            raise ValueError(f"{name} is for semantic segmentation; this task is {config.task}")


def crf_settings(option: str | None, configured: Mapping[str, Any]) -> dict[str, Any] | None:
    """Settings of the dense CRF by the option --crf, or as configured; None: no CRF. ValueError for
    a file that has none, and for names that are none."""
    if option == "none" or (option is None and not configured):
        return None
    given = {}
    if option and Path(option).suffix == ".json":
        given = json.loads(Path(option).read_text())
        if not isinstance(given, dict):
            raise ValueError(f"--crf={option}: expected an object of settings")
    elif option:
        given = dict(_setting(part) for part in option.split(","))
    settings = dict(configured) | given
    dense.settings_of(settings, "--crf")
    return settings


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--crf: {text!r}, expected NAME=VALUE, a .json file, or none")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def size_option(text: str) -> tuple[int, int]:
    """HEIGHT,WIDTH in pixels."""
    height, width = _numbers(int)(text)
    return height, width


def numbers_option(text: str) -> tuple[float, ...]:
    """NUMBER,NUMBER …"""
    return _numbers(float)(text)


@contextmanager
def told_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Errors that speak of the user's input end the program with their message alone."""
    logging.set_verbosity(logging.WARNING)  # orbax tells every step it takes
    try:
        yield
    except (ValueError, FileNotFoundError, *kinds) as error:
        sys.exit(f"error: {error}")


def _numbers(kind: type):
    def parse(text: str) -> tuple:
        return tuple(kind(part) for part in text.split(","))

    return parse
