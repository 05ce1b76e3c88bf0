"""The objects of a picture, as detectors learn from them."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from jaxseg.ops.boxes import area, intersection
from jaxseg.types import Array, Batch

CROWD_SHARE = 0.7  # of a box inside a crowd: then nobody knows what it shows


class Truth(NamedTuple):
    """M rows of objects of one picture, or of B, [B M …]."""

    boxes: Float[Array, "*B M 4"]
    labels: Int[Array, "*B M"]
    mask: Bool[Array, "*B M"]  # which rows are objects to be found
    crowd: Bool[Array, "*B M"] | None = None  # which rows are regions of many objects; None: none


def truth_of(batch: Batch) -> Truth:
    """The objects of a batch. Those that are `difficult`, or have no area, are not to be found; nor
    are crowds."""
    boxes = jnp.asarray(batch["boxes"])
    real = batch["object_mask"] & batch["valid"][:, None]
    nothing = jnp.zeros(real.shape, bool)
    found = real & ~batch.get("crowd", nothing) & ~batch.get("difficult", nothing)
    found &= ((boxes[..., 2:] > boxes[..., :2]) & jnp.isfinite(boxes[..., 2:])).all(-1)
    crowd = real & batch["crowd"] if "crowd" in batch else None
    return Truth(boxes, jnp.asarray(batch["labels"]), found, crowd)


def in_crowd(boxes: Float[Array, "A 4"], truth: Truth) -> Bool[Array, "A"]:
    """Whether a box lies in a crowd by most of its area: it is no example of background."""
    if truth.crowd is None:
        return jnp.zeros(len(boxes), bool)
    inside = intersection(truth.boxes[:, None], boxes[None])
    share = inside / jnp.maximum(area(boxes), 1e-6)[None]
    return ((share > CROWD_SHARE) & truth.crowd[:, None]).any(0)
