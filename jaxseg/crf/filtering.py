"""Gaussian filters v ↦ K v, K_ij = exp(−½ |f_i − f_j|²): by name, and normalised.

permutohedral  approximate, in linear time, on any device; d up to 8
nystrom        approximate, matrix products alone; differentiable in the features
exact          in quadratic time; differentiable in the features
spatial        exact, for points that are the places of a grid; `crf.spatial`
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Float

from jaxseg.crf import exact, nystrom, permutohedral
from jaxseg.crf.mean_field import Filter
from jaxseg.types import Array

BACKENDS = {"permutohedral": permutohedral, "nystrom": nystrom, "exact": exact}

# With D_i = Σ_j K_ij, D to these powers stands before K's values and after: K D⁻¹ is "before".
NORMALIZATIONS = {"none": (0, 0), "before": (1, 0), "after": (0, 1), "symmetric": (0.5, 0.5)}
LEAST = 0.4  # D_i is 1 or more; 0.47 or more on the lattice; whatever in Nyström's far points


def gaussian(
    features: Float[Array, "N d"], backend: str = "permutohedral", **options: Any
) -> Filter:
    """The filter of features in standard deviations. options: of the backend's own `gaussian`.
    Raises ValueError for an unknown backend."""
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}, expected one of {', '.join(BACKENDS)}")
    return BACKENDS[backend].gaussian(features, **options)


def normalized(
    filter: Filter,
    points: int,
    normalization: str = "symmetric",
    *,
    self_message: bool = True,
) -> Filter:
    """The filter, normalised: K, K D⁻¹ (before), D⁻¹ K (after) or D^(−½) K D^(−½) (symmetric).
    self_message: whether a point hears itself, as published code has it;
    the papers leave K_ii = 1 out, after normalisation. (On the lattice K_ii is 0.5 … 1, and so a
    little too much is left out.) ValueError for an unknown normalisation.
    """
    if normalization not in NORMALIZATIONS:
        names = ", ".join(NORMALIZATIONS)
        raise ValueError(f"normalization is {normalization!r}, expected one of {names}")
    if normalization == "none":
        scaled, diagonal = filter, jnp.ones((points, 1))
    else:
        total = jnp.maximum(filter(jnp.ones((points, 1))), LEAST)
        before, after = (total**-power for power in NORMALIZATIONS[normalization])
        diagonal = before * after

        def scaled(values: Array) -> Array:
            return after * filter(before * values)

    if self_message:
        return scaled
    return lambda values: scaled(values) - diagonal * values
