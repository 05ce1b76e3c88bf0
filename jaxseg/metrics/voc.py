"""Pascal VOC's average precision (Everingham et al. 2010, "The PASCAL Visual Object Classes
Challenge", section 4.2), as its development kit computes it.

    truth       boxes [M 4], labels [M], difficult [M] (optional), one record an image
    detections  boxes [D 4], labels [D], scores [D]

Boxes are xyxy, continuous: one that covers exactly the first pixel is (0, 0, 1, 1). The kit's own
hold the numbers of their first and last pixels; there, it was (1, 1, 1, 1), of width 1 - 1 + 1.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxseg.metrics.records import Record, check_records


class Result(NamedTuple):
    """Average precision of each class but the background, 0 … 1; nan where no object counts."""

    ap_11_point: Float[np.ndarray, "K-1"]  # VOC 2007
    ap_all_point: Float[np.ndarray, "K-1"]  # VOC 2010 and later
    objects: Int[np.ndarray, "K-1"]  # without difficult ones

    def means(self) -> tuple[float, float]:
        """The mean AP over the classes that have objects: with 11 points, and with all."""
        return float(np.nanmean(self.ap_11_point)), float(np.nanmean(self.ap_all_point))


def evaluate(
    truths: Sequence[Record],
    detections: Sequence[Record],
    num_classes: int,
    iou_threshold: float = 0.5,
) -> Result:
    """The AP of the classes 1 … num_classes - 1. ValueError for other labels, and where no object
    counts."""
    check_records(truths, detections, num_classes)
    matched = [match(truths, detections, k, iou_threshold) for k in range(1, num_classes)]
    if not any(count for _, count in matched):
        raise ValueError("no object of the truth counts")
    return Result(
        ap_11_point=np.array([ap_11_point(*found) for found in matched]),
        ap_all_point=np.array([ap_all_point(*found) for found in matched]),
        objects=np.array([count for _, count in matched]),
    )


def table(result: Result, classes: Sequence[str]) -> str:
    """A text table in percent, a line a class and the means in the last. classes: with the
    background."""
    width = max(map(len, ("class", "mean", *classes)))

    def line(name: str, count: int, *values: float) -> str:
        cells = ("-" if np.isnan(x) else f"{100 * x:.1f}" for x in values)
        return f"{name:<{width}}{count:>9}" + "".join(f"{cell:>14}" for cell in cells)

    head = f"{'class':<{width}}{'objects':>9}{'AP 11-point':>14}{'AP all-point':>14}"
    rows = zip(classes[1:], result.objects, result.ap_11_point, result.ap_all_point, strict=True)
    body = [line(name, int(count), *values) for name, count, *values in rows]
    last = line("mean", int(result.objects.sum()), *result.means())
    return "\n".join([head, "-" * len(head), *body, "-" * len(head), last])


def match(
    truths: Sequence[Record], detections: Sequence[Record], label: int, iou_threshold: float = 0.5
) -> tuple[Bool[np.ndarray, "D"], int]:
    """Which of the detections of a class are right, the highest score first; and how many objects
    there are to find.

    A detection belongs to the object of its image and class that it overlaps most. It is right if
    it overlaps it by `iou_threshold` or more, and no other with a higher score did. Difficult
    objects need not be found, and detections that belong to one are left out.
    """
    places = [
        (float(score), image, box)
        for image, record in enumerate(detections)
        for score, box, found in zip(
            record["scores"], record["boxes"], record["labels"], strict=True
        )
        if found == label
    ]
    places.sort(key=lambda place: -place[0])  # the first of equals stays the first
    objects, free, difficult = [], [], []
    for truth in truths:
        chosen = np.asarray(truth["labels"]) == label
        objects.append(np.asarray(truth["boxes"], float).reshape(-1, 4)[chosen])
        free.append(np.ones(chosen.sum(), bool))
        difficult.append(np.asarray(truth.get("difficult", np.zeros(len(chosen))), bool)[chosen])
    right = []
    for _, image, box in places:
        overlaps = _iou(np.asarray(box, float), objects[image])
        best = overlaps.argmax() if len(overlaps) else 0
        if not len(overlaps) or overlaps[best] < iou_threshold:
            right.append(False)
        elif not difficult[image][best]:
            right.append(free[image][best])
            free[image][best] = False
    return np.array(right, bool), sum(int((~d).sum()) for d in difficult)


def ap_11_point(right: Bool[np.ndarray, "D"], count: int) -> float:
    """Mean over recalls of 0, 0.1 … 1 of the highest precision at that recall or beyond; nan for a
    `count` of 0 objects. right: of `match`."""
    found, precision = _precision(right)
    if not count:
        return float("nan")
    # In whole numbers: a recall of 6 / 10 is enough for 0.6, which floating point denies.
    best = [precision[10 * found >= tenth * count].max(initial=0) for tenth in range(11)]
    return float(np.mean(best))


def ap_all_point(right: Bool[np.ndarray, "D"], count: int) -> float:
    """The area below precision, made to fall monotonically, as a function of recall; nan for a
    `count` of 0 objects. right: of `match`."""
    _, precision = _precision(right)
    if not count:
        return float("nan")
    falling = np.maximum.accumulate(precision[::-1])[::-1]
    return float(falling[right].sum() / count)  # recall only grows where a detection is right


def _precision(right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """After each detection: how many objects are found, and the share that is right."""
    found = np.cumsum(right)
    return found, found / np.arange(1, len(right) + 1)


def _iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """[M], of one box with each of [M 4]."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    common = (high - low).clip(0).prod(axis=1)
    either = (box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) - common
    return np.divide(common, either, out=np.zeros(len(boxes)), where=either > 0)
