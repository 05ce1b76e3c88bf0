"""Features of regions of interest: RoI-Align, RoI-Align on a feature pyramid, RoI-Pool.

    features  [H W C]  the map of one image; `vmap` for several
    boxes     [R 4]    xyxy in pixels of the image; times `scale`, in pixels of the map
    size      (n, m)   bins of a RoI, downwards and to the right

Results and gradients are torchvision's, also for boxes that leave the map or have no area. As
there, no gradient reaches the boxes. What boxes that are not finite give is not specified.
"""

import itertools
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float, Int

from jaxseg.types import Array


def roi_align(
    features: Float[Array, "H W C"],
    boxes: Float[Array, "R 4"],
    size: tuple[int, int],
    *,
    scale: float = 1.0,
    sampling_ratio: int = 2,
    aligned: bool = False,
    extent: Int[Array, "2"] | None = None,
) -> Float[Array, "R n m C"]:
    """Each bin is the mean of bilinear interpolations at points on a regular grid inside of it (He
    et al. 2017, "Mask R-CNN", section 3).

    sampling_ratio: points of a bin in each direction. 0, or less, is adaptive: points are 0.5 to 1
        pixel apart, their number is the bin's length rounded up.
    aligned: True puts pixel centres at +0.5, as boxes have them. False, as in the paper, puts them
        at integers, and makes sides of less than a pixel one pixel long.
    extent: (height, width) of what the map shows, at its top left, where the rest is padding.
    """
    height, width = features.shape[:2]
    ends = (height, width) if extent is None else extent
    rows, columns = _sides(boxes, jnp.asarray(scale, boxes.dtype), aligned)
    if sampling_ratio < 1:
        vertical = _adaptive_matrix(rows, size[0], height, ends[0])
        horizontal = _adaptive_matrix(columns, size[1], width, ends[1])
        return _multiply(features, vertical, horizontal)
    vertical = _taps(rows, size[0], ends[0], sampling_ratio)
    horizontal = _taps(columns, size[1], ends[1], sampling_ratio)
    level = jnp.zeros(len(boxes), jnp.int32)
    return _interpolate((features,), level, vertical, horizontal)


def multiscale_roi_align(
    maps: Sequence[Float[Array, "_ _ C"]],
    boxes: Float[Array, "R 4"],
    size: tuple[int, int],
    *,
    strides: Sequence[int],
    sampling_ratio: int = 2,
    aligned: bool = False,
) -> Float[Array, "R n m C"]:
    """RoI-Align of each box on its level of a feature pyramid (`pyramid_levels`).

    strides: pixels of the image to a pixel of each map, such as (4, 8, 16, 32); ValueError unless
        there is one for each map.
    """
    if len(maps) != len(strides):
        raise ValueError(f"strides are {tuple(strides)}, expected one for each of {len(maps)} maps")
    level = pyramid_levels(boxes, strides)
    if sampling_ratio < 1:
        align = partial(roi_align, sampling_ratio=sampling_ratio, aligned=aligned)
        pooled = jnp.zeros((), maps[0].dtype)
        for i, (features, stride) in enumerate(zip(maps, strides, strict=True)):
            here = (level == i)[:, None, None, None]
            pooled = jnp.where(here, align(features, boxes, size, scale=1 / stride), pooled)
        return pooled
    heights, widths = jnp.asarray([features.shape[:2] for features in maps]).T
    scale = (1 / jnp.asarray(strides, boxes.dtype))[level]
    rows, columns = _sides(boxes, scale[:, None], aligned)
    vertical = _taps(rows, size[0], heights[level], sampling_ratio)
    horizontal = _taps(columns, size[1], widths[level], sampling_ratio)
    return _interpolate(tuple(maps), level, vertical, horizontal)


def pyramid_levels(
    boxes: Float[Array, "R 4"],
    strides: Sequence[int],
    *,
    canonical_size: int = 224,
    canonical_level: int = 4,
) -> Int[Array, "R"]:
    """⌊k0 + log2(√(wh) / 224)⌋, from the level of the first stride to that of the last, counted
    from 0: Lin et al. 2017, "Feature Pyramid Networks", eq. 1. Level k has stride 2^k.

    A millionth is added, so that sizes on a border belong to the larger level.
    """
    first, last = np.log2(strides[0]), np.log2(strides[-1])
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    side = jnp.sqrt(jnp.maximum(area, 0))
    level = jnp.floor(canonical_level + jnp.log2(side / canonical_size) + 1e-6)
    return (jnp.clip(level, first, last) - first).astype(jnp.int32)


def roi_pool(
    features: Float[Array, "H W C"],
    boxes: Float[Array, "R 4"],
    size: tuple[int, int],
    *,
    scale: float = 1.0,
) -> Float[Array, "R n m C"]:
    """The maximum of each bin, 0 for bins that hold no pixel (Girshick 2015, "Fast R-CNN", section
    2.1). Boxes are rounded to pixels, both ends belong to them, and neighbouring bins share a pixel
    where their border would cut it. Of equal maxima the first, row by row, has the gradient.
    """
    height, width, channels = features.shape
    table = jnp.asarray(features).reshape(-1, channels)
    values = lax.stop_gradient(table)
    # XLA's rounding of halves away from zero, not numpy's to even
    left, top, right, bottom = lax.round(lax.stop_gradient(boxes) * scale).astype(jnp.int32).T

    def pool(top: Array, bottom: Array, left: Array, right: Array) -> tuple[Array, Array]:
        """(where each maximum is [n m C], whether its bin is empty [n m]) for one RoI."""
        upper, lower = _pixel_bins(top, bottom, size[0], height)
        start, end = _pixel_bins(left, right, size[1], width)
        largest_width = (end - start).max()

        def look(i: Array, seen: tuple[Array, Array]) -> tuple[Array, Array]:
            """At the i-th pixel of each bin."""
            best, place = seen
            y, x = upper + i // largest_width, start + i % largest_width
            inside = (y < lower)[:, None] & (x < end)[None, :]
            here = jnp.where(inside, y[:, None] * width + x[None, :], 0)
            value = values[here]
            better = inside[:, :, None] & (value > best)
            return jnp.where(better, value, best), jnp.where(better, here[:, :, None], place)

        nothing = jnp.full((*size, channels), -jnp.inf, values.dtype)
        seen = nothing, jnp.zeros(nothing.shape, jnp.int32)
        pixels = (lower - upper).max() * largest_width
        _, place = lax.fori_loop(0, pixels, look, seen)
        return place, (lower <= upper)[:, None] | (end <= start)[None, :]

    place, empty = jax.vmap(pool)(top, bottom, left, right)
    pooled = table[place, jnp.arange(channels).reshape(1, 1, 1, -1)]
    return jnp.where(empty[..., None], 0, pooled)


def _pixel_bins(first: Array, last: Array, bins: int, size: int) -> tuple[Array, Array]:
    """The first pixel of each bin, and the one after its last, [bins] each, inside the map."""
    length = jnp.maximum(last - first + 1, 1).astype(jnp.float32)
    edges = jnp.arange(bins + 1) * _divide(length, bins)
    start = jnp.floor(edges[:-1]).astype(jnp.int32) + first
    end = jnp.ceil(edges[1:]).astype(jnp.int32) + first
    return jnp.clip(start, 0, size), jnp.clip(end, 0, size)


def _divide(x: Array, parts: Array | int) -> Array:
    """x / parts, rounded as a division is. Compilers multiply by 1 / parts where they see that many
    are divided by the same: then what should lie on a border may lie beside it."""
    x = lax.optimization_barrier(x)  # it may be a constant
    return x / jnp.where(jnp.isnan(x), 1, jnp.asarray(parts, x.dtype))


def _rounded(product: Array) -> Array:
    """A product that is rounded before something is added, which compilers would spare, too."""
    product = lax.optimization_barrier(product)
    return jnp.where(jnp.isnan(product), 0, product)


class _Side(NamedTuple):
    """A side of each RoI, in pixels of the map whose centres are integers."""

    start: Array  # [R]
    length: Array  # [R]


class _Taps(NamedTuple):
    """What each bin reads along an axis: two pixels for each of its points."""

    pixel: Array  # [R n 2S] int32
    weight: Array  # [R n 2S] float32


def _sides(boxes: Array, scale: Array, aligned: bool) -> tuple[_Side, _Side]:
    """The vertical and the horizontal sides of boxes; scale is one number, or [R 1]."""
    scaled = _rounded(lax.stop_gradient(boxes) * scale)
    left, top, right, bottom = (scaled - 0.5 if aligned else scaled).T
    least = -jnp.inf if aligned else 1.0
    vertical = _Side(top, jnp.maximum(bottom - top, least))
    return vertical, _Side(left, jnp.maximum(right - left, least))


def _taps(side: _Side, bins: int, size: Array | int, samples: int) -> _Taps:
    """size: pixels of the map along this axis, one number, or [R]."""

    def of_one(start: Array, length: Array, size: Array) -> _Taps:
        bin_size = _divide(length, bins)
        points = _divide((jnp.arange(samples) + 0.5).reshape(1, -1) * bin_size, samples)
        place = start + _rounded(jnp.arange(bins).reshape(-1, 1) * bin_size) + points
        last = size - 1
        inside = (place >= -1) & (place <= size)  # half a pixel beyond the edge still counts
        place = jnp.clip(place, 0, last)
        pixel = jnp.clip(place.astype(jnp.int32), 0, last)
        fraction = place - pixel
        weight = jnp.concatenate([1 - fraction, fraction], axis=1) / samples
        pixels = jnp.concatenate([pixel, jnp.minimum(pixel + 1, last)], axis=1)
        return _Taps(pixels, jnp.where(jnp.tile(inside, 2), weight, 0))

    return jax.vmap(of_one)(*side, jnp.broadcast_to(size, side.start.shape))


@jax.custom_vjp
def _interpolate(maps: tuple[Array, ...], level: Array, rows: _Taps, columns: _Taps) -> Array:
    """Σ weight · maps[level][pixel] over the taps of each bin, [R n m C].

    On CPU, products with matrices, as for adaptive sampling, are 30 times slower than these sums,
    and the gradient that autodiff would derive is 5 to 8 times slower than the one below.
    """
    arguments = maps, level, rows, columns
    if len(maps) == 1:
        return _interpolate_together(*arguments)
    return lax.platform_dependent(
        *arguments, cpu=_interpolate_one_by_one, default=_interpolate_together
    )


def _interpolate_together(
    maps: tuple[Array, ...], level: Array, rows: _Taps, columns: _Taps
) -> Array:
    table = jnp.concatenate([features.reshape(-1, features.shape[2]) for features in maps])
    return _read(table, *_addresses(maps, level, rows, columns)).astype(maps[0].dtype)


@jax.custom_batching.sequential_vmap  # all branches would run for a batch
def _interpolate_one_by_one(
    maps: tuple[Array, ...], level: Array, rows: _Taps, columns: _Taps
) -> Array:
    """Without a copy of the maps."""

    def read(features: Array, rows: _Taps, columns: _Taps) -> Array:
        _, width, channels = features.shape
        rows = rows._replace(pixel=rows.pixel * width)
        return _read(features.reshape(-1, channels), rows, columns).astype(features.dtype)

    branches = [partial(read, features) for features in maps]
    return lax.map(lambda roi: lax.switch(roi[0], branches, *roi[1:]), (level, rows, columns))


def _interpolate_forward(*arguments):
    return _interpolate(*arguments), arguments


def _interpolate_backward(arguments, g: Array):
    """The gradient of the maps; of `arguments` the maps' values are not needed."""
    maps = arguments[0]
    rows, columns = _addresses(*arguments)
    sizes = [features.shape[0] * features.shape[1] for features in maps]
    nothing = jnp.zeros((sum(sizes), g.shape[-1]), jnp.float32)

    def one_by_one(rows: _Taps, columns: _Taps, g: Array) -> Array:
        """On CPU, so that what is added stays in the processor's cache."""

        def add(i: Array, table: Array) -> Array:
            return _add(table, *jax.tree.map(lambda array: array[i], (rows, columns, g)))

        return lax.fori_loop(0, len(g), add, nothing)

    table = lax.platform_dependent(rows, columns, g, cpu=one_by_one, default=partial(_add, nothing))
    parts = jnp.split(table, np.cumsum(sizes)[:-1])
    gradients = (
        part.reshape(features.shape).astype(features.dtype)
        for part, features in zip(parts, maps, strict=True)
    )
    return tuple(gradients), None, None, None


_interpolate.defvjp(_interpolate_forward, _interpolate_backward)


def _addresses(
    maps: tuple[Array, ...], level: Array, rows: _Taps, columns: _Taps
) -> tuple[_Taps, _Taps]:
    """Taps in the table of all the maps' pixels, where a row's pixel and a column's add up."""
    shapes = np.array([features.shape[:2] for features in maps])
    offset = jnp.asarray(np.cumsum(shapes.prod(axis=1)) - shapes.prod(axis=1))[level]
    width = jnp.asarray(shapes[:, 1])[level]
    pixel = rows.pixel * width[:, None, None] + offset[:, None, None]
    return rows._replace(pixel=pixel), columns


def _read(table: Array, rows: _Taps, columns: _Taps) -> Array:
    """[N C] -> [*R n m C] float32. Unrolled, so that the compiler fuses the gathers."""
    total: Array = jnp.zeros((), jnp.float32)
    taps = rows.pixel.shape[-1], columns.pixel.shape[-1]
    for i, j in itertools.product(*map(range, taps)):
        pixel = rows.pixel[..., i][..., :, None] + columns.pixel[..., j][..., None, :]
        weight = rows.weight[..., i][..., :, None] * columns.weight[..., j][..., None, :]
        total += weight[..., None] * table.at[pixel].get(mode="promise_in_bounds")
    return total


def _add(table: Array, rows: _Taps, columns: _Taps, g: Array) -> Array:
    """The adjoint of `_read`: g [*R n m C] added to a table [N C]."""

    def pairs(rows: Array, columns: Array) -> tuple[Array, Array]:
        return rows[..., :, None, :, None], columns[..., None, :, None, :]

    y, x = pairs(rows.pixel, columns.pixel)
    row_weight, column_weight = pairs(rows.weight, columns.weight)
    added = (row_weight * column_weight)[..., None] * g[..., None, None, :]
    return table.at[y + x].add(added, mode="promise_in_bounds")


def _adaptive_matrix(side: _Side, bins: int, size: int, end: Array | int) -> Array:
    """[R bins size] what each pixel counts in each bin, if a bin has ⌈bin's length⌉ points. Of the
    `size` pixels those from `end` on are padding.

    How many these are is not known while tracing, but how many can be near one pixel is: unless it
    is the only one of its bin, a point is at least half a pixel from the next.
    """

    def of_one(start: Array, length: Array) -> Array:
        bin_size = _divide(length, bins)
        count = jnp.maximum(jnp.ceil(bin_size), 1)
        distance = jnp.where(bin_size > 0, bin_size / count, 1)
        origin = (start + _rounded(jnp.arange(bins) * bin_size)).reshape(-1, 1, 1)
        pixel = jnp.arange(size).reshape(1, -1, 1)
        first = jnp.floor((pixel - 1 - origin) / distance - 0.5) - 1
        point = jnp.maximum(first, 0) + jnp.arange(7).reshape(1, 1, -1)
        place = origin + _divide((point + 0.5) * bin_size, count)
        counts = (place >= -1) & (place <= end) & (point < count) & (bin_size > 0)
        ramp = 1 - jnp.abs(jnp.clip(place, 0, end - 1) - pixel)
        return jnp.where(counts, jnp.maximum(ramp, 0), 0).sum(axis=2) / count

    return jax.vmap(of_one)(*side)


def _multiply(features: Array, rows: Array, columns: Array) -> Array:
    """[R n H], [R m W] -> [R n m C], a few RoIs at a time, as each needs n × W × C values."""

    def of_one(matrices: tuple[Array, Array]) -> Array:
        product = partial(jnp.einsum, precision="highest", preferred_element_type=jnp.float32)
        bands = product("nh,hwc->nwc", matrices[0], features)
        return product("mw,nwc->nmc", matrices[1], bands).astype(features.dtype)

    return lax.map(of_one, (rows, columns), batch_size=32)
