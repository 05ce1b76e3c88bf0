"""RetinaNet (Lin et al. 2017, "Focal Loss for Dense Object Detection"): every anchor of a pyramid
is classified at once, and the focal loss keeps the many easy ones from drowning the few others.

    image        [B H W 3]  pictures, 0 (or the mean colour) where there is only padding
    image_size   [B 2]      (height, width) of the picture inside of it
    maps         P3 … P7, [B h w F], finest first
    logits       L of [B A K], a sigmoid for each class; that of the background, 0, stays empty
    deltas       L of [B A 4], anchors L of [A 4]: see `ops.box_coder`

All shapes are static: whatever the number of objects, the same program runs. As torchvision has it;
published weights: v1 has norm="frozen" with norm_epsilon=0, v2 is `**V2` with the setting
box_loss="giou".
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from jaxseg.backbones.mobilenet import MobileNetV3Large
from jaxseg.backbones.resnet import BLOCKS, ResNet
from jaxseg.nn.dense import DenseHead, detect
from jaxseg.nn.detections import named
from jaxseg.nn.detector import model_of
from jaxseg.nn.fpn import FPN
from jaxseg.nn.norm import NormKind, make_norm, with_options
from jaxseg.nn.options import expect, known_settings
from jaxseg.ops.anchors import COARSEST, anchors_of_maps, sizes_per_level
from jaxseg.ops.box_coder import decode_boxes, encode_boxes
from jaxseg.ops.boxes import giou, pairwise_iou
from jaxseg.ops.losses import sigmoid_focal
from jaxseg.ops.matching import BACKGROUND, match_anchors
from jaxseg.ops.padding import picture_size, without_padding
from jaxseg.ops.truth import Truth, in_crowd, truth_of
from jaxseg.types import FLOAT32, Array, Batch, Mean, Model, Precision

BACKBONES = {f"resnet{depth}": partial(ResNet, depth) for depth in BLOCKS}
BACKBONES |= {"mobilenet_v3_large": MobileNetV3Large}

# With "GIoU" as the box loss, the improved variant of Zhang et al. 2020, "Bridging the Gap Between
# Anchor-based and Anchor-free Detection", table 1: torchvision's v2.
V2 = MappingProxyType(dict(norm="batch", head_norm="group", p6_from="C5"))


class Settings(NamedTuple):
    """What is not learned."""

    # Of each level three, in thirds of an octave (section 4.1).
    anchor_sizes: Sequence[Sequence[int]] = (
        (32, 40, 50),
        (64, 80, 101),
        (128, 161, 203),
        (256, 322, 406),
        (512, 645, 812),
    )
    aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0)  # height / width
    iou: tuple[float, float] = (0.5, 0.4)  # of positive, of negative anchors
    focal_gamma: float = 2.0
    focal_alpha: float | None = 0.25
    box_loss: str = "l1"  # of the deltas, or "giou" of the boxes
    candidates_per_level: int = 1000  # before suppression
    min_score: float = 0.05
    detection_iou: float = 0.5
    detections: int = 300


class Outputs(NamedTuple):
    """Of each level; A = h w · anchors_per_place, in the order of `ops.anchors.grid_anchors`."""

    logits: list[Array]  # [B A K]
    deltas: list[Array]  # [B A 4]
    centreness: list[Array]  # [B A], of FCOS alone


class RetinaNet(nn.Module):
    """The network; with other outputs it is that of FCOS. `training` says which mode it is in."""

    num_classes: int  # with the background, class 0
    backbone: str = "resnet50"
    width: int = 64  # of the backbone's first stage
    levels: tuple[int, ...] = (8, 16, 32)  # strides of the backbone's maps in the pyramid
    p6_from: Literal["C5", "P5"] = "P5"
    features: int = 256  # of pyramid and heads
    convolutions: int = 4  # of each head
    anchors_per_place: int = 9
    centreness: bool = False
    prior: float = 0.01  # of each class at each anchor, before training (section 3.3)
    norm: NormKind = "frozen"  # of the backbone
    norm_epsilon: float | None = None  # None: the backbone's own
    neck_norm: NormKind = "none"  # of the pyramid
    head_norm: NormKind = "none"
    head_norm_and_bias: bool = False  # heads keep their biases before a norm
    axis_name: str | None = None
    precision: Precision = FLOAT32
    training: bool = False

    def setup(self):
        norms = partial(
            make_norm, train=self.training, axis_name=self.axis_name, precision=self.precision
        )
        shared = dict(precision=self.precision)
        norm = with_options(norms(self.norm), epsilon=self.norm_epsilon)
        trunk = BACKBONES[self.backbone]
        self.trunk: Any = trunk(width=self.width, norm=norm, name="backbone", **shared)
        self.fpn = FPN(self.features, self.p6_from, norm=norms(self.neck_norm), **shared)
        head = partial(
            DenseHead,
            convolutions=self.convolutions,
            norm=norms(self.head_norm),
            norm_and_bias=self.head_norm_and_bias,
            **shared,
        )
        count = self.anchors_per_place
        prior = -math.log((1 - self.prior) / self.prior)
        self.class_head = head({"logits": count * self.num_classes}, bias=prior)
        centreness = {"centreness": count} if self.centreness else {}
        self.box_head = head({"deltas": 4 * count} | centreness)

    def __call__(self, image: Float[Array, "B H W 3"]) -> Outputs:
        return self.look(self.extract(image))

    def extract(self, image: Float[Array, "B H W 3"]) -> list[Array]:
        """P3 … P7."""
        features = self.trunk(image)
        return self.fpn([features[level] for level in self.levels])

    def look(self, maps: Sequence[Array]) -> Outputs:
        """What the heads, which all levels share, say of each map."""

        def per_anchor(x: Float[Array, "B h w C"], *last: int) -> Array:
            return x.reshape(x.shape[0], -1, *last)

        classes = [self.class_head(x) for x in maps]
        boxes = [self.box_head(x) for x in maps]
        return Outputs(
            [per_anchor(found["logits"], self.num_classes) for found in classes],
            [per_anchor(found["deltas"], 4) for found in boxes],
            [per_anchor(found["centreness"]) for found in boxes if self.centreness],
        )


# ---- training


def losses(network: RetinaNet, settings: Settings, batch: Batch) -> dict[str, Mean]:
    """The mean over the pictures of

    class  the focal loss of all anchors and classes, over the number of positive anchors
    box    L1 of the positive anchors' deltas, or 1 − GIoU of their boxes, over their number

    which is at least 1 (section 4.1).
    """
    image, _ = without_padding(batch["image"], multiple=COARSEST)
    maps = network.extract(image)
    logits, deltas = (jnp.concatenate(levels, 1) for levels in network.look(maps)[:2])
    anchors = jnp.concatenate(anchors_of(image, maps, settings))
    each = jax.vmap(partial(picture_losses, anchors=anchors, settings=settings))
    found = each(logits, deltas, truth_of(batch))
    valid = batch["valid"].astype(jnp.float32)
    return {name: Mean((loss * valid).sum(), valid.sum()) for name, loss in found.items()}


def picture_losses(
    logits: Float[Array, "A K"],
    deltas: Float[Array, "A 4"],
    truth: Truth,
    anchors: Float[Array, "A 4"],
    settings: Settings,
) -> dict[str, Float[Array, ""]]:
    """`class` and `box`."""
    quality = pairwise_iou(truth.boxes, anchors)
    matches = match_anchors(quality, *settings.iou, allow_low_quality=True, object_mask=truth.mask)
    positive, matched = matches >= 0, jnp.maximum(matches, 0)
    focal = class_loss(logits, anchors, truth, matches, settings.focal_gamma, settings.focal_alpha)
    boxes = jnp.where(positive[:, None], truth.boxes[matched], anchors)
    if settings.box_loss == "giou":
        errors = 1 - giou(decode_boxes(deltas, anchors), boxes)
    else:
        errors = jnp.abs(deltas - encode_boxes(boxes, anchors)).sum(-1)
    count = jnp.maximum(positive.sum(), 1)
    return {"class": focal / count, "box": (errors * positive).sum() / count}


def class_loss(
    logits: Float[Array, "A K"],
    anchors: Float[Array, "A 4"],
    truth: Truth,
    matches: Int[Array, "A"],
    gamma: float,
    alpha: float | None,
) -> Float[Array, ""]:
    """The focal loss of a picture, summed; matches: see `ops.matching`. An anchor of the background
    is to be of no class, one that lies in a crowd may be of any."""
    positive = matches >= 0
    labels = jnp.where(positive, truth.labels[jnp.maximum(matches, 0)], -1)
    targets = jax.nn.one_hot(labels, logits.shape[1], dtype=bool)
    known = positive | ((matches == BACKGROUND) & ~in_crowd(anchors, truth))
    return (sigmoid_focal(logits, targets, gamma, alpha).sum(-1) * known).sum()


# ---- prediction


def predictions(
    network: RetinaNet, settings: Settings, image: Array, image_size: Int[Array, "B 2"] | None
) -> dict[str, Array]:
    """Detections; see `types`."""
    image, inside = without_padding(image, multiple=COARSEST)
    maps = network.extract(image)
    logits, deltas, _ = network.look(maps)
    scores = [jax.nn.sigmoid(x) for x in logits]
    size = picture_size(inside) if image_size is None else image_size
    anchors = anchors_of(image, maps, settings)
    return detections_of(scores, deltas, anchors, decode_boxes, size, settings)


def detections_of(
    scores: Sequence[Float[Array, "B _ K"]],
    offsets: Sequence[Float[Array, "B _ 4"]],
    anchors: Sequence[Float[Array, "_ 4"]],
    decode: Callable[[Array, Array], Array],
    image_size: Int[Array, "B 2"],
    settings: Any,
) -> dict[str, Array]:
    """Detections as `types` has them; settings: those of `nn.dense.detect`, as below."""
    decide = partial(
        detect,
        anchors=anchors,
        decode=decode,
        most_per_level=settings.candidates_per_level,
        min_score=settings.min_score,
        iou_threshold=settings.detection_iou,
        most=settings.detections,
    )
    return named(jax.vmap(decide)(scores, offsets, image_size))


# ---- both


def anchors_of(image: Array, maps: Sequence[Array], settings: Settings) -> list[Array]:
    """The anchors of each map, constants."""
    return anchors_of_maps(image, maps, settings.anchor_sizes, settings.aspect_ratios)


def build(
    num_classes: int,
    *,
    settings: Mapping[str, Any] = MappingProxyType({}),
    **network: Any,
) -> Model:
    """RetinaNet as a `Model`; settings: fields of `Settings`, network: those of `RetinaNet`.

    ValueError for a backbone, setting or box loss that is none.
    """
    expect("backbone", network.get("backbone", "resnet50"), [*BACKBONES])
    chosen = Settings(**known_settings(Settings, settings))
    expect("settings.box_loss", chosen.box_loss, ["l1", "giou"])
    per_place = len(chosen.aspect_ratios) * sizes_per_level(chosen.anchor_sizes)
    net = RetinaNet(num_classes, anchors_per_place=per_place, **network)
    return model_of(net, chosen, losses, predictions)
