"""Gaussian filtering on a pixel grid, exactly: the kernel is a product of one for each axis."""

from collections.abc import Sequence
from functools import reduce
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from jaxseg.crf.energies import Bandwidth, bandwidths
from jaxseg.crf.mean_field import Filter
from jaxseg.types import Array

BLOCK = 256  # places that one matrix product makes


def gaussian(size: Sequence[int], sigmas: Sequence[Bandwidth] | Array) -> Filter:
    """v ↦ K v with K_ij = exp(−½ Σ_a (i_a − j_a)² / σ_a²) over the places i, j of a grid.

    size: of the grid, whose places are the points, row by row; sigmas: in steps of the grid, one
    for each axis. Numbers cut the kernel off where it is less than the rounding of the values;
    arrays, which may be traced and have a gradient, do not, and cost a matrix product over each
    axis. ValueError for bandwidths that are more or fewer, or not above zero, and for values of
    another number of points.
    """
    sigmas = bandwidths("sigmas", sigmas, len(size))

    def convolve(values: Array) -> Array:
        if len(values) != prod(size):
            raise ValueError(f"values of {len(values)} points, expected those of a grid {size}")
        grid = values.reshape(*size, -1)
        for axis in reversed(range(len(size))):
            grid = along(grid, taps(sigmas[axis], size[axis], values.dtype), axis)
        return grid.reshape(values.shape)

    if any(isinstance(sigma, jax.Array) for sigma in sigmas):
        return convolve
    # The kernel is symmetric; what autodiff would make of the shifts is slower.
    filter = jax.custom_vjp(convolve)
    filter.defvjp(lambda values: (convolve(values), None), lambda _, g: (convolve(g),))
    return filter


def taps(sigma: Bandwidth, size: int, dtype: Any) -> Float[Array | np.ndarray, "R"]:
    """exp(−½ r²/σ²) at r = 0, 1 … as far as it counts, or as the axis reaches."""
    if isinstance(sigma, jax.Array):
        return jnp.exp(-0.5 * (jnp.arange(size) / sigma) ** 2).astype(dtype)
    reach = int(np.ceil(float(sigma) * np.sqrt(-2 * np.log(jnp.finfo(dtype).eps))))
    return np.exp(-0.5 * (np.arange(min(size, reach + 1)) / float(sigma)) ** 2).astype(dtype)


def along(values: Array, taps: Float[Array | np.ndarray, "R"], axis: int) -> Array:
    """values convolved along one axis with a symmetric kernel, zero beyond the border."""
    reach, size = len(taps) - 1, values.shape[axis]
    if axis == 0 or 4 * reach >= size:
        return by_blocks(values, taps, axis)
    padded = jnp.pad(values, [(reach, reach) if a == axis else (0, 0) for a in range(values.ndim)])

    def shifted(by: int) -> Array:
        return lax.slice_in_dim(padded, reach + by, reach + by + size, axis=axis)

    pairs = [taps[r] * (shifted(r) + shifted(-r)) for r in range(1, reach + 1)]
    return reduce(jnp.add, pairs, taps[0] * values)


def by_blocks(values: Array, taps: Float[Array | np.ndarray, "R"], axis: int) -> Array:
    """`along`, as matrix products: on CPU faster than shifts where the axis is the first."""
    reach, size = len(taps) - 1, values.shape[axis]
    blocks = []
    for start in range(0, size, BLOCK):
        stop = min(size, start + BLOCK)
        low, high = max(0, start - reach), min(size, stop + reach)
        distance = np.abs(np.subtract.outer(np.arange(start, stop), np.arange(low, high)))
        kernel = jnp.where(distance <= reach, taps[np.minimum(distance, reach)], 0)
        seen = lax.slice_in_dim(values, low, high, axis=axis)
        product = jnp.tensordot(kernel, seen, (1, axis), precision=lax.Precision.HIGHEST)
        blocks.append(jnp.moveaxis(product, 0, axis))
    return jnp.concatenate(blocks, axis)
