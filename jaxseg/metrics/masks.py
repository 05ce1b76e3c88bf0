"""Masks of objects on the host: put into the picture, and kept small as COCO's run-length codes.

RLE   {"size": [height, width], "counts": ASCII str}, as JSON takes it
"""

from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float
from pycocotools import mask as coco_mask

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
) -> Bool[np.ndarray, "H W"]:
    """Where a mask of probabilities, stretched over its box (xyxy) in a picture of `size` = (H, W),
    is `threshold` or more. `ops.masks.paste_masks` does the same on devices, for all at once."""
    padded = np.pad(mask.astype(np.float32), 1)
    low, high = np.split(box.astype(np.float32), 2)
    centre, half = (high + low) * 0.5, (high - low) * 0.5 * np.float32(len(padded) / len(mask))
    x0, y0, x1, y1 = np.concatenate([centre - half, centre + half]).astype(int).tolist()
    width, height = max(x1 - x0 + 1, 1), max(y1 - y0 + 1, 1)
    stretched = cv2.resize(padded, (width, height), interpolation=cv2.INTER_LINEAR)
    picture = np.zeros(size, bool, order="F")  # as RLE wants it
    top, left = max(y0, 0), max(x0, 0)
    inside = picture[top : max(y0 + height, 0), left : max(x0 + width, 0)]  # a view, cut to `size`
    rows, columns = inside.shape
    shown = stretched[top - y0 : top - y0 + rows, left - x0 : left - x0 + columns]
    inside[:] = shown >= threshold
    return picture
