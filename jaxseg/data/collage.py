"""One training picture made of several: copy-paste, mosaic and MixUp.

Examples are those of `transforms`, all on canvases, and have the same fields.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool

from jaxseg.data.builders.source import bounds
from jaxseg.data.transforms import OBJECTS, Example, count_pixels, is_crowd, select_objects
from jaxseg.types import IGNORE


def paste(
    example: Example, other: Example, chosen: Bool[np.ndarray, "M"], min_visible: float = 0.0
) -> Example:
    """The chosen objects of `other` laid over `example`, on a canvas of the same size (Ghiasi et
    al. 2021, "Simple Copy-Paste", section 3).

    Masks lose what is covered. Boxes are then drawn around what is left, areas shrink, covered
    keypoints become hidden. Objects left with no pixel are dropped, and those, but for crowds, left
    with less than `min_visible` of theirs.
    """
    pasted = select_objects(other, chosen)
    cover = pasted["masks"].any(0)
    below = {n: example[n].copy() for n in OBJECTS if n in example}
    below["masks"] &= ~cover
    before, left = count_pixels(example["masks"]), count_pixels(below["masks"])
    share = left / np.maximum(before, 1)
    cut = (left > 0) & (left < before)
    below["boxes"][cut] = bounds(below["masks"][cut])
    if "area" in below:
        below["area"][before > 0] *= share[before > 0].astype(np.float32)
    if "keypoints" in below:
        points, (height, width) = below["keypoints"], cover.shape
        x, y = (points[..., c].astype(int).clip(0, n - 1) for c, n in ((0, width), (1, height)))
        visibility = points[..., 2]
        visibility[cover[y, x] & (visibility > 1)] = 1
    enough = (share >= min_visible) | is_crowd(below)
    below = select_objects(below, (enough & (left > 0)) | (before == 0))
    joined = {n: np.concatenate([below[n], pasted[n]]) for n in below}
    joined["image"] = np.where(cover[..., None], other["image"], example["image"])
    if "segmentation" in example:
        joined["segmentation"] = np.where(cover, other["segmentation"], example["segmentation"])
    return joined


def blend(first: Example, second: Example) -> Example:
    """The mean of two pictures of the same size, with the objects of both ("MixUp" as Zhang et al.
    2019, "Bag of Freebies", section 3.1, have it for detectors; half of each, as in YOLOX). Where
    the labels of pixels differ is IGNORE."""
    joined = {n: np.concatenate([first[n], second[n]]) for n in OBJECTS if n in first}
    joined["image"] = cv2.addWeighted(first["image"], 0.5, second["image"], 0.5, 0)
    if "segmentation" in first:
        labels = first["segmentation"]
        joined["segmentation"] = np.where(labels == second["segmentation"], labels, IGNORE)
    return joined


def mosaic(pieces: Sequence[Example]) -> Example:
    """Four pictures around one point: top left, top right, bottom left, bottom right (Bochkovskiy
    et al. 2020, "YOLOv4", section 3.3, figure 3). Neighbours must have the same height or width."""
    top, bottom = beside(*pieces[:2], axis=1), beside(*pieces[2:], axis=1)
    return beside(top, bottom, axis=0)


def beside(first: Example, second: Example, axis: int) -> Example:
    """Two pictures as one: the second below the first (axis 0), or to its right (axis 1)."""
    maps = [n for n in ("image", "segmentation") if n in first]
    joined = {n: np.concatenate([first[n], second[n]], axis) for n in maps}
    if "boxes" not in first:
        return joined
    sizes = first["image"].shape[:2], second["image"].shape[:2]
    shift = np.zeros(2, np.float32)  # (x, y)
    shift[1 - axis] = sizes[0][axis]
    second = {**second, "boxes": second["boxes"] + np.tile(shift, 2)}
    if "keypoints" in first:
        present = second["keypoints"][..., 2:] > 0
        moved = second["keypoints"] + np.append(shift, np.float32(0))
        second["keypoints"] = np.where(present, moved, second["keypoints"])
    if "masks" in first:
        sides = (0, sizes[1][axis]), (sizes[0][axis], 0)
        for example, pad in zip((first := {**first}, second), sides, strict=True):
            around = [(0, 0), (0, 0), (0, 0)]
            around[1 + axis] = pad
            example["masks"] = np.pad(example["masks"], around)
    return joined | {n: np.concatenate([first[n], second[n]]) for n in OBJECTS if n in first}
