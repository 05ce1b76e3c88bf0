"""Anchors: boxes of fixed sizes and shapes at every place of a feature map (Ren et al. 2015,
"Faster R-CNN", section 3.1.1). They depend on static sizes alone and are numpy constants.

Those of a pyramid have sizes in pixels; they are rounded and placed as torchvision does: to whole
pixels around (0, 0), moved by multiples of the stride. SSD's, "default boxes", have sizes in
fractions of the image.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxseg.types import Array

Numbers = Sequence[int | float]

COARSEST = 32  # an image's sides are made multiples of this, so that strides up to it are whole


def cell_anchors(sizes: Numbers, aspect_ratios: Numbers) -> Float[np.ndarray, "K 4"]:
    """One box around (0, 0) for each aspect ratio (height / width) and, within it, each size (the
    side, in pixels, of a square of the same area)."""
    root = np.sqrt(np.asarray(aspect_ratios, np.float32))[:, None]
    side = np.asarray(sizes, np.float32)[None]
    width, height = (1 / root * side).ravel(), (root * side).ravel()
    return np.round(np.stack([-width, -height, width, height], axis=1) / 2)


def grid_anchors(
    cell: Float[np.ndarray, "K 4"], feature_size: tuple[int, int], stride: tuple[int, int]
) -> Float[np.ndarray, "A 4"]:
    """The boxes of a cell at every place of a map of `feature_size`, row by row; all boxes of one
    place follow each other. stride: (down, right), pixels between two places."""
    y, x = (np.arange(n, dtype=np.float32) * s for n, s in zip(feature_size, stride, strict=True))
    y, x = np.meshgrid(y, x, indexing="ij")
    shifts = np.stack([x, y, x, y], axis=-1)
    return (shifts[:, :, None] + cell[None, None]).reshape(-1, 4)


def pyramid_anchors(
    sizes: Sequence[Numbers],
    aspect_ratios: Sequence[Numbers],
    feature_sizes: Sequence[tuple[int, int]],
    image_size: tuple[int, int],
) -> list[Float[np.ndarray, "_ 4"]]:
    """The anchors of each level of a feature pyramid, from its sizes and aspect ratios. A level's
    stride is the size of the padded image over that of its map, rounded down."""
    levels = zip(sizes, aspect_ratios, feature_sizes, strict=True)
    return [
        grid_anchors(cell_anchors(*cell), (h, w), (image_size[0] // h, image_size[1] // w))
        for *cell, (h, w) in levels
    ]


def sizes_per_level(sizes: Sequence[Numbers]) -> int:
    """How many anchor sizes each level has. ValueError unless all have as many."""
    counts = sorted({len(level) for level in sizes})
    if len(counts) != 1 or not counts[0]:
        raise ValueError(f"anchor_sizes has levels of {counts} sizes, expected one number")
    return counts[0]


def default_boxes(
    aspect_ratios: Sequence[Numbers],
    scales: Numbers,
    feature_sizes: Sequence[tuple[int, int]],
    image_size: tuple[int, int],
    steps: Numbers | None = None,
) -> list[Float[np.ndarray, "_ 4"]]:
    """The default boxes of each map, in pixels, in the order of `grid_anchors` (Liu et al. 2016,
    "SSD", section 2.2, "Choosing scales and aspect ratios"), for L maps.

    At each place lie two squares, of the scale s of the map and of √(s s'), s' being that of the
    next, and for each of the aspect ratios r one of width s √r and height s / √r, and one turned.
    scales: of L + 1 maps, in fractions of the image, whose sides count as 1 each; no box is larger
    than the image. steps: pixels between two places; without, the image is cut into equal parts.
    """
    levels = len(feature_sizes)
    if len(aspect_ratios) != levels or len(scales) != levels + 1:
        raise ValueError(
            f"default boxes of {levels} maps: expected {levels} aspect_ratios and {levels + 1} "
            f"scales, not {len(aspect_ratios)} and {len(scales)}"
        )
    if steps is not None and len(steps) != levels:
        raise ValueError(f"default boxes of {levels} maps: expected {levels} steps, not {steps}")
    height, width = image_size
    boxes = []
    for level, (h, w) in enumerate(feature_sizes):
        root = np.sqrt(np.asarray(aspect_ratios[level], np.float64))
        scale, between = scales[level], np.sqrt(scales[level] * scales[level + 1])
        pairs = np.stack([scale * root, scale / root], axis=1)
        turned = np.stack([pairs, pairs[:, ::-1]], axis=1).reshape(-1, 2)
        sides = np.concatenate([[[scale] * 2, [between] * 2], turned]).clip(0, 1)
        # From here on as torchvision rounds: a small object overlaps all large boxes of one area
        # equally, but for rounding, and the best of them is to learn it.
        sides = sides.astype(np.float32)
        down, right = (h, w) if steps is None else (height / steps[level], width / steps[level])
        y, x = ((np.arange(n, dtype=np.float32) + 0.5) / m for n, m in ((h, down), (w, right)))
        y, x = np.meshgrid(y, x, indexing="ij")
        centres = np.stack([x, y], axis=-1)[:, :, None]
        corners = np.concatenate([centres - 0.5 * sides, centres + 0.5 * sides], axis=-1)
        corners *= np.array([width, height] * 2, np.float32)
        boxes.append(corners.reshape(-1, 4))
    return boxes


def anchors_of_maps(
    image: Float[Array, "B H W C"],
    maps: Sequence[Float[Array, "B _ _ _"]],
    sizes: Sequence[Numbers],
    aspect_ratios: Numbers,
) -> list[Float[Array, "_ 4"]]:
    """`pyramid_anchors` of these maps of an image, of which only the shapes count; the same ratios
    for all. ValueError where there are not as many sizes as maps."""
    (height, width), *places = [(x.shape[1], x.shape[2]) for x in (image, *maps)]
    if len(sizes) != len(maps):
        raise ValueError(f"anchors of {len(sizes)} levels, expected {len(maps)}, one for each map")
    levels = pyramid_anchors(sizes, [aspect_ratios] * len(maps), places, (height, width))
    return [jnp.asarray(anchors) for anchors in levels]
