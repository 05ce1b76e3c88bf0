"""What is said of each region of interest: its class, its box, its mask, its keypoints.

P, N     regions of one picture, of a batch
x        [N n n C]  features of regions (`ops.roi`)
matched  [P]        the object that each region is to show
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int, Key

from jaxseg.nn.conv import Conv, ConvNorm, ConvTranspose, he_normal
from jaxseg.nn.detections import Detections, beside, thin
from jaxseg.nn.norm import Norm
from jaxseg.nn.rpn import Proposals
from jaxseg.ops.box_coder import Weights, decode_boxes, encode_boxes
from jaxseg.ops.boxes import Size, clip_boxes, large_mask, pairwise_iou
from jaxseg.ops.conv import resize_bilinear
from jaxseg.ops.matching import BACKGROUND, match_anchors
from jaxseg.ops.sampling import sample_balanced
from jaxseg.ops.truth import Truth, in_crowd
from jaxseg.types import FLOAT32, Array, Precision

BOX_WEIGHTS: Weights = (10.0, 10.0, 5.0, 5.0)  # Girshick 2015, "Fast R-CNN", section 2.3
MIN_SIDE = 1e-2  # pixels of a detection


# ---- heads


class BoxHead(nn.Module):
    """x -> [N F]: `convolutions` of 3×3 with the norm, then dense layers of these widths (two of
    1024: Lin et al. 2017, section 5.2; four convolutions and one: Wu & He 2018, table 5)."""

    dense: tuple[int, ...] = (1024, 1024)
    convolutions: int = 0
    dropout: float = 0.0
    norm: Norm = None
    precision: Precision = FLOAT32

    @nn.compact
    def __call__(
        self, x: Float[Array, "N n n C"], mask: Bool[Array, "N"] | None = None, *, train: bool
    ) -> Float[Array, "N F"]:
        x = _convolve(self, x, self.convolutions, x.shape[-1], mask)
        first = self.convolutions + 1 if self.convolutions else 6  # fc6, fc7 are AlexNet's names
        for i, width in enumerate(self.dense, start=first):
            x = Conv(width, x.shape[1], padding=0, precision=self.precision, name=f"fc{i}")(x)
            x = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(x))
        return x[:, 0, 0]


class BoxPredictor(nn.Module):
    """[N F] -> (class logits [N K], box deltas of each class [N K 4]), class 0 the background."""

    num_classes: int
    precision: Precision = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "N F"]) -> tuple[Array, Array]:
        def layer(width: int, deviation: float, name: str) -> Array:
            init = nn.initializers.normal(deviation)  # Girshick 2015, section 2.3
            conv = Conv(width, 1, kernel_init=init, precision=self.precision, name=name)
            return conv(x[:, None, None])[:, 0, 0].astype(jnp.float32)

        logits = layer(self.num_classes, 0.01, "logits")
        deltas = layer(4 * self.num_classes, 0.001, "deltas")
        return logits, deltas.reshape(*logits.shape, 4)


class MaskHead(nn.Module):
    """x -> logits [N 2n 2n] of each region's mask (He et al. 2017, "Mask R-CNN", figure 4). There
    is a mask for every class; only that of the region's label [N] is computed."""

    num_classes: int
    features: int = 256
    convolutions: int = 4
    norm: Norm = None
    precision: Precision = FLOAT32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "N n n C"],
        labels: Int[Array, "N"],
        mask: Bool[Array, "N"] | None = None,
    ) -> Float[Array, "N m m"]:
        x = _convolve(self, x, self.convolutions, self.features, mask)
        up = ConvTranspose(self.features, 2, 2, precision=self.precision, name="upsample")
        x = nn.relu(up(x))
        return ConvOfClass(self.num_classes, self.precision, name="logits")(x, labels)


class ConvOfClass(nn.Module):
    """One channel of a 1×1 convolution [N m m C] -> [N m m K] for each row: that of its label."""

    num_classes: int
    precision: Precision = FLOAT32

    @nn.compact
    def __call__(
        self, x: Float[Array, "N m m C"], labels: Int[Array, "N"]
    ) -> Float[Array, "N m m"]:
        params, compute = self.precision
        kernel = self.param("kernel", he_normal, (1, 1, x.shape[-1], self.num_classes), params)
        bias = self.param("bias", nn.initializers.zeros, (self.num_classes,), params)
        own = jnp.take(kernel[0, 0].T, labels, axis=0).astype(compute)
        logits = jnp.einsum("nyxc,nc->nyx", x, own, preferred_element_type=jnp.float32)
        return logits + jnp.take(bias.astype(jnp.float32), labels)[:, None, None]


class KeypointHead(nn.Module):
    """x -> heatmaps [N 4n 4n J], logits, the same for all labels: eight convolutions, a transposed
    one and bilinear interpolation (He et al. 2017, section 5)."""

    num_keypoints: int
    features: int = 512
    convolutions: int = 8
    norm: Norm = None
    precision: Precision = FLOAT32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "N n n C"],
        labels: Int[Array, "N"],
        mask: Bool[Array, "N"] | None = None,
    ) -> Float[Array, "N m m J"]:
        x = _convolve(self, x, self.convolutions, self.features, mask)
        up = ConvTranspose(
            self.num_keypoints, 4, 2, padding=1, precision=self.precision, name="upsample"
        )
        x = up(x).astype(jnp.float32)
        return resize_bilinear(x, (2 * x.shape[1], 2 * x.shape[2]))


def _convolve(head: nn.Module, x: Array, count: int, width: int, mask: Array | None) -> Array:
    """`count` convolutions of a head; mask: the regions that count in the norm's statistics."""
    norm = head.norm and partial(head.norm, mask=mask)
    for i in range(1, count + 1):
        x = ConvNorm(width, norm=norm, precision=head.precision, name=f"conv{i}")(x)
    return x


def where_chosen(
    run: Callable[..., Array], inputs: tuple[Array, ...], chosen: Bool[Array, "N"], size: int = 32
) -> Float[Array, "N *_"]:
    """run(*inputs), of rows [N …], where chosen; other rows are 0, and all but a few of them cost
    nothing: the chosen ones are put together, and `size` of them are run at a time. For the
    gradient they are run again, which takes less time than to keep what is between."""
    run = jax.checkpoint(run)
    order = jnp.argsort(~chosen)
    size = min(size, len(chosen))
    filled = jnp.pad(order, (0, -len(order) % size)).reshape(-1, size)
    parts = tuple(x[filled] for x in inputs)
    some = jnp.arange(len(filled)) * size < chosen.sum()
    like = jax.eval_shape(run, *(x[0] for x in parts))

    def run_some(part: tuple) -> Array:
        there, rows = part
        return lax.cond(there, run, lambda *_: jnp.zeros(like.shape, like.dtype), *rows)

    found = lax.map(run_some, (some, parts)).reshape(-1, *like.shape[1:])
    found = found[jnp.argsort(order)]
    return jnp.where(beside(chosen, found), found, 0)


# ---- boxes, in training and after


class Regions(NamedTuple):
    """P sampled regions of a picture, and what they are to learn."""

    boxes: Float[Array, "*B P 4"]
    mask: Bool[Array, "*B P"]  # which of the rows count
    positive: Bool[Array, "*B P"]  # which show an object; these come first
    matched: Int[Array, "*B P"]  # the object; 0 where there is none
    labels: Int[Array, "*B P"]  # its class, or 0
    deltas: Float[Array, "*B P 4"]  # to its box; 0 where there is none


def sample_regions(
    proposals: Proposals,
    truth: Truth,
    key: Key[Array, ""] | None,
    *,
    iou_threshold: float = 0.5,
    num_samples: int = 512,
    positive_fraction: float = 0.25,
    weights: Weights = BOX_WEIGHTS,
) -> Regions:
    """A balanced sample of the proposals and the objects' own boxes (Girshick 2015, section 2.3).
    Positive: an IoU of at least the threshold with an object. key: see `sample_balanced`."""
    boxes = jnp.concatenate([proposals.boxes, truth.boxes])
    there = jnp.concatenate([proposals.mask, truth.mask])
    quality = pairwise_iou(truth.boxes, boxes)
    matches = match_anchors(quality, iou_threshold, iou_threshold, object_mask=truth.mask)
    negative = there & (matches == BACKGROUND) & ~in_crowd(boxes, truth)
    chosen, mask = sample_balanced(
        key, there & (matches >= 0), negative, num_samples, positive_fraction
    )
    boxes, matches = boxes[chosen], matches[chosen]
    positive = mask & (matches >= 0)
    matched = jnp.where(positive, matches, 0)
    labels = jnp.where(positive, truth.labels[matched], 0)
    deltas = encode_boxes(truth.boxes[matched], boxes, weights)
    deltas = jnp.where(positive[:, None], deltas, 0)
    return lax.stop_gradient(Regions(boxes, mask, positive, matched, labels, deltas))


def detect(
    logits: Float[Array, "P K"],
    deltas: Float[Array, "P K 4"],
    proposals: Proposals,
    image_size: Size,
    *,
    min_score: float = 0.05,
    iou_threshold: float = 0.5,
    most: int = 100,
    weights: Weights = BOX_WEIGHTS,
) -> Detections:
    """The best of all boxes of all classes, after non-maximum suppression within each class."""
    scores = jax.nn.softmax(logits)[:, 1:]
    # No more classes than these can have a probability above the threshold.
    likely = min(scores.shape[1], int(1 / min_score)) if min_score > 0 else scores.shape[1]
    scores, labels = lax.top_k(scores, likely)
    labels += 1
    moves = jnp.take_along_axis(deltas, labels[:, :, None], axis=1)
    boxes = clip_boxes(decode_boxes(moves, proposals.boxes[:, None], weights), image_size)
    mask = proposals.mask[:, None] & (scores > min_score) & large_mask(boxes, MIN_SIDE)
    boxes, scores, labels, mask = (
        x.reshape(-1, *x.shape[2:]) for x in (boxes, scores, labels, mask)
    )
    return thin(boxes, scores, labels, mask, iou_threshold, most)
