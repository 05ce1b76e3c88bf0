"""VOC's AP against published values, and small cases by hand."""

import json
import re

import numpy as np
import pytest

from jaxseg.metrics import voc


def records_of(folder, pattern, labels):
    """name -> record, of text files with a box a line. pattern: the columns, regular expressions
    with the groups name, score, x, y and either X, Y, the last pixel, or w, h."""
    records = {}
    for path in folder.glob("*.txt"):
        rows = [re.fullmatch(pattern, line.strip()) for line in path.read_text().splitlines()]
        rows = [row.groupdict() for row in rows if row]
        rows = [row for row in rows if row["name"] in labels]
        corners = []
        for row in rows:
            x, y = float(row["x"]), float(row["y"])
            last = [float(row.get("X") or x + float(row["w"]))]
            last.append(float(row.get("Y") or y + float(row["h"])))
            corners.append([x, y, last[0] + 1, last[1] + 1])  # the last pixel belongs to a box
        records[path.stem] = {
            "boxes": np.array(corners).reshape(-1, 4),
            "labels": [labels[row["name"]] for row in rows],
            "scores": [float(row.get("score") or 0) for row in rows],
        }
    return records


def records_of_xml(folder, labels):
    records = {}
    for path in folder.glob("*.xml"):
        objects = re.findall(r"<object>.*?</object>", path.read_text(), re.DOTALL)
        objects = [o for o in objects if re.search("<name>(.*?)</name>", o)[1] in labels]
        sides = ("xmin", "ymin", "xmax", "ymax")
        boxes = [[float(re.search(f"<{s}>(.*?)</{s}>", o)[1]) for s in sides] for o in objects]
        records[path.stem] = {
            "boxes": np.array(boxes).reshape(-1, 4) + np.array([0, 0, 1, 1]),
            "labels": [labels[re.search("<name>(.*?)</name>", o)[1]] for o in objects],
        }
    return records


def paired(truths, found):
    names, empty = sorted(truths), {"boxes": [], "labels": [], "scores": []}
    return [truths[name] for name in names], [found.get(name, empty) for name in names]


WORD, NUMBER = r"(?P<name>\S+)", r"(?P<{}>\S+)"
SCORE = f"{WORD} {NUMBER.format('score')}"
XYWH = " ".join(NUMBER.format(c) for c in "xywh")
XYXY = " ".join(NUMBER.format(c) for c in "xyXY")


@pytest.mark.parametrize("threshold", ["0.1", "0.3", "0.5", "0.75"])
def test_published_seven_images(references, threshold):
    folder, labels = references / "voc_ap_7images", {"object": 1}
    truths = records_of(folder / "gts", f"{WORD} {XYWH}", labels)
    found = records_of(folder / "dets", f"{SCORE} {XYWH}", labels)
    expected = json.loads((folder / "expected.json").read_text())["recomputed_exact"]
    result = voc.evaluate(*paired(truths, found), 2, float(threshold))
    assert result.objects.tolist() == [15]
    assert result.ap_11_point[0] == pytest.approx(expected["11_point"][threshold], abs=1e-12)
    assert result.ap_all_point[0] == pytest.approx(expected["all_point"][threshold], abs=1e-12)


@pytest.mark.parametrize("threshold", [0.5, 0.75])
def test_published_cats(references, threshold):
    folder, labels = references / "voc_ap_cats", {"cat": 1}
    truths = records_of_xml(folder / "gts_voc_xml", labels)
    found = records_of(folder / "dets_classname_abs_xyx2y2", f"{SCORE} {XYXY}", labels)
    expected = json.loads((folder / "expected.json").read_text())[f"iou_{threshold}"]
    result = voc.evaluate(*paired(truths, found), 2, threshold)
    assert result.ap_11_point[0] == pytest.approx(expected["11_point"], abs=1e-9)
    assert result.ap_all_point[0] == pytest.approx(expected["all_point"], abs=1e-9)


def test_twenty_classes(references):
    folder = references / "voc2012_100_boxes"
    names = (folder / "voc.names").read_text().split()
    truths = records_of_xml(
        folder / "gts/pascalvoc_format", {name: k for k, name in enumerate(names, start=1)}
    )
    found = records_of(
        folder / "dets/abs_xyx2y2", f"{SCORE} {XYXY}", {str(k): k + 1 for k in range(20)}
    )
    expected = json.loads((folder / "expected.json").read_text())["pascal_voc_iou_0.5"]
    result = voc.evaluate(*paired(truths, found), 21)
    for kind in ("11_point", "all_point"):
        each = [expected["per_class"][name][kind] for name in names]
        np.testing.assert_allclose(getattr(result, f"ap_{kind}"), each, atol=1e-9)
    assert result.means() == pytest.approx(tuple(expected["mAP"].values()), abs=1e-9)


def one(boxes, labels, scores=None, **more):
    return {"boxes": np.array(boxes, float), "labels": labels, "scores": scores, **more}


TRUTH = [one([[0, 0, 10, 10], [20, 20, 30, 30], [50, 50, 60, 60]], [1, 1, 2])]


def test_by_hand():
    """Right, a duplicate, right: precision 1, 1/2, 2/3 at recalls 1/2, 1/2, 1; the other class is
    never found."""
    boxes = [[20, 20, 30, 30], [0, 0, 10, 9], [0, 0, 10, 10]]
    found = [one(boxes, [1, 1, 1], [0.1, 0.5, 0.9])]
    right, count = voc.match(TRUTH, found, 1)
    assert right.tolist() == [True, False, True]
    assert count == 2
    result = voc.evaluate(TRUTH, found, 4)
    assert result.ap_all_point[0] == pytest.approx((1 + 2 / 3) / 2)
    assert result.ap_11_point[0] == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    assert result.ap_all_point[1] == result.ap_11_point[1] == 0
    assert np.isnan(result.ap_all_point[2])
    assert result.objects.tolist() == [2, 1, 0]
    assert result.means()[1] == pytest.approx((1 + 2 / 3) / 4)


def test_the_threshold_itself_is_enough():
    """An IoU of exactly 1/2."""
    found = [one([[0, 0, 10, 5]], [1], [1.0])]
    assert voc.match(TRUTH, found, 1, 0.5)[0].tolist() == [True]
    assert voc.match(TRUTH, found, 1, 0.51)[0].tolist() == [False]


def test_difficult_objects_neither_count_nor_punish():
    truth = [{**TRUTH[0], "difficult": [True, False, False]}]
    boxes = [[0, 0, 10, 10], [0, 0, 10, 10], [20, 20, 30, 30]]
    right, count = voc.match(truth, [one(boxes, [1, 1, 1], [0.9, 0.8, 0.7])], 1)
    assert right.tolist() == [True]  # the two others are left out
    assert count == 1


def test_a_detection_belongs_to_what_it_overlaps_most():
    """Even if that is taken and another free object is overlapped by enough, too."""
    truth = [one([[0, 0, 10, 10], [0, 0, 10, 8]], [1, 1])]
    found = [one([[0, 0, 10, 10], [0, 0, 10, 10]], [1, 1], [0.9, 0.8])]
    assert voc.match(truth, found, 1)[0].tolist() == [True, False]


def test_what_cannot_be_scored_is_refused():
    found = [one([[0, 0, 10, 10]], [1], [1.0])]
    with pytest.raises(ValueError, match="no object of the truth counts"):
        voc.evaluate([{**TRUTH[0], "difficult": [True] * 3}], found, 3)
    with pytest.raises(ValueError, match=r"truth: labels \[2\], expected 1 … 1"):
        voc.evaluate(TRUTH, found, 2)


def test_table():
    found = [one([[0, 0, 10, 10]], [1], [1.0])]
    lines = voc.table(voc.evaluate(TRUTH, found, 4), ("background", "cat", "dog", "owl"))
    rows = [line.split() for line in lines.splitlines()]
    assert rows[2] == ["cat", "2", "54.5", "50.0"]  # 6/11
    assert rows[3] == ["dog", "1", "0.0", "0.0"]
    assert rows[4] == ["owl", "0", "-", "-"]
    assert rows[6] == ["mean", "3", "27.3", "25.0"]
