"""Masks of objects on the host: put into the picture, and kept small as COCO's run-length codes.

RLE   {"size": [height, width], "counts": ASCII str}, as JSON takes it
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from pycocotools import mask as coco_mask

from jaxseg.ops.masks import SMALLEST

RLE = dict[str, Any]


def encode_mask(mask: Bool[np.ndarray, "H W"]) -> RLE:
    """The RLE of a mask."""
    rle: Any = coco_mask.encode(np.asfortranarray(mask).view(np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")}


def decode_mask(rle: RLE) -> Bool[np.ndarray, "H W"]:
    """The mask of an RLE."""
    as_it_takes: Any = rle
    return coco_mask.decode(as_it_takes).astype(bool)


def paste_mask(
    mask: Float[np.ndarray, "m m"],
    box: Float[np.ndarray, "4"],
    size: tuple[int, int],
    threshold: float = 0.5,
    *,
    aligned: bool = False,
) -> Bool[np.ndarray, "H W"]:
    """Where a mask of probabilities, stretched over its box (xyxy) in a picture of `size` = (H, W),
    is `threshold` or more. `ops.masks.paste_masks` does the same on devices, for all at once, and
    says what `aligned` means."""
    m, frame = len(mask), 0 if aligned else 1
    low, high = np.split(box.astype(np.float32), 2)
    if not aligned:
        centre, half = (high + low) * 0.5, (high - low) * 0.5 * np.float32(1 + 2 / m)
        low, high = np.trunc(centre - half), np.trunc(centre + half) + 1
    cell = np.maximum(high - low, SMALLEST) / (m + 2 * frame)

    def along(axis: int, pixels: int) -> tuple[slice, np.ndarray]:
        """The pixels that the mask can reach, and their weights of linear interpolation."""
        reach = np.floor(low[axis] - cell[axis]), np.ceil(high[axis] + cell[axis])
        start, stop = np.clip(reach, 0, pixels).astype(int)
        place = (np.arange(start, stop) + 0.5 - low[axis]) / cell[axis] - 0.5 - frame
        return slice(start, stop), np.maximum(1 - np.abs(place[:, None] - np.arange(m)[None]), 0)

    (rows, down), (columns, across) = along(1, size[0]), along(0, size[1])
    picture = np.zeros(size, bool, order="F")  # as RLE wants it
    picture[rows, columns] = down @ mask @ across.T >= threshold
    return picture
