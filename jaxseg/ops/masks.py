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

SMALLEST = 1e-6  # pixels of a box's side


def crop_masks(
    masks: Bool[Array, "M H W"] | Float[Array, "M H W"] | UInt8[Array, "M H bytes"],
    boxes: Float[Array, "P 4"],
    matched: Int[Array, "P"],
    size: int = 28,
    *,
    packed_width: int | None = None,
    extent: Int[Array, "2"] | None = None,
    aligned: bool = False,
) -> Float[Array, "P size size"]:
    """Targets of the mask loss, 0 … 1: what each RoI shows of its object, by an adaptive RoI-Align
    (He et al. 2017, "Mask R-CNN", section 3; as torchvision has it, they are not rounded).

    matched: which of the masks, 0 … M-1, each box is to have. packed_width: W, where the masks are
        a bit a pixel (`numpy.packbits`, along rows). extent, aligned: as in `ops.roi.roi_align`;
        `aligned` is to be the same in `paste_masks`.
    """

    masks = jnp.asarray(masks)

    def crop(box_and_index: tuple[Array, Array]) -> Array:
        box, index = box_and_index
        mask = masks[index]
        if packed_width is not None:
            mask = jnp.unpackbits(mask, axis=-1, count=packed_width)
        mask = mask.astype(jnp.float32)[:, :, None]
        bins = (size, size)
        cut = roi_align(mask, box[None], bins, sampling_ratio=0, aligned=aligned, extent=extent)
        return cut[0, :, :, 0]

    return lax.map(crop, (boxes, matched), batch_size=8)  # as many masks are copied at a time


def paste_masks(
    masks: Float[Array, "D m m"],
    boxes: Float[Array, "D 4"],
    size: tuple[int, int],
    *,
    aligned: bool = False,
) -> Float[Array, "D H W"]:
    """Each mask, stretched bilinearly over its box, in an image of `size` = (H, W), 0 elsewhere.

    aligned: True reads each mask where the pixels' centres, at +0.5, lie in its box. False does as
        torchvision, up to a pixel off: the mask is framed by a pixel of zeros, the box grown
        accordingly and cut to whole pixels, of which the last belongs to it.

    An image larger than needed can be cropped afterwards, so that images of different sizes share
    one compiled program.
    """
    frame = 0 if aligned else 1
    low, high = boxes[:, :2], boxes[:, 2:]
    if not aligned:
        centre, half = (high + low) * 0.5, (high - low) * 0.5 * (1 + 2 / masks.shape[1])
        low, high = jnp.trunc(centre - half), jnp.trunc(centre + half) + 1
    cell = jnp.maximum(high - low, SMALLEST) / (masks.shape[1] + 2 * frame)

    def paste(mask: Array, low: Array, cell: Array) -> Array:
        def along(axis: int, pixels: int) -> Array:
            """[pixels m] weights of linear interpolation."""
            place = (jnp.arange(pixels) + 0.5 - low[axis]) / cell[axis] - 0.5 - frame
            return jnp.maximum(1 - jnp.abs(place[:, None] - jnp.arange(len(mask))[None]), 0)

        rows, columns = along(1, size[0]), along(0, size[1])
        return jnp.einsum("yi,ij,xj->yx", rows, mask, columns, precision="highest")

    return jax.vmap(paste)(masks, low, cell)
