"""How many objects proposals find, whatever their class: average recall (Hosang et al. 2015, "What
makes for effective detection proposals?", section 5.3), over the IoUs .50, .55 … .95 of COCO.

    proposals  xyxy [P 4] of an image, the best first
    objects    xyxy [M 4], without crowds
    ranks      int [10 M]: how many better ones an object's proposal has, for each IoU; LOST if none
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from pycocotools import mask as coco_mask

IOUS = np.linspace(0.5, 0.95, 10)
BUDGETS = (1, 10, 100, 300, 1000)  # proposals an image
LOST = np.iinfo(np.int32).max


def rank_objects(
    proposals: Float[np.ndarray, "P 4"], objects: Float[np.ndarray, "M 4"]
) -> Int[np.ndarray, "10 M"]:
    """The rank of the proposal that finds each object, at each IoU.

    From the best on, a proposal finds the object that it overlaps most of those that are left, if
    by that IoU. So the first n proposals find what they would find alone.
    """
    ranks = np.full((len(IOUS), len(objects)), LOST, np.int32)
    if not len(proposals) or not len(objects):
        return ranks
    crowds = [0] * len(objects)
    overlaps = np.asarray(coco_mask.iou(_xywh(proposals), _xywh(objects), crowds))
    levels = np.arange(len(IOUS))
    for rank in np.flatnonzero(overlaps.max(axis=1) >= IOUS[0]):
        overlap = overlaps[rank][None]
        possible = np.where((ranks == LOST) & (overlap >= IOUS[:, None]), overlap, -1)
        best = possible.argmax(axis=1)
        finds = possible[levels, best] >= 0
        ranks[levels[finds], best[finds]] = rank
    return ranks


def scores(
    ranks: Sequence[Int[np.ndarray, "10 _"]], budgets: Sequence[int] = BUDGETS
) -> dict[str, float]:
    """AR_n for each of the budgets, and the recall at an IoU of .5, recall50_n, for the largest.
    ranks: one array an image. ValueError where there is no object."""
    together = np.concatenate([np.zeros((len(IOUS), 0), np.int32), *ranks], axis=1)
    if not together.size:
        raise ValueError("no object of the truth counts")
    recalls = {n: (together < n).mean(axis=1) for n in budgets}
    found = {f"AR_{n}": float(recall.mean()) for n, recall in recalls.items()}
    return {**found, f"recall50_{max(budgets)}": float(recalls[max(budgets)][0])}


def _xywh(boxes: np.ndarray) -> np.ndarray:
    boxes = np.asarray(boxes, np.float64)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
