"""The region proposal network (Ren et al. 2015, "Faster R-CNN", section 3.1), part by part.

    objectness  [A]    logits, one for each anchor of a level; [B A] for a batch
    deltas      [A 4]  how the anchor is to be moved and scaled (`ops.box_coder`)
    anchors     [A 4]  xyxy in pixels of the image, constants

The functions are of one picture, levels in lists; `vmap` them for several.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float, Int, Key

from jaxseg.nn.conv import Conv
from jaxseg.ops.box_coder import decode_boxes, encode_boxes
from jaxseg.ops.boxes import Size, clip_boxes, large_mask, pairwise_iou
from jaxseg.ops.matching import BACKGROUND, match_anchors
from jaxseg.ops.nms import batched_nms
from jaxseg.ops.sampling import sample_balanced
from jaxseg.ops.truth import Truth, in_crowd
from jaxseg.types import FLOAT32, Array, Precision

MIN_SIDE = 1e-3  # pixels of a proposal


class RPNHead(nn.Module):
    """A map [B h w C] -> (objectness [B A], deltas [B A 4]), K anchors at each place, in the order
    of `ops.anchors.grid_anchors`. Of `neighbourhoods` and where they are inside of a map: what it
    says in their middle, [N K] and [N K 4]."""

    anchors_per_place: int
    convolutions: int = 1  # 3×3
    precision: Precision = FLOAT32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B h w C"], inside: Bool[Array, "B h w"] | None = None
    ) -> tuple[Float[Array, "B A"], Float[Array, "B A 4"]]:
        layer = partial(
            Conv, kernel_init=nn.initializers.normal(0.01), precision=self.precision
        )  # section 3.1.3
        for i in range(1, self.convolutions + 1):
            padding = 1 if inside is None else 0
            x = nn.relu(layer(x.shape[-1], 3, padding=padding, name=f"conv{i}")(x))
            if inside is not None:
                inside = inside[:, 1:-1, 1:-1]
                x *= inside[..., None]
        objectness = layer(self.anchors_per_place, 1, name="objectness")(x)
        deltas = layer(4 * self.anchors_per_place, 1, name="deltas")(x)
        batch = x.shape[0]
        return (
            objectness.reshape(batch, -1).astype(jnp.float32),
            deltas.reshape(batch, -1, 4).astype(jnp.float32),
        )


def neighbourhoods(
    maps: Sequence[Float[Array, "_ _ C"]], places: Int[Array, "N"], reach: int
) -> tuple[Float[Array, "N n n C"], Bool[Array, "N n n"]]:
    """(the pixels up to `reach` = (n - 1) / 2 away from places on the maps, which of them are
    inside of the map; others are 0). Places are counted row by row, map after map."""
    sizes = np.array([x.shape[:2] for x in maps])
    ends = sizes.prod(axis=1).cumsum()
    level = jnp.searchsorted(ends, places, side="right")
    height, width, end = jnp.asarray(np.column_stack([sizes, ends]))[level].T[:, :, None, None]
    first = end - height * width
    row, column = jnp.divmod(places[:, None, None] - first, width)
    around = jnp.arange(-reach, reach + 1)
    row, column = row + around.reshape(1, -1, 1), column + around.reshape(1, 1, -1)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    pixels = jnp.concatenate([x.reshape(-1, x.shape[2]) for x in maps])
    seen = pixels[jnp.where(inside, first + row * width + column, 0)]
    return jnp.where(inside[..., None], seen, 0), inside


class Proposals(NamedTuple):
    """P rows, best first."""

    boxes: Float[Array, "*B P 4"]
    scores: Float[Array, "*B P"]  # 0 … 1
    mask: Bool[Array, "*B P"]


def propose(
    objectness: Sequence[Float[Array, "_"]],
    deltas: Sequence[Float[Array, "_ 4"]],
    anchors: Sequence[Float[Array, "_ 4"]],
    image_size: Size,
    *,
    most_per_level: int,
    most: int,
    iou_threshold: float = 0.7,
    min_score: float = 0.0,
) -> Proposals:
    """The best anchors of each level, moved, cut to the picture, and thinned by non-maximum
    suppression within their level; then the best of all levels. No gradient passes, as in
    approximate joint training (section 3.2)."""
    objectness, deltas = lax.stop_gradient((list(objectness), list(deltas)))
    boxes, scores, levels = [], [], []
    for level, (logits, moves, places) in enumerate(zip(objectness, deltas, anchors, strict=True)):
        logits, best = lax.top_k(logits, min(most_per_level, len(logits)))
        boxes.append(decode_boxes(moves[best], places[best]))
        scores.append(jax.nn.sigmoid(logits))
        levels.append(jnp.full(len(best), level))
    boxes = clip_boxes(jnp.concatenate(boxes), image_size)
    scores, levels = jnp.concatenate(scores), jnp.concatenate(levels)
    mask = large_mask(boxes, MIN_SIDE) & (scores >= min_score)
    best, kept = batched_nms(boxes, scores, levels, iou_threshold, most, mask)
    return Proposals(boxes[best], jnp.where(kept, scores[best], 0), kept)


class Targets(NamedTuple):
    """What S sampled anchors are to learn."""

    anchors: Int[Array, "*B S"]  # which they are
    mask: Bool[Array, "*B S"]  # which of the rows count
    positive: Bool[Array, "*B S"]
    deltas: Float[Array, "*B S 4"]  # of the positive ones


def sample_targets(
    anchors: Float[Array, "A 4"],
    truth: Truth,
    key: Key[Array, ""] | None,
    *,
    high: float = 0.7,
    low: float = 0.3,
    num_samples: int = 256,
    positive_fraction: float = 0.5,
) -> Targets:
    """A balanced sample of the anchors (section 3.1.3). Positive: an IoU of at least `high` with
    an object, or the highest with it; negative: less than `low` with all. key: see
    `ops.sampling.sample_balanced`."""
    quality = pairwise_iou(truth.boxes, anchors)
    matches = match_anchors(quality, high, low, allow_low_quality=True, object_mask=truth.mask)
    negative = (matches == BACKGROUND) & ~in_crowd(anchors, truth)
    chosen, mask = sample_balanced(key, matches >= 0, negative, num_samples, positive_fraction)
    matched = matches[chosen]
    positive = mask & (matched >= 0)
    deltas = encode_boxes(truth.boxes[jnp.maximum(matched, 0)], anchors[chosen])
    return Targets(chosen, mask, positive, jnp.where(positive[:, None], deltas, 0))
