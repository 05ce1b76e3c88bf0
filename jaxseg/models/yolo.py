"""YOLO v1 (Redmon et al. 2016, "You Only Look Once: Unified, Real-Time Object Detection"): one
network says of each cell of a grid what is in it, and where.

    image        [B H W 3]    pictures, the mean colour where there is only padding
    cell         64×64 pixels: 448×448 of the paper are S×S = 7×7 of them, h×w here
    boxes        [B h w b 4]  b boxes a cell: centre (x, y) in cells from the cell's upper left
                              corner, and the square roots of width and height, in canvases
    confidence   [B h w b]    what IoU each has with an object, if there is any
    classes      [B h w C]    probability of each class, if there is an object; C = K - 1, the
                              background is none of them

All are linear outputs, and all of the loss is squared error (section 2.2).
"""

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from jaxseg.backbones.darknet import FAST_YOLO, YOLO, Chain, Layers
from jaxseg.nn.conv import Conv
from jaxseg.nn.detections import Detections, named, strongest, thin
from jaxseg.nn.detector import model_of
from jaxseg.nn.norm import NormKind, make_norm
from jaxseg.nn.options import expect, known_settings
from jaxseg.ops.boxes import clip_boxes, cxcywh_to_xyxy, iou, large_mask, xyxy_to_cxcywh
from jaxseg.ops.padding import picture_size, without_padding
from jaxseg.ops.truth import Truth, in_crowd, truth_of
from jaxseg.types import FLOAT32, Array, Batch, Mean, Model, Precision

# The layers, and the features of the first of them.
BACKBONES: dict[str, tuple[Layers, int]] = {"yolo": (YOLO, 64), "fast_yolo": (FAST_YOLO, 16)}
MIN_SIDE = 1e-2  # pixels of a detection


class Settings(NamedTuple):
    """What is not learned."""

    coordinate_weight: float = 5.0  # λ_coord
    no_object_weight: float = 0.5  # λ_noobj
    min_score: float = 0.005
    candidates: int = 1000  # of the highest scores, before suppression
    detection_iou: float = 0.5
    detections: int = 100


class Cells(NamedTuple):
    """What is said of the cells of a picture, or of B."""

    boxes: Float[Array, "*B h w b 4"]
    confidence: Float[Array, "*B h w b"]
    classes: Float[Array, "*B h w C"]


class YOLOv1(nn.Module):
    """The network. Its dense layers fit one size of canvas; without any (`dense=()`) a convolution
    looks at each cell, and all canvases will do.

    stride: pixels of a cell, 64 or, for small pictures, less: see `backbones.darknet.Chain`.
    norm: "none" as published; Darknet's later versions have "batch".
    """

    num_classes: int  # with the background, class 0
    backbone: str = "yolo"  # or "fast_yolo", of 9 convolutions instead of 24
    width: int | None = None  # of its first layer; None: as published
    stride: int = 64
    boxes: int = 2
    dense: tuple[int, ...] = (4096,)  # and the last one, which predicts
    dropout: float = 0.5
    norm: NormKind = "none"
    axis_name: str | None = None
    precision: Precision = FLOAT32
    training: bool = False

    @nn.compact
    def __call__(self, image: Float[Array, "B H W 3"]) -> Cells:
        precision, train = self.precision, self.training
        layers, published = BACKBONES[self.backbone]
        norm = make_norm(self.norm, train=train, axis_name=self.axis_name, precision=precision)
        width = self.width or published
        trunk = Chain(layers, width, self.stride, norm, precision, name="backbone")
        x = trunk(image)[self.stride]
        batch, h, w, _ = x.shape
        outputs = 5 * self.boxes + self.num_classes - 1
        if self.dense:
            x = x.reshape(batch, 1, 1, -1)
            outputs *= h * w
        for i, features in enumerate(self.dense, start=1):
            x = Conv(features, 1, precision=precision, name=f"fc{i}")(x)
            x = nn.leaky_relu(x, negative_slope=0.1)
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        small = nn.initializers.normal(0.01)  # the first boxes and scores are near 0
        x = Conv(outputs, 1, kernel_init=small, precision=precision, name="predict")(x)
        x = x.astype(jnp.float32).reshape(batch, h, w, -1)
        boxes = x[..., : 5 * self.boxes].reshape(batch, h, w, self.boxes, 5)
        return Cells(boxes[..., :4], boxes[..., 4], x[..., 5 * self.boxes :])


# ---- training


def losses(network: YOLOv1, settings: Settings, batch: Batch) -> dict[str, Mean]:
    """The terms of the loss (eq. 3), each the mean over pictures of the sum over cells:

    centre     of the responsible boxes' (x, y), times λ_coord
    size       of their square roots of width and height, times λ_coord
    object     of their confidence; it should be the IoU that they have
    no_object  of all other boxes' confidence, which should be 0, times λ_noobj
    class      of the probabilities in cells with an object
    """
    image, _ = without_padding(batch["image"])
    cells = network(image)
    size, stride = image.shape[1:3], network.stride
    each = jax.vmap(partial(picture_losses, settings=settings, size=size, stride=stride))
    return means_of_pictures(each(cells, truth_of(batch)), batch["valid"])


def picture_losses(
    cells: Cells, truth: Truth, *, settings: Settings, size: Sequence[int], stride: int
) -> dict[str, Float[Array, ""]]:
    """The terms of `losses` for one picture on a canvas of this (height, width).

    An object belongs to the cell of its centre; of several in one cell, the first counts. Of the
    cell's boxes one is responsible: that of the highest IoU with the object, or, as in Darknet, the
    nearest where none overlaps it.
    """
    h, w, number, _ = cells.boxes.shape
    boxes, confidence = cells.boxes.reshape(h * w, number, 4), cells.confidence.reshape(h * w, -1)
    classes = cells.classes.reshape(h * w, -1)
    seen = jax.lax.stop_gradient(decode(cells, size, stride))

    known = jnp.where(truth.mask[:, None], truth.boxes, 0)
    place, inside = cell_of(known, stride, (h, w))
    mine = first_at(place, truth.mask, h * w)
    wanted = xyxy_to_cxcywh(known)
    target = jnp.concatenate([inside, jnp.sqrt(wanted[:, 2:] / like(size[::-1], wanted))], axis=1)

    overlap = iou(seen[place], known[:, None], eps=0.0)
    distance = jnp.square(xyxy_to_cxcywh(seen[place]) - wanted[:, None]).sum(-1)
    best = jnp.where(overlap.max(1, keepdims=True) > 0, overlap, -distance).argmax(1)
    taken = jnp.zeros((h * w, number), bool).at[place, best].max(mine)
    vague = jax.vmap(in_crowd, (0, None))(seen, truth)

    error = jnp.square(boxes[place, best] - target)
    reached = jnp.take_along_axis(overlap, best[:, None], 1)[:, 0]
    labels = jax.nn.one_hot(truth.labels - 1, classes.shape[1])
    return {
        "centre": settings.coordinate_weight * (mine @ error[:, :2]).sum(),
        "size": settings.coordinate_weight * (mine @ error[:, 2:]).sum(),
        "object": mine @ jnp.square(confidence[place, best] - reached),
        "no_object": settings.no_object_weight * (jnp.square(confidence) * ~(taken | vague)).sum(),
        "class": mine @ jnp.square(classes[place] - labels).sum(-1),
    }


def cell_of(
    boxes: Float[Array, "M 4"], stride: int, grid: tuple[int, int]
) -> tuple[Int[Array, "M"], Float[Array, "M 2"]]:
    """(number of the cell, row by row, in which a box has its centre; where in the cell the centre
    is, x and y from 0 to 1)."""
    centre = xyxy_to_cxcywh(boxes)[:, :2] / stride
    cell = jnp.clip(jnp.floor(centre), 0, like(grid[::-1], centre) - 1)
    column, row = cell.astype(jnp.int32).T
    return row * grid[1] + column, centre - cell


def first_at(place: Int[Array, "M"], mask: Bool[Array, "M"], places: int) -> Bool[Array, "M"]:
    """Whether an object of the mask is the first of those at its place, 0 … places-1."""
    number = jnp.arange(len(place))
    first = jnp.full(places, len(place)).at[jnp.where(mask, place, places)].min(number, mode="drop")
    return mask & (first[place] == number)


def means_of_pictures(each: dict[str, Float[Array, "B"]], valid: Array) -> dict[str, Mean]:
    """Losses of pictures as means over those that are valid."""
    count = jnp.asarray(valid).sum().astype(jnp.float32)
    return {name: Mean(jnp.where(valid, x, 0).sum(), count) for name, x in each.items()}


# ---- prediction


def predictions(
    network: YOLOv1, settings: Settings, image: Array, image_size: Int[Array, "B 2"] | None
) -> dict[str, Array]:
    """Detections; see `types`. The score of a class is its probability times the confidence of the
    box (eq. 1), both cut to 0 … 1."""
    image, inside = without_padding(image)
    image_size = picture_size(inside) if image_size is None else image_size

    def of_picture(cells: Cells, image_size: Array) -> Detections:
        boxes = decode(cells, image.shape[1:3], network.stride)
        likely, sure = jnp.clip(cells.classes, 0, 1), jnp.clip(cells.confidence, 0, 1)
        scores = (sure[..., None] * likely[..., None, :]).reshape(-1, likely.shape[-1])
        return decide(boxes.reshape(-1, 4), scores, image_size, settings)

    return named(jax.vmap(of_picture)(network(image), image_size))


def decode(cells: Cells, size: Sequence[int], stride: int) -> Float[Array, "S b 4"]:
    """The boxes of the S = h·w cells of a picture, xyxy in pixels of the canvas."""
    h, w, number, _ = cells.boxes.shape
    row, column = jnp.divmod(jnp.arange(h * w), w)
    corner = jnp.stack([column, row], axis=-1)[:, None]
    inside, root = jnp.split(cells.boxes.reshape(h * w, number, 4), 2, axis=-1)
    side = jnp.square(root) * like(size[::-1], root)
    return cxcywh_to_xyxy(jnp.concatenate([(corner + inside) * stride, side], axis=-1))


def decide(
    boxes: Float[Array, "A 4"], scores: Float[Array, "A C"], image_size: Array, settings: Any
) -> Detections:
    """The detections of a picture: its strongest boxes, thinned out. Class c has label c + 1."""
    best, places, labels = strongest(scores, settings.candidates)
    boxes = clip_boxes(boxes[places], image_size)
    good = (best > settings.min_score) & large_mask(boxes, MIN_SIDE)
    return thin(boxes, best, labels + 1, good, settings.detection_iou, settings.detections)


# ---- both


def like(values: Any, x: Array) -> Array:
    """Values along the last axis of x."""
    return jnp.asarray(values, x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


def build(
    num_classes: int, *, settings: Mapping[str, Any] = MappingProxyType({}), **network: Any
) -> Model:
    """YOLO v1 as a `Model`; settings: fields of `Settings`, network: those of `YOLOv1`.

    ValueError for a setting or a backbone that is none.
    """
    chosen = Settings(**known_settings(Settings, settings))
    net = YOLOv1(num_classes, **network)
    expect("backbone", net.backbone, [*BACKBONES])
    if net.stride not in (8, 16, 32, 64):
        raise ValueError(f"stride is {net.stride}, expected 8, 16, 32 or 64")
    return model_of(net, chosen, losses, predictions, side=None if net.dense else 64)
