"""Keypoints as heatmaps, one a joint: targets, and back from a heatmap's peak to coordinates.

keypoints  [P J 3]    x, y in pixels of the image, visibility (0 absent)
boxes      [P 4]      xyxy, the RoIs whose heatmaps these are
heatmaps   [P h w J]  logits or scores; h × w pixels stretched over the box
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int

from jaxseg.types import Array


def keypoint_targets(
    keypoints: Float[Array, "P J 3"], boxes: Float[Array, "P 4"], size: int = 56
) -> tuple[Int[Array, "P J"], Bool[Array, "P J"]]:
    """(pixel of the heatmap, its row times `size` plus its column; whether it counts).

    The target of the softmax over a heatmap's size × size pixels (He et al. 2017, "Mask R-CNN",
    section 5). Keypoints on the right or lower side of the box belong to the last pixel; those
    outside, absent ones, and those of boxes without area do not count, and are at 0.
    """
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    place = keypoints[:, :, :2]
    side = jnp.where(high > low, high - low, 1)
    scale = size * jnp.reciprocal(side)  # as torch divides a number by an array
    pixel = jnp.floor((place - low) * scale).astype(jnp.int32)
    pixel = jnp.where(place == high, size - 1, pixel)
    inside = (pixel >= 0) & (pixel < size) & (high > low)
    counts = inside.all(axis=2) & (keypoints[:, :, 2] > 0)
    return jnp.where(counts, pixel[:, :, 1] * size + pixel[:, :, 0], 0), counts


def heatmaps_to_keypoints(
    heatmaps: Float[Array, "P h w J"], boxes: Float[Array, "P 4"]
) -> tuple[Float[Array, "P J 3"], Float[Array, "P J"]]:
    """(x, y, 1; score): the peak of each heatmap, stretched bicubically over its box at the image's
    resolution, and its value there. As torchvision does it; boxes must be finite.

    A side has its length, at least 1, rounded up, of pixels. The stretched map is never whole in
    memory: it is made and searched in tiles, so that time is proportional to the boxes' areas.
    """
    heatmaps, boxes = lax.stop_gradient((heatmaps, boxes))

    def decode(roi: tuple[Array, Array]) -> tuple[Array, Array]:
        heatmap, (left, top, right, bottom) = roi
        sides = jnp.maximum(jnp.stack([right - left, bottom - top]), 1)
        width, height = pixels = jnp.ceil(sides).astype(jnp.int32)
        score, x, y = _bicubic_peaks(heatmap, height, width)
        place = (jnp.stack([x, y], axis=1) + 0.5) * (sides / pixels)[None]
        place += jnp.stack([left, top])[None]
        return jnp.concatenate([place, jnp.ones_like(place[:, :1])], axis=1), score

    return lax.map(decode, (heatmaps, boxes))


def quarter_offset_peaks(
    heatmaps: Float[Array, "h w J"],
) -> tuple[Float[Array, "J 2"], Float[Array, "J"]]:
    """(x, y; score): each heatmap's highest pixel, moved a quarter of a pixel towards the higher of
    its neighbours, in each direction in which it has two that differ (Newell, Yang & Deng 2016,
    "Stacked Hourglass Networks", section 3.3).

    In pixels of the heatmap, centres at +0.5: times its stride, in pixels of the image. Of equal
    peaks the first is taken, row by row.
    """
    heatmaps = jnp.asarray(heatmaps)
    h, w, num_joints = heatmaps.shape
    y, x = jnp.divmod(heatmaps.reshape(-1, num_joints).argmax(axis=0), w)
    joint = jnp.arange(num_joints)

    def slope(down: int, right: int) -> Array:
        """The sign of the difference of two neighbours, 0 at a border."""
        inside = (y >= down) & (y < h - down) & (x >= right) & (x < w - right)
        before, after = (heatmaps[y + s * down, x + s * right, joint] for s in (-1, 1))
        return jnp.where(inside, jnp.sign(after - before), 0)

    place = jnp.stack([x + 0.25 * slope(0, 1), y + 0.25 * slope(1, 0)], axis=1)
    return place + 0.5, heatmaps[y, x, joint]


_TILE = 64  # pixels; the side of what `_bicubic_peaks` stretches at a time


def _bicubic_peaks(heatmap: Array, height: Array, width: Array) -> tuple[Array, Array, Array]:
    """(maximum, x, y), [J] each, of a heatmap [h w J] at another size; of equal ones the first, row
    by row."""
    h, w, num_joints = heatmap.shape
    across = -(-width // _TILE)
    offset = jnp.arange(_TILE)

    def search(tile: Array, best: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        y, x = tile // across * _TILE + offset, tile % across * _TILE + offset
        stretched = jnp.einsum(
            "yh,hwj,xw->jyx",
            _bicubic_matrix(y, height, h),
            heatmap,
            _bicubic_matrix(x, width, w),
            precision="highest",
            preferred_element_type=jnp.float32,
        )
        inside = (y < height)[:, None] & (x < width)[None, :]
        values = jnp.where(inside[None], stretched, -jnp.inf).reshape(num_joints, -1)
        place = values.argmax(axis=1)
        score, x, y = found = values.max(axis=1), x[place % _TILE], y[place // _TILE]
        earlier = (y < best[2]) | ((y == best[2]) & (x < best[1]))
        better = (score > best[0]) | ((score == best[0]) & earlier)
        return jax.tree.map(partial(jnp.where, better), found, best)

    nowhere = jnp.zeros(num_joints, jnp.int32)
    start = jnp.full(num_joints, -jnp.inf), nowhere, nowhere
    return lax.fori_loop(0, across * -(-height // _TILE), search, start)


def _bicubic_matrix(pixel: Array, target: Array | int, source: int) -> Array:
    """[pixel source] weights of cubic convolution (Keys 1981, with a = −0.75) from `source` values
    to these pixels of `target`; values beyond the border are those on it."""
    place = (pixel + 0.5) * (source / target) - 0.5
    first = jnp.floor(place)
    near = first[:, None] + jnp.arange(-1.0, 3.0)[None, :]
    weight = _keys(jnp.abs(place[:, None] - near))
    near = jnp.clip(near, 0, source - 1)[:, :, None]
    return jnp.where(near == jnp.arange(source).reshape(1, 1, -1), weight[:, :, None], 0).sum(
        axis=1
    )


def _keys(distance: Array, a: float = -0.75) -> Array:
    """Keys' cubic kernel at distances 0 … 2."""
    inner = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    outer = a * (((distance - 5) * distance + 8) * distance - 4)
    return jnp.where(distance <= 1, inner, outer)
