"""Non-maximum suppression: of boxes that overlap, the one of the highest score stays.

    boxes    [N 4]  xyxy
    scores   [N]    above -inf; of equal ones, the box that comes first is taken first
    mask     [N]    bool, which boxes take part; all without it
    indices  [D]    int32, the boxes kept, best first; D is `max_outputs`, or N without it
    kept     [D]    bool, which of the indices are meant; the others are 0

All work under jit and vmap. Outside of jit their loops are compiled once, not at every call. The
choice has no gradient; the scores of `soft_nms` have one.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float, Int

from jaxseg.ops.boxes import area, iou
from jaxseg.types import Array

TILE = 256  # boxes that are decided at once
CLASS_TILE = 64  # the same where they come class after class


def nms(
    boxes: Float[Array, "N 4"],
    scores: Float[Array, "N"],
    iou_threshold: float,
    max_outputs: int | None = None,
    mask: Bool[Array, "N"] | None = None,
) -> tuple[Int[Array, "D"], Bool[Array, "D"]]:
    """(indices, kept) of greedy suppression: a box goes if its IoU with a better one that stays is
    more than `iou_threshold`. Index by index what torchvision's `nms` gives."""
    return batched_nms(boxes, scores, None, iou_threshold, max_outputs, mask)


def batched_nms(
    boxes: Float[Array, "N 4"],
    scores: Float[Array, "N"],
    classes: Int[Array, "N"] | None,
    iou_threshold: float,
    max_outputs: int | None = None,
    mask: Bool[Array, "N"] | None = None,
) -> tuple[Int[Array, "D"], Bool[Array, "D"]]:
    """(indices, kept) of `nms` where only boxes of the same class suppress each other; all of them
    together are sorted by score."""
    n = len(boxes)
    max_outputs = n if max_outputs is None else max_outputs
    if n == 0 or max_outputs == 0:
        return jnp.zeros(max_outputs, jnp.int32), jnp.zeros(max_outputs, bool)
    boxes, scores = lax.stop_gradient((jnp.asarray(boxes), jnp.asarray(scores)))
    mask = jnp.ones(n, bool) if mask is None else jnp.asarray(mask)
    _, order = lax.top_k(jnp.where(mask, scores, -jnp.inf), n)  # of equal ones, the first first
    boxes, classes = boxes[order], None if classes is None else jnp.asarray(classes)[order]
    threshold = _floor_float32(iou_threshold)
    if classes is None or max_outputs < n:
        winners, kept = _sweep(boxes, classes, mask.sum(), threshold, max_outputs)
    else:
        winners, kept = _sweep_by_class(boxes, classes, mask.sum(), threshold, max_outputs)
    return jnp.where(kept, order[winners], 0), kept


@partial(jax.jit, static_argnames=("sigma", "iou_threshold", "min_score", "max_outputs"))
def soft_nms(
    boxes: Float[Array, "N 4"],
    scores: Float[Array, "N"],
    sigma: float | None = 0.5,
    iou_threshold: float = 0.3,
    min_score: float = 0.001,
    max_outputs: int | None = None,
    mask: Bool[Array, "N"] | None = None,
    classes: Int[Array, "N"] | None = None,
) -> tuple[Int[Array, "D"], Bool[Array, "D"], Float[Array, "D"]]:
    """(indices, kept, scores): instead of removing boxes, lower their scores (Bodla et al. 2017).

    The box of the highest score is taken, and each other one's score, of its class if there are
    classes, is multiplied by exp(-IoU² / sigma) (eq. 3), or, if sigma is None, by 1 - IoU where
    the IoU is at least `iou_threshold` (eq. 2); then the next is taken. It ends where no score is
    more than `min_score`; scores and `min_score` are 0 … 1. The new scores come in the order of the
    indices, 0 where none is kept.
    """
    n = len(boxes)
    max_outputs = n if max_outputs is None else max_outputs
    if n == 0 or max_outputs == 0:
        nothing = jnp.zeros(max_outputs, scores.dtype)
        return nothing.astype(jnp.int32), nothing.astype(bool), nothing

    def take_best(scores: Array, _: None) -> tuple[Array, tuple]:
        best = jnp.argmax(scores)
        overlap = iou(boxes[best][None], boxes, eps=0.0)
        if sigma is not None:
            decay = jnp.exp(-(overlap**2) / sigma)
        else:
            decay = jnp.where(overlap >= iou_threshold, 1 - overlap, 1)
        if classes is not None:
            decay = jnp.where(classes == classes[best], decay, 1)
        left = jnp.where(jnp.arange(n) == best, 0, scores * decay)
        return left, (best.astype(jnp.int32), scores[best])

    scores = scores if mask is None else jnp.where(mask, scores, 0)
    _, (indices, scores) = lax.scan(take_best, scores, length=max_outputs)
    found = scores > min_score
    return jnp.where(found, indices, 0), found, jnp.where(found, scores, 0)


@partial(jax.jit, static_argnames=("max_outputs", "tile"))
def _sweep(
    boxes: Float[Array, "N 4"],
    classes: Int[Array, "N"] | None,
    total: Int[Array, ""],
    threshold: Float[Array, ""] | np.float32,
    max_outputs: int,
    rivals: Int[Array, "N"] | None = None,
    tile: int = TILE,
) -> tuple[Int[Array, "D"], Bool[Array, "D"]]:
    """(places, kept) of `batched_nms` among boxes that are sorted, of which `total` take part.

    Best first, tile after tile: its boxes meet the winners so far, then each other. That is at most
    N (D + tile) comparisons, and it ends where `max_outputs` have won. `rivals`, which do not
    decrease, are the places before which nothing suppresses a box.
    """
    tile = min(tile, len(boxes))
    padding = (0, -len(boxes) % tile)
    boxes = jnp.pad(boxes, (padding, (0, 0)))
    classes = None if classes is None else jnp.pad(classes, padding)
    areas, corners = area(boxes), boxes.T

    def suppresses(i: Array, j: Array) -> Array:
        """Whether each box of places i would suppress each of places j; [I J]."""
        a, b = corners[:, i, None], corners[:, None, j]
        width = jnp.minimum(a[2], b[2]) - jnp.maximum(a[0], b[0])
        height = jnp.minimum(a[3], b[3]) - jnp.maximum(a[1], b[1])
        intersection = jnp.maximum(width, 0) * jnp.maximum(height, 0)
        union = areas[i][:, None] + areas[j][None] - intersection
        overlap = intersection / union > threshold  # 0 / 0 suppresses nothing
        return overlap if classes is None else overlap & (classes[i][:, None] == classes[j][None])

    def decide_tile(state: tuple) -> tuple:
        start, winners, count = state
        here = start + jnp.arange(tile)

        def meet_winners(state: tuple) -> tuple:
            """Take away what the winners from slot `first` on suppress, a tile of them."""
            first, alive = state
            better = suppresses(lax.dynamic_slice(winners, (first,), (tile,)), here)
            filled = first + jnp.arange(tile) < count
            return first + tile, alive & ~(better & filled[:, None]).any(0)

        first = 0 if rivals is None else (winners < rivals[start]).sum()
        met = lax.while_loop(lambda state: state[0] < count, meet_winners, (first, here < total))
        stay = _greedy(suppresses(here, here), met[1])
        slots = jnp.where(stay, count + jnp.cumsum(stay) - 1, len(winners))
        return start + tile, winners.at[slots].set(here, mode="drop"), count + stay.sum()

    _, winners, count = lax.while_loop(
        lambda state: (state[0] < total) & (state[2] < max_outputs),
        decide_tile,
        (0, jnp.full(max_outputs + tile, len(boxes), jnp.int32), 0),
    )
    return winners[:max_outputs], jnp.arange(max_outputs) < count


def _sweep_by_class(
    boxes: Float[Array, "N 4"],
    classes: Int[Array, "N"],
    total: Int[Array, ""],
    threshold: Float[Array, ""] | np.float32,
    max_outputs: int,
) -> tuple[Int[Array, "D"], Bool[Array, "D"]]:
    """The same as `_sweep`, class after class: a box meets those of its own and few others. But it
    cannot end early, so this is for a `max_outputs` of N or more."""
    n = len(boxes)
    classes = jnp.where(jnp.arange(n) < total, classes, jnp.iinfo(classes.dtype).max)
    order = jnp.argsort(classes, stable=True)
    classes = classes[order]
    rivals = jnp.searchsorted(classes, classes)
    winners, kept = _sweep(boxes[order], classes, total, threshold, n, rivals, CLASS_TILE)
    stays = jnp.zeros(n, bool).at[jnp.where(kept, order[winners], n)].set(True, mode="drop")
    return jnp.nonzero(stays, size=max_outputs)[0], jnp.arange(max_outputs) < kept.sum()


def _greedy(suppresses: Bool[Array, "T T"], alive: Bool[Array, "T"]) -> Bool[Array, "T"]:
    """Which boxes stay, best first, of those alive.

    Box j stays if no box before it that stays suppresses it. Repeating this for all boxes at once
    settles at least one more box each time, and most after few: the fixed point is the greedy one.
    """
    before = jnp.triu(suppresses, 1)

    def repeat(state: tuple) -> tuple:
        stay, _ = state
        again = alive & ~(before & stay[:, None]).any(0)
        return again, (again != stay).any()

    return lax.while_loop(lambda state: state[1], repeat, (alive, alive.any()))[0]


def _floor_float32(threshold: float) -> np.float32:
    """The largest float32 that is not above it. x > this is x > threshold for every float32 x:
    the IoU of 0.3 that float32 rounds up is more than 0.3, as it is to torchvision."""
    nearest = np.float32(threshold)
    return nearest if float(nearest) <= threshold else np.nextafter(nearest, np.float32(-np.inf))
