"""Anchors: boxes of fixed sizes and shapes at every place of a feature map (Ren et al. 2015,
"Faster R-CNN", section 3.1.1). They depend on static sizes alone and are numpy constants.

Rounded and placed as torchvision does: to whole pixels around (0, 0), moved by multiples of the
stride.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

Numbers = Sequence[int | float]


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
