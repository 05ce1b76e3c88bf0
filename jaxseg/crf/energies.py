"""What a conditional random field is made of: unary logits, features, compatibilities.

Logits are −ψ_u: the higher, the likelier the label. Compatibilities are costs.
"""

from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxseg.types import IGNORE, Array

Bandwidth = float | int | Array


def known(tree: Any) -> bool:
    """Whether values are at hand, and not only traced: then they can be checked."""
    return not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(tree))


def logits_from_probabilities(
    probabilities: Float[Array, "*S K"], floor: float = 1e-7
) -> Float[Array, "*S K"]:
    """log p, of probabilities not below `floor`."""
    return jnp.log(jnp.maximum(probabilities, floor))


def logits_from_labels(
    labels: Int[Array, "*S"], num_classes: int, confidence: float = 0.7, ignore: int = IGNORE
) -> Float[Array, "*S K"]:
    """log p, where p is `confidence` for the label given and the rest is shared by the others. At
    places with the label `ignore` nothing is known: all labels are alike.

    confidence: between 1/K and 1. Raises ValueError where it is not, and for labels out of range
    unless they are traced.
    """
    if not 1 / num_classes < confidence < 1:
        raise ValueError(f"confidence is {confidence}, expected between 1/{num_classes} and 1")
    if known(labels):
        wrong = np.setdiff1d(np.asarray(labels), [*range(num_classes), ignore])
        if wrong.size:
            raise ValueError(
                f"labels: {wrong[0]}, expected 0 … {num_classes - 1}, or {ignore} for unknown"
            )
    other = (1 - confidence) / max(1, num_classes - 1)
    given = jax.nn.one_hot(labels, num_classes) * (confidence - other) + other
    return jnp.log(jnp.where((labels == ignore)[..., None], 1 / num_classes, given))


def grid_features(
    size: Sequence[int],
    sigmas: Sequence[Bandwidth] | Array,
    channels: Float[Array, "*size C"] | None = None,
    channel_sigmas: Bandwidth | Sequence[Bandwidth] = (),
) -> Float[Array, "N d"]:
    """Features in standard deviations of the N places of a grid of any dimension, row by row:
    their coordinates, that of the last axis first (x, y …), and what channels say of them. (Their
    order makes another lattice, with another error; this is the published one.)

    sigmas: one for each axis of the grid; channel_sigmas: one for all channels, or one for each.
    ValueError for bandwidths that are more or fewer, or not above zero.
    """
    dtype = None if channels is None else jnp.promote_types(channels.dtype, jnp.float32)
    features = list(jnp.indices(size, dtype or float))[::-1]
    scales = bandwidths("sigmas", sigmas, len(size))[::-1]
    if channels is not None:
        features += list(jnp.moveaxis(channels.astype(dtype), -1, 0))
        scales += bandwidths("channel_sigmas", channel_sigmas, channels.shape[-1])
    scaled = [feature.ravel() / sigma for feature, sigma in zip(features, scales, strict=True)]
    return jnp.stack(scaled, axis=-1)


def bilateral_features(
    image: Float[Array, "H W C"], sigma: Bandwidth, colour_sigma: Bandwidth
) -> Float[Array, "N C+2"]:
    """(x / σ, y / σ, colour / σ_colour) of each pixel; σ in pixels, σ_colour in the image's units.
    ValueError for a bandwidth not above zero."""
    return grid_features(image.shape[:2], (sigma, sigma), image, colour_sigma)


def bandwidths(
    name: str, sigmas: Bandwidth | Sequence[Bandwidth], number: int = 1
) -> list[Bandwidth]:
    """Bandwidths, one for each of `number` axes. ValueError unless they are so many, or one number
    for all, and above zero and finite, or traced."""
    several = isinstance(sigmas, Sequence) or np.ndim(sigmas) > 0
    each = list(cast(Sequence, sigmas)) if several else [sigmas] * number
    if len(each) != number:
        raise ValueError(f"{name}: {len(each)} bandwidths, expected {number}")
    for sigma in each:
        if known(sigma) and not 0 < sigma < np.inf:
            raise ValueError(f"{name} is {sigma}, expected a number above zero")
    return each
