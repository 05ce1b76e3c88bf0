"""Mask R-CNN (He et al. 2017): Faster R-CNN, and a mask for each region.

v1 and v2 as `faster_rcnn` has them. Predictions have `masks` [B D m m] too, probabilities inside of
each box, m = 28 as published; `ops.masks.paste_masks` puts them into the picture.

Published networks have the centres of pixels at integers when they cut masks out, and round when
they put them back. `aligned=True` has them at +0.5, where boxes have them, and rounds nothing: see
`ops.masks`. The true masks of 20 images of COCO, cut out of their true boxes at 56×56 and put back,
have a mask AP of 0.854 the one way, and of 0.999 the other.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float

from jaxseg.models import faster_rcnn
from jaxseg.models.faster_rcnn import RegionHead
from jaxseg.nn.detections import Detections
from jaxseg.nn.roi_heads import MaskHead, Regions
from jaxseg.ops.masks import crop_masks
from jaxseg.ops.truth import field_of
from jaxseg.types import Array, Batch, Mean, Model


def mask_head(
    num_classes: int,
    features: int = 256,
    convolutions: int = 4,
    size: int = 28,
    aligned: bool = False,
) -> RegionHead:
    """The head of the masks, of size × size pixels for every class, twice the region's bins.
    aligned: see `ops.masks`."""
    network = partial(MaskHead, num_classes, features, convolutions)
    loss = partial(mask_loss, aligned=aligned)
    return RegionHead("mask", network, size // 2, loss, partial(decode_masks, aligned=aligned))


def mask_loss(
    logits: Float[Array, "P m m"], regions: Regions, example: Batch, *, aligned: bool = False
) -> Mean:
    """Binary cross-entropy, the mean of a positive region's pixels, of its own class alone
    (section 3): classes do not compete."""
    targets = crop_masks(
        field_of(example, "masks"),
        regions.boxes,
        regions.matched,
        logits.shape[1],
        packed_width=example["image"].shape[1],
        extent=example["image_size"],
        aligned=aligned,
    )
    entropy = optax.sigmoid_binary_cross_entropy(logits, targets).mean((1, 2))
    counts = regions.positive.astype(jnp.float32)
    return Mean((entropy * counts).sum(), counts.sum())


def decode_masks(
    logits: Float[Array, "D m m"], _: Detections, *, aligned: bool = False
) -> dict[str, Array]:
    """`masks` [D m m], of each detection's class, and `masks_aligned` []."""
    return {"masks": jax.nn.sigmoid(logits), "masks_aligned": jnp.array(aligned)}


def build(
    num_classes: int,
    *,
    mask_features: int = 256,
    mask_convolutions: int = 4,
    mask_size: int = 28,
    aligned: bool = False,
    **options: Any,
) -> Model:
    """Mask R-CNN as a `Model`; options: those of `faster_rcnn.build`."""
    head = mask_head(num_classes, mask_features, mask_convolutions, mask_size, aligned)
    heads = (head, *options.pop("heads", ()))
    return faster_rcnn.build(num_classes, heads=heads, aligned=aligned, **options)
