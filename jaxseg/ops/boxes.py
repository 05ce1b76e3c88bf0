"""Boxes: other formats, sizes, and how much two of them overlap.

A box is [4] = (x1, y1, x2, y2) in pixels, upper left and lower right corner, continuous: a box that
covers exactly pixel (row 0, column 0) is (0, 0, 1, 1). Sizes are (height, width).

`iou`, `giou`, `diou` and `ciou` compare boxes element by element, and broadcast; `pairwise` makes a
matrix of any of them. One minus such a number is a loss, torchvision's with the eps it has there,
the default. All, and their gradients, are finite for boxes of no area: what would be 0 / 0 is 0.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Num

from jaxseg.types import Array

Size = tuple[int, int] | Num[Array, "2"]  # (height, width)


def xywh_to_xyxy(boxes: Float[Array, "*N 4"]) -> Float[Array, "*N 4"]:
    """From (x1, y1, width, height), COCO's format."""
    corner, size = jnp.split(boxes, 2, axis=-1)
    return jnp.concatenate([corner, corner + size], axis=-1)


def xyxy_to_xywh(boxes: Float[Array, "*N 4"]) -> Float[Array, "*N 4"]:
    """To (x1, y1, width, height), COCO's format."""
    start, end = jnp.split(boxes, 2, axis=-1)
    return jnp.concatenate([start, end - start], axis=-1)


def cxcywh_to_xyxy(boxes: Float[Array, "*N 4"]) -> Float[Array, "*N 4"]:
    """From (centre x, centre y, width, height)."""
    centre, size = jnp.split(boxes, 2, axis=-1)
    return jnp.concatenate([centre - size / 2, centre + size / 2], axis=-1)


def xyxy_to_cxcywh(boxes: Float[Array, "*N 4"]) -> Float[Array, "*N 4"]:
    """To (centre x, centre y, width, height)."""
    start, end = jnp.split(boxes, 2, axis=-1)
    return jnp.concatenate([(start + end) / 2, end - start], axis=-1)


def clip_boxes(boxes: Float[Array, "*N 4"], size: Size) -> Float[Array, "*N 4"]:
    """The parts of the boxes inside an image. Boxes beyond it lie flat on its border."""
    return jnp.clip(boxes, 0, _per_corner(size, boxes))


def scale_boxes(boxes: Float[Array, "*N 4"], old: Size, new: Size) -> Float[Array, "*N 4"]:
    """Where the boxes lie once their image of size `old` is resized to `new`."""
    return boxes * (_per_corner(new, boxes) / _per_corner(old, boxes))


def area(boxes: Float[Array, "*N 4"]) -> Float[Array, "*N"]:
    """Square pixels."""
    width, height = _width_height(boxes)
    return width * height


def intersection(a: Float[Array, "*#N 4"], b: Float[Array, "*#N 4"]) -> Float[Array, "*N"]:
    """Square pixels that both cover."""
    size = jnp.minimum(a[..., 2:], b[..., 2:]) - jnp.maximum(a[..., :2], b[..., :2])
    return jnp.where((size > 0).all(-1), size[..., 0] * size[..., 1], 0)


def large_mask(boxes: Float[Array, "*N 4"], min_size: float) -> Bool[Array, "*N"]:
    """Whether both sides have at least `min_size` pixels."""
    width, height = _width_height(boxes)
    return (width >= min_size) & (height >= min_size)


Measure = Callable[..., Float[Array, "*N"]]  # iou, giou, diou or ciou


def iou(
    a: Float[Array, "*#N 4"], b: Float[Array, "*#N 4"], eps: float = 1e-7
) -> Float[Array, "*N"]:
    """Intersection over union, 0 … 1. eps, also below: what is added to each denominator."""
    both, union = _intersection_union(a, b)
    return _ratio(both, union + eps)


def giou(
    a: Float[Array, "*#N 4"], b: Float[Array, "*#N 4"], eps: float = 1e-7
) -> Float[Array, "*N"]:
    """Generalized IoU, -1 … 1: less the part of the hull that neither box covers (Rezatofighi et
    al. 2019, algorithm 1)."""
    both, union = _intersection_union(a, b)
    hull = area(_hull(a, b))
    return _ratio(both, union + eps) - _ratio(hull - union, hull + eps)


def diou(
    a: Float[Array, "*#N 4"], b: Float[Array, "*#N 4"], eps: float = 1e-7
) -> Float[Array, "*N"]:
    """Distance IoU, -1 … 1: less the squared distance of the centres, where the hull's diagonal is
    1 (Zheng et al. 2020, "Distance-IoU Loss", eq. 7)."""
    (ax, ay), (bx, by) = _centre(a), _centre(b)
    width, height = _width_height(_hull(a, b))
    distance = (ax - bx) ** 2 + (ay - by) ** 2
    return iou(a, b, eps) - _ratio(distance, width**2 + height**2 + eps)


def ciou(
    a: Float[Array, "*#N 4"], b: Float[Array, "*#N 4"], eps: float = 1e-7
) -> Float[Array, "*N"]:
    """Complete IoU: the distance IoU less α v, where v is how much the aspect ratios differ (Zheng
    et al. 2020, eq. 8 to 11). The weight α has no gradient, as it only balances the terms."""
    v = 4 / jnp.pi**2 * (_aspect_angle(a) - _aspect_angle(b)) ** 2
    alpha = jax.lax.stop_gradient(_ratio(v, 1 - iou(a, b, eps) + v + eps))
    return diou(a, b, eps) - alpha * v


def pairwise(
    measure: Measure, a: Float[Array, "M 4"], b: Float[Array, "A 4"]
) -> Float[Array, "M A"]:
    """`measure` of every box of a with every box of b: `pairwise(giou, a, b)`. Exact: without eps,
    which would count in boxes whose coordinates are fractions of the image."""
    return measure(a[:, None], b[None], eps=0.0)


def pairwise_iou(a: Float[Array, "M 4"], b: Float[Array, "A 4"]) -> Float[Array, "M A"]:
    """IoU, 0 … 1, of every box of a with every box of b."""
    return pairwise(iou, a, b)


def _per_corner(size: Size, boxes: Array) -> Array:
    """(width, height, width, height), with as many dimensions as the boxes."""
    height, width = jnp.asarray(size, boxes.dtype)
    return jnp.stack([width, height, width, height]).reshape((1,) * (boxes.ndim - 1) + (4,))


def _width_height(boxes: Array) -> tuple[Array, Array]:
    return boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]


def _centre(boxes: Array) -> tuple[Array, Array]:
    return (boxes[..., 0] + boxes[..., 2]) / 2, (boxes[..., 1] + boxes[..., 3]) / 2


def _hull(a: Array, b: Array) -> Array:
    """The smallest box around both."""
    start, end = jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:])
    return jnp.concatenate([start, end], axis=-1)


def _intersection_union(a: Array, b: Array) -> tuple[Array, Array]:
    both = intersection(a, b)
    return both, area(a) + area(b) - both


def _ratio(part: Array, whole: Array) -> Array:
    """part / whole; 0 where both are."""
    return part / jnp.where(whole == 0, 1, whole)


def _aspect_angle(boxes: Array) -> Array:
    """arctan(width / height), without a gradient where the height is 0."""
    width, height = _width_height(boxes)
    flat = height == 0
    return jnp.where(
        flat, jnp.sign(width) * jnp.pi / 2, jnp.arctan(width / jnp.where(flat, 1, height))
    )
