"""Which ground truth each anchor, or proposal, is to learn (Ren et al. 2015, section 3.1.2)."""

import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from jaxseg.types import Array

BACKGROUND = -1  # overlaps no object
IGNORED = -2  # overlaps one too much to be background, too little to be it: not trained on


def match_anchors(
    quality: Float[Array, "M A"],
    high: float,
    low: float,
    *,
    allow_low_quality: bool = False,
    object_mask: Bool[Array, "M"] | None = None,
) -> Int[Array, "A"]:
    """For each anchor the index 0 … M-1 of the object that it overlaps most, BACKGROUND or IGNORED.

    quality: IoUs of M objects and A anchors (`boxes.pairwise_iou`). An anchor whose best is under
    `low` is background, and ignored from there to `high`. With `allow_low_quality`, anchors that
    overlap some object as much as any anchor does are kept, whatever their IoU is, so that each
    object is matched; they have the object that they overlap most, be it another one. As in
    torchvision, an object that overlaps no anchor at all is then overlapped "most" by all of them.
    object_mask: which of the objects are not padding. Without objects all is background.

            0.9  0.2  0.4        high 0.7, low 0.3:   0  BACKGROUND  IGNORED
            0.1  0.2  0.5        and low quality:     0  BACKGROUND  1
    """
    if high < low:
        raise ValueError(f"match_anchors: high, {high}, is less than low, {low}")
    if len(quality) == 0:
        return jnp.full(quality.shape[1], BACKGROUND, jnp.int32)
    if object_mask is None:
        object_mask = jnp.ones(len(quality), bool)
    quality = jnp.where(object_mask[:, None], quality, -1)
    best = quality.max(0)
    # The first of the best, as argmax has it, which takes twice as long on CPU.
    number = jnp.arange(len(quality), dtype=jnp.int32).reshape(-1, 1)
    nearest = jnp.where(quality == best[None], number, len(quality) - 1).min(0)
    matches = jnp.where(best >= high, nearest, jnp.where(best < low, BACKGROUND, IGNORED))
    if not allow_low_quality:
        return matches
    as_good_as_any = (quality == quality.max(1, keepdims=True)) & object_mask[:, None]
    return jnp.where(as_good_as_any.any(0), nearest, matches)
