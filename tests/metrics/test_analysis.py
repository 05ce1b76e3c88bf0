"""Where AP is lost: errors and what they cost by hand, and the numbers of `tidecv`."""

import json

import numpy as np
import pytest
from test_coco import CLASSES, one, records_of

from jaxseg.metrics import analysis, coco
from jaxseg.metrics.analysis import ERRORS, LOST, NONE
from jaxseg.metrics.masks import encode_mask

# One of each error. Objects: a cat, two dogs, and a cat that nothing comes near.
TRUTH = one([[0, 0, 10, 10], [20, 0, 30, 10], [50, 50, 60, 60], [80, 0, 90, 10]], [1, 2, 2, 1])
FOUND = one(
    [
        [0, 0, 10, 10],  # right
        [0, 0, 10, 9],  # the cat again
        [20, 0, 30, 10],  # a dog, called a cat
        [50, 50, 60, 54],  # IoU 0.4 with the other dog
        [70, 70, 80, 80],  # nothing there
        [50, 50, 60, 53],  # IoU 0.3 with that dog, called a cat
    ],
    [1, 1, 1, 2, 1, 1],
    [0.9, 0.8, 0.7, 0.6, 0.5, 0.4],
)


def test_each_error():
    judged = analysis.judge(TRUTH, FOUND)
    names = ["right" if error == NONE else ERRORS[error] for error in judged.errors]
    assert names == ["right", "duplicate", "classification", "localisation", "background", "both"]
    assert judged.targets.tolist() == [NONE, NONE, 1, 2, NONE, NONE]
    assert judged.found.tolist() == [True, False, False, False]
    assert analysis.missed(judged).tolist() == [False, False, False, True]


def test_what_each_error_costs():
    """Cats, of which there are 2: right, wrong, wrong … is a precision of 1 up to a recall of 1/2,
    which are 51 of 101 steps. Dogs, 2: nothing is right."""
    result = analysis.analyse([TRUTH], [FOUND], 3)
    half = 51 / 101
    assert result.ap50 == pytest.approx([half, 0])
    assert result.objects.tolist() == [2, 2]
    lost = dict(zip(LOST, result.lost.tolist(), strict=True))
    assert lost["classification"] == pytest.approx([0, half])  # the first of the dogs, before 0.6
    assert lost["localisation"] == pytest.approx([0, half])
    for name in ("both", "duplicate", "background", "false_positive"):
        assert lost[name] == pytest.approx([0, 0], abs=1e-12), name  # all come after what is right
    assert lost["missed"] == pytest.approx([1 - half, 0])  # one cat is left
    assert lost["false_negative"] == pytest.approx([1 - half, 0])  # no dog, but a false one
    counts = dict(zip(ERRORS, result.counts.tolist(), strict=True))
    assert counts["localisation"] == [0, 1]
    assert counts["missed"] == [1, 0]
    assert all(counts[name] == [1, 0] for name in ERRORS[:1] + ERRORS[2:5])


def test_what_comes_before_costs():
    """Two cats; a false one first, then the first, then the second with an IoU of 0.4."""
    truth = one([[0, 0, 10, 10], [20, 0, 30, 10]], [1, 1])
    found = one([[70, 0, 80, 10], [0, 0, 10, 10], [20, 0, 30, 4]], [1, 1, 1])
    result = analysis.analyse([truth], [found], 2)
    base = 51 / 101 / 2  # a precision of 1/2 up to a recall of 1/2
    assert result.ap50[0] == pytest.approx(base)
    lost = dict(zip(LOST, result.lost[:, 0], strict=True))
    assert lost["localisation"] == pytest.approx(2 / 3 - base)
    assert lost["background"] == lost["false_positive"] == pytest.approx(51 / 101 - base)
    assert lost["false_negative"] == pytest.approx(1 / 2 - base)
    assert lost["missed"] == pytest.approx(0)  # the second is not missed, only misplaced


def test_only_the_best_of_those_meant_for_an_object_is_mended():
    truth = one([[0, 0, 10, 10]], [1])
    found = one([[0, 0, 10, 10], [0, 0, 10, 4], [0, 0, 10, 3]], [2, 1, 1], [0.5, 0.9, 0.8])
    judged = analysis.judge(truth, found)
    assert judged.targets.tolist() == [0, 0, 0]
    counts = np.array([1, 0])
    mended, _ = analysis.mend(judged, counts, "localisation")
    assert mended.errors.tolist() == [NONE, ERRORS.index("classification")]
    # The best is one of place: that of class goes away.
    mended, _ = analysis.mend(judged, counts, "classification")
    assert mended.errors.tolist() == [ERRORS.index("localisation")] * 2


def test_crowds_need_not_be_found():
    """A detection inside of one is no error if it is of its class."""
    truth = one([[0, 0, 10, 10], [20, 0, 60, 40]], [1, 1], crowd=[False, True])
    found = one([[20, 0, 30, 10], [30, 0, 40, 10]], [1, 2], [0.9, 0.8])
    judged = analysis.judge(truth, found)
    assert judged.labels.tolist() == [2]
    assert judged.errors.tolist() == [ERRORS.index("background")]
    assert judged.objects.tolist() == [1]
    matrix = analysis.confusion_matrix(truth, found, 3)
    assert matrix.tolist() == [[0, 0, 1], [1, 0, 0], [0, 0, 0]]


def test_difficult_objects_excuse_one_detection_each():
    """One inside of it, one that is it, and that again."""
    truth = one([[0, 0, 10, 10], [20, 0, 60, 40]], [1, 1], difficult=[False, True])
    boxes = [[20, 0, 30, 10], [20, 0, 60, 40], [20, 0, 60, 39], [20, 0, 60, 40], [0, 0, 10, 10]]
    found = one(boxes, [1, 1, 1, 2, 1], [0.9, 0.8, 0.7, 0.6, 0.5])
    judged = analysis.judge(truth, found)
    assert judged.scores.tolist() == [0.9, 0.7, 0.6, 0.5]
    assert judged.found.tolist() == [True]
    matrix = analysis.confusion_matrix(truth, found, 3)
    assert matrix.tolist() == [[0, 2, 1], [0, 1, 0], [0, 0, 0]]
    expected = coco.evaluate([truth], [found], CLASSES[:3]).ap50
    assert analysis.analyse([truth], [found], 3).ap50[0] == pytest.approx(expected[0]) == 1 / 3


def test_ap50_is_that_of_coco():
    """Of random boxes, of which some are crowds and some difficult."""
    rng = np.random.default_rng(0)

    def boxes(count):
        corner = rng.integers(0, 24, (count, 2))
        return np.concatenate([corner, corner + rng.integers(4, 16, (count, 2))], axis=1)

    truths, found = [], []
    for _ in range(40):
        kinds = {name: rng.random(5) < 0.25 for name in ("crowd", "difficult")}
        truths.append(one(boxes(5), rng.integers(1, 3, 5), **kinds))
        near = truths[-1]["boxes"][rng.integers(0, 5, 12)] + rng.integers(-2, 3, (12, 4))
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        found.append(one(near, rng.integers(1, 3, 12), rng.normal(size=12)))
    expected = coco.evaluate(truths, found, CLASSES[:3])
    ours = analysis.analyse(truths, found, 3)
    np.testing.assert_allclose(ours.ap50, expected.ap50, atol=1e-12)
    np.testing.assert_allclose(ours.curves, expected.curves, atol=1e-12)


def test_confusion_by_hand():
    matrix = analysis.confusion_matrix(TRUTH, FOUND, 3)
    # From a score of 0.5: the duplicate, the dog's half and the one of nothing are alone.
    assert matrix.tolist() == [[0, 2, 1], [1, 1, 0], [1, 1, 0]]
    assert analysis.confusion_matrix(TRUTH, FOUND, 3, min_score=0.65).tolist() == [
        [0, 1, 0],
        [1, 1, 0],
        [1, 1, 0],
    ]


def test_numbers_of_tidecv(references):
    """tidecv 1.0.1 on the same files, without detections of classes that have no object:
    `TIDE().evaluate(truth, found, mode=TIDE.BOX)`, with crowds by `add_ignore_region`; then
    `fix_main_errors()`, `fix_special_errors()` and `count_errors()`."""
    folder = references / "coco_mini_val"
    truth = json.loads((folder / "instances_val2017.json").read_text())
    results = json.loads((folder / "bbox_results.json").read_text())
    known = {a["category_id"] for a in truth["annotations"] if not a["iscrowd"]}
    results = [result for result in results if result["category_id"] in known]
    truths, found, categories = records_of(truth, results)
    result = analysis.analyse(truths, found, len(categories) + 1)
    lost = [5.528196012970781, 8.509762251068366, 0.27051885516419816, 0.30865090104778403]
    lost += [1.8986258902787938, 7.75738442266956, 8.350895908283931, 11.939932983797377]
    assert 100 * np.nanmean(result.ap50) == pytest.approx(67.59456749051496, abs=1e-9)
    np.testing.assert_allclose(100 * np.nanmean(result.lost, axis=1), lost, atol=1e-9)
    # tidecv has 31 duplicates: three of them lie in crowds.
    assert result.counts.sum(axis=1).tolist() == [19, 22, 10, 28, 38, 54]
    assert np.isnan(result.lost[:, result.objects == 0]).all()
    # COCO's own precision.
    expected = coco.evaluate(truths, found, ("background", *map(str, categories)))
    np.testing.assert_allclose(result.curves, expected.curves, atol=1e-12)


def test_no_more_than_a_hundred_of_a_class():
    """The object is found by the last but one, or the last, of 101."""
    for place, ap in ((99, 0.01), (100, 0)):
        boxes = np.tile([50.0, 50, 60, 60], (101, 1))
        boxes[place] = [0, 0, 10, 10]
        truth, found = one([[0, 0, 10, 10]], [1]), one(boxes, [1] * 101)
        assert analysis.analyse([truth], [found], 2).ap50[0] == pytest.approx(ap)
        assert coco.evaluate([truth], [found], CLASSES[:2]).ap50[0] == pytest.approx(ap)


def test_masks():
    """The same boxes, an IoU of 1; of the masks, 0.3."""
    full, part = np.zeros((2, 10, 10), bool)
    full[:], part[:3], part[0] = True, True, True
    truth = one([[0, 0, 10, 10]], [1], masks=[encode_mask(full)])
    found = one([[0, 0, 10, 10]], [1], masks=[encode_mask(part)])
    assert analysis.analyse([truth], [found], 2).ap50[0] == pytest.approx(1)
    result = analysis.analyse([truth], [found], 2, "masks")
    assert result.ap50[0] == 0
    assert result.lost[ERRORS.index("localisation"), 0] == pytest.approx(1)


def test_pictures_without_objects_or_detections():
    nothing = one(np.zeros((0, 4)), [])
    result = analysis.analyse([TRUTH, nothing, nothing], [nothing, FOUND, nothing], 3)
    assert result.counts[ERRORS.index("missed")].tolist() == [2, 2]
    assert result.counts[ERRORS.index("background")].tolist() == [5, 1]
    assert result.ap50.tolist() == [0, 0]
    result = analysis.analyse([TRUTH], [nothing], 3)
    assert result.lost[ERRORS.index("missed")].tolist() == [1, 1]  # nothing is left to do
    with pytest.raises(ValueError, match="no object of the truth counts"):
        analysis.analyse([nothing], [FOUND], 3)
    with pytest.raises(ValueError, match=r"detections: labels \[2\], expected 1 … 1"):
        analysis.analyse([one([[0, 0, 10, 10]], [1])], [FOUND], 2)


def test_table_and_json():
    result = analysis.analyse([TRUTH], [FOUND], 4)
    classes = (*CLASSES, "owl")
    lines = [" ".join(line.split()) for line in analysis.table(result, classes).splitlines()]
    assert lines[1].startswith("class objects AP50 classification localisation both")
    assert lines[3] == "cat 2 50.5 0.0 0.0 0.0 0.0 0.0 49.5 0.0 49.5"
    assert lines[5] == "owl 0 - - - - - - - - -"
    assert lines[7] == "mean 4 25.2 25.2 25.2 0.0 0.0 0.0 24.8 0.0 24.8"
    assert lines[-1] == "sum 1 1 1 1 1 1"
    told = json.loads(json.dumps(analysis.as_json(result, classes), allow_nan=False))
    assert told["AP50"]["owl"] is None
    assert told["AP50"]["mean"] == pytest.approx(51 / 202)
    assert told["lost_AP50"]["missed"]["cat"] == pytest.approx(50 / 101)
    assert told["errors"]["both"] == {"cat": 1, "dog": 0, "owl": 0, "sum": 1}
    assert told["confusion"]["matrix"][0] == [0, 2, 1, 0]
    assert told["precision"]["mean"][0] == pytest.approx(0.5)
    assert len(told["recall"]) == len(told["precision"]["cat"]) == 101
