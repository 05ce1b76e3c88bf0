"""Keypoint R-CNN (He et al. 2017, section 5): Faster R-CNN, and a heatmap for each joint.

Predictions have `keypoints` [B D J 3] too, (x, y, 1) in pixels of the image, and `keypoint_scores`
[B D J], the logits at their places.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Float

from jaxseg.models import faster_rcnn
from jaxseg.models.faster_rcnn import RegionHead
from jaxseg.nn.detections import Detections
from jaxseg.nn.roi_heads import KeypointHead, Regions
from jaxseg.ops.keypoints import heatmaps_to_keypoints, keypoint_targets
from jaxseg.ops.truth import field_of
from jaxseg.types import Array, Batch, Mean, Model


def keypoint_head(num_keypoints: int, features: int = 512, convolutions: int = 8) -> RegionHead:
    """The head of the keypoints: regions of 14×14 bins, heatmaps of 56×56 for every joint."""
    network = partial(KeypointHead, num_keypoints, features, convolutions)
    return RegionHead("keypoint", network, 14, keypoint_loss, decode_keypoints)


def keypoint_loss(heatmaps: Float[Array, "P m m J"], regions: Regions, example: Batch) -> Mean:
    """Cross-entropy over a heatmap's pixels, of which one is the joint; the mean over the joints
    that are known and inside of a positive region."""
    keypoints = field_of(example, "keypoints")[regions.matched]
    pixels, known = keypoint_targets(keypoints, regions.boxes, heatmaps.shape[1])
    counts = (known & regions.positive[:, None]).astype(jnp.float32)
    logits = heatmaps.reshape(len(heatmaps), -1, heatmaps.shape[3]).swapaxes(1, 2)
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, pixels)
    return Mean((entropy * counts).sum(), counts.sum())


def decode_keypoints(heatmaps: Float[Array, "D m m J"], found: Detections) -> dict[str, Array]:
    """`keypoints` [D J 3] and `keypoint_scores` [D J]; 0 where nothing is detected."""
    places, scores = heatmaps_to_keypoints(heatmaps, found.boxes)
    there = found.mask[:, None]
    return {
        "keypoints": jnp.where(there[:, :, None], places, 0),
        "keypoint_scores": jnp.where(there, scores, 0),
    }


def build(
    num_classes: int,
    *,
    num_keypoints: int = 17,
    keypoint_features: int = 512,
    keypoint_convolutions: int = 8,
    **options: Any,
) -> Model:
    """Keypoint R-CNN as a `Model`; options: those of `faster_rcnn.build`."""
    head = keypoint_head(num_keypoints, keypoint_features, keypoint_convolutions)
    return faster_rcnn.build(num_classes, heads=(head, *options.pop("heads", ())), **options)
