"""Gaussian filtering by its definition, in time quadratic in the points: the reference."""

from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from jaxseg.crf.mean_field import Filter
from jaxseg.types import Array

TILE = 2**22  # entries of the kernel that are held at once


def gaussian(features: Float[Array, "N d"]) -> Filter:
    """The filter of features in standard deviations."""
    return partial(apply, features)


@jax.jit
def apply(features: Float[Array, "N d"], values: Float[Array, "N K"]) -> Array:
    """v ↦ K v with K_ij = exp(−½ |f_i − f_j|²), a tile of rows at a time.

    Differentiable in both; the tiles are made again for the gradient, so that it costs no more
    memory.
    """
    points, d = features.shape
    rows = min(points, max(1, TILE // points))
    count = -(-points // rows)
    padded = jnp.pad(features, ((0, count * rows - points), (0, 0)))

    @jax.checkpoint
    def tile(some: Float[Array, "R d"]) -> Float[Array, "R K"]:
        return jnp.matmul(kernel(some, features), values, precision=lax.Precision.HIGHEST)

    return lax.map(tile, padded.reshape(count, rows, d)).reshape(count * rows, -1)[:points]


def kernel(a: Float[Array, "N d"], b: Float[Array, "M d"]) -> Float[Array, "N M"]:
    """exp(−½ |a_i − b_j|²)."""
    return jnp.exp(-0.5 * squared_distances(a, b))


def squared_distances(a: Float[Array, "N d"], b: Float[Array, "M d"]) -> Float[Array, "N M"]:
    # |a|² + |b|² − 2 a·b would be faster, and have fewer digits.
    return reduce(jnp.add, [(a[:, None, i] - b[None, :, i]) ** 2 for i in range(a.shape[1])])
