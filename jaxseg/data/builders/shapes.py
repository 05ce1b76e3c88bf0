"""Generated pictures of overlapping textured shapes: a small dataset that needs no files.

Discs, squares, triangles, stars and rings of any rotation, before backgrounds of any texture,
under uneven light and sensor noise. Colour and texture say nothing of the class, so only shape
does; every other label follows exactly. A ring shows what is behind its hole.

The keypoints of an object are its centre and the topmost, rightmost, bottommost and leftmost
point of the whole shape: 2 visible, 1 behind another object, 0 outside the picture.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from jaxseg.data.builders.source import (
    DataError,
    Example,
    Source,
    bounds,
    color_map,
    encode_png,
    fingerprint,
)

CLASSES = ("background", "disc", "square", "triangle", "star", "ring")
KEYPOINTS = ("centre", "top", "right", "bottom", "left")
SPLITS = ("train", "val")  # the position is part of an example's seed
DRAWING = 2  # raise it when the same seed draws another picture

MIN_VISIBLE = 20  # pixels of an object that must be seen
MIN_SHARE = 0.5  # of the whole object, parts outside the picture included
MIN_CONTRAST = 90.0  # distance in RGB (0 … 255) of an object's mean colour to what it covers
TRIES = 20


def open_source(
    path: str | Path | None = None,
    *,
    image_size: Sequence[int] = (64, 64),
    num_train: int = 2000,
    num_val: int = 200,
    seed: int = 0,
    max_objects: int = 4,
) -> Source:
    """Shapes, 1 … `max_objects` a picture of `image_size` (height, width); `path` is not used.

    Examples have `segmentation`, `boxes` and `masks` of what is visible, `labels` and
    `keypoints`. The n-th picture of a split depends on `seed`, `image_size` and `max_objects`,
    not on how many there are.
    """
    height, width = size = tuple(image_size)
    if min(size) < 32 or max_objects < 1 or seed < 0 or num_train < 1 or num_val < 0:
        raise DataError(
            f"shapes: image_size {size}, max_objects {max_objects}, seed {seed}, num_train"
            f" {num_train}, num_val {num_val}; expected sides of 32 or more, an object and a"
            " training image at least, and nothing negative"
        )
    counts = {"train": num_train, "val": num_val}

    def read(split: str, key: str) -> Example:
        seeds = np.random.SeedSequence([seed, SPLITS.index(split), int(key)])
        scene = draw_scene(
            np.random.Generator(np.random.PCG64(seeds)), (height, width), max_objects
        )
        return {**scene, "image": encode_png(scene["image"])}

    return Source(
        name="shapes",
        fingerprint=fingerprint(
            None, drawing=DRAWING, size=size, counts=counts, seed=seed, max_objects=max_objects
        ),
        classes=CLASSES,
        palette=color_map(len(CLASSES)),
        splits={split: tuple(map(str, range(n))) for split, n in counts.items() if n},
        fields=("segmentation", "boxes", "labels", "masks", "keypoints"),
        keypoint_names=KEYPOINTS,
        keypoint_flip=(0, 1, 4, 3, 2),
        skeleton=tuple((0, end) for end in range(1, len(KEYPOINTS))),
        read=read,
    )


class _Shape(NamedTuple):
    """An object before it is painted."""

    label: int
    keypoints: Float32[np.ndarray, "J 2"]
    mask: Bool[np.ndarray, "H W"]  # as if nothing were before it
    area: int  # pixels, those outside the picture included
    color: Float[np.ndarray, "3"]


def draw_scene(
    rng: np.random.Generator, size: tuple[int, int], max_objects: int
) -> dict[str, np.ndarray]:
    """One picture with all its labels; `image` is uint8 [H W 3], the rest as in an Example.

    Every pixel belongs to one object or to the background, in `masks` as in `segmentation`.
    """
    num_objects = rng.integers(1, max_objects, endpoint=True)
    background = rng.uniform(40, 215, 3)
    picture = _paint(rng, background, size)
    owner = np.zeros(size, np.int32)  # 0 for the background, n for the n-th object
    shapes: list[_Shape] = []
    for _ in range(num_objects * TRIES):
        if len(shapes) == num_objects:
            break
        shape = _draw_shape(rng, size)
        covered = np.where(shape.mask, len(shapes) + 1, owner)
        if not _all_visible(covered, [*shapes, shape]):
            continue
        behind = [background, *(shapes[n - 1].color for n in np.unique(owner[shape.mask]) if n)]
        color = _contrasting_color(rng, behind)
        if color is None:
            continue
        picture = np.where(shape.mask[..., None], _paint(rng, color, size), picture)
        shapes.append(shape._replace(color=color))
        owner = covered

    labels = np.array([shape.label for shape in shapes], np.int32)
    masks = owner == np.arange(1, len(shapes) + 1)[:, None, None]
    return {
        "image": _photograph(rng, picture),
        "segmentation": np.concatenate([[0], labels])[owner].astype(np.uint8),
        "boxes": bounds(masks),
        "labels": labels,
        "masks": masks,
        "keypoints": np.stack(
            [_mark(shape.keypoints, n, owner) for n, shape in enumerate(shapes, start=1)]
        ),
    }


def _draw_shape(rng: np.random.Generator, size: tuple[int, int]) -> _Shape:
    """A shape of random class, place, size, rotation and slight stretch."""
    label = int(rng.integers(1, len(CLASSES)))
    height, width = size
    radius = min(size) * rng.uniform(0.13, 0.24)
    stretch = radius * np.exp(rng.uniform(-0.12, 0.12, 2))
    center = rng.uniform(0.08, 0.92, 2) * (width, height)
    cos, sin = np.cos(angle := rng.uniform(0, 2 * np.pi)), np.sin(angle)
    turn = np.array([[cos, sin], [-sin, cos]])
    outlines = [(outline * stretch) @ turn + center for outline in OUTLINES[CLASSES[label]]]

    # Drawn with a margin, to know how much of the shape the picture cuts off.
    margin = int(1.5 * radius) + 1
    canvas = np.zeros((height + 2 * margin, width + 2 * margin), np.uint8)
    # OpenCV has pixel centres at whole numbers, and takes 1/16 pixels as integers.
    corners = [np.rint((o + margin - 0.5) * 16).astype(np.int32) for o in outlines]
    cv2.fillPoly(canvas, corners, (1,), shift=4)
    x, y = outlines[0].T
    ends = outlines[0][[y.argmin(), x.argmax(), y.argmax(), x.argmin()]]
    return _Shape(
        label=label,
        keypoints=np.stack([center, *ends]).astype(np.float32),
        mask=canvas[margin:-margin, margin:-margin] > 0,
        area=int(canvas.sum()),
        color=np.zeros(3),
    )


def _circle(radius: float, num_corners: int, phase: float = 0.0) -> Float[np.ndarray, "N 2"]:
    angles = 2 * np.pi * (np.arange(num_corners) + phase) / num_corners
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def _star(outer: float, inner: float, num_points: int) -> Float[np.ndarray, "N 2"]:
    corners = [_circle(outer, num_points), _circle(inner, num_points, 0.5)]
    return np.stack(corners, axis=1).reshape(-1, 2)


# Outlines about the origin; of a pair the second is a hole. The sizes make areas alike.
OUTLINES = {
    "disc": [_circle(0.95, 40)],
    "square": [_circle(1.15, 4)],
    "triangle": [_circle(1.3, 3)],
    "star": [_star(1.35, 0.56, 5)],
    "ring": [_circle(1.1, 40), _circle(0.55, 40)],
}


def _all_visible(owner: np.ndarray, shapes: list[_Shape]) -> bool:
    visible = np.bincount(owner.ravel(), minlength=len(shapes) + 1)[1:]
    areas = np.array([shape.area for shape in shapes])
    return bool(np.all(visible >= np.maximum(MIN_VISIBLE, MIN_SHARE * areas)))


def _contrasting_color(
    rng: np.random.Generator, behind: list[Float[np.ndarray, "3"]]
) -> Float[np.ndarray, "3"] | None:
    """A colour that stands out from all of `behind`; None where none was found."""
    for color in rng.uniform(30, 225, (TRIES, 3)):
        if all(np.linalg.norm(color - other) >= MIN_CONTRAST for other in behind):
            return color
    return None


def _paint(
    rng: np.random.Generator, color: Float[np.ndarray, "3"], size: tuple[int, int]
) -> Float32[np.ndarray, "H W 3"]:
    """A textured surface about a mean colour."""
    tint = rng.normal(size=3)
    tint *= rng.uniform(12, 38) / np.linalg.norm(tint)
    texture = _draw_texture(rng, size) + 0.5 * _draw_gradient(rng, size)
    return (color + texture[..., None] * tint).astype(np.float32)


def _draw_texture(rng: np.random.Generator, size: tuple[int, int]) -> Float32[np.ndarray, "H W"]:
    """Stripes, a checkerboard, cloudy noise or a gradient, in about -1 … 1."""
    kind = rng.integers(4)
    if kind == 0:
        return _draw_gradient(rng, size)
    if kind == 1:
        height, width = size
        cells = int(rng.integers(4, 13))
        noise = rng.uniform(-1.4, 1.4, (cells, cells)).astype(np.float32)
        return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    u, v = _rotated_grid(rng, size)
    period = min(size) * rng.uniform(0.07, 0.2)
    stripes = np.sin(2 * np.pi * u / period)
    if kind == 2:
        return stripes
    return np.sign(stripes) * np.sign(np.sin(2 * np.pi * v / period))


def _draw_gradient(rng: np.random.Generator, size: tuple[int, int]) -> Float32[np.ndarray, "H W"]:
    """A ramp from -1 to 1 across the longer side, in any direction."""
    return _rotated_grid(rng, size)[0] * np.float32(2 / max(size))


def _rotated_grid(rng: np.random.Generator, size: tuple[int, int]) -> Float32[np.ndarray, "2 H W"]:
    """Coordinates of the pixels about the middle, along two random orthogonal directions."""
    y, x = (np.arange(n, dtype=np.float32) - n / 2 for n in size)
    angle = rng.uniform(0, 2 * np.pi)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return np.stack([cos * x + sin * y[:, None], cos * y[:, None] - sin * x])


def _photograph(
    rng: np.random.Generator, picture: Float32[np.ndarray, "H W 3"]
) -> UInt8[np.ndarray, "H W 3"]:
    """Uneven light, the softness of a lens, and sensor noise."""
    size = picture.shape[:2]
    light = rng.uniform(0.8, 1.1) + rng.uniform(0, 0.25) * _draw_gradient(rng, size)
    picture = cv2.GaussianBlur(picture * light[..., None].astype(np.float32), (3, 3), 0.6)
    noise = rng.standard_normal(picture.shape, np.float32) * np.float32(rng.uniform(3, 10))
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def _mark(
    points: Float32[np.ndarray, "J 2"], number: int, owner: np.ndarray
) -> Float32[np.ndarray, "J 3"]:
    """Keypoints of the `number`-th object with their visibility; zeros for absent ones."""
    height, width = owner.shape
    x, y = np.floor(points).astype(int).T
    present = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    hidden = owner[y.clip(0, height - 1), x.clip(0, width - 1)] > number
    visibility = np.where(hidden, 1, 2)
    return np.where(present[:, None], np.c_[points, visibility], 0).astype(np.float32)
