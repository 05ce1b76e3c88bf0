"""The objects of a picture, as detectors learn from them."""

import functools
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
    # which rows are regions of many objects, or nobody knows; None: none
    crowd: Bool[Array, "*B M"] | None = None


def truth_of(batch: Batch) -> Truth:
    """The objects of a batch. Those without area are not to be found, nor are crowds and those that
    are `difficult`, which are no background either: see `in_crowd`. ValueError where a batch has no
    objects at all."""
    boxes = jnp.asarray(field_of(batch, "boxes"))
    real = batch["object_mask"] & batch["valid"][:, None]
    open_to_doubt = [batch[name] for name in ("crowd", "difficult") if name in batch]
    crowd = real & functools.reduce(jnp.logical_or, open_to_doubt) if open_to_doubt else None
    found = real if crowd is None else real & ~crowd
    found &= (boxes[..., 2:] > boxes[..., :2]).all(-1) & jnp.isfinite(boxes).all(-1)
    return Truth(boxes, jnp.asarray(batch["labels"]), found, crowd)


def field_of(batch: Batch, name: str) -> Array:
    """The field of a batch; ValueError where it has none, as it depends on the data."""
    if name not in batch:
        raise ValueError(
            f"the batch has no {name}, which this model learns from: see data.max_objects,"
            " data.masks and data.options, and whether the dataset has them"
        )
    return batch[name]


def in_crowd(boxes: Float[Array, "A 4"], truth: Truth) -> Bool[Array, "A"]:
    """Whether a box lies in a crowd by most of its area: it is no example of background."""
    if truth.crowd is None:
        return jnp.zeros(len(boxes), bool)
    inside = intersection(truth.boxes[:, None], boxes[None])
    share = inside / jnp.maximum(area(boxes), 1e-6)[None]
    return ((share > CROWD_SHARE) & truth.crowd[:, None]).any(0)
