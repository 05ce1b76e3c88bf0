"""YOLOX (Ge et al. 2021, "YOLOX: Exceeding YOLO Series in 2021"): a YOLO without anchors. Each
place of maps of stride 8, 16 and 32 says where the box of an object is, whether there is one, and
which; what places learn an object is found while training, by SimOTA.

    image    [B H W 3]        pictures; on the canvas's other parts the mean colour
    outputs  L of [B h w 4+K]  finest first: the box (x, y, w, h), objectness, and K - 1 classes, as
                               logits; the background is none of them
    places   [A]               of all maps, finest first, row by row

A place is in column c and row r of a map of stride s. Its box has the centre ((c + x) s, (r + y) s)
and the sides (exp(w) s, exp(h) s).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Bool, Float, Int

from jaxseg.models.yolo import decide
from jaxseg.nn.conv import Conv, ConvNorm, SeparableConvNorm
from jaxseg.nn.detections import Detections, named
from jaxseg.nn.detector import model_of
from jaxseg.nn.fpn import enlarge_nearest
from jaxseg.nn.norm import NormKind, make_norm
from jaxseg.nn.options import expect, known_settings
from jaxseg.ops.box_coder import MIN_SIZE
from jaxseg.ops.boxes import cxcywh_to_xyxy, iou, pairwise_iou, xyxy_to_cxcywh
from jaxseg.ops.conv import max_pool2d
from jaxseg.ops.matching import BACKGROUND
from jaxseg.ops.padding import picture_size, without_padding
from jaxseg.ops.truth import Truth, in_crowd, truth_of
from jaxseg.types import FLOAT32, Array, Batch, Mean, Model, Precision

STRIDES = (8, 16, 32)
PRIOR = 0.01  # probability of anything anywhere, at first (Lin et al. 2017, "Focal Loss")
MAX_LOG_SIDE = 10.0  # in strides; areas stay finite

SIZES: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        "nano": dict(depth=0.33, width=0.25, depthwise=True),
        "tiny": dict(depth=0.33, width=0.375),
        "s": dict(depth=0.33, width=0.5),
        "m": dict(depth=0.67, width=0.75),
        "l": dict(depth=1.0, width=1.0),
        "x": dict(depth=1.33, width=1.25),
    }
)


class Settings(NamedTuple):
    """What is not learned."""

    centre_radius: float = 2.5  # in strides, around an object's middle: places that suit it best
    dynamic_k_from: int = 10  # the IoUs of so many boxes say how many places an object has
    iou_cost: float = 3.0
    outside_cost: float = 1e5  # of places that are outside of the object, or of its middle
    box_weight: float = 5.0
    l1: bool = False  # L1 of the boxes, too: for the last epochs, without mosaic (section 2.1)
    min_score: float = 0.01
    candidates: int = 1000  # of the highest scores, before suppression
    detection_iou: float = 0.65
    detections: int = 100


# ---- network


class Layers(NamedTuple):
    """Constructors of the convolutions that all parts are made of."""

    conv: Callable[..., nn.Module]
    wide: Callable[..., nn.Module]  # 3×3; of the smallest networks depthwise separable


class YOLOX(nn.Module):
    """image -> outputs, see above."""

    num_classes: int  # with the background, class 0
    depth: float = 0.33  # times the published numbers of blocks
    width: float = 0.5  # times the published numbers of features
    depthwise: bool = False
    norm: NormKind = "batch"
    axis_name: str | None = None
    precision: Precision = FLOAT32
    training: bool = False

    @nn.compact
    def __call__(self, image: Float[Array, "B H W 3"]) -> list[Float[Array, "B _ _ _"]]:
        norm = make_norm(
            self.norm, train=self.training, axis_name=self.axis_name, precision=self.precision
        )
        norm = norm and partial(norm, epsilon=1e-3, momentum=0.97)
        shared = dict(norm=norm, activation=nn.silu, precision=self.precision)
        conv = partial(ConvNorm, **shared)
        wide = partial(SeparableConvNorm, norm_between=True, **shared) if self.depthwise else conv
        layers, width = Layers(conv, wide), int(64 * self.width)
        features = CSPDarknet(width, self.depth, layers, name="backbone")(image)
        maps = PAFPN(self.depth, layers, name="neck")([features[stride] for stride in STRIDES])
        return [
            Head(4 * width, self.num_classes - 1, layers, self.precision, name=f"head{stride}")(x)
            for stride, x in zip(STRIDES, maps, strict=True)
        ]


class CSPDarknet(nn.Module):
    """[B H W 3] -> {8, 16, 32: features}: Darknet-53 with cross stage partial blocks (Wang et al.
    2020, "CSPNet"), and pools of several sizes at its end."""

    width: int  # of the first layer
    depth: float
    layers: Layers

    @nn.compact
    def __call__(self, image: Float[Array, "B H W 3"]) -> dict[int, Array]:
        conv, wide = self.layers
        blocks = max(round(3 * self.depth), 1)
        x = conv(self.width, 3, name="stem")(focus(image))
        features = {}
        for stage, times in enumerate((1, 3, 3, 1), start=1):
            last, width = stage == 4, self.width << stage
            x = wide(width, 3, 2, name=f"stage{stage}_down")(x)
            if last:
                x = SPP(width, conv, name=f"stage{stage}_pool")(x)
            csp = CSPLayer(width, blocks * times, not last, self.layers, name=f"stage{stage}")
            x = features[2 << stage] = csp(x)
        return features


def focus(image: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 4*C"]:
    """Each 2×2 pixels, column by column, as one; at odd sizes with zeros beyond the border."""
    image = jnp.pad(image, [(0, 0), (0, image.shape[1] % 2), (0, image.shape[2] % 2), (0, 0)])
    corners = [image[:, y::2, x::2] for x in (0, 1) for y in (0, 1)]
    return jnp.concatenate(corners, axis=-1)


class CSPLayer(nn.Module):
    """Half of the features go through bottlenecks, the other half past them."""

    features: int
    blocks: int
    shortcut: bool
    layers: Layers

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w F"]:
        conv, wide = self.layers
        half = self.features // 2
        y, past = conv(half, 1, name="main")(x), conv(half, 1, name="past")(x)
        for i in range(1, self.blocks + 1):
            before, y = y, conv(half, 1, name=f"block{i}_conv1")(y)
            y = wide(half, 3, name=f"block{i}_conv2")(y)
            y = y + before if self.shortcut else y
        return conv(self.features, 1, name="merge")(jnp.concatenate([y, past], axis=-1))


class SPP(nn.Module):
    """Spatial pyramid pooling: maxima over 5×5, 9×9 and 13×13 pixels beside each pixel's own."""

    features: int
    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w F"]:
        pools = [self.conv(x.shape[-1] // 2, 1, name="reduce")(x)]
        for _ in range(3):  # a maximum of maxima: each reaches two pixels further
            pools.append(max_pool2d(pools[-1], 5, 1, 2))
        return self.conv(self.features, 1, name="merge")(jnp.concatenate(pools, axis=-1))


class PAFPN(nn.Module):
    """Maps, finest first -> as many of the same shapes: a feature pyramid, and a way back from fine
    to coarse (Liu et al. 2018, "Path Aggregation Network", section 3.1)."""

    depth: float
    layers: Layers

    @nn.compact
    def __call__(self, maps: Sequence[Float[Array, "B _ _ _"]]) -> list[Array]:
        conv, wide = self.layers
        blocks = round(3 * self.depth)
        fine, middle, coarse = maps
        widths = [x.shape[-1] for x in maps]

        def merge(a: Array, b: Array, features: int, name: str) -> Array:
            layer = CSPLayer(features, blocks, False, self.layers, name=name)
            return layer(jnp.concatenate([a, b], axis=-1))

        def enlarge(x: Array, like: Array) -> Array:
            return enlarge_nearest(x, (like.shape[1], like.shape[2]))

        coarse = conv(widths[1], 1, name="reduce2")(coarse)
        middle = merge(enlarge(coarse, middle), middle, widths[1], "up2")
        middle = conv(widths[0], 1, name="reduce1")(middle)
        fine = merge(enlarge(middle, fine), fine, widths[0], "up1")
        down = wide(widths[0], 3, 2, name="reduce3")(fine)
        middle = merge(down, middle, widths[1], "down1")
        down = wide(widths[1], 3, 2, name="reduce4")(middle)
        return [fine, middle, merge(down, coarse, widths[2], "down2")]


class Head(nn.Module):
    """[B h w C] -> [B h w 5+classes]: classes and boxes apart from each other (section 2.1,
    "Decoupled head")."""

    features: int
    classes: int
    layers: Layers
    precision: Precision

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w _"]:
        conv, wide = self.layers
        small = nn.initializers.normal(0.01)
        predict = partial(Conv, kernel_size=1, kernel_init=small, precision=self.precision)
        rare = nn.initializers.constant(-np.log((1 - PRIOR) / PRIOR))
        x = conv(self.features, 1, name="stem")(x)
        branches = {}
        for branch in ("class", "box"):
            y = wide(self.features, 3, name=f"{branch}_conv1")(x)
            branches[branch] = wide(self.features, 3, name=f"{branch}_conv2")(y)
        outputs = [
            predict(4, name="box")(branches["box"]),
            predict(1, bias_init=rare, name="objectness")(branches["box"]),
            predict(self.classes, bias_init=rare, name="class")(branches["class"]),
        ]
        return jnp.concatenate(outputs, axis=-1).astype(jnp.float32)


# ---- places


class Places(NamedTuple):
    """All of them, constants."""

    corner: Float[Array, "A 2"]  # (column, row) on its map
    stride: Float[Array, "A 1"]  # pixels

    def centre(self) -> Float[Array, "A 2"]:
        """Pixels of the image."""
        return (self.corner + 0.5) * self.stride


def places_of(sizes: Sequence[Sequence[int]], strides: Sequence[int] = STRIDES) -> Places:
    """Of maps of these (height, width)."""
    corners, steps = [], []
    for (height, width), stride in zip(sizes, strides, strict=True):
        row, column = np.divmod(np.arange(height * width, dtype=np.float32), width)
        corners.append(np.stack([column, row], axis=-1))
        steps.append(np.full((height * width, 1), stride, np.float32))
    return Places(jnp.asarray(np.concatenate(corners)), jnp.asarray(np.concatenate(steps)))


def decode(offsets: Float[Array, "A 4"], places: Places) -> Float[Array, "A 4"]:
    """The boxes of (x, y, w, h), xyxy in pixels."""
    shift, log_side = jnp.split(offsets, 2, axis=-1)
    side = jnp.exp(jnp.minimum(log_side, MAX_LOG_SIDE))
    boxes = jnp.concatenate([places.corner + shift, side], axis=-1) * places.stride
    return cxcywh_to_xyxy(boxes)


def encode(boxes: Float[Array, "A 4"], places: Places) -> Float[Array, "A 4"]:
    """The (x, y, w, h) of boxes."""
    centre, side = jnp.split(xyxy_to_cxcywh(boxes) / places.stride, 2, axis=-1)
    return jnp.concatenate([centre - places.corner, jnp.log(jnp.maximum(side, MIN_SIZE))], axis=-1)


def flatten(outputs: Sequence[Float[Array, "B _ _ O"]]) -> Float[Array, "B A O"]:
    """All places of each picture."""
    return jnp.concatenate([x.reshape(len(x), -1, x.shape[-1]) for x in outputs], axis=1)


# ---- training


def losses(network: YOLOX, settings: Settings, batch: Batch) -> dict[str, Mean]:
    """Over the number of positive places of all pictures, at least 1:

    box         1 − IoU² of the positive places' boxes, as the authors' code has it, times
                `box_weight`
    objectness  binary cross-entropy of all places, but for those whose box lies in a crowd
    class       binary cross-entropy of the positive places' classes; the truth is the box's IoU
    l1          of the positive places' (x, y, w, h), if wanted
    """
    image, _ = without_padding(batch["image"])
    outputs = network(image)
    places = places_of([x.shape[1:3] for x in outputs])
    each = partial(picture_losses, places=places, settings=settings)
    found, positive = jax.vmap(each)(flatten(outputs), truth_of(batch))
    valid, count = batch["valid"].astype(jnp.float32), positive.sum().astype(jnp.float32)
    return {name: Mean((loss * valid).sum(), count) for name, loss in found.items()}


def picture_losses(
    outputs: Float[Array, "A O"], truth: Truth, *, places: Places, settings: Settings
) -> tuple[dict[str, Float[Array, ""]], Int[Array, ""]]:
    """(the sums of `losses` for one picture, how many places are positive)."""
    offsets, objectness, logits = outputs[:, :4], outputs[:, 4], outputs[:, 5:]
    boxes = decode(offsets, places)
    known = truth._replace(boxes=jnp.where(truth.mask[:, None], truth.boxes, 0))
    seen = lax.stop_gradient((boxes, objectness, logits))
    matches = assign(*seen, known, places, settings)
    positive, chosen = matches != BACKGROUND, jnp.maximum(matches, 0)

    counted = positive | ~in_crowd(seen[0], truth)
    overlap = iou(boxes, known.boxes[chosen])
    entropy = optax.sigmoid_binary_cross_entropy
    labels = jax.nn.one_hot(known.labels[chosen] - 1, logits.shape[1])
    soft = labels * lax.stop_gradient(overlap)[:, None]
    found = {
        "box": settings.box_weight * (positive @ (1 - overlap**2)),
        "objectness": counted @ entropy(objectness, positive.astype(jnp.float32)),
        "class": positive @ entropy(logits, soft).sum(-1),
    }
    if settings.l1:
        found["l1"] = positive @ jnp.abs(offsets - encode(known.boxes[chosen], places)).sum(-1)
    return found, positive.sum()


def assign(
    boxes: Float[Array, "A 4"],
    objectness: Float[Array, "A"],
    logits: Float[Array, "A C"],
    truth: Truth,
    places: Places,
    settings: Settings,
) -> Int[Array, "A"]:
    """SimOTA (section 2.1): for each place the index of the object that it is to learn, or
    BACKGROUND.

    An object takes the k places that cost it least, where k is the sum of the ten highest IoUs of
    their boxes with it, rounded down, at least 1. The cost is the cross-entropy of the class, times
    the objectness, and -3 log IoU, and very much for places that do not lie both in the object and
    near its middle. A place that several take has the object that it costs least, of all objects,
    as the authors have it: also of those that did not take it.
    """
    inside, central = whereabouts(truth, places, settings.centre_radius)
    possible = (inside | central).any(0)[None] & truth.mask[:, None]
    overlap = jnp.where(possible, pairwise_iou(truth.boxes, boxes), 0)
    cost = class_cost(objectness, logits, truth.labels)
    cost -= settings.iou_cost * jnp.log(overlap + 1e-8)
    cost += settings.outside_cost * ~(inside & central)
    cost = jnp.where(possible, cost, jnp.inf)

    most = min(settings.dynamic_k_from, len(boxes))
    best_overlaps, _ = lax.top_k(overlap, most)
    number = jnp.maximum(jnp.floor(best_overlaps.sum(-1)), 1)
    negated, cheapest = lax.top_k(-cost, most)
    taken = (jnp.arange(most)[None] < number[:, None]) & jnp.isfinite(negated)
    rows = jnp.arange(len(cost))[:, None]
    wanted = jnp.zeros(cost.shape, bool).at[rows, cheapest].set(taken)
    contested = wanted.sum(0, keepdims=True) > 1
    least = jnp.where(wanted | contested, cost, jnp.inf).argmin(0)
    return jnp.where(wanted.any(0), least, BACKGROUND)


def whereabouts(
    truth: Truth, places: Places, radius: float
) -> tuple[Bool[Array, "M A"], Bool[Array, "M A"]]:
    """Whether the centre of each place is inside of an object's box, and whether it is less than
    `radius` strides from its middle, down and across; False for rows that are no objects."""
    centre, real = places.centre()[None], truth.mask[:, None]
    start, end = truth.boxes[:, None, :2], truth.boxes[:, None, 2:]
    inside = ((centre > start) & (centre < end)).all(-1)
    away = jnp.abs(centre - (start + end) / 2)
    central = (away < radius * places.stride[None]).all(-1)
    return inside & real, central & real


def class_cost(
    objectness: Float[Array, "A"], logits: Float[Array, "A C"], labels: Int[Array, "M"]
) -> Float[Array, "M A"]:
    """Binary cross-entropy, over all classes, of √(probability · objectness) with each label."""
    log_yes = (jax.nn.log_sigmoid(logits) + jax.nn.log_sigmoid(objectness)[:, None]) / 2
    log_no = jnp.log(jnp.maximum(-jnp.expm1(log_yes), 1e-30))
    # Of all classes as if none were right, and the right one put right: no array is [M A C].
    own = jnp.clip(labels - 1, 0, logits.shape[1] - 1)
    return (log_no - log_yes).T[own] - log_no.sum(-1)[None]


# ---- prediction


def predictions(
    network: YOLOX, settings: Settings, image: Array, image_size: Int[Array, "B 2"] | None
) -> dict[str, Array]:
    """Detections; see `types`. The score of a class is its probability times the objectness."""
    image, inside = without_padding(image)
    image_size = picture_size(inside) if image_size is None else image_size
    outputs = network(image)
    places = places_of([x.shape[1:3] for x in outputs])

    def of_picture(outputs: Array, image_size: Array) -> Detections:
        likely = jax.nn.sigmoid(outputs[:, 4:])
        boxes = decode(outputs[:, :4], places)
        return decide(boxes, likely[:, :1] * likely[:, 1:], image_size, settings)

    return named(jax.vmap(of_picture)(flatten(outputs), image_size))


def build(
    num_classes: int,
    *,
    size: str = "s",
    settings: Mapping[str, Any] = MappingProxyType({}),
    **network: Any,
) -> Model:
    """YOLOX as a `Model`; size: of SIZES, as published; settings: fields of `Settings`, network:
    those of `YOLOX`, before those of the size.

    ValueError for a size or a setting that is none.
    """
    expect("size", size, [*SIZES])
    chosen = Settings(**known_settings(Settings, settings))
    net = YOLOX(num_classes, **{**SIZES[size], **network})
    return model_of(net, chosen, losses, predictions)
