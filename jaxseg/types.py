"""The few things that every part of jaxseg agrees on.

Shape letters, in docstrings and annotations: B batch, H W C, K classes, A anchors, M padded
ground truths, P sampled RoIs, D detections, J joints, L pyramid levels, N pixels.

A batch is a dict of arrays of fixed shapes:

    image          [B H W 3]  float32, normalised
    image_id       [B]        int32, position of the example in its split
    image_size     [B 2]      int32, (height, width) of the picture inside the padding
    original_size  [B 2]      int32, (height, width) of the file
    valid          [B]        bool, False for rows that only fill up the last batch
    segmentation   [B H W]    int32, 0 … K-1 and IGNORE
    pixel_weights  [B H W]    float32, weight of each pixel in the loss (optional)
    boxes          [B M 4]    float32, xyxy in pixels of `image`, pixel centres at +0.5
    labels         [B M]      int32, 1 … K; 0 is background and padding
    object_mask    [B M]      bool, False for padding
    crowd          [B M]      bool, regions of many objects
    difficult      [B M]      bool, objects that need not be found
    area           [B M]      float32, square pixels of the file, as annotated
    masks          [B M H b]  uint8, W pixels as bits in b bytes (`numpy.packbits`, along rows)
    keypoints      [B M J 3]  float32, x, y, visibility (0 absent, 1 hidden, 2 visible)
    classes        [B K]      bool, which classes the image contains

Predictions reuse these names, with `scores [B D]` and `detection_mask [B D]`.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

IGNORE = 255  # segmentation label of pixels that count neither in losses nor in scores

# `image` is (colour / 255 − MEAN) / STD: the statistics of ImageNet's RGB, on a scale of 0 to 1.
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
PADDING = np.round(255 * MEAN)  # the colour around a picture, 0 to 255

# Functions take numpy arrays, too; a type checker need not hear of it.
if TYPE_CHECKING:
    Array = jax.Array
else:
    Array = jax.Array | np.ndarray
Batch = dict[str, Array]
Variables = dict[str, Any]  # {"params": …, "batch_stats": …, …}, as Linen has it


class Mean(NamedTuple):
    """An exact mean across batches, devices and hosts: add totals, add weights, divide last."""

    total: Array  # sum of the per-item values
    weight: Array  # how many items they stand for

    def value(self) -> Array:
        """total / weight; the total itself where nothing was counted."""
        return self.total / jnp.where(self.weight > 0, self.weight, 1)


class Model(NamedTuple):
    """A system as three pure functions."""

    init: Callable[..., Variables]  # (key, batch) -> variables
    loss: Callable[
        ..., tuple[dict[str, Mean], Variables]
    ]  # (variables, batch, key) -> losses, state
    predict: Callable[..., dict[str, Array]]  # (variables, image) -> predictions of static shapes


class Task(NamedTuple):
    """What to measure and to draw. `measure` runs on the devices, the rest on the host.

    A task's module has `make_task(dataset, split)`, for a `data.builders.prepare.Dataset`.
    """

    measure: Callable[[dict[str, Array], Batch], Any]  # (predictions, batch) -> measurements
    add: Callable[[Any, Any], Any]  # two counts -> the counts of both
    score: Callable[[Any], dict[str, float]]  # counts -> named scores
    report: Callable[[Any], str]  # counts -> table for people
    figures: Callable[[Any], dict[str, np.ndarray]]  # counts -> named pictures, uint8 [H W 3]
    draw: Callable[[Batch, dict[str, Array]], dict[str, np.ndarray]]  # (example, prediction) -> too
    compact: Callable[[Any], Any] = lambda measured: measured  # a batch's measurements -> counts
    analyse: Callable[[Any], "Findings"] | None = None  # counts -> where the mistakes are


class Findings(NamedTuple):
    """What looking closely at a model's mistakes gives."""

    record: dict[str, Any]  # for JSON
    table: str  # for people
    pictures: dict[str, np.ndarray]  # uint8 [H W 3]


class Precision(NamedTuple):
    """The dtypes of a network: parameters and statistics stay in `params`, arithmetic runs in
    `compute`. Losses and predictions are always float32."""

    params: Any = jnp.float32
    compute: Any = jnp.float32


FLOAT32 = Precision()
