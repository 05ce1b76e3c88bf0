"""Label maps refined by the dense CRF, without a model: `jaxseg.predict --crf --labels=MASKS`.

A mask is a grey or palette PNG of the labels 0 … K−1 and 255 for unknown, or a picture that has a
colour for each label and black for unknown (as a palette PNG has, too, if taken by colour).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jaxseg import run
from jaxseg.crf.dense import ROOM, TILE, dense_crf, over_tiles
from jaxseg.crf.energies import logits_from_labels
from jaxseg.data.builders.source import read_labels
from jaxseg.types import IGNORE, Array
from jaxseg.viz import draw

BLACK = (0, 0, 0)
STEP = 64  # sizes are rounded up to multiples of it, so that pictures share compiled programs


def match_masks(images: Sequence[Path], masks: Sequence[Path]) -> dict[Path, Path]:
    """The mask of each picture, by name; one mask is that of one picture whatever its name. A
    picture without a mask is left out. ValueError where masks have the same name, and where none
    has that of a picture."""
    if len(images) == len(masks) == 1:
        return {images[0]: masks[0]}
    named = {mask.stem: mask for mask in masks}
    if len(named) < len(masks):
        raise ValueError("--labels: several masks have the same name")
    matched = {image: named[image.stem] for image in images if image.stem in named}
    if not matched:
        raise ValueError(f"--labels: no mask has the name of a picture, as {images[0].stem}")
    return matched


def describe_masks(
    masks: Sequence[Path], *, num_classes: int | None = None, by_colour: bool = False
) -> run.Info:
    """The labels of some masks: as many as `num_classes` says, or the highest, or of coloured masks
    each colour that occurs. by_colour: palette PNGs are coloured masks, too. ValueError where there
    are not two labels, for masks of both kinds, for palettes that differ, and for a file that is
    not a picture."""
    colours, labels, palette = set(), set(), None
    for mask in masks:
        with opened(mask) as image:
            if holds_colours(image, by_colour):
                found = image.convert("RGB").getcolors(IGNORE)
                if found is None:
                    raise ValueError(f"{mask}: more than {IGNORE} colours, expected one a label")
                colours |= {colour for _, colour in found}
            else:
                used = np.unique(np.asarray(image)).tolist()
                labels |= {*used}
                if image.mode == "P":
                    own = palette_of(image)
                    palette = own if palette is None else palette
                    if any(u < len(palette) and (own[u] != palette[u]).any() for u in used):
                        raise ValueError(
                            f"{mask}: other colours than the masks before have; if these are the "
                            "labels, and black is unknown, give --by-colour"
                        )
    if colours and labels:
        raise ValueError("--labels: some masks hold labels and some colours, expected one kind")
    if colours:
        if all(len({*colour}) == 1 for colour in colours):
            raise ValueError("--labels: colours that are all grey; expected grey or palette PNGs")
        palette = np.array(sorted(colours - {BLACK}), np.uint8)
        names = tuple(f"#{r:02x}{g:02x}{b:02x}" for r, g, b in palette.tolist())
    else:
        count = max(labels - {IGNORE}, default=0) + 1 if num_classes is None else num_classes
        names = tuple(map(str, range(count)))
        if palette is None or len(palette) < len(names):
            palette = draw.default_palette(len(names))
    if len(names) < 2 or (colours and num_classes not in (None, len(names))):
        told = ", ".join(names) or "none"
        raise ValueError(f"--labels: the labels are {told}; expected {num_classes or '2 or more'}")
    return run.Info("labels", names, palette[: len(names)], (1.0,) * len(names))


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """The picture of a file; ValueError where it cannot be read."""
    try:
        with Image.open(path) as image:
            yield image
    except OSError as error:
        raise ValueError(f"{path}: not a readable picture") from error


def holds_colours(image: Image.Image, by_colour: bool) -> bool:
    """Whether a mask's labels are colours, and not values."""
    return image.mode not in ("1", "L", "P") or (by_colour and image.mode == "P")


def palette_of(image: Image.Image) -> UInt8[np.ndarray, "_ 3"]:
    """The colours of a palette PNG."""
    return np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)


def read_mask(
    path: Path, size: tuple[int, int], info: run.Info, by_colour: bool = False
) -> UInt8[np.ndarray, "H W"]:
    """Labels 0 … K−1 and IGNORE, of a mask of `size`. DataError for what is not in `info`, for
    another size, and for a file that may not be a mask."""
    read = partial(read_labels, path, len(info.classes), size)
    with opened(path) as image:
        if image.mode != "P" or not by_colour:
            return read(palette=info.palette, void=[BLACK])
        colours = [*map(tuple, palette_of(image).tolist())]
    known = [tuple(colour) for colour in info.palette.tolist()]
    labels = {i: known.index(colour) for i, colour in enumerate(colours) if colour in known}
    return read(label_map=labels, void=[i for i, colour in enumerate(colours) if colour == BLACK])


def make_refine(
    info: run.Info, confidence: float, settings: dict[str, Any], *, by_colour: bool = False
) -> Callable[[np.ndarray, Path], np.ndarray]:
    """(picture uint8 [H W 3], path of its mask) -> labels uint8 [H W].

    confidence: probability of a label where the mask has it; settings: of `crf.dense.dense_crf`. It
    sees a tile at a time: beside picture and labels, memory does not grow with the picture.
    """
    num_classes, tile = len(info.classes), settings.get("tile", TILE)
    logits_from_labels(jnp.zeros(1, jnp.int32), num_classes, confidence)  # is it possible?

    @partial(jax.jit, static_argnums=3)
    def refined(labels: Array, image: Array, inside: Array, room: float | int | None) -> Array:
        def window(labels: Array, image: Array, inside: Array) -> Array:
            logits = logits_from_labels(labels.astype(jnp.int32), num_classes, confidence)
            logits = dense_crf(logits, image, inside=inside, **(settings | {"room": room}))
            return jnp.where(jnp.isfinite(logits).all(), logits.argmax(-1), -1)[..., None]

        return over_tiles(window, (labels, image, inside), tile)[..., 0]

    def refine(image: np.ndarray, mask: Path) -> np.ndarray:
        height, width = image.shape[:2]
        labels = read_mask(mask, (height, width), info, by_colour)
        inside = np.ones(labels.shape, bool)
        more = [(0, -height % STEP), (0, -width % STEP)]
        maps = np.pad(labels, more), np.pad(image, [*more, (0, 0)], "edge"), np.pad(inside, more)
        for room in [settings["room"]] if "room" in settings else ROOM:
            found = np.asarray(refined(*maps, room))[:height, :width]
            if found.min() >= 0:
                return found.astype(np.uint8)
        raise ValueError(f"the lattice has no room: give more than room={room}, at most {ROOM[1]}")

    return refine
