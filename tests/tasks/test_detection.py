"""Detections scored and drawn: from the padded canvas back to the file, on several devices."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxseg.metrics.masks import decode_mask
from jaxseg.tasks import detection, detection_voc
from jaxseg.train.evaluate import make_evaluate
from jaxseg.train.mesh import data_mesh
from jaxseg.types import MEAN, STD

SIZE, SHOWN, CANVAS = (80, 120), (40, 60), (48, 64)  # of the file, on the canvas, the canvas
SLOTS = 3  # rows for detections


def example(n, **more):
    """A picture of a cat, and a dog to the right of it; each is its box, with two keypoints."""
    boxes = np.array([[8, 8, 40, 48], [60, 20 + n % 10, 110, 70]], np.float32)
    masks = np.zeros((2, *SIZE), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.astype(int), strict=True):
        mask[y0:y1, x0:x1] = True
    corners = boxes.reshape(2, 2, 2)
    return {
        "image": np.zeros((*SIZE, 3), np.uint8),
        "boxes": boxes,
        "labels": np.array([1, 2], np.int32),
        "crowd": np.zeros(2, bool),
        "masks": masks,
        "keypoints": np.concatenate([corners, np.full((2, 2, 1), 2, np.float32)], axis=-1),
        **more,
    }


def dataset(examples):
    return SimpleNamespace(
        splits={"val": examples},
        classes=("background", "cat", "dog"),
        palette=np.zeros((3, 3), np.uint8),
        keypoint_names=("left", "right"),
        skeleton=((0, 1),),
    )


def predictions(examples):
    """What a perfect model says: the truth on the canvas, in the first of its rows."""
    half, rows = np.array([0.5] * 4, np.float32), []
    for truth in examples:
        row = {
            "boxes": np.zeros((SLOTS, 4), np.float32),
            "scores": np.zeros(SLOTS, np.float32),
            "labels": np.zeros(SLOTS, np.int32),
            "detection_mask": np.arange(SLOTS) < 2,
            "masks": np.ones((SLOTS, 28, 28), np.float32),
            "masks_aligned": np.array(False),
            "keypoints": np.zeros((SLOTS, 2, 3), np.float32),
            "proposals": np.zeros((4, 4), np.float32),
            "proposal_scores": np.array([0.1, 0.9, 0.5, 0.7], np.float32),
            "proposal_mask": np.array([True, True, True, False]),
        }
        row["boxes"][:2] = truth["boxes"] * half
        row["scores"][:2], row["labels"][:2] = (0.9, 0.8), truth["labels"]
        row["keypoints"][:2] = truth["keypoints"] * [0.5, 0.5, 1]
        row["proposals"][:2] = truth["boxes"][::-1] * half
        row["proposals"][2] = 0, 0, 5, 5
        rows.append(row)
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def batch(ids, valid=True):
    """Images that hold nothing but their number."""
    count, image = len(ids), np.zeros((len(ids), *CANVAS, 3), np.float32)
    image[:, 0, 0, 0] = ids
    return {
        "image": image,
        "image_id": np.array(ids, np.int32),
        "image_size": np.tile(np.array(SHOWN, np.int32), (count, 1)),
        "original_size": np.tile(np.array(SIZE, np.int32), (count, 1)),
        "valid": np.full(count, valid),
    }


def predict(variables, image):
    """Looks up what variables hold for the picture of that number."""
    number = image[:, 0, 0, 0].astype(int)
    return {name: x[number] for name, x in variables.items()}


EXAMPLES = [example(n) for n in range(11)]


def test_a_perfect_model_on_many_devices():
    task = detection.make_task(dataset(EXAMPLES), "val")
    batches = [batch(range(3, 11)), batch([0, 1, 2, 10, 10, 10, 10, 10])]
    batches[1]["valid"][3:] = False
    evaluate = make_evaluate(predict, task, data_mesh())
    counts, (shown, _) = evaluate(predictions(EXAMPLES), batches)
    assert len(counts) == 11
    assert sorted(record["image_id"] for record in counts) == list(range(11))
    assert shown["image_id"].tolist() == list(range(3, 11))
    scores = task.score(counts)
    whole = {"AP", "AP50", "AP75", "AP_medium", "AR_100", "keypoint_AP", "keypoint_AR"}
    assert {name: scores[name] for name in whole} == pytest.approx(dict.fromkeys(whole, 1.0))
    # The pasted masks are a pixel wider and higher, as torchvision's are: an IoU of 0.94 or more.
    assert scores["mask_AP50"] == pytest.approx(1)
    assert scores["mask_AP"] >= 0.89
    assert "AP_small" not in scores  # there is none: it has no score
    # The best proposal is the first object, the second shows nothing, the third is the other one.
    expected = {"proposal_AR_1": 0.5, "proposal_AR_10": 1.0, "proposal_recall50_10": 1.0}
    assert {n: x for n, x in scores.items() if "proposal" in n} == pytest.approx(expected)
    table = task.report(counts)
    assert "cat" in table
    assert "keypoints AP50" in table
    figures = task.figures(counts)
    assert list(figures) == [
        "precision_recall",
        "mask_precision_recall",
        "keypoint_precision_recall",
    ]
    assert all(picture.dtype == np.uint8 for picture in figures.values())


def test_records_lie_in_the_file():
    task = detection.make_task(dataset(EXAMPLES), "val")
    rows = batch([4, 5])
    rows["valid"][1] = False
    measured = jax.jit(task.measure)(predictions(EXAMPLES[4:6]), rows)
    (record,) = task.compact(jax.tree.map(np.asarray, measured))
    truth = EXAMPLES[4]
    assert record["image_id"] == 4
    np.testing.assert_allclose(record["boxes"], truth["boxes"])
    np.testing.assert_allclose(record["keypoints"], truth["keypoints"])
    np.testing.assert_allclose(record["scores"], [0.9, 0.8])
    assert record["labels"].tolist() == [1, 2]
    masks = np.stack([decode_mask(rle) for rle in record["masks"]])
    assert masks.shape == (2, *SIZE)
    assert (masks | ~truth["masks"]).mean() > 0.999
    assert masks.sum() < 1.07 * truth["masks"].sum()  # a pixel wider and higher
    measured["masks_aligned"] = np.array([True, True])
    (aligned,) = task.compact(jax.tree.map(np.asarray, measured))
    masks = np.stack([decode_mask(rle) for rle in aligned["masks"]])
    np.testing.assert_array_equal(masks, truth["masks"])
    # By their scores, without the one whose mask is False.
    expected = [truth["boxes"][0], [0, 0, 10, 10], truth["boxes"][1]]
    np.testing.assert_allclose(record["proposals"], expected)


def test_boxes_in_the_padding_are_cut_or_left_out():
    found = predictions(EXAMPLES[:1])
    found["boxes"][0, :2] = [[50, 30, 64, 48], [61, 10, 64, 20]]
    (record,) = detection.compact({**found, **batch([0])})
    np.testing.assert_allclose(record["boxes"], [[100, 60, 120, 80]])
    assert record["labels"].tolist() == [1]
    assert len(record["masks"]) == len(record["keypoints"]) == 1


def test_scores_what_both_sides_have():
    names = ("boxes", "scores", "labels", "detection_mask")
    found = {name: x for name, x in predictions(EXAMPLES[:2]).items() if name in names}
    task = detection.make_task(dataset(EXAMPLES), "val")
    scores = task.score(task.compact({**found, **batch([0, 1])}))
    assert "AP" in scores
    assert not [name for name in scores if name.startswith(("mask", "keypoint", "proposal"))]
    plain = [{n: x for n, x in e.items() if n not in ("masks", "crowd")} for e in EXAMPLES]
    for e in plain:
        e["keypoints"] = e["keypoints"] * [1, 1, 0]  # nobody has marked them
    task = detection.make_task(dataset(plain), "val")
    scores = task.score(task.compact({**predictions(EXAMPLES[:2]), **batch([0, 1])}))
    assert scores["AP"] == pytest.approx(1)
    assert not [name for name in scores if name.startswith(("mask", "keypoint"))]


def test_nothing_to_find_is_an_error():
    empty = example(
        0,
        boxes=np.zeros((0, 4), np.float32),
        labels=np.zeros(0, np.int32),
        crowd=np.zeros(0, bool),
        masks=np.zeros((0, *SIZE), bool),
        keypoints=np.zeros((0, 2, 3), np.float32),
    )
    task = detection.make_task(dataset([empty]), "val")
    counts = task.compact({**predictions(EXAMPLES[:1]), **batch([0])})
    with pytest.raises(ValueError, match="no object of the truth counts"):
        task.score(counts)
    # One such picture among others is none.
    task = detection.make_task(dataset([empty, EXAMPLES[1]]), "val")
    counts = task.compact({**predictions(EXAMPLES[:2]), **batch([0, 1])})
    assert 0.4 < task.score(counts)["AP"] < 1
    assert task.score(counts)["proposal_AR_10"] == pytest.approx(1)


def test_scores_do_not_depend_on_the_order_of_the_batches():
    """Though the scores of all cats are equal, and those of all dogs."""
    found = predictions(EXAMPLES)
    found["boxes"][::2] += np.array([4, 0, 4, 0], np.float32)
    task = detection.make_task(dataset(EXAMPLES), "val")
    one, two = (
        task.compact({**{name: x[ids] for name, x in found.items()}, **batch(ids)})
        for ids in (list(range(6)), list(range(6, 11)))
    )
    assert task.score(task.add(one, two)) == task.score(task.add(two, one))
    assert task.score(one) != task.score(two)


def test_each_truth_is_read_once():
    class Counted(list):
        read = 0

        def __getitem__(self, index):
            self.read += 1
            return super().__getitem__(index)

    examples = Counted(EXAMPLES)
    task = detection.make_task(dataset(examples), "val")
    counts = task.compact({**predictions(EXAMPLES), **batch(range(11))})
    task.score(counts)
    task.report(counts)
    task.score(counts[:5])
    assert examples.read == 11


def test_scores_of_voc():
    """The dog is difficult in half of the pictures; where it is not, it is not found."""
    examples = [
        {**e, "difficult": np.array([False, n % 2 == 1])} for n, e in enumerate(EXAMPLES[:4])
    ]
    found = predictions(EXAMPLES[:4])
    found["boxes"][::2, 1] += np.array([0, 0, -20, -20], np.float32)
    task = detection_voc.make_task(dataset(examples), "val")
    counts = task.compact({**found, **batch(range(4))})
    scores = task.score(counts)
    assert scores["voc_AP_11_point"] == pytest.approx(0.5)
    assert scores["voc_AP_all_point"] == pytest.approx(0.5)
    assert scores["AP50"] == pytest.approx(0.5)
    assert "AP 11-point" in task.report(counts)


def test_pictures():
    """Truth and prediction are those of the same objects, at the size at which they are shown."""
    task = detection.make_task(dataset(EXAMPLES), "val")
    grey = np.full((*CANVAS, 3), 128 / 255)
    row = {name: x[0] for name, x in batch([7]).items()}
    row["image"] = ((grey - MEAN) / STD).astype(np.float32)
    prediction = {name: x[7] for name, x in predictions(EXAMPLES).items()}
    pictures = task.draw(row, prediction)
    assert list(pictures) == ["picture", "truth", "prediction", "proposals"]
    assert {p.shape for p in pictures.values()} == {(240, 360, 3)}
    assert (pictures["picture"] == 128).all()
    changed = {name: (p != 128).any(-1) for name, p in pictures.items()}
    for name in ("truth", "prediction"):
        assert changed[name][24:144, 24:120].all()  # the cat: (8, 8, 40, 48) · 3
        assert not changed[name][150:, :170].any()
    assert (changed["truth"] != changed["prediction"])[30:].mean() < 0.02  # but for the scores
    assert changed["proposals"][:, 24][24:144].all()
    assert not changed["proposals"][30:140, 30:115].any()
    prediction["scores"] = prediction["scores"] / 2
    unsure = task.draw(row, {n: x for n, x in prediction.items() if "proposal" not in n})
    assert (unsure["prediction"] == 128).all()
    assert "proposals" not in unsure
