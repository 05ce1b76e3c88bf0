"""Boxes as offsets from a reference box, an anchor or a proposal: what networks regress (Girshick
et al. 2014, "Rich feature hierarchies", appendix C)."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxseg.ops.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from jaxseg.types import Array

Weights = tuple[float, float, float, float]  # of (dx, dy, dw, dh): 1 / their expected deviation

MAX_LOG_SCALE = math.log(1000 / 16)  # no box grows by more than this factor: exp must not overflow
MIN_SIZE = 1e-6  # pixels; thinner boxes, such as padding, count as so thin, so that all is finite


def encode_boxes(
    boxes: Float[Array, "*#N 4"],
    references: Float[Array, "*#N 4"],
    weights: Weights = (1.0, 1.0, 1.0, 1.0),
) -> Float[Array, "*N 4"]:
    """(dx, dy, dw, dh) that lead from each reference to its box: the shift of the centre in widths
    and heights of the reference, and the logarithms of both scales, times the weights."""
    centre, size = jnp.split(xyxy_to_cxcywh(boxes), 2, axis=-1)
    origin, unit = jnp.split(xyxy_to_cxcywh(references), 2, axis=-1)
    size, unit = jnp.maximum(size, MIN_SIZE), jnp.maximum(unit, MIN_SIZE)
    offsets = jnp.concatenate([(centre - origin) / unit, jnp.log(size / unit)], axis=-1)
    return offsets * _like(offsets, weights)


def decode_boxes(
    offsets: Float[Array, "*#N 4"],
    references: Float[Array, "*#N 4"],
    weights: Weights = (1.0, 1.0, 1.0, 1.0),
) -> Float[Array, "*N 4"]:
    """The boxes that `encode_boxes` gave these offsets for, their scales at most 1000 / 16.

    Both broadcast: for one box a class, offsets [P K 4] and references [P 1 4].
    """
    shift, log_scale = jnp.split(offsets / _like(offsets, weights), 2, axis=-1)
    origin, unit = jnp.split(xyxy_to_cxcywh(references), 2, axis=-1)
    size = jnp.exp(jnp.minimum(log_scale, MAX_LOG_SCALE)) * unit
    return cxcywh_to_xyxy(jnp.concatenate([origin + shift * unit, size], axis=-1))


def encode_distances(
    boxes: Float[Array, "*#N 4"], references: Float[Array, "*#N 4"]
) -> Float[Array, "*N 4"]:
    """(left, top, right, bottom): how far each box reaches from the centre of its reference, in
    widths and heights of the reference (Tian et al. 2019, "FCOS", eq. 1, where those are strides).
    All are positive where the centre is inside of the box."""
    origin, unit = jnp.split(xyxy_to_cxcywh(references), 2, axis=-1)
    start, end = jnp.split(boxes, 2, axis=-1)
    return jnp.concatenate([(origin - start) / unit, (end - origin) / unit], axis=-1)


def decode_distances(
    distances: Float[Array, "*#N 4"], references: Float[Array, "*#N 4"]
) -> Float[Array, "*N 4"]:
    """The boxes that `encode_distances` gave these distances for."""
    origin, unit = jnp.split(xyxy_to_cxcywh(references), 2, axis=-1)
    start, end = jnp.split(distances, 2, axis=-1)
    return jnp.concatenate([origin - start * unit, origin + end * unit], axis=-1)


def _like(offsets: Array, weights: Weights) -> np.ndarray:
    """The weights with as many dimensions as the offsets."""
    return np.array(weights, np.float32).reshape((1,) * (offsets.ndim - 1) + (4,))
