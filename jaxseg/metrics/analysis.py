"""Where a detector's average precision is lost: Bolya et al. 2020, "TIDE: A General Toolbox for
Identifying Object Detection Errors". Records are those of `metrics.coco`.

A detection that is wrong has one of five errors (section 2.2). IoU: the highest with an object of
its class, `other`: with one of another class.

    localisation    T_B ≤ IoU < T_F
    classification  other ≥ T_F, and IoU < T_B or the object of its class is taken
    duplicate       IoU ≥ T_F, but a better detection has that object
    background      neither is above T_B
    both            what is left: wrong class, and wrong place

An object is missed if no detection has it, and none but for its class or place would. How much an
error costs is how much AP50 rises once an oracle mends all errors of that kind and no others
(section 2.3): `lost`. What the kinds cost does not add up to what is missing to 1.

The authors' `tidecv` gives the same numbers, but for what is done here as COCO does it, so that
AP50 is its: steps of recall fall as there; classes without an object are not in the mean; what lies
in a crowd or on a difficult object is no error; each class has its own 100 detections an image. And
where mending leaves a class neither objects nor detections, its AP50 is 1; `tidecv` leaves it out
of the mean. (It gives nothing by class, brings a second OpenCV along, and has had no release since
August 2020.)
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from pycocotools import mask as coco_mask

from jaxseg.metrics.records import Record, check_records

T_F, T_B = 0.5, 0.1  # IoU of what is found, and of what is background
ERRORS = ("classification", "localisation", "both", "duplicate", "background", "missed")
CLASSIFICATION, LOCALISATION, BOTH, DUPLICATE, BACKGROUND, MISSED = range(6)
LOST = (*ERRORS, "false_positive", "false_negative")
NONE = -1  # no error; no object
RECALL = np.linspace(0, 1, 101)
MOST = 100  # detections of a class in an image, as COCO has it


class Analysis(NamedTuple):
    """Of the classes but the background; nan where there is no object of a class."""

    objects: Int[np.ndarray, "K-1"]  # that count
    ap50: Float[np.ndarray, "K-1"]
    curves: Float[np.ndarray, "101 K-1"]  # precision at each RECALL
    counts: Int[np.ndarray, "6 K-1"]  # of ERRORS, by the class of the detection, or missed object
    lost: Float[np.ndarray, "8 K-1"]  # AP50 that mending each of LOST would add
    confusion: Int[np.ndarray, "K K"]  # see `confusion_matrix`


class Judged(NamedTuple):
    """The detections of an image, or of all, the best first in each image; and its objects."""

    labels: Int[np.ndarray, "D"]
    scores: Float[np.ndarray, "D"]
    errors: Int[np.ndarray, "D"]  # of ERRORS, or NONE: it is right
    targets: Int[np.ndarray, "D"]  # the object that it would find but for its class or place
    objects: Int[np.ndarray, "M"]  # their labels
    found: Bool[np.ndarray, "M"]


def analyse(
    truths: Sequence[Record],
    detections: Sequence[Record],
    num_classes: int,
    kind: str = "boxes",
    min_score: float = 0.5,
) -> Analysis:
    """All of it, for `kind` "boxes" or "masks". min_score: of the confusion matrix alone.
    ValueError for labels other than 1 … num_classes - 1, and where no object counts."""
    check_records(truths, detections, num_classes)
    pairs = list(zip(truths, detections, strict=True))
    if all(_ignored(truth).all() for truth in truths):
        raise ValueError("no object of the truth counts")
    judged = join([judge(*pair, kind) for pair in pairs])
    counts = _by_class(judged.objects, num_classes)
    curves = np.where(counts > 0, _curves(judged, counts), np.nan)
    ap50 = curves.mean(axis=0)
    errors = [judged.labels[judged.errors == error] for error in range(MISSED)]
    errors.append(judged.objects[missed(judged)])
    return Analysis(
        objects=counts,
        ap50=ap50,
        curves=curves,
        counts=np.stack([_by_class(labels, num_classes) for labels in errors]),
        lost=np.stack([_curves(*mend(judged, counts, name)).mean(axis=0) - ap50 for name in LOST]),
        confusion=sum(
            (confusion_matrix(*pair, num_classes, kind, min_score) for pair in pairs),
            np.zeros((num_classes, num_classes), int),
        ),
    )


# ---- what is wrong with each detection


def judge(truth: Record, record: Record, kind: str = "boxes") -> Judged:
    """The detections of one image. Those that find a crowd or a difficult object of their class are
    left out, and so are all but the MOST best of a class: as COCO does."""
    record = _best(record)
    labels, scores = record["labels"], record["scores"]
    overlaps, objects = _overlaps(truth, record, kind)
    same = labels[:, None] == objects[None]
    own = np.where(same, overlaps, 0)
    right, found = _assign(own, shared=np.zeros(len(objects), bool))
    kept = right | ~_excused(truth, record, right, kind)

    other = np.where(same, 0, overlaps)
    nearest, confused = own.max(axis=1), other.max(axis=1)
    rules = {
        NONE: right,
        LOCALISATION: (nearest >= T_B) & (nearest < T_F),
        CLASSIFICATION: confused >= T_F,
        DUPLICATE: nearest >= T_F,
        BACKGROUND: overlaps.max(axis=1) <= T_B,
    }
    errors = np.select(list(rules.values()), list(rules), BOTH)
    meant = {LOCALISATION: own.argmax(axis=1), CLASSIFICATION: other.argmax(axis=1)}
    targets = np.select([errors == error for error in meant], list(meant.values()), NONE)
    labels, scores, errors, targets = (x[kept] for x in (labels, scores, errors, targets))
    return Judged(labels, scores, errors, targets, objects[:-1], found[:-1])


def join(images: Sequence[Judged]) -> Judged:
    """All images as one."""
    starts = np.cumsum([0, *(len(image.objects) for image in images)])
    moved = [
        image._replace(targets=np.where(image.targets == NONE, NONE, image.targets + start))
        for image, start in zip(images, starts, strict=False)
    ]
    return Judged(*(np.concatenate(parts) for parts in zip(*moved, strict=True)))


def missed(judged: Judged) -> Bool[np.ndarray, "M"]:
    """Objects that are not found, nor would be with another class or place."""
    meant = np.zeros(len(judged.objects), bool)
    meant[judged.targets[judged.targets != NONE]] = True
    return ~judged.found & ~meant


def mend(
    judged: Judged, counts: Int[np.ndarray, "C"], kind: str
) -> tuple[Judged, Int[np.ndarray, "C"]]:
    """What an oracle makes of the detections and of the numbers of objects of each class (section
    2.3).

    A detection of the wrong class or place gets the right one, if it is the best one meant for an
    object that is not found; the others go away, and so do those of other errors. What is missed
    need not be found any more; nor, without false negatives, anything that is not.
    """
    num_classes = len(counts) + 1
    if kind == "missed":
        return judged, counts - _by_class(judged.objects[missed(judged)], num_classes)
    if kind == "false_negative":
        return judged, counts - _by_class(judged.objects[~judged.found], num_classes)
    if kind == "false_positive":
        wrong, mended = judged.errors != NONE, np.zeros(len(judged.errors), bool)
    else:
        wrong = judged.errors == ERRORS.index(kind)
        mended = wrong & _best_for_object(judged)
    labels = judged.labels.copy()
    labels[mended] = judged.objects[judged.targets[mended]]
    errors = np.where(mended, NONE, judged.errors)
    kept = ~wrong | mended
    fixed = judged._replace(
        labels=labels[kept],
        scores=judged.scores[kept],
        errors=errors[kept],
        targets=judged.targets[kept],
    )
    return fixed, counts


def _best_for_object(judged: Judged) -> np.ndarray:
    """bool [D]: the detection of the highest score of those meant for an object not found."""
    order = np.argsort(-judged.scores, kind="stable")
    order = order[judged.targets[order] != NONE]
    order = order[~judged.found[judged.targets[order]]]
    _, first = np.unique(judged.targets[order], return_index=True)
    best = np.zeros(len(judged.scores), bool)
    best[order[first]] = True
    return best


def _curves(judged: Judged, counts: Int[np.ndarray, "C"]) -> Float[np.ndarray, "101 C"]:
    """Precision at each RECALL, the highest there or beyond. With no object to find it is 1, unless
    something was found nevertheless."""
    order = np.argsort(-judged.scores, kind="stable")
    curves = []
    for label, count in enumerate(counts, start=1):
        right = judged.errors[order[judged.labels[order] == label]] == NONE
        if not count:
            curves.append(np.full(len(RECALL), float(not len(right))))
            continue
        found = np.cumsum(right)
        precision = np.append(found / np.arange(1, len(right) + 1), 0)
        falling = np.maximum.accumulate(precision[::-1])[::-1]
        curves.append(falling[np.searchsorted(found / count, RECALL)])
    return np.stack(curves, axis=1)


# ---- which class is taken for which


def confusion_matrix(
    truth: Record, record: Record, num_classes: int, kind: str = "boxes", min_score: float = 0.5
) -> Int[np.ndarray, "K K"]:
    """How often an object of each class (row) was detected as each class (column), in one image.

    Of the detections with a score of `min_score` or more and the objects, whatever their classes,
    those that overlap most are paired first, down to T_F. An object without a pair is in the column
    of the background, 0; a detection without one in its row, unless it finds a crowd, or an object
    that is difficult, of its class.
    """
    record = _best(record, min_score)
    overlaps, objects = _overlaps(truth, record, kind)
    taken = np.zeros(len(record["labels"]), int)  # the label of the object; 0: none
    left = overlaps.copy()
    while left.size and left.max() >= T_F:
        n, m = np.unravel_index(left.argmax(), left.shape)
        taken[n] = objects[m]
        left[n], left[:, m], objects[m] = 0, 0, 0
    matrix = np.zeros((num_classes, num_classes), int)
    shown = (taken > 0) | ~_excused(truth, record, taken > 0, kind)
    np.add.at(matrix, (taken[shown], record["labels"][shown]), 1)
    matrix[1:, 0] = _by_class(objects, num_classes)
    return matrix


# ---- for people and programs


def table(analysis: Analysis, classes: Sequence[str]) -> str:
    """Two text tables: AP50 and what each kind of error costs, in percent; and how many there are.
    classes: with the background."""
    width = max(map(len, ("class", "mean", *classes)))

    def line(name: str, cells: Iterable[Any], heads: Sequence[str]) -> str:
        spaced = zip(cells, heads, strict=True)
        return f"{name:<{width}}" + "".join(f"{cell!s:>{len(head) + 3}}" for cell, head in spaced)

    def percent(values: np.ndarray) -> list[str]:
        return ["-" if np.isnan(x) else f"{round(100 * x, 1) + 0.0:.1f}" for x in values]

    heads = ["objects", "AP50", *(name.replace("_", " ") for name in LOST)]
    shares = np.vstack([analysis.ap50, analysis.lost])
    rows = [
        line(name, [count, *percent(values)], heads)
        for name, count, values in zip(classes[1:], analysis.objects, shares.T, strict=True)
    ]
    means = line("mean", [analysis.objects.sum(), *percent(np.nanmean(shares, axis=1))], heads)
    first = line("class", heads, heads)
    rule = "-" * len(first)
    lines = ["lost AP50, by kind of error", first, rule, *rows, rule, means, ""]

    first = line("class", ERRORS, ERRORS)
    rule = "-" * len(first)
    lines += ["number of errors", first, rule]
    for name, counts in zip(classes[1:], analysis.counts.T, strict=True):
        lines.append(line(name, counts, ERRORS))
    return "\n".join([*lines, rule, line("sum", analysis.counts.sum(axis=1), ERRORS)])


def as_json(analysis: Analysis, classes: Sequence[str]) -> dict[str, Any]:
    """The numbers by name, ready for JSON: null for nan; "mean" and "sum" are of all classes."""

    def plain(values: np.ndarray) -> list[float | None]:
        return [None if np.isnan(x) else float(x) for x in values]

    def by_class(values: np.ndarray) -> dict[str, Any]:
        return dict(
            zip([*classes[1:], "mean"], plain(np.append(values, np.nanmean(values))), strict=True)
        )

    curves = np.column_stack([analysis.curves, np.nanmean(analysis.curves, axis=1)])
    counts = np.column_stack([analysis.counts, analysis.counts.sum(axis=1)]).tolist()
    return {
        "objects": dict(zip(classes[1:], analysis.objects.tolist(), strict=True)),
        "AP50": by_class(analysis.ap50),
        "lost_AP50": {name: by_class(x) for name, x in zip(LOST, analysis.lost, strict=True)},
        "errors": {
            name: dict(zip([*classes[1:], "sum"], row, strict=True))
            for name, row in zip(ERRORS, counts, strict=True)
        },
        "confusion": {"classes": list(classes), "matrix": analysis.confusion.tolist()},
        "recall": RECALL.tolist(),
        "precision": {
            name: plain(curve) for name, curve in zip([*classes[1:], "mean"], curves.T, strict=True)
        },
    }


# ---- records


def _best(record: Record, min_score: float = -np.inf) -> dict[str, Any]:
    """The detections of an image by falling score, the MOST best of each class."""
    labels, scores = np.asarray(record["labels"], int), np.asarray(record["scores"], float)
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] >= min_score]
    ranks = np.array([(labels[order[:n]] == labels[m]).sum() for n, m in enumerate(order)], int)
    order = order[ranks < MOST]
    chosen: dict[str, Any] = {"labels": labels[order], "scores": scores[order]}
    chosen["boxes"] = np.asarray(record["boxes"], float).reshape(-1, 4)[order]
    if "masks" in record:
        chosen["masks"] = [record["masks"][n] for n in order]
    return chosen


def _overlaps(truth: Record, record: Record, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """IoUs [D M+1] with the objects that count, and their labels [M+1]. The last one, which
    overlaps nothing and is of no class, is there so that there is one."""
    chosen = np.flatnonzero(~_ignored(truth))
    overlaps = _iou(record, truth, chosen, kind)
    labels = np.asarray(truth["labels"], int)[chosen]
    return np.pad(overlaps, [(0, 0), (0, 1)]), np.append(labels, 0)


def _excused(truth: Record, record: Record, right: np.ndarray, kind: str) -> np.ndarray:
    """bool [D]: which, not being right, lie by T_F of their area in a crowd of their class, or are
    the best for a difficult object of their class, with an IoU of T_F."""
    chosen = np.flatnonzero(_ignored(truth))
    same = record["labels"][:, None] == np.asarray(truth["labels"], int)[chosen][None]
    overlaps = np.where(same & ~right[:, None], _iou(record, truth, chosen, kind), 0)
    return _assign(overlaps, shared=_flags(truth, "crowd")[chosen])[0]


def _assign(overlaps: np.ndarray, shared: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each detection, the best first, gets the object that it overlaps most of those left, by T_F
    or more: which do (bool [D]), and which objects are gone (bool [M]). Those that are `shared`
    never are."""
    served, gone = np.zeros(len(overlaps), bool), np.zeros(len(shared), bool)
    for n in np.flatnonzero((overlaps >= T_F).any(axis=1)):
        left = np.where(gone, 0, overlaps[n])
        best = left.argmax()
        served[n] = left[best] >= T_F
        gone[best] |= served[n] & ~shared[best]
    return served, gone


def _iou(record: Record, truth: Record, chosen: np.ndarray, kind: str) -> Any:
    """[D N] with the N chosen ones; with crowds, over the detection's own area instead of the
    union."""
    if not len(record["labels"]) or not len(chosen):
        return np.zeros((len(record["labels"]), len(chosen)))
    if kind == "masks":
        found, objects = record["masks"], [truth["masks"][m] for m in chosen]
    else:
        boxes = np.asarray(truth["boxes"], float).reshape(-1, 4)[chosen]
        found, objects = _xywh(record["boxes"]), _xywh(boxes)
    crowds = _flags(truth, "crowd")[chosen].tolist()
    return np.asarray(coco_mask.iou(found, objects, crowds))


def _xywh(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def _ignored(truth: Record) -> np.ndarray:
    return _flags(truth, "crowd") | _flags(truth, "difficult")


def _flags(truth: Record, name: str) -> np.ndarray:
    return np.asarray(truth.get(name, np.zeros(len(truth["labels"]))), bool)


def _by_class(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """How many there are of each class but the background."""
    return np.bincount(labels, minlength=num_classes)[1:]
