"""Gaussian filtering by matrix products alone: the Nyström approximation.

Williams & Seeger 2001, "Using the Nyström Method to Speed Up Kernel Machines": with a few points
as landmarks, C = K(points, landmarks) and W = K(landmarks, landmarks), K ≈ C W⁻¹ Cᵀ. The landmarks
are the means of clusters, as in Zhang, Tsang & Kwok 2008, "Improved Nyström Low-Rank Approximation
and Error Analysis".
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float, Int

from jaxseg.crf import exact
from jaxseg.crf.exact import kernel, squared_distances
from jaxseg.crf.mean_field import Filter
from jaxseg.types import Array

CANDIDATES = 16  # points for each landmark, of which one is where a cluster begins
SAMPLE = 128  # points for each landmark, of which clusters are made
ROUNDS = 5  # of Lloyd's algorithm

matmul = partial(jnp.matmul, precision=lax.Precision.HIGHEST)


def gaussian(features: Float[Array, "N d"], landmarks: int = 512) -> Filter:
    """The filter of features in standard deviations, differentiable with respect to them.

    In memory it has N × landmarks numbers, and a few times as many while it is made. More landmarks
    are more exact, smaller bandwidths need more; for no more points than landmarks it is `exact`.
    ValueError for no landmarks.
    """
    if landmarks < 1:
        raise ValueError(f"landmarks is {landmarks}, expected 1 or more")
    if len(features) <= landmarks:
        return exact.gaussian(features)
    features = jnp.asarray(features)
    factor = kernel_factor(features, cluster_means(features, landmarks))
    # What is known exactly is K_ii = 1; points far from all landmarks at least hear themselves.
    missing = 1 - (factor**2).sum(1, keepdims=True)
    return partial(apply, factor, jnp.maximum(missing, 0))


@jax.jit
def apply(
    factor: Float[Array, "N M"], missing: Float[Array, "N 1"], values: Float[Array, "N K"]
) -> Float[Array, "N K"]:
    """v ↦ (B Bᵀ + diag(missing)) v."""
    return matmul(factor, matmul(factor.T, values)) + missing * values


@jax.jit
def kernel_factor(
    features: Float[Array, "N d"], landmarks: Float[Array, "M d"]
) -> Float[Array, "N M"]:
    """B = C L⁻ᵀ, where L Lᵀ = W: then B Bᵀ = C W⁻¹ Cᵀ, and B is not above 1, whereas W⁻¹ is large
    where landmarks are close."""
    within = kernel(landmarks, landmarks)
    one = jnp.eye(len(landmarks), dtype=within.dtype)
    # What rounding may take away from W, so that it has a root even where landmarks are the same.
    ridge = 2 * len(landmarks) * jnp.finfo(within.dtype).eps
    lower = jnp.linalg.cholesky(within + ridge * one)
    inverse = jax.scipy.linalg.solve_triangular(lower, one, lower=True)
    return matmul(kernel(features, landmarks), inverse.T)


@partial(jax.jit, static_argnums=1)
def cluster_means(features: Float[Array, "N d"], number: int) -> Float[Array, "{number} d"]:
    """Means of clusters of some of the points, the same ones at each call. They have a gradient, in
    which a cluster's members stay the same."""
    size = min(len(features), SAMPLE * number)
    some = features[np.random.default_rng(0).choice(len(features), size, replace=False)]
    fixed = lax.stop_gradient(some)

    def means(points: Array, centres: Array) -> Array:
        nearest = squared_distances(fixed, centres).argmin(1)
        member = jax.nn.one_hot(nearest, number, dtype=points.dtype)
        size = member.sum(0)[:, None]
        return jnp.where(size > 0, matmul(member.T, points) / jnp.maximum(size, 1), centres)

    start = fixed[scattered(fixed[: CANDIDATES * number], number)]
    centres = lax.fori_loop(1, ROUNDS, lambda _, centres: means(fixed, centres), start)
    return means(some, centres)


def scattered(points: Float[Array, "N d"], number: int) -> Int[Array, "{number}"]:
    """Indices of points, drawn one by one with a probability in proportion to the squared distance
    from those before (k-means++, Arthur & Vassilvitskii 2007), the same at each call."""

    def draw(state: tuple[Array, Array], key: Array) -> tuple[tuple[Array, Array], Array]:
        distance, drawn = state
        distance = jnp.minimum(distance, ((points - points[drawn][None]) ** 2).sum(1))
        another = jax.random.categorical(key, jnp.log(distance)).astype(jnp.int32)
        return (distance, another), drawn

    start = jnp.full(len(points), jnp.inf, points.dtype), jnp.zeros((), jnp.int32)
    return lax.scan(draw, start, jax.random.split(jax.random.key(0), number))[1]
