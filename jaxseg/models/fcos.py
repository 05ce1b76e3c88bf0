"""FCOS (Tian et al. 2019, "FCOS: Fully Convolutional One-Stage Object Detection"): RetinaNet's
network without anchors. Every place of a pyramid says what is there, and how far away the four
sides of its box are.

    places       L of [A 4]  boxes of the size of the stride, around each place of a map: what
                             `models.retinanet` calls anchors, of which only the middle counts
    logits       L of [B A K]
    distances    L of [B A 4]  left, top, right, bottom, in strides (`ops.box_coder`), before a ReLU
    centreness   L of [B A]    logits: is the place in the middle of its object?

As torchvision has it, with the sampling of centres, GIoU, and the centreness beside the distances,
which the authors added later. Published weights: norm="frozen".
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
from jaxtyping import Float, Int

from jaxseg.models.retinanet import BACKBONES, RetinaNet, class_loss, detections_of
from jaxseg.nn.detector import model_of
from jaxseg.nn.options import expect, known_settings
from jaxseg.ops.anchors import COARSEST, anchors_of_maps
from jaxseg.ops.box_coder import decode_distances, encode_distances
from jaxseg.ops.boxes import area, giou
from jaxseg.ops.matching import BACKGROUND
from jaxseg.ops.padding import picture_size, without_padding
from jaxseg.ops.truth import Truth, truth_of
from jaxseg.types import Array, Batch, Mean, Model

network_of = partial(
    RetinaNet, anchors_per_place=1, centreness=True, head_norm="group", head_norm_and_bias=True
)


class Settings(NamedTuple):
    """What is not learned."""

    strides: Sequence[int] = (8, 16, 32, 64, 128)  # of the levels: the sizes of their places
    centre_radius: float = 1.5  # in strides, of the part of an object whose places learn it
    focal_gamma: float = 2.0
    focal_alpha: float | None = 0.25
    candidates_per_level: int = 1000  # before suppression
    min_score: float = 0.2
    detection_iou: float = 0.6
    detections: int = 100


# ---- training


def losses(network: RetinaNet, settings: Settings, batch: Batch) -> dict[str, Mean]:
    """Over the number of positive places of all pictures, at least 1 (eq. 2):

    class       the focal loss of all places and classes
    box         1 − GIoU of the positive places' boxes
    centreness  their binary cross-entropy
    """
    image, _ = without_padding(batch["image"], multiple=COARSEST)
    maps = network.extract(image)
    logits, distances, centreness = (jnp.concatenate(x, 1) for x in network.look(maps))
    each = partial(picture_losses, places=places_of(image, maps, settings), settings=settings)
    found, positive = jax.vmap(each)(logits, distances, centreness, truth_of(batch))
    valid, count = batch["valid"].astype(jnp.float32), positive.sum().astype(jnp.float32)
    return {name: Mean((loss * valid).sum(), count) for name, loss in found.items()}


def picture_losses(
    logits: Float[Array, "A K"],
    distances: Float[Array, "A 4"],
    centreness: Float[Array, "A"],
    truth: Truth,
    places: Sequence[Float[Array, "_ 4"]],
    settings: Settings,
) -> tuple[dict[str, Float[Array, ""]], Int[Array, ""]]:
    """(`class`, `box` and `centreness`, sums; how many places are positive)."""
    matches = match_places(places, truth, settings.centre_radius)
    positive, anchors = matches >= 0, jnp.concatenate(places)
    boxes = jnp.where(positive[:, None], truth.boxes[jnp.maximum(matches, 0)], anchors)
    overlap = giou(decode_distances(nn.relu(distances), anchors), boxes)
    central = centreness_of(encode_distances(boxes, anchors))
    entropy = optax.sigmoid_binary_cross_entropy(centreness, central)
    found = {
        "class": class_loss(
            logits, anchors, truth, matches, settings.focal_gamma, settings.focal_alpha
        ),
        "box": ((1 - overlap) * positive).sum(),
        "centreness": (entropy * positive).sum(),
    }
    return found, positive.sum()


def match_places(
    places: Sequence[Float[Array, "_ 4"]], truth: Truth, radius: float
) -> Int[Array, "A"]:
    """For each place of all levels the index of the object that it is to learn, or BACKGROUND
    (section 3.2). It lies in the box of the object, less than `radius` strides from its middle; the
    furthest side is as far away as suits the level, from 4 to 8 strides, any number more on the
    coarsest, any less on the finest. Of several objects it takes the smallest."""
    counts = [len(level) for level in places]
    strides = jnp.concatenate([level[:, 2] - level[:, 0] for level in places])
    level = np.repeat(np.arange(len(places)), counts)
    nearest = jnp.where(level == 0, 0, 4 * strides)
    furthest = jnp.where(level == len(places) - 1, jnp.inf, 8 * strides)
    corners = jnp.concatenate(places)
    middle = (corners[:, :2] + corners[:, 2:]) / 2
    start, end = truth.boxes[:, None, :2], truth.boxes[:, None, 2:]
    sides = jnp.concatenate([middle[None] - start, end - middle[None]], -1)  # [M A 4]
    away = jnp.abs(middle[None] - (start + end) / 2).max(-1)
    reach = sides.max(-1)
    fits = (sides.min(-1) > 0) & (away < radius * strides[None])
    fits &= (reach > nearest[None]) & (reach < furthest[None]) & truth.mask[:, None]
    size = jnp.where(fits, area(truth.boxes)[:, None], jnp.inf)
    return jnp.where(fits.any(0), size.argmin(0), BACKGROUND)


def centreness_of(distances: Float[Array, "A 4"]) -> Float[Array, "A"]:
    """1 in the middle of a box, 0 at its sides (eq. 3); distances: positive."""
    left, top, right, bottom = jnp.moveaxis(distances, -1, 0)
    across = jnp.minimum(left, right) / jnp.maximum(left, right)
    return jnp.sqrt(across * (jnp.minimum(top, bottom) / jnp.maximum(top, bottom)))


# ---- prediction


def predictions(
    network: RetinaNet, settings: Settings, image: Array, image_size: Int[Array, "B 2"] | None
) -> dict[str, Array]:
    """Detections; see `types`. Their score is the geometric mean of class and centreness."""
    image, inside = without_padding(image, multiple=COARSEST)
    maps = network.extract(image)
    logits, distances, centreness = network.look(maps)
    scores = [
        jnp.sqrt(jax.nn.sigmoid(x) * jax.nn.sigmoid(central)[..., None])
        for x, central in zip(logits, centreness, strict=True)
    ]
    size = picture_size(inside) if image_size is None else image_size
    decode = lambda distances, places: decode_distances(nn.relu(distances), places)  # noqa: E731
    places = places_of(image, maps, settings)
    return detections_of(scores, distances, places, decode, size, settings)


# ---- both


def places_of(image: Array, maps: Sequence[Array], settings: Settings) -> list[Array]:
    """The places of each map, constants."""
    return anchors_of_maps(image, maps, [(stride,) for stride in settings.strides], (1.0,))


def build(
    num_classes: int,
    *,
    settings: Mapping[str, Any] = MappingProxyType({}),
    **network: Any,
) -> Model:
    """FCOS as a `Model`; settings: fields of `Settings`, network: those of `RetinaNet`.

    ValueError for a backbone or setting that is none.
    """
    expect("backbone", network.get("backbone", "resnet50"), [*BACKBONES])
    chosen = Settings(**known_settings(Settings, settings))
    return model_of(network_of(num_classes, **network), chosen, losses, predictions)
