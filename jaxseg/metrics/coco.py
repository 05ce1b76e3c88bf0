"""COCO's scores of boxes, masks and keypoints, by pycocotools, from one record an image.

    truth       boxes [M 4], labels [M]; optional crowd [M], difficult [M], area [M], masks (an RLE
                each), keypoints [M J 3] with visibility 0, 1, 2
    detections  boxes [D 4], labels [D], scores [D]; of these masks and keypoints, too, if wanted

Boxes are xyxy in pixels of the file, and so are keypoints; labels are 1 … K-1. Objects that are
crowds, or marked difficult, are not counted, and whoever finds them is not punished: of a crowd any
part will do. `area`, in square pixels, sorts small (below 32²), medium and large (from 96²)
objects; where it is not given, it is that of the mask or of the box.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from pycocotools import mask as rle_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params

from jaxseg.metrics.records import Record, check_records

KINDS = {"boxes": "bbox", "masks": "segm", "keypoints": "keypoints"}  # what COCO calls them

# In the order in which COCOeval has them. AP and AR without a number are means over IoU (or OKS)
# .50, .55 … .95; AR_10 allows for ten detections an image, the others for 100 (keypoints: 20).
NAMES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
NAMES += ("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large")
KEYPOINT_NAMES = ("AP", "AP50", "AP75", "AP_medium", "AP_large")
KEYPOINT_NAMES += ("AR", "AR50", "AR75", "AR_medium", "AR_large")

BEYOND = 2e10  # an area of no size: COCOeval ignores such objects without taking them for crowds

COCO_SIGMAS = np.array(Params("keypoints").kpt_oks_sigmas)  # of the 17 keypoints of a person


class Result(NamedTuple):
    """Scores in 0 … 1; nan where there is nothing to score."""

    scores: dict[str, float]  # NAMES, or KEYPOINT_NAMES
    ap: Float[np.ndarray, "K-1"]  # of each class but the background
    ap50: Float[np.ndarray, "K-1"]
    objects: Int[np.ndarray, "K-1"]  # that count
    curves: Float[np.ndarray, "101 K-1"]  # precision at IoU .5 for a recall of 0, .01 … 1


def evaluate(
    truths: Sequence[Record],
    detections: Sequence[Record],
    classes: Sequence[str],
    kind: str = "boxes",
    sigmas: Sequence[float] | np.ndarray | None = None,
) -> Result:
    """The twelve numbers for `kind` "boxes" or "masks", the ten for "keypoints".

    classes: K names, of which the first is the background; sigmas: how far annotators differ on
    each of J keypoints, as a share of √area: by default those of `default_sigmas`. ValueError for
    labels beyond the classes, and where no object counts.
    """
    check_records(truths, detections, len(classes))
    objects = list(_objects(truths, kind))
    counted = [o["category_id"] - 1 for o in objects if not o["iscrowd"] and o["num_keypoints"]]
    if not counted:
        raise ValueError(f"no object of the truth counts, of {len(objects)} with {kind}")

    with redirect_stdout(StringIO()):  # pycocotools prints what it does
        truth: Any = COCO()
        truth.dataset = {
            # The sizes are not used: masks are RLEs already, and these have theirs.
            "images": [{"id": n, "height": 0, "width": 0} for n in range(len(truths))],
            "categories": [{"id": k, "name": classes[k]} for k in range(1, len(classes))],
            "annotations": objects,
        }
        truth.createIndex()
        found = list(_found(detections, kind))
        as_coco: Any = KINDS[kind]
        evaluation = COCOeval(truth, truth.loadRes(found) if found else COCO(), as_coco)
        if kind == "keypoints":
            joints = len(objects[0]["keypoints"]) // 3
            sigmas = default_sigmas(joints) if sigmas is None else np.asarray(sigmas, float)
            if len(sigmas) != joints:
                raise ValueError(f"{len(sigmas)} sigmas for {joints} keypoints")
            evaluation.params.kpt_oks_sigmas = sigmas
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][..., 0, -1]  # [IoU recall K-1], -1 for absent classes
    precision = np.where(precision < 0, np.nan, precision)
    names = KEYPOINT_NAMES if kind == "keypoints" else NAMES
    stats = np.where(evaluation.stats < 0, np.nan, evaluation.stats)
    return Result(
        scores=dict(zip(names, stats.tolist(), strict=True)),
        ap=precision.mean(axis=(0, 1)),
        ap50=precision[0].mean(axis=0),
        objects=np.bincount(counted, minlength=len(classes) - 1),
        curves=precision[0],
    )


def default_sigmas(num_joints: int) -> Float[np.ndarray, "J"]:
    """COCO's for 17 joints; for another skeleton their mean, for each of its joints."""
    return COCO_SIGMAS if num_joints == 17 else np.full(num_joints, COCO_SIGMAS.mean())


def results(record: Record, image_id: int) -> Iterator[dict[str, Any]]:
    """An image's detections as COCO's results format has them, one dict each, ready for JSON:
    category_id (the label), bbox (x, y, width, height), score, segmentation and keypoints."""
    for n, box in enumerate(np.asarray(record["boxes"], float)):
        found = {
            "image_id": image_id,
            "category_id": int(record["labels"][n]),
            "bbox": [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()],
            "score": float(record["scores"][n]),
        }
        if "masks" in record:
            found["segmentation"] = record["masks"][n]
        if "keypoints" in record:
            found["keypoints"] = np.asarray(record["keypoints"][n], float).ravel().tolist()
        yield found


def table(scored: Mapping[str, Result], classes: Sequence[str]) -> str:
    """Two text tables in percent: AP and AP50 of each class, then all the numbers. scored: kind ->
    its result."""
    first, width = next(iter(scored.values())), max(map(len, ("class", "mean", *classes)))
    columns = [(f"{kind} {name}", kind, name) for kind in scored for name in ("AP", "AP50")]

    def line(name: str, count: int | str, values: Sequence[float]) -> str:
        cells = ("-" if np.isnan(x) else f"{100 * x:.1f}" for x in values)
        spaced = zip(columns, cells, strict=True)
        return f"{name:<{width}}{count:>9}" + "".join(f"{c:>{len(t) + 3}}" for (t, *_), c in spaced)

    head = f"{'class':<{width}}{'objects':>9}" + "".join(f"{t:>{len(t) + 3}}" for t, *_ in columns)
    lines = [head, "-" * len(head)]
    for k, name in enumerate(classes[1:]):
        row = [scored[kind].ap[k] if n == "AP" else scored[kind].ap50[k] for _, kind, n in columns]
        lines.append(line(name, int(first.objects[k]), row))
    means = [scored[kind].scores[name] for _, kind, name in columns]
    lines += ["-" * len(head), line("mean", int(first.objects.sum()), means), ""]
    lines.append(f"{'':<10}" + "".join(f"{kind:>11}" for kind in scored))
    for name in dict.fromkeys([*NAMES, *KEYPOINT_NAMES]):
        values = [result.scores.get(name, np.nan) for result in scored.values()]
        if any(name in result.scores for result in scored.values()):
            cells = ("-" if np.isnan(x) else f"{100 * x:.1f}" for x in values)
            lines.append(f"{name:<10}" + "".join(f"{cell:>11}" for cell in cells))
    return "\n".join(lines)


def _objects(truths: Sequence[Record], kind: str) -> Iterator[dict[str, Any]]:
    """The truth as COCO's annotations. Their ids begin at 1, since 0 means "not matched"."""
    number = 0
    for image_id, truth in enumerate(truths):
        boxes = np.asarray(truth["boxes"], float).reshape(-1, 4)
        sizes = boxes[:, 2:] - boxes[:, :2]
        areas = np.asarray(truth.get("area", sizes.prod(axis=1)), float)
        if kind == "masks" and "area" not in truth:
            areas = np.array([rle_masks.area(rle) for rle in truth["masks"]], float)
        nothing = np.zeros(len(boxes), bool)
        crowd, difficult = (np.asarray(truth.get(n, nothing), bool) for n in ("crowd", "difficult"))
        if kind != "keypoints":  # of those, who has none is ignored
            areas = np.where(difficult, BEYOND, areas)
        for n in range(len(boxes)):
            number += 1
            shown: dict[str, Any] = {}
            known = 1
            if kind == "masks":
                shown["segmentation"] = truth["masks"][n]
            if kind == "keypoints":
                points = np.asarray(truth["keypoints"][n], float)
                shown["keypoints"] = points.ravel().tolist()
                known = int((points[:, 2] > 0).sum())
            yield {
                "id": number,
                "image_id": image_id,
                "category_id": int(truth["labels"][n]),
                "bbox": [*boxes[n, :2].tolist(), *sizes[n].tolist()],
                "area": float(areas[n]),
                "iscrowd": int(crowd[n]),
                "num_keypoints": 0 if difficult[n] else known,
                **shown,
            }


def _found(detections: Sequence[Record], kind: str) -> Iterator[dict[str, Any]]:
    """COCO's results with what `kind` needs alone: `loadRes` takes its kind from what is there."""
    field = {"boxes": "bbox", "masks": "segmentation", "keypoints": "keypoints"}[kind]
    for image_id, record in enumerate(detections):
        for found in results(record, image_id):
            yield {name: found[name] for name in ("image_id", "category_id", "score", field)}
