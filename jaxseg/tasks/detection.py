"""Detection: boxes, and masks and keypoints where the predictions hold them and the truth has them.

COCO's numbers, under COCO's names: `AP`, `AP50` … of boxes, `mask_AP` … of masks, `keypoint_AP` …
of keypoints, and for models of two stages `proposal_AR_100` …, which does not ask for the class.

The truth is read on the host, from the split that is scored, in pixels of the file. Counts are a
list of records, one an image, of what was detected, also in pixels of the file:

    image_id int, boxes float32 [D 4] xyxy, labels int32 [D], scores float32 [D], and masks (an RLE
    each), keypoints float32 [D J 3], proposals float32 [P 4], the best first
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, TypeVar

import cv2
import numpy as np

from jaxseg.metrics import analysis, coco, proposals, voc
from jaxseg.metrics.masks import decode_mask, encode_mask, paste_mask
from jaxseg.metrics.records import Record
from jaxseg.types import MEAN, STD, Array, Batch, Findings, Task
from jaxseg.viz import draw
from jaxseg.viz.objects import draw_boxes, draw_objects, object_colours

Size = tuple[int, int]  # (height, width) in pixels
Result = TypeVar("Result")

OF_OBJECTS = ("boxes", "scores", "labels", "detection_mask", "keypoints", "masks", "masks_aligned")
OF_PROPOSALS = ("proposals", "proposal_scores", "proposal_mask")
OF_IMAGES = ("image_id", "image_size", "original_size", "valid")
PREFIX = {"boxes": "", "masks": "mask_", "keypoints": "keypoint_"}  # of the scores

THRESHOLD = 0.5  # score from which on a detection is drawn
SHOWN_PROPOSALS = 100


def make_task(
    dataset: Any,
    split: str,
    *,
    sigmas: Sequence[float] | None = None,
    voc_scores: bool = False,
) -> Task:
    """The task for a split of a `data.builders.prepare.Dataset`.

    sigmas: of its keypoints, for OKS; see `metrics.coco.evaluate`. voc_scores: also those of Pascal
    VOC. Scoring raises ValueError where no object of the split counts.
    """
    examples, classes = dataset.splits[split], dataset.classes
    truth_of = cache(lambda image_id: read_truth(examples[image_id]))  # without the pictures

    def pairs(found: list[Record]) -> tuple[list[Record], list[Record]]:
        """Truths and detections in the order of the split, on which equal scores depend."""
        found = sorted(found, key=lambda record: record["image_id"])
        return [truth_of(record["image_id"]) for record in found], found

    # Scores, report and figures are asked for one after the other.
    @remember_last
    def scored(found: list[Record]) -> dict[str, coco.Result]:
        return score_kinds(*pairs(found), classes, sigmas)

    @remember_last
    def by_voc(found: list[Record]) -> voc.Result:
        return voc.evaluate(*pairs(found), len(classes))

    def score(found: list[Record]) -> dict[str, float]:
        scores = {
            PREFIX[kind] + name: value
            for kind, result in scored(found).items()
            for name, value in result.scores.items()
            if np.isfinite(value)  # of sizes that do not occur
        }
        if all("proposals" in record for record in found):
            scores |= score_proposals(*pairs(found))
        if voc_scores:
            means = by_voc(found).means()
            scores |= dict(zip(("voc_AP_11_point", "voc_AP_all_point"), means, strict=True))
        return scores

    def report(found: list[Record]) -> str:
        table = coco.table(scored(found), classes)
        return f"{table}\n\n{voc.table(by_voc(found), classes)}" if voc_scores else table

    def figures(found: list[Record]) -> dict[str, np.ndarray]:
        return {
            f"{PREFIX[kind]}precision_recall": draw.precision_recall_picture(
                result.curves, classes[1:], f"{kind}, at 0.5"
            )
            for kind, result in scored(found).items()
        }

    def analyse(found: list[Record]) -> Findings:
        analysed = analysis.analyse(*pairs(found), len(classes), min_score=THRESHOLD)
        return findings(analysed, classes)

    return Task(
        measure=measure,
        add=lambda a, b: a + b,
        score=score,
        report=report,
        figures=figures,
        draw=partial(draw_example, truth_of=truth_of, dataset=dataset),
        compact=compact,
        analyse=analyse,
    )


# ---- records


def measure(predictions: dict[str, Array], batch: Batch) -> dict[str, Array]:
    """What scores need of a batch: its rows, as they are."""
    names = (*OF_OBJECTS, *OF_PROPOSALS)
    found = {name: predictions[name] for name in names if name in predictions}
    return found | {name: batch[name] for name in OF_IMAGES}


def compact(measured: Mapping[str, np.ndarray]) -> list[Record]:
    """The records of the images of a batch, in pixels of their files. Images that only fill it up,
    and boxes that lie in the padding, are left out."""
    records: list[Record] = []
    for n in np.flatnonzero(measured["valid"]):
        row = {name: np.asarray(x[n]) for name, x in measured.items()}
        height, width = row["original_size"].tolist()
        record = to_record(row, row["image_size"], (height, width))
        records.append({"image_id": int(row["image_id"]), **record})
    return records


def to_record(
    prediction: Mapping[str, np.ndarray], image_size: np.ndarray, size: Size
) -> dict[str, Any]:
    """What was detected in one image, of `image_size` (height, width) inside its padding, as it
    lies in that picture at another `size`: pixels of that size, masks as RLE."""
    scale = np.divide(size, image_size)[::-1].astype(np.float32)  # (x, y)
    boxes = _resize_boxes(prediction["boxes"], scale, size)
    kept = prediction["detection_mask"] & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    record: dict[str, Any] = {"boxes": boxes[kept]}
    record |= {name: prediction[name][kept] for name in ("labels", "scores")}
    if "masks" in prediction:
        paste = partial(paste_mask, size=size, aligned=bool(prediction.get("masks_aligned", False)))
        pasted = map(paste, prediction["masks"][kept], boxes[kept])
        record["masks"] = [encode_mask(mask) for mask in pasted]
    if "keypoints" in prediction:
        record["keypoints"] = prediction["keypoints"][kept] * np.append(scale, np.float32(1))
    if "proposals" in prediction:
        order = np.argsort(-prediction["proposal_scores"], kind="stable")
        order = order[prediction["proposal_mask"][order]]
        record["proposals"] = _resize_boxes(prediction["proposals"][order], scale, size)
    return record


def read_truth(example: Mapping[str, Any]) -> dict[str, Any]:
    """The record of an example's objects, without the picture: see `metrics.coco`."""
    names = ("boxes", "labels", "crowd", "difficult", "area", "keypoints")
    truth = {name: example[name] for name in names if name in example}
    if "masks" in example:
        truth["masks"] = [encode_mask(mask) for mask in example["masks"]]
    return truth


def _resize_boxes(boxes: np.ndarray, scale: np.ndarray, size: Size) -> np.ndarray:
    return (boxes * np.tile(scale, 2)).clip(0, np.array(size[::-1] * 2, np.float32))


# ---- scores


def score_kinds(
    truths: Sequence[Record],
    found: Sequence[Record],
    classes: Sequence[str],
    sigmas: Sequence[float] | None = None,
) -> dict[str, coco.Result]:
    """COCO's results for boxes, and for masks and keypoints where both sides have them."""
    kinds = ["boxes"]
    if all("masks" in record for record in (*truths, *found)):
        kinds.append("masks")
    if all("keypoints" in record for record in (*truths, *found)) and any(
        (truth["keypoints"][..., 2] > 0).any() for truth in truths
    ):
        kinds.append("keypoints")
    return {kind: coco.evaluate(truths, found, classes, kind, sigmas) for kind in kinds}


def score_proposals(truths: Sequence[Record], found: Sequence[Record]) -> dict[str, float]:
    """`proposal_AR_n` for n = 1, 10 … up to as many as there are, and their recall at IoU .5."""
    ranks = []
    for truth, record in zip(truths, found, strict=True):
        counts = np.ones(len(truth["boxes"]), bool)
        for name in ("crowd", "difficult"):
            counts &= ~np.asarray(truth.get(name, ~counts), bool)
        ranks.append(proposals.rank_objects(record["proposals"], truth["boxes"][counts]))
    most = max(len(record["proposals"]) for record in found)
    needed = [n for n in proposals.BUDGETS if n < most]
    budgets = proposals.BUDGETS[: len(needed) + 1]
    return {f"proposal_{name}": x for name, x in proposals.scores(ranks, budgets).items()}


def findings(analysed: analysis.Analysis, classes: Sequence[str]) -> Findings:
    """An analysis of boxes as numbers, table and pictures, beside that of precision over recall
    which every score has."""
    return Findings(
        {"IoU": analysis.T_F, "min_score": THRESHOLD, **analysis.as_json(analysed, classes)},
        analysis.table(analysed, classes),
        {
            "analysis_confusion": draw.confusion_picture(analysed.confusion, classes),
            "analysis_lost": draw.lost_picture(analysed.lost, analysis.LOST, classes[1:]),
        },
    )


def remember_last(function: Callable[[list[Record]], Result]) -> Callable[[list[Record]], Result]:
    """`function`, not computed again while it is asked for the same list."""
    last: list[Any] = [None, None]

    def remembered(found: list[Record]) -> Result:
        if last[0] is not found:
            last[:] = found, function(found)
        return last[1]

    return remembered


# ---- pictures


def draw_example(
    example: Batch,
    prediction: dict[str, Array],
    *,
    truth_of: Callable[[int], Record],
    dataset: Any,
) -> dict[str, np.ndarray]:
    """Picture, truth, prediction, and proposals if there are any, uint8 [h w 3] each."""
    height, width = np.asarray(example["image_size"]).tolist()
    image = draw.denormalize(np.asarray(example["image"])[:height, :width], MEAN, STD)
    image = draw.enlarge(image, 240)
    size = image.shape[:2]
    row = {name: np.asarray(x) for name, x in prediction.items()}
    found = to_record(row, np.array([height, width]), size)
    truth = truth_of(int(example["image_id"]))
    truth = resize_record(truth, tuple(np.asarray(example["original_size"]).tolist()), size)
    pictures = {
        "picture": image,
        "truth": draw_record(image, truth, dataset),
        "prediction": draw_record(image, above(found, THRESHOLD), dataset),
    }
    if "proposals" in found:
        best = found["proposals"][:SHOWN_PROPOSALS][::-1]
        pictures["proposals"] = draw_boxes(image, best, object_colours(len(best)), width=1)
    return pictures


def draw_record(image: draw.Picture, record: Record, about: Any) -> draw.Picture:
    """The objects of a record, in pixels of `image`. about: what has `classes`, `keypoint_names`
    and `skeleton`, as a Dataset."""
    return draw_objects(
        image,
        record,
        about.classes,
        masks=map(decode_mask, record["masks"]) if "masks" in record else None,
        keypoint_names=about.keypoint_names,
        skeleton=about.skeleton,
    )


def above(record: Record, threshold: float) -> Record:
    """The detections of a record with a score of `threshold` or more."""
    kept = np.flatnonzero(record["scores"] >= threshold)
    names = ("boxes", "labels", "scores", "keypoints")
    chosen = {name: record[name][kept] for name in names if name in record}
    if "masks" in record:
        chosen["masks"] = [record["masks"][n] for n in kept]
    return chosen


def resize_record(truth: Record, old: Size, new: Size) -> Record:
    """The truth of a picture of size `old` as it is at size `new`."""
    scale = np.divide(new, old)[::-1].astype(np.float32)
    resized = {**truth, "boxes": _resize_boxes(truth["boxes"], scale, new)}
    if "keypoints" in truth:
        resized["keypoints"] = truth["keypoints"] * np.append(scale, np.float32(1))
    if "masks" in truth:
        masks = (decode_mask(rle).astype(np.uint8) for rle in truth["masks"])
        masks = (cv2.resize(m, new[::-1], interpolation=cv2.INTER_NEAREST) for m in masks)
        resized["masks"] = [encode_mask(mask.astype(bool)) for mask in masks]
    return resized
