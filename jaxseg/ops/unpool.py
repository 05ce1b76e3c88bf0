"""In-network upsampling: nearest neighbour, bed of nails, max unpooling by switches. The fourth way
is learned: `ops.conv.conv_transpose2d`, where stride, padding and output padding are explained.
"""

import itertools

import jax.numpy as jnp
from jaxtyping import Float, Int, Shaped

from jaxseg.ops.conv import pool_windows
from jaxseg.types import Array


def upsample_nearest(x: Shaped[Array, "B H W C"], factor: int) -> Shaped[Array, "B H2 W2 C"]:
    """Every value `factor`×`factor` times."""
    b, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (b, h, factor, w, factor, c))
    return x.reshape(b, h * factor, w * factor, c)


def bed_of_nails(x: Float[Array, "B H W C"], factor: int) -> Float[Array, "B H2 W2 C"]:
    """Every value in the upper left corner of `factor`×`factor` zeros."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, 1, w, 1, c)
    gaps = (0, factor - 1)
    x = jnp.pad(x, ((0, 0), (0, 0), gaps, (0, 0), gaps, (0, 0)))
    return x.reshape(b, h * factor, w * factor, c)


def max_pool_with_switches(
    x: Float[Array, "B H W C"],
    window: int = 2,
    stride: int = 2,
    padding: int = 0,
    *,
    ceil_mode: bool = False,
) -> tuple[Float[Array, "B h w C"], Int[Array, "B h w C"]]:
    """(`ops.conv.max_pool2d`, where each maximum was: its row times W plus its column, int32).

    Of equal maxima the first is taken, row by row, and has all of the gradient (torch's
    `max_pool2d`, its indices too).
    """
    width = x.shape[2]
    first, *others = pool_windows(x, window, stride, padding, ceil_mode=ceil_mode)
    best, place = first, jnp.zeros(first.shape, jnp.int32)  # in the window
    for i, value in enumerate(others, start=1):
        better = (value > best) | jnp.isnan(value)  # not a number is not to be lost
        best = jnp.where(better, value, best)
        place = jnp.where(better, i // window * width + i % window, place)
    h, w = best.shape[1:3]
    row = jnp.arange(h).reshape(1, h, 1, 1) * stride - padding
    column = jnp.arange(w).reshape(1, 1, w, 1) * stride - padding
    return best, row * width + column + place


def max_unpool(
    x: Float[Array, "B h w C"],
    switches: Int[Array, "B h w C"],
    size: tuple[int, int],
    window: int = 2,
    stride: int = 2,
    padding: int = 0,
) -> Float[Array, "B H W C"]:
    """Values put back where their maxima were, in an image of `size` = (H, W), 0 elsewhere (Zeiler
    & Fergus 2014, section 2.1; Noh et al. 2015, section 3.2.1).

    size, window, stride, padding: as they were in the pooling; sizes that it cannot divide are
    right, too. Where windows overlap and share a maximum, the last one's value stays, and has the
    gradient. Every pixel looks for its number among the switches, as a scatter would take 4 to 10
    times as long on CPU.
    """
    height, width = size
    pixels = jnp.arange(height * width).reshape(1, height, width, 1)

    def spread(values: Array, down: int, right: int) -> Array:
        """For each pixel the value of its window, or of one so many windows before."""
        values = upsample_nearest(values, stride)
        values = jnp.pad(values, ((0, 0), (down * stride, height), (right * stride, width), (0, 0)))
        return values[:, padding : padding + height, padding : padding + width]

    unpooled = jnp.zeros((x.shape[0], height, width, x.shape[3]), x.dtype)
    overlapping = -(-window // stride)
    for before in itertools.product(reversed(range(overlapping)), repeat=2):
        # 1 more, so that the padding of `spread` is no pixel's number
        chosen = spread(switches + 1, *before) == pixels + 1
        unpooled = jnp.where(chosen, spread(x, *before), unpooled)
    return unpooled
