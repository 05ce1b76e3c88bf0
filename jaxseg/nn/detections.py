"""From scored boxes to detections, of one picture; `vmap` for several."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int

from jaxseg.ops.nms import batched_nms
from jaxseg.types import Array


class Detections(NamedTuple):
    """D rows, best first; zeros where the mask is False."""

    boxes: Float[Array, "*B D 4"]
    scores: Float[Array, "*B D"]
    labels: Int[Array, "*B D"]
    mask: Bool[Array, "*B D"]


def strongest(
    scores: Float[Array, "A K"], most: int
) -> tuple[Float[Array, "N"], Int[Array, "N"], Int[Array, "N"]]:
    """(scores, places, labels) of the N = min(most, A·K) highest scores, best first: scores[place,
    label]."""
    most = min(most, scores.size)
    # None of them is at a place that is not among the best by its highest score.
    _, places = lax.top_k(scores.max(axis=1), min(most, len(scores)))
    best, flat = lax.top_k(scores[places].reshape(-1), most)
    row, labels = jnp.divmod(flat, scores.shape[1])
    return best, places[row], labels


def thin(
    boxes: Float[Array, "N 4"],
    scores: Float[Array, "N"],
    labels: Int[Array, "N"],
    mask: Bool[Array, "N"],
    iou_threshold: float,
    most: int,
) -> Detections:
    """The D = `most` best boxes after non-maximum suppression within each class."""
    best, kept = batched_nms(boxes, scores, labels, iou_threshold, most, mask)
    found = Detections(boxes[best], scores[best], labels[best], kept)
    return jax.tree.map(lambda x: jnp.where(beside(kept, x), x, jnp.zeros_like(x)), found)


def named(found: Detections) -> dict[str, Array]:
    """Detections by the names of `types`."""
    names = "boxes", "scores", "labels", "detection_mask"
    return dict(zip(names, found, strict=True))


def beside(mask: Bool[Array, "N"], x: Array) -> Bool[Array, "N *_"]:
    """A mask [N] with as many axes as x [N …]."""
    return mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))
