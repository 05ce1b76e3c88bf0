"""What the commands that use a run have in common: options, and errors without tracebacks."""

import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from absl import logging

from jaxseg.tasks.semantic import Predict, average_scales, overlap_tiles


def make_parser(doc: str | None) -> ArgumentParser:
    """A parser with the options of every command on a run."""
    parser = ArgumentParser(description=doc, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="the run's folder")
    parser.add_argument("--checkpoint", choices=["best", "last"], default="best")
    return parser


def add_care_options(parser: ArgumentParser) -> None:
    """The ways in which any semantic model can take more care; see `careful`."""
    parser.add_argument(
        "--scales", type=_numbers(float), default=(1.0,), help="average over scales: 0.75,1,1.25"
    )
    parser.add_argument("--flip", action="store_true", help="average with the mirror image")
    parser.add_argument("--window", type=int, default=0, help="predict in tiles of so many pixels")
    parser.add_argument(
        "--margin", type=int, default=32, help="pixels on each side of a tile that are context only"
    )


def careful(predict: Predict, options: Namespace) -> tuple[Predict, dict]:
    """`predict` as the options want it, and what they are where they are not the plain ones."""
    used = {}
    if options.window:
        predict = overlap_tiles(predict, options.window, options.margin)
        used |= {"window": options.window, "margin": options.margin}
    if options.flip or options.scales != (1.0,):
        predict = average_scales(predict, options.scales, options.flip)
        used |= {"scales": options.scales, "flip": options.flip}
    return predict, used


def size_option(text: str) -> tuple[int, int]:
    """HEIGHT,WIDTH in pixels."""
    height, width = _numbers(int)(text)
    return height, width


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
