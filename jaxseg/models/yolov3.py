"""YOLOv3 (Redmon & Farhadi 2018, "YOLOv3: An Incremental Improvement") on Darknet-53, and its tiny
variant: anchors at every place of maps of stride 32, 16 and 8 (tiny: 32 and 16).

    image    [B H W 3]      pictures; on the canvas's other parts the mean colour
    outputs  L of [B h w a 4+K], coarsest first: of the a anchors at a place the box (tx, ty, tw,
             th), objectness, and K - 1 classes, as logits; the background is none of them
    anchors  [N 2]          (width, height) in pixels, of all scales
    masks    L of a         which of the anchors belong to each scale

Boxes are decoded as in the paper's figure 2: (column + σ(tx), row + σ(ty)) times the stride, and
(exp(tw), exp(th)) times the anchor. `weights.darknet` reads and writes Darknet's files.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Bool, Float, Int

from jaxseg.backbones.darknet import YOLOV3_TINY, Chain, Darknet53, darknet_layer
from jaxseg.models.yolo import cell_of, decide, first_at, like, means_of_pictures
from jaxseg.nn.conv import Conv
from jaxseg.nn.detections import Detections, named
from jaxseg.nn.detector import model_of
from jaxseg.nn.fpn import enlarge_nearest
from jaxseg.nn.norm import Norm, NormKind, make_norm
from jaxseg.nn.options import known_settings
from jaxseg.ops.box_coder import MAX_LOG_SCALE, MIN_SIZE
from jaxseg.ops.boxes import cxcywh_to_xyxy, pairwise_iou, xyxy_to_cxcywh
from jaxseg.ops.padding import picture_size, without_padding
from jaxseg.ops.truth import Truth, in_crowd, truth_of
from jaxseg.types import FLOAT32, MEAN, STD, Array, Batch, Mean, Model, Precision

Sizes = Sequence[Sequence[int | float]]  # (width, height), smallest first

# Section 2.3, for pictures of 416×416; those of the tiny network are from its .cfg.
ANCHORS = (
    *((10, 13), (16, 30), (33, 23)),
    *((30, 61), (62, 45), (59, 119)),
    *((116, 90), (156, 198), (373, 326)),
)
TINY_ANCHORS = ((10, 14), (23, 27), (37, 58), (81, 82), (135, 169), (344, 319))


class Settings(NamedTuple):
    """What is not learned."""

    anchors: Sizes = ANCHORS
    masks: Sequence[Sequence[int]] | None = None  # None: the largest to the coarsest, equally many
    ignore_iou: float = 0.5  # above which a box that is nobody's is not trained to be none
    min_score: float = 0.005
    candidates: int = 1000  # of the highest scores, before suppression
    detection_iou: float = 0.45
    detections: int = 100


class YOLOv3(nn.Module):
    """image -> outputs, see above."""

    num_classes: int  # with the background, class 0
    tiny: bool = False
    width: int | None = None  # of the first layer; None: as published, 32, or 16 of the tiny one
    anchors_per_place: int = 3
    norm: NormKind = "batch"
    axis_name: str | None = None
    precision: Precision = FLOAT32
    training: bool = False

    @property
    def strides(self) -> tuple[int, ...]:
        return (32, 16) if self.tiny else (32, 16, 8)

    @nn.compact
    def __call__(self, image: Float[Array, "B H W 3"]) -> list[Float[Array, "B _ _ a _"]]:
        shared: Any = dict(
            norm=make_norm(
                self.norm, train=self.training, axis_name=self.axis_name, precision=self.precision
            ),
            precision=self.precision,
        )
        width = self.width or (16 if self.tiny else 32)
        if self.tiny:
            trunk = Chain(YOLOV3_TINY, width, name="backbone", **shared)
        else:
            trunk = Darknet53(width, name="backbone", **shared)
        features = trunk(image * like(STD, image) + like(MEAN, image))  # colours of 0 to 1
        coarser, outputs = None, []
        for level, stride in enumerate(self.strides):
            head = ScaleHead(
                16 * width >> level,
                (2, 1)[level] if self.tiny else 6,
                self.anchors_per_place * (4 + self.num_classes),
                name=f"head{stride}",
                **shared,
            )
            x, coarser = head(features[stride], coarser)
            outputs.append(x.reshape(*x.shape[:3], self.anchors_per_place, -1))
        return outputs


class ScaleHead(nn.Module):
    """A map of the trunk, and of the coarser scale what its head had before its last 3×3
    convolution -> (predictions [B h w outputs], the same for the next scale): 1×1 convolutions to
    `features` and 3×3 ones to twice as many by turns, the last one 3×3 (section 2.3)."""

    features: int
    convolutions: int
    outputs: int
    norm: Norm
    precision: Precision

    @nn.compact
    def __call__(
        self, x: Float[Array, "B h w C"], coarser: Float[Array, "B _ _ _"] | None
    ) -> tuple[Float[Array, "B h w O"], Float[Array, "B h w F"]]:
        layer = darknet_layer(self.norm, self.precision)
        if coarser is not None:
            reduced = layer(self.features, 1, name="reduce")(coarser)
            reduced = enlarge_nearest(reduced, (x.shape[1], x.shape[2]))
            x = jnp.concatenate([reduced, x], axis=-1)
        before = x
        for i in range(1, self.convolutions + 1):
            wide = (self.convolutions - i) % 2 == 0
            before, conv = x, layer(self.features << wide, 3 if wide else 1, name=f"conv{i}")
            x = conv(x)
        small = nn.initializers.normal(0.01)
        predict = Conv(self.outputs, 1, kernel_init=small, precision=self.precision, name="predict")
        return predict(x).astype(jnp.float32), before


# ---- anchors


def shape_iou(a: Float[Array, "M 2"], b: Float[Array, "N 2"]) -> Float[Array, "M N"]:
    """IoU of boxes of these (width, height) that lie upon each other; numpy's where these are."""
    both = a[:, None].clip(None, b[None]).prod(-1)
    union = a.prod(-1)[:, None] + b.prod(-1)[None] - both
    return both / union.clip(MIN_SIZE)


def kmeans_anchors(
    boxes_wh: Float[np.ndarray, "M 2"], k: int, *, seed: int = 0, starts: int = 10
) -> Float[np.ndarray, "k 2"]:
    """The (width, height) of k anchors for boxes of such sizes, smallest area first, by k-means
    with the distance 1 - IoU (Redmon & Farhadi 2017, "YOLO9000", section 2, "Dimension Clusters").
    Pixels are those of the canvas, such as half a file's where `data.resize` halves it:

        boxes = np.concatenate([example["boxes"] for example in dataset.splits["train"]])
        kmeans_anchors((boxes[:, 2:] - boxes[:, :2]) / 2, 6)

    Of several starts by k-means++ (Arthur & Vassilvitskii 2007) the one with the highest mean IoU.
    ValueError for fewer than k different sizes, and for sizes that are not positive.
    """
    if not (boxes_wh > 0).all() or len(np.unique(boxes_wh, axis=0)) < k:
        raise ValueError(f"kmeans_anchors: expected at least {k} different sizes, all positive")
    rng = np.random.default_rng(seed)
    boxes: Any = np.asarray(boxes_wh, np.float64)

    def distance(centres: Any) -> Any:
        return 1 - shape_iou(boxes, centres)

    def spread() -> np.ndarray:
        centres = boxes[rng.integers(len(boxes))][None]
        while len(centres) < k:
            chance = distance(centres).min(1) ** 2
            drawn = rng.choice(len(boxes), p=chance / chance.sum())
            centres = np.append(centres, boxes[drawn][None], axis=0)
        return centres

    def settle(centres: np.ndarray) -> np.ndarray:
        for _ in range(1000):  # by far enough
            nearest = distance(centres).argmin(1)
            moved = [boxes[nearest == i] for i in range(k)]
            moved = [own.mean(0) if len(own) else c for own, c in zip(moved, centres, strict=True)]
            if np.array_equal(moved, centres):
                break
            centres = np.stack(moved)
        return centres

    found = [settle(spread()) for _ in range(starts)]
    best = min(found, key=lambda centres: distance(centres).min(1).mean())
    return best[np.argsort(best.prod(1))].astype(np.float32)


def masks_of(settings: Settings, scales: int) -> Sequence[Sequence[int]]:
    """Which anchors each scale has, coarsest first. ValueError where they cannot be shared so, and
    for anchors that are no positive pairs."""
    number, masks = len(settings.anchors), settings.masks
    if not all(np.shape(pair) == (2,) and min(pair) > 0 for pair in settings.anchors):
        raise ValueError(f"settings.anchors is {settings.anchors}, expected widths and heights")
    if masks is None:
        if number == 0 or number % scales:
            raise ValueError(f"settings.anchors has {number}, expected a multiple of {scales}")
        masks = np.arange(number).reshape(scales, -1)[::-1].tolist()
    shapes = {np.shape(mask) for mask in masks}
    equal = len(masks) == scales and len(shapes) == 1 and np.ndim(masks) == 2 and np.size(masks) > 0
    if not equal or not {*np.ravel(masks)} <= {*range(number)}:
        expected = f"{scales}, equally long, of 0 … {number - 1}"
        raise ValueError(f"settings.masks is {masks}, expected {expected}")
    return [[int(anchor) for anchor in mask] for mask in masks]


# ---- training


def losses(network: YOLOv3, settings: Settings, batch: Batch) -> dict[str, Mean]:
    """The losses (section 2), each the mean over pictures of the sum over objects, or anchors:

    centre     binary cross-entropy of σ(tx), σ(ty) with where in the cell the centre is; its
               gradient is the prediction less the truth, as the paper has it
    size       half the squared error of (tw, th)
    object     binary cross-entropy of the objectness of anchors with an object
    no_object  of all others, but for those whose box overlaps an object more than `ignore_iou`
    class      binary cross-entropy of each class

    Centre and size count 2 less the object's share of the canvas, as in Darknet, so that small
    objects count more.
    """
    image, _ = without_padding(batch["image"])
    each = jax.vmap(
        partial(picture_losses, settings=settings, size=image.shape[1:3], strides=network.strides)
    )
    return means_of_pictures(each(network(image), truth_of(batch)), batch["valid"])


class Targets(NamedTuple):
    """What anchors learn of an object, N the number of all anchors of a picture: (tx, ty) as
    probabilities, and (tw, th)."""

    place: Int[Array, "M"]  # 0 … N-1
    mask: Bool[Array, "M"]
    box: Float[Array, "M 4"]


def picture_losses(
    outputs: Sequence[Float[Array, "_ _ _ _"]],
    truth: Truth,
    *,
    settings: Settings,
    size: Sequence[int],
    strides: tuple[int, ...],
) -> dict[str, Float[Array, ""]]:
    """The terms of `losses` for one picture on a canvas of this (height, width)."""
    flat, scales = flatten(outputs), len(outputs)
    seen = jax.lax.stop_gradient(decode(outputs, settings, strides))
    known = truth._replace(boxes=jnp.where(truth.mask[:, None], truth.boxes, 0))
    targets = assign(known, settings, [x.shape[:2] for x in outputs], strides)
    place, mine = targets.place, targets.mask
    sides = xyxy_to_cxcywh(known.boxes)[:, 2:] / like(size[::-1], known.boxes)
    weight = jnp.tile(2 - sides.prod(-1), scales) * mine

    entropy = optax.sigmoid_binary_cross_entropy
    centre = entropy(flat[place, :2], targets.box[:, :2])
    error = jnp.square(flat[place, 2:4] - targets.box[:, 2:])
    labels = jnp.tile(jax.nn.one_hot(truth.labels - 1, flat.shape[1] - 5), (scales, 1))
    overlap = jnp.where(truth.mask[:, None], pairwise_iou(known.boxes, seen), 0).max(0)
    taken = jnp.zeros(len(flat), bool).at[place].max(mine)
    free = ~taken & (overlap <= settings.ignore_iou) & ~in_crowd(seen, truth)
    objectness = flat[:, 4]
    return {
        "centre": weight @ centre.sum(-1),
        "size": weight @ error.sum(-1) / 2,
        "object": taken @ entropy(objectness, jnp.ones_like(objectness)),
        "no_object": free @ entropy(objectness, jnp.zeros_like(objectness)),
        "class": mine @ entropy(flat[place, 5:], labels).sum(-1),
    }


def assign(
    truth: Truth,
    settings: Settings,
    grids: Sequence[tuple[int, ...]],
    strides: tuple[int, ...],
) -> Targets:
    """L·M rows, for the objects on each scale. An object belongs to the anchor, of all scales, that
    is most like it in shape, in the cell of its centre (section 2.1). Of several with the same
    anchor there, the first counts."""
    anchors = jnp.asarray(settings.anchors, jnp.float32)
    sides = xyxy_to_cxcywh(truth.boxes)[:, 2:]
    best = shape_iou(sides, anchors).argmax(1)
    log_scale = jnp.log(jnp.maximum(sides, MIN_SIZE) / anchors[best])
    rows, before = [], 0
    for mask, (h, w), stride in zip(masks_of(settings, len(grids)), grids, strides, strict=True):
        is_best = jnp.asarray(mask)[None] == best[:, None]
        cell, inside = cell_of(truth.boxes, stride, (h, w))
        place = before + cell * len(mask) + is_best.argmax(1)
        box = jnp.concatenate([inside, log_scale], axis=1)
        rows.append(Targets(place, truth.mask & is_best.any(1), box))
        before += h * w * len(mask)
    place, mask, box = (jnp.concatenate(parts) for parts in zip(*rows, strict=True))
    return Targets(place, first_at(place, mask, before), box)


# ---- prediction


def predictions(
    network: YOLOv3, settings: Settings, image: Array, image_size: Int[Array, "B 2"] | None
) -> dict[str, Array]:
    """Detections; see `types`. The score of a class is its probability times the objectness."""
    image, inside = without_padding(image)
    image_size = picture_size(inside) if image_size is None else image_size

    def of_picture(outputs: list[Array], image_size: Array) -> Detections:
        likely = jax.nn.sigmoid(flatten(outputs)[:, 4:])
        boxes = decode(outputs, settings, network.strides)
        return decide(boxes, likely[:, :1] * likely[:, 1:], image_size, settings)

    return named(jax.vmap(of_picture)(network(image), image_size))


# ---- both


def flatten(outputs: Sequence[Float[Array, "_ _ _ O"]]) -> Float[Array, "N O"]:
    """All anchors of a picture, coarsest scale first, row by row, those of a place together."""
    return jnp.concatenate([x.reshape(-1, x.shape[-1]) for x in outputs])


def decode(
    outputs: Sequence[Float[Array, "_ _ _ _"]], settings: Settings, strides: tuple[int, ...]
) -> Float[Array, "N 4"]:
    """The boxes of all anchors, xyxy in pixels. None is over 62 times as long as its anchor."""
    anchors, boxes = np.asarray(settings.anchors, np.float32), []
    masks = masks_of(settings, len(outputs))
    for x, mask, stride in zip(outputs, masks, strides, strict=True):
        column, row = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in x.shape[1::-1]))
        corner = np.stack([column, row], axis=-1)[:, :, None]
        centre = (corner + jax.nn.sigmoid(x[..., :2])) * stride
        side = jnp.exp(jnp.minimum(x[..., 2:4], MAX_LOG_SCALE)) * anchors[None, None, [*mask]]
        boxes.append(jnp.concatenate([centre, side], axis=-1).reshape(-1, 4))
    return cxcywh_to_xyxy(jnp.concatenate(boxes))


def build(
    num_classes: int, *, settings: Mapping[str, Any] = MappingProxyType({}), **network: Any
) -> Model:
    """YOLOv3 as a `Model`; settings: fields of `Settings`, network: those of `YOLOv3`. With
    `tiny`, the anchors are by default those of the tiny network.

    ValueError for a setting that is none, and for anchors that cannot be shared among the scales.
    """
    net, chosen = network_of(num_classes, settings, **network)
    return model_of(net, chosen, losses, predictions)


def network_of(
    num_classes: int, settings: Mapping[str, Any], **network: Any
) -> tuple[YOLOv3, Settings]:
    """The network and its settings; see `build`."""
    given = known_settings(Settings, settings)
    if network.get("tiny"):
        given.setdefault("anchors", TINY_ANCHORS)
    chosen = Settings(**given)
    net = YOLOv3(num_classes, **network)
    return net.clone(anchors_per_place=len(masks_of(chosen, len(net.strides))[0])), chosen
