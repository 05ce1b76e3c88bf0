"""SSD (Liu et al. 2016, "SSD: Single Shot MultiBox Detector"): from several maps, fine to coarse,
3×3 convolutions say at once of default boxes which class they show and how they are to be moved.

    image       [B H W 3]  pictures, 0 (or the mean colour) where there is only padding
    image_size  [B 2]      (height, width) of the picture inside of it
    maps        L of [B h w C], finest first; those of a backbone, then those of extra layers
    boxes       [A 4]      default boxes of all maps: `ops.anchors.default_boxes`
    logits      [B A K]    of the classes, 0 the background
    deltas      [B A 4]    how a default box is to be moved and scaled (`ops.box_coder`)

`VARIANTS` are the published ones, SSD300 and SSD512 on VGG16 and SSDLite320 on MobileNetV3 (Howard
et al. 2019, section 6.3), and one on ResNets, for any canvas. All of their options can be changed.
Published pictures are stretched to a square, and have their own colours: the network gets what
all others get, and normalises it anew (`SSD.colours`).
"""

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Bool, Float, Int

from jaxseg.backbones.mobilenet import MobileNetV3Large, make_divisible
from jaxseg.backbones.resnet import BLOCKS, ResNet
from jaxseg.backbones.vgg import VGG16
from jaxseg.nn.conv import Conv, ConvNorm
from jaxseg.nn.detections import Detections, named, thin
from jaxseg.nn.detector import model_of
from jaxseg.nn.norm import Norm, NormKind, make_norm, with_options
from jaxseg.nn.options import expect, known_settings
from jaxseg.ops.anchors import default_boxes
from jaxseg.ops.box_coder import Weights, decode_boxes, encode_boxes
from jaxseg.ops.boxes import Size, clip_boxes, pairwise_iou
from jaxseg.ops.conv import max_pool2d
from jaxseg.ops.matching import BACKGROUND, match_anchors
from jaxseg.ops.padding import picture_mask, picture_size
from jaxseg.ops.truth import Truth, in_crowd, truth_of
from jaxseg.types import FLOAT32, MEAN, STD, Array, Batch, Mean, Model, Precision

BOX_WEIGHTS: Weights = (10.0, 10.0, 5.0, 5.0)  # one over what the paper's code calls variances

Colours = tuple[tuple[float, float, float], tuple[float, float, float]]  # mean and deviation
WHOLE_LEVELS: Colours = (0.48235, 0.45882, 0.40784), (1 / 255, 1 / 255, 1 / 255)
MINUS_ONE_TO_ONE: Colours = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


class Extra(NamedTuple):
    """Layers that make one more map: 1×1 to half the features, then this convolution."""

    features: int
    kernel_size: int = 3
    stride: int = 2
    padding: int = 1


# Backbones, the maps that they give, and the width of the published one.
_MOBILENET = partial(MobileNetV3Large, maps={16: "expand13", 32: 16})
BACKBONES = {
    **{f"resnet{depth}": (partial(ResNet, depth), (8, 16, 32), 64) for depth in BLOCKS},
    "vgg16": (partial(VGG16, pooled=False, ceil_mode=True), (8, 16), 64),
    "mobilenet_v3_large": (_MOBILENET, (16, 32), 16),
    "mobilenet_v3_large_reduced": (partial(_MOBILENET, reduced_tail=True), (16, 32), 16),
}


class Settings(NamedTuple):
    """What is not learned. Those of SSD300, as published for COCO (section 3.4)."""

    aspect_ratios: Sequence[Sequence[int | float]] = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))
    scales: Sequence[float] = (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)  # one more than maps
    steps: Sequence[int] | None = None  # pixels between two places; None: equal parts of the image
    match_iou: float = 0.5  # from which a default box is to show an object
    negatives: int = 3  # for each positive
    min_score: float = 0.01
    candidates: int = 400  # of each class, before suppression
    detection_iou: float = 0.45  # above which the lower one is suppressed
    detections: int = 200


# {name: (fields of `SSD`, of `Settings`)}
VARIANTS: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = MappingProxyType(
    {
        "ssd300": (
            dict(
                backbone="vgg16",
                extras=(Extra(512), Extra(256), Extra(256, 3, 1, 0), Extra(256, 3, 1, 0)),
                colours=WHOLE_LEVELS,
            ),
            dict(steps=(8, 16, 32, 64, 100, 300)),
        ),
        # Section 3.1: one more map, and smaller boxes.
        "ssd512": (
            dict(
                backbone="vgg16",
                extras=(Extra(512), Extra(256), Extra(256), Extra(256), Extra(256, 4, 1, 1)),
                colours=WHOLE_LEVELS,
            ),
            dict(
                aspect_ratios=((2,), (2, 3), (2, 3), (2, 3), (2, 3), (2,), (2,)),
                scales=(0.07, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.05),
                steps=(8, 16, 32, 64, 128, 256, 512),
            ),
        ),
        "ssdlite320": (
            dict(
                backbone="mobilenet_v3_large_reduced",
                width=16,
                extras=(Extra(512), Extra(256), Extra(256), Extra(128)),
                separable=True,
                norm="batch",
                norm_epsilon=1e-3,
                norm_momentum=0.97,
                colours=MINUS_ONE_TO_ONE,
            ),
            dict(
                aspect_ratios=((2, 3),) * 6,
                scales=(0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0),
                min_score=0.001,
                candidates=300,
                detection_iou=0.55,
                detections=300,
            ),
        ),
        "resnet": (
            dict(backbone="resnet18", extras=(Extra(512), Extra(256), Extra(256)), norm="batch"),
            dict(scales=(0.1, 0.2, 0.37, 0.54, 0.71, 0.88, 1.05)),  # section 3.1
        ),
    }
)


class SSD(nn.Module):
    """The network, in parts; `training` says which mode it is in."""

    num_classes: int  # with the background, class 0
    boxes_per_place: tuple[int, ...]  # of each map
    backbone: str = "vgg16"
    width: int = 64  # of the backbone's first stage; all others go with it
    extras: tuple[tuple[int, ...], ...] = ()  # fields of `Extra`
    separable: bool = False  # depthwise and 1×1 instead of 3×3 convolutions: SSDLite
    colours: Colours | None = None  # of the weights, on a scale of 0 to 1; None: types.MEAN, STD
    norm: NormKind = "none"
    norm_epsilon: float | None = None  # None: the backbone's own
    norm_momentum: float | None = None
    axis_name: str | None = None
    precision: Precision = FLOAT32
    training: bool = False

    def setup(self):
        norm = make_norm(
            self.norm, train=self.training, axis_name=self.axis_name, precision=self.precision
        )
        norm = with_options(norm, epsilon=self.norm_epsilon, momentum=self.norm_momentum)
        shared = dict(norm=norm, precision=self.precision)
        make, self.inputs, published = BACKBONES[self.backbone]
        self.trunk: Any = make(width=self.width, name="backbone", **shared)
        if self.backbone == "vgg16":
            self.l2_norm = L2Norm()
            wide = 16 * self.width
            self.fc6 = ConvNorm(wide, 3, padding=6, dilation=6, **shared)
            self.fc7 = ConvNorm(wide, 1, **shared)
        for i, extra in enumerate(self.extras, start=1):
            extra = Extra(*extra)
            extra = extra._replace(features=make_divisible(extra.features * self.width / published))
            setattr(self, f"extra{i}", ExtraLayers(extra, self.separable, **shared))
        for i, count in enumerate(self.boxes_per_place, start=1):
            setattr(self, f"head{i}", Head(count, self.num_classes, self.separable, **shared))

    def __call__(self, image: Float[Array, "B H W 3"]) -> None:
        """Runs every part once, so that all have their parameters."""
        self.predict(self.extract(image))

    def prepare(self, image: Float[Array, "B H W 3"]) -> tuple[Array, Bool[Array, "B H W"]]:
        """The image in the colours of the weights and 0 outside of the picture, and where that
        is."""
        inside = picture_mask(image)
        if self.colours is not None:
            mean, std = jnp.asarray(self.colours, jnp.float32).reshape(2, 1, 1, 1, 3)
            old_mean, old_std = (x.reshape(1, 1, 1, 3) for x in (MEAN, STD))
            image = (image * old_std + (old_mean - mean)) / std
        return jnp.where(inside[..., None], image, 0), inside

    def extract(self, image: Float[Array, "B H W 3"]) -> list[Array]:
        """The maps of a prepared image (figure 2). ValueError where it is too small for them."""
        features = self.trunk(image)
        maps = [features[stride] for stride in self.inputs]
        if self.backbone == "vgg16":
            # fc6 is as far-seeing as VGG's, whose pooling had a stride (section 3, the hole
            # algorithm).
            pooled = max_pool2d(maps[1], 3, 1, 1)
            maps = [self.l2_norm(maps[0]), self.fc7(self.fc6(pooled))]
        for i, extra in enumerate(self.extras, start=1):
            _, size, _, padding = extra = Extra(*extra)
            if min(maps[-1].shape[1:3]) + 2 * padding < size:
                height, width = image.shape[1:3]
                raise ValueError(
                    f"an image of {height}×{width} is too small for extra {i}, {extra}"
                )
            maps.append(getattr(self, f"extra{i}")(maps[-1]))
        if len(maps) != len(self.boxes_per_place):
            raise ValueError(
                f"{self.backbone} and {len(self.extras)} extras give {len(maps)} maps, expected "
                f"aspect_ratios of as many, not of {len(self.boxes_per_place)}"
            )
        return maps

    def predict(self, maps: Sequence[Array]) -> tuple[Float[Array, "B A K"], Float[Array, "B A 4"]]:
        """(class logits, box deltas) of all default boxes, map after map."""
        found = [getattr(self, f"head{i}")(x) for i, x in enumerate(maps, start=1)]
        logits, deltas = (jnp.concatenate(x, axis=1) for x in zip(*found, strict=True))
        return logits, deltas


class L2Norm(nn.Module):
    """Every place's features with length 1, times a learned scale of each channel (section 3.1; Liu
    et al. 2016, "ParseNet"): those of so early a stage are larger than others."""

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        scale = self.param("scale", nn.initializers.constant(20.0), (x.shape[-1],))
        wide = x.astype(jnp.float32)
        squared = jnp.square(wide).sum(-1, keepdims=True)
        y = wide * lax.rsqrt(jnp.maximum(squared, 1e-24)) * scale.reshape(1, 1, 1, -1)
        return y.astype(x.dtype)


class ExtraLayers(nn.Module):
    """A map [B h w C] -> the next one [B h2 w2 F] (figure 2); or, `separable`, with the 3×3
    convolution channel by channel and a 1×1 convolution after it."""

    extra: Extra
    separable: bool
    norm: Norm
    precision: Precision

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B _ _ F"]:
        features, size, stride, padding = self.extra
        layer = partial(
            ConvNorm,
            norm=self.norm,
            activation=nn.relu6 if self.separable else nn.relu,
            precision=self.precision,
        )
        x = layer(features // 2, 1, name="reduce")(x)
        if self.separable:
            x = layer(features // 2, size, stride, padding, depthwise=True, name="depthwise")(x)
            return layer(features, 1, name="expand")(x)
        return layer(features, size, stride, padding, name="expand")(x)


class Head(nn.Module):
    """A map [B h w C] -> (class logits [B A K], box deltas [B A 4]), in the order of the default
    boxes."""

    boxes_per_place: int
    num_classes: int
    separable: bool
    norm: Norm
    precision: Precision

    @nn.compact
    def __call__(
        self, x: Float[Array, "B h w C"]
    ) -> tuple[Float[Array, "B A K"], Float[Array, "B A 4"]]:
        shared = dict(precision=self.precision)

        def layer(width: int, name: str) -> Array:
            if not self.separable:
                init = nn.initializers.xavier_uniform()  # section 3
                y = Conv(self.boxes_per_place * width, 3, kernel_init=init, name=name, **shared)(x)
            else:
                seen = ConvNorm(
                    x.shape[-1],
                    depthwise=True,
                    norm=self.norm,
                    activation=nn.relu6,
                    name=f"{name}_depthwise",
                    **shared,
                )(x)
                init = nn.initializers.normal(0.03)
                conv = Conv(self.boxes_per_place * width, 1, kernel_init=init, name=name, **shared)
                y = conv(seen)
            return y.reshape(len(x), -1, width).astype(jnp.float32)

        return layer(self.num_classes, "logits"), layer(4, "deltas")


# ---- training


def losses(network: SSD, settings: Settings, batch: Batch) -> dict[str, Mean]:
    """`class` and `box` of a batch; see `box_losses`."""
    image, _ = network.prepare(batch["image"])
    maps = network.extract(image)
    assign = partial(assign_boxes, boxes_of(image, maps, settings), iou=settings.match_iou)
    targets = jax.vmap(assign)(truth_of(batch))
    return box_losses(*network.predict(maps), targets, settings.negatives)


class Targets(NamedTuple):
    """What the default boxes are to learn."""

    labels: Int[Array, "*B A"]  # 0 where there is no object
    deltas: Float[Array, "*B A 4"]  # of the positive ones; 0 of others
    positive: Bool[Array, "*B A"]
    negative: Bool[Array, "*B A"]


def assign_boxes(boxes: Float[Array, "A 4"], truth: Truth, iou: float = 0.5) -> Targets:
    """Positive: those with an IoU of at least `iou` with an object, and of each object the one that
    overlaps it most (section 2.2, "Matching strategy"); of two objects with the same one, the last
    has it. Negative: all others, but for those in crowds."""
    quality = pairwise_iou(truth.boxes, boxes)
    matches = match_anchors(quality, iou, iou, object_mask=truth.mask)
    claims = jnp.where(truth.mask, jnp.arange(len(quality)), BACKGROUND)
    claimed = jnp.full(len(boxes), BACKGROUND).at[quality.argmax(1)].max(claims)
    matches = jnp.where(claimed == BACKGROUND, matches, claimed)
    positive = matches != BACKGROUND
    matched = jnp.where(positive, matches, 0)
    labels = jnp.where(positive, truth.labels[matched], 0)
    deltas = encode_boxes(truth.boxes[matched], boxes, BOX_WEIGHTS)
    deltas = jnp.where(positive[:, None], deltas, 0)
    return Targets(labels, deltas, positive, ~positive & ~in_crowd(boxes, truth))


def box_losses(
    logits: Float[Array, "B A K"], deltas: Float[Array, "B A 4"], targets: Targets, negatives: int
) -> dict[str, Mean]:
    """The two terms of equation 1, each over the positive default boxes of the whole batch:

    class  cross-entropy of the positive ones and, for each, of the `negatives` hardest negative
           ones of its picture
    box    smooth L1 of the positive ones' deltas
    """
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, targets.labels)
    number = negatives * targets.positive.sum(1)
    hard = jax.vmap(hardest)(entropy, targets.negative, number)
    error = optax.huber_loss(deltas, targets.deltas).sum(-1)
    count = targets.positive.sum().astype(jnp.float32)
    return {
        "class": Mean((entropy * (targets.positive | hard)).sum(), count),
        "box": Mean((error * targets.positive).sum(), count),
    }


def hardest(
    losses: Float[Array, "A"], candidates: Bool[Array, "A"], number: Int[Array, ""]
) -> Bool[Array, "A"]:
    """The `number` candidates of the highest losses, or all there are; of equal ones, the first
    (section 2.2, "Hard negative mining")."""
    losses = jnp.where(candidates, lax.stop_gradient(losses), -jnp.inf)
    places = jnp.arange(len(losses))
    order = jnp.argsort(-losses)
    rank = jnp.zeros_like(places).at[order].set(places, unique_indices=True)
    return candidates & (rank < number)


# ---- prediction


def predictions(
    network: SSD, settings: Settings, image: Array, image_size: Int[Array, "B 2"] | None
) -> dict[str, Array]:
    """Detections; see `types`."""
    image, inside = network.prepare(image)
    image_size = picture_size(inside) if image_size is None else image_size
    maps = network.extract(image)
    decide = partial(detect, boxes=boxes_of(image, maps, settings), settings=settings)
    return named(jax.vmap(decide)(*network.predict(maps), image_size))


def detect(
    logits: Float[Array, "A K"],
    deltas: Float[Array, "A 4"],
    image_size: Size,
    *,
    boxes: Float[Array, "A 4"],
    settings: Settings,
) -> Detections:
    """The best boxes of each class, after non-maximum suppression within it."""
    boxes = clip_boxes(decode_boxes(deltas, boxes, BOX_WEIGHTS), image_size)
    scores = jax.nn.softmax(logits)[:, 1:].T
    scores, places = lax.top_k(scores, min(settings.candidates, len(boxes)))
    labels = jnp.broadcast_to(jnp.arange(1, 1 + len(scores))[:, None], scores.shape)
    scores, places, labels = scores.reshape(-1), places.reshape(-1), labels.reshape(-1)
    likely = scores > settings.min_score
    return thin(boxes[places], scores, labels, likely, settings.detection_iou, settings.detections)


# ---- both


def boxes_of(image: Array, maps: Sequence[Array], settings: Settings) -> Float[Array, "A 4"]:
    """The default boxes of all maps, constants."""
    size, *sizes = [(x.shape[1], x.shape[2]) for x in (image, *maps)]
    levels = default_boxes(settings.aspect_ratios, settings.scales, sizes, size, settings.steps)
    return jnp.concatenate([jnp.asarray(boxes) for boxes in levels])


def build(
    num_classes: int,
    *,
    variant: str = "ssd300",
    settings: Mapping[str, Any] = MappingProxyType({}),
    **network: Any,
) -> Model:
    """SSD as a `Model`; variant: one of `VARIANTS`, of which settings, fields of `Settings`, and
    network, those of `SSD`, replace some.

    The published steps belong to the published canvas: on another one they should be None. And
    published colours belong to weights of SSD: those of a classifier to start from have None.
    ValueError for a variant, backbone or setting that is none.
    """
    net, chosen = network_of(num_classes, variant, settings, **network)
    return model_of(net, chosen, losses, predictions, side=None)


def network_of(
    num_classes: int, variant: str, settings: Mapping[str, Any], **network: Any
) -> tuple[SSD, Settings]:
    """A variant's network and settings; see `build`."""
    expect("variant", variant, [*VARIANTS])
    options, published = VARIANTS[variant]
    options = options | network
    chosen = Settings(**published | known_settings(Settings, settings))
    expect("backbone", options["backbone"], [*BACKBONES])
    # Two squares, and each of the other shapes in both directions.
    per_place = tuple(2 + 2 * len(ratios) for ratios in chosen.aspect_ratios)
    return SSD(num_classes, per_place, **options), chosen
