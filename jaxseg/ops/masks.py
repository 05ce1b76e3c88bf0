"""Masks of objects: cut out for the mask head's loss, and put back into the image.

masks   [M H W]  of objects, in the image; or [D m m], in their boxes
boxes   [D 4]    xyxy in pixels of the image
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int, UInt8

from jaxseg.ops.roi import roi_align
from jaxseg.types import Array


def crop_masks(
    masks: Bool[Array, "M H W"] | Float[Array, "M H W"] | UInt8[Array, "M H bytes"],
    boxes: Float[Array, "P 4"],
    matched: Int[Array, "P"],
    size: int = 28,
    *,
    packed_width: int | None = None,
) -> Float[Array, "P size size"]:
    """Targets of the mask loss, 0 … 1: what each RoI shows of its object, by an adaptive RoI-Align
    (He et al. 2017, "Mask R-CNN", section 3; as torchvision has it, they are not rounded).

    matched: which of the masks, 0 … M-1, each box is to have. packed_width: W, where the masks are
        a bit a pixel (`numpy.packbits`, along rows).
    """

    masks = jnp.asarray(masks)

    def crop(box_and_index: tuple[Array, Array]) -> Array:
        box, index = box_and_index
        mask = masks[index]
        if packed_width is not None:
            mask = jnp.unpackbits(mask, axis=-1, count=packed_width)
        mask = mask.astype(jnp.float32)[:, :, None]
        return roi_align(mask, box[None], (size, size), sampling_ratio=0)[0, :, :, 0]

    return lax.map(crop, (boxes, matched), batch_size=8)  # as many masks are copied at a time


def paste_masks(
    masks: Float[Array, "D m m"], boxes: Float[Array, "D 4"], size: tuple[int, int]
) -> Float[Array, "D H W"]:
    """Each mask, stretched bilinearly over its box, in an image of `size` = (H, W), 0 elsewhere.

    As in torchvision: the mask is framed by a pixel of zeros, the box grown accordingly and cut to
    whole pixels, of which the last belongs to it. An image larger than needed can be cropped
    afterwards, so that images of different sizes share one compiled program.
    """
    padded = jnp.pad(masks, ((0, 0), (1, 1), (1, 1)))
    grown = _scale_boxes(boxes, padded.shape[1] / masks.shape[1]).astype(jnp.int32)  # towards 0

    def paste(mask: Array, box: Array) -> Array:
        left, top, right, bottom = box
        rows = _stretch(top, bottom, len(mask), size[0])
        columns = _stretch(left, right, len(mask), size[1])
        return jnp.einsum("yi,ij,xj->yx", rows, mask, columns, precision="highest")

    return jax.vmap(paste)(padded, grown)


def _scale_boxes(boxes: Array, factor: float) -> Array:
    """About their centres."""
    low, high = boxes[:, :2], boxes[:, 2:]
    centre, half = (high + low) * 0.5, (high - low) * 0.5 * factor
    return jnp.concatenate([centre - half, centre + half], axis=1)


def _stretch(first: Array, last: Array, source: int, size: int) -> Array:
    """[size source] weights of linear interpolation from `source` values to the pixels first …
    last, both included; 0 for other pixels."""
    length = jnp.maximum(last - first + 1, 1)
    pixel = jnp.arange(size).reshape(-1, 1) - first
    place = jnp.clip((pixel + 0.5) * (source / length) - 0.5, 0, source - 1)
    ramp = jnp.maximum(1 - jnp.abs(place - jnp.arange(source).reshape(1, -1)), 0)
    return jnp.where((pixel >= 0) & (pixel < length), ramp, 0)
