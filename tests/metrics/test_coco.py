"""COCO's scores against published ones, and small cases by hand."""

import json
from collections import defaultdict

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from jaxseg.metrics import coco
from jaxseg.metrics.masks import encode_mask

CLASSES = ("background", "cat", "dog")
# What the reference calls them.
SHORT = {name: name.replace("_small", "s").replace("_medium", "m") for name in coco.NAMES}
SHORT |= {"AP_large": "APl", "AR_large": "ARl", "AR_1": "AR1", "AR_10": "AR10", "AR_100": "AR100"}


def xyxy(boxes):
    boxes = np.array(boxes, float).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def records_of(truth, results):
    """Records of COCO's files; and category ids in the order of labels."""
    categories = sorted(category["id"] for category in truth["categories"])
    label = {category: n for n, category in enumerate(categories, start=1)}
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    objects, found = defaultdict(list), defaultdict(list)
    for annotation in truth["annotations"]:
        size, shape = sizes[annotation["image_id"]], annotation.get("segmentation")
        if isinstance(shape, list) and shape:
            annotation["mask"] = coco_mask.merge(coco_mask.frPyObjects(shape, *size))
        elif isinstance(shape, dict):
            annotation["mask"] = coco_mask.frPyObjects(shape, *size)
        objects[annotation["image_id"]].append(annotation)
    for result in results:
        if "segmentation" in result:
            result["mask"] = result["segmentation"]
            result["bbox"] = coco_mask.toBbox(result["mask"]).tolist()
        found[result["image_id"]].append(result)

    def record(items):
        made = {
            "boxes": xyxy([item.get("bbox", [0, 0, 1, 1]) for item in items]),
            "labels": [label[item["category_id"]] for item in items],
            "area": [item.get("area", 0) for item in items],
            "crowd": [item.get("iscrowd", 0) for item in items],
            "scores": [item.get("score", 0) for item in items],
            "masks": [item.get("mask") for item in items],
        }
        if any("keypoints" in item for item in items):
            joints = [np.array(item["keypoints"]).reshape(-1, 3) for item in items]
            made["keypoints"] = np.array(joints)
        return made

    images = sorted(sizes)  # of equal scores, that of the first image counts first
    return *([record(part[image]) for image in images] for part in (objects, found)), categories


@pytest.mark.parametrize(
    ("kind", "truth", "results"),
    [
        ("boxes", "instances", "bbox"),
        ("masks", "instances", "segm"),
        ("keypoints", "person_keypoints", "keypoints"),
    ],
)
def test_scores_of_coco_mini(references, kind, truth, results):
    folder = references / "coco_mini_val"
    truth = json.loads((folder / f"{truth}_val2017.json").read_text())
    records = json.loads((folder / f"{results}_results.json").read_text())
    truths, found, categories = records_of(truth, records)
    expected = json.loads((folder / "expected.json").read_text())
    classes = ("background", *map(str, categories))
    result = coco.evaluate(truths, found, classes, kind)
    stats = expected["stats"][results]
    short = SHORT if kind != "keypoints" else {**SHORT, "AR": "AR", "AR50": "AR50", "AR75": "AR75"}
    assert {short[name]: x for name, x in result.scores.items()} == pytest.approx(stats, abs=1e-9)
    if kind != "keypoints":
        each = expected["AP_per_category"][results]
        each = [np.nan if each[c] is None else each[c] for c in classes[1:]]
        np.testing.assert_allclose(result.ap, each, atol=1e-9)
        assert result.objects.sum() == sum(not a["iscrowd"] for a in truth["annotations"])


def test_published_scores(references):
    folder = references / "coco_bbox_val2014_100"
    truth, results, expected = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("gts", "dets", "expected")
    )
    truths, found, categories = records_of(truth, results)
    for record in truths:
        del record["area"]  # that of the box, there and here
    result = coco.evaluate(truths, found, ("background", *map(str, categories)))
    scores = {SHORT[name]: x for name, x in result.scores.items()}
    assert scores == pytest.approx(expected["published"], abs=1e-6)
    assert scores == pytest.approx(expected["pycocotools_2"], abs=1e-9)


def one(boxes, labels, scores=None, **more):
    scores = np.linspace(0.9, 0.1, len(labels)) if scores is None else scores
    return {"boxes": np.array(boxes, float), "labels": labels, "scores": scores, **more}


TRUTH = [one([[0, 0, 10, 10], [20, 20, 40, 50]], [1, 2])]


def test_by_hand(capsys):
    """The cat is found exactly and after it once more, the dog with an IoU of 0.6."""
    found = [one([[0, 0, 10, 10], [0, 0, 10, 10], [20, 20, 40, 38]], [1, 1, 2])]
    result = coco.evaluate(TRUTH, found, CLASSES)
    # The dog counts at .5, .55 and .6, whatever becomes of 0.6 in floating point: 18 · 20 / 600.
    np.testing.assert_allclose(result.ap, [1, 0.3])
    np.testing.assert_allclose(result.ap50, [1, 1])
    assert result.objects.tolist() == [1, 1]
    assert result.scores["AP"] == pytest.approx(0.65)
    assert result.scores["AP50"] == pytest.approx(1)
    assert result.scores["AP75"] == pytest.approx(0.5)
    assert result.scores["AR_1"] == pytest.approx(0.65)
    assert np.isnan(result.scores["AP_large"])  # there is no such object
    np.testing.assert_allclose(result.curves, 1)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kind", ["crowd", "difficult"])
def test_objects_that_do_not_count(kind):
    """The dog is found first, with the higher score, and need not be."""
    truth = [{**TRUTH[0], "labels": [1, 1], kind: [False, True]}]
    boxes = [[20, 20, 40, 50], [0, 0, 10, 10]]
    result = coco.evaluate(truth, [one(boxes, [1, 1])], CLASSES)
    assert result.objects.tolist() == [1, 0]
    assert result.scores["AP"] == pytest.approx(1)
    result = coco.evaluate(truth, [one(boxes[1:], [1])], CLASSES)
    assert result.scores["AP"] == pytest.approx(1)
    assert coco.evaluate([TRUTH[0]], [one(boxes, [1, 1])], CLASSES).scores["AP"] < 1


@pytest.mark.parametrize(("kind", "expected"), [("crowd", 1.0), ("difficult", 0.25)])
def test_parts_of_crowds_alone_are_not_punished(kind, expected):
    """Three small boxes in a large object come before the one that counts."""
    truth = [one([[0, 0, 10, 10], [20, 20, 120, 120]], [1, 1]) | {kind: [False, True]}]
    parts = [[20 + 30 * n, 20, 40 + 30 * n, 40] for n in range(3)]
    found = [one([*parts, [0, 0, 10, 10]], [1, 1, 1, 1])]
    assert coco.evaluate(truth, found, CLASSES).scores["AP"] == pytest.approx(expected)


def test_size_is_that_of_the_mask_where_no_area_is_given():
    mask = np.zeros((50, 50), bool)
    mask[:35, :25] = mask[0, :35] = True  # 885 pixels in a box of 35 by 35
    record = one([[0, 0, 35, 35]], [1]) | {"masks": [encode_mask(mask)]}
    scores = coco.evaluate([record], [record], CLASSES, "masks").scores
    assert scores["AP_small"] == pytest.approx(1)
    assert np.isnan(scores["AP_medium"])


def test_nothing_found_scores_nothing():
    empty = one(np.zeros((0, 4)), [])
    result = coco.evaluate(TRUTH, [empty], CLASSES)
    assert result.scores["AP"] == result.scores["AR_100"] == 0
    assert coco.evaluate([*TRUTH, empty], [empty, empty], CLASSES).ap.tolist() == [0, 0]


def test_masks_are_compared_by_their_pixels():
    """The same boxes; a full mask and the half of it, of 50 to 100 pixels."""
    full, half = np.zeros((2, 12, 12), bool)
    full[:10, :10] = True
    half[:10, :5] = half[0, :10] = half[9, :10] = True  # 60
    truth = [one([[0, 0, 10, 10]], [1], masks=[encode_mask(full)])]
    found = [one([[0, 0, 10, 10]], [1], masks=[encode_mask(half)])]
    assert coco.evaluate(truth, found, CLASSES).scores["AP"] == pytest.approx(1)
    assert coco.evaluate(truth, found, CLASSES, "masks").scores["AP"] == pytest.approx(0.3)


def test_keypoints_of_another_skeleton():
    """OKS = exp(-d² / (2 · area · (2 sigma)²)), area 100² and d = 20: exp(-0.02 / (2 sigma)²)."""
    points = np.array([[[30.0, 30, 2], [60, 60, 2]]])
    truth = [one([[0, 0, 100, 100]], [1], keypoints=points)]
    found = [one([[0, 0, 100, 100]], [1], keypoints=points + np.array([20, 0, 0]))]

    def ap(sigma):
        sigmas = None if sigma is None else (sigma, sigma)
        return coco.evaluate(truth, found, CLASSES, "keypoints", sigmas).scores["AP"]

    assert np.exp(-0.02 / 0.16) == pytest.approx(0.882, abs=1e-3)
    assert ap(0.2) == pytest.approx(0.8)  # from .50 to .85
    assert np.exp(-0.02 / 0.04) == pytest.approx(0.607, abs=1e-3)
    assert ap(0.1) == pytest.approx(0.3)
    assert coco.default_sigmas(2) == pytest.approx([coco.COCO_SIGMAS.mean()] * 2)
    assert coco.COCO_SIGMAS.mean() == pytest.approx(1.138 / 17, abs=1e-9)
    assert ap(None) == 0  # exp(-1.12) = 0.33
    with pytest.raises(ValueError, match="3 sigmas for 2 keypoints"):
        coco.evaluate(truth, found, CLASSES, "keypoints", (0.1, 0.1, 0.1))


def test_objects_without_a_keypoint_do_not_count():
    points = np.array([[[30.0, 30, 2]], [[0, 0, 0]]])
    truth = [one([[0, 0, 100, 100], [200, 200, 300, 300]], [1, 1], keypoints=points)]
    found = [one([[0, 0, 100, 100]], [1], keypoints=points[:1])]
    result = coco.evaluate(truth, found, CLASSES, "keypoints")
    assert result.objects.tolist() == [1, 0]
    assert result.scores["AP"] == pytest.approx(1)


def test_what_cannot_be_scored_is_refused():
    found = [one([[0, 0, 10, 10]], [1])]
    with pytest.raises(ValueError, match="no object of the truth counts, of 1 with boxes"):
        coco.evaluate([one([[0, 0, 10, 10]], [1], crowd=[True])], found, CLASSES)
    with pytest.raises(ValueError, match="no object of the truth counts"):
        coco.evaluate([], [], CLASSES)
    with pytest.raises(ValueError, match=r"detections: labels \[0, 3\], expected 1 … 2"):
        coco.evaluate(TRUTH, [one(np.zeros((3, 4)), [0, 3, 1])], CLASSES)
    with pytest.raises(ValueError, match=r"truth: labels \[2\], expected 1 … 1"):
        coco.evaluate(TRUTH, found, CLASSES[:2])
    with pytest.raises(ValueError, match="1 records of truth for 2"):
        coco.evaluate(TRUTH, found * 2, CLASSES)


def test_results_are_those_of_coco():
    mask = encode_mask(np.eye(4, dtype=bool))
    record = one([[1, 2, 4, 8]], [2], [0.5], masks=[mask], keypoints=np.array([[[1, 2, 1]]]))
    (result,) = coco.results(record, 7)
    assert json.loads(json.dumps(result)) == {
        "image_id": 7,
        "category_id": 2,
        "bbox": [1, 2, 3, 6],
        "score": 0.5,
        "segmentation": mask,
        "keypoints": [1, 2, 1],
    }


def test_table():
    found = [one([[0, 0, 10, 10], [20, 20, 40, 38]], [1, 2])]
    result = coco.evaluate(TRUTH, found, (*CLASSES, "owl"))
    table = coco.table({"boxes": result, "masks": result}, (*CLASSES, "owl"))
    lines = [" ".join(line.split()) for line in table.splitlines()]
    assert lines[0] == "class objects boxes AP boxes AP50 masks AP masks AP50"
    assert lines[2] == "cat 1 100.0 100.0 100.0 100.0"
    assert lines[3] == "dog 1 30.0 100.0 30.0 100.0"
    assert lines[4] == "owl 0 - - - -"
    assert lines[6] == "mean 2 65.0 100.0 65.0 100.0"
    assert "AP75 50.0 50.0" in lines
    assert "AR_large - -" in lines
