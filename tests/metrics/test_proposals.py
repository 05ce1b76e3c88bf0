"""Average recall of proposals: by hand, and as COCOeval has it without classes."""

import json
from collections import defaultdict

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from jaxseg.metrics import proposals
from jaxseg.metrics.proposals import LOST


def test_ranks_by_hand():
    """The first object is found by the second proposal (IoU 0.7) up to .7, by the fourth beyond;
    the other one by none."""
    objects = np.array([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    boxes = [[80, 80, 90, 90], [0, 0, 10, 7.1], [50, 50, 60, 54], [0, 0, 10, 10]]
    ranks = proposals.rank_objects(np.array(boxes), objects)
    assert ranks[:, 0].tolist() == [1] * 5 + [3] * 5
    assert (ranks[:, 1] == LOST).all()
    scores = proposals.scores([ranks], (1, 2, 4))
    assert scores == pytest.approx({"AR_1": 0, "AR_2": 0.25, "AR_4": 0.5, "recall50_4": 0.5})


def test_a_proposal_finds_one_object_only():
    objects = np.array([[0.0, 0, 10, 10], [0, 0, 10, 10]])
    ranks = proposals.rank_objects(objects[[0, 0, 0]], objects)
    np.testing.assert_array_equal(np.sort(ranks, axis=1), [[0, 1]] * 10)


def test_none_at_all():
    none, some = np.zeros((0, 4)), np.ones((2, 4))
    ranks = proposals.rank_objects(none, some)
    assert proposals.scores([ranks])["AR_1000"] == 0
    with pytest.raises(ValueError, match="no object of the truth counts"):
        proposals.scores([proposals.rank_objects(some, none)])


def test_recall_is_that_of_coco_without_classes(references, capsys):
    folder = references / "coco_mini_val"
    truth = COCO(folder / "instances_val2017.json")
    results = json.loads((folder / "bbox_results.json").read_text())
    evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
    evaluation.params.useCats, evaluation.params.maxDets = 0, [1, 10, 100]
    evaluation.evaluate()
    evaluation.accumulate()
    expected = evaluation.eval["recall"][:, 0, 0]  # [IoU, budget]

    def boxes(annotations):
        found = np.array([a["bbox"] for a in annotations], float).reshape(-1, 4)
        found[:, 2:] += found[:, :2]
        return found

    by_image = defaultdict(list)
    for result in sorted(results, key=lambda r: -r["score"]):
        by_image[result["image_id"]].append(result)
    ranks = [
        proposals.rank_objects(
            boxes(by_image[image]),
            boxes([a for a in truth.imgToAnns[image] if not a["iscrowd"]]),
        )
        for image in truth.getImgIds()
    ]
    scores = proposals.scores(ranks, (1, 10, 100))
    for column, name in enumerate(("AR_1", "AR_10", "AR_100")):
        assert scores[name] == pytest.approx(expected[:, column].mean(), abs=1e-12)
    assert scores["recall50_100"] == pytest.approx(expected[0, 2], abs=1e-12)
    assert 0.3 < scores["AR_100"] < 0.9
