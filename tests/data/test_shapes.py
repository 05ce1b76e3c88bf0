"""Generated shapes: labels that agree with each other, pictures that need more than colour."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from jaxseg.data.builders import DataError, prepare, shapes


def draw(seed: int, size: tuple[int, int] = (64, 64), max_objects: int = 6):
    return shapes.draw_scene(np.random.default_rng(seed), size, max_objects)


SCENES = [draw(seed) for seed in range(60)] + [draw(seed, (48, 80)) for seed in range(20)]


@pytest.mark.parametrize("scene", SCENES)
def test_labels_agree(scene):
    labels, masks, segmentation = scene["labels"], scene["masks"], scene["segmentation"]
    assert 1 <= len(labels) <= 6
    assert set(labels) <= {1, 2, 3, 4, 5}
    np.testing.assert_array_equal(masks.sum(axis=0), segmentation > 0)
    for label, mask, (left, top, right, bottom) in zip(labels, masks, scene["boxes"], strict=True):
        assert mask.sum() >= 20
        assert np.all(segmentation[mask] == label)
        rows, columns = np.nonzero(mask)
        found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert found == (left, top, right, bottom)


@pytest.mark.parametrize("scene", SCENES)
def test_keypoints_are_the_ends_of_the_whole_shape(scene):
    owner = (scene["masks"] * np.arange(1, len(scene["labels"]) + 1)[:, None, None]).sum(axis=0)
    height, width = owner.shape
    for number, points in enumerate(scene["keypoints"], start=1):
        for x, y, visibility in points:
            if visibility == 0:
                assert (x, y) == (0, 0)
                continue
            assert 0 <= x < width
            assert 0 <= y < height
            assert (visibility == 1) == (owner[int(y), int(x)] > number)
        if np.all(points[:, 2] > 0):  # the picture holds the whole shape
            _, top, right, bottom, left = points
            box = scene["boxes"][number - 1]
            ends = [left[0], top[1], right[0], bottom[1]]
            assert np.all(np.sign([-1, -1, 1, 1]) * (box - ends) <= 1.5)  # what is seen lies within
            if np.all(points[1:, 2] == 2):
                np.testing.assert_allclose(box, ends, atol=2)


def test_whole_objects_are_not_small():
    """Objects that nothing cuts off or hides span at least 14 pixels."""
    for seed in range(40):
        scene = draw(seed, max_objects=1)
        left, top, right, bottom = scene["boxes"][0]
        if left > 0 and top > 0 and right < 64 and bottom < 64:
            assert max(right - left, bottom - top) >= 14


def test_a_ring_shows_what_is_behind_its_hole():
    rings = [
        (mask, box)
        for scene in (draw(seed, max_objects=1) for seed in range(80))
        for mask, box, label in zip(scene["masks"], scene["boxes"], scene["labels"], strict=True)
        if label == 5 and box.min() > 0 and box.max() < 64
    ]
    assert len(rings) >= 3
    for mask, (left, top, right, bottom) in rings:
        assert not mask[int(top + bottom) // 2, int(left + right) // 2]


def test_examples_depend_on_their_seed_and_place_alone():
    one = shapes.open_source(num_train=3, num_val=2)
    same = shapes.open_source(num_train=30, num_val=1)
    other = shapes.open_source(num_train=3, num_val=2, seed=1)
    images = [s.read("train", "2")["image"] for s in (one, same, other)]
    assert images[0] == images[1] != images[2]
    assert one.read("val", "0")["image"] != one.read("train", "0")["image"]
    fingerprints = {s.fingerprint for s in (one, same, other)}
    assert len(fingerprints) == 3
    assert one.fingerprint == shapes.open_source(num_train=3, num_val=2).fingerprint


def test_the_first_picture_is_always_this_one():
    """Pins the drawing, across runs and machines: when it changes, raise shapes.DRAWING."""
    scene = shapes.open_source(num_train=1).read("train", "0")
    assert scene["labels"].tolist() == [4, 3, 5, 1]
    assert scene["boxes"].tolist() == [
        [0, 36, 32, 64],
        [37, 41, 64, 64],
        [38, 16, 64, 45],
        [0, 16, 21, 37],
    ]


def test_prepared_shapes_come_back_whole(tmp_path):
    dataset = prepare("shapes", cache=tmp_path, num_train=5, num_val=3, image_size=[40, 56])
    assert {split: len(records) for split, records in dataset.splits.items()} == {
        "train": 5,
        "val": 3,
    }
    source = shapes.open_source(num_train=5, num_val=3, image_size=(40, 56))
    for index, example in enumerate(dataset.splits["val"]):
        expected = source.read("val", str(index))
        assert example["name"] == str(index)
        assert example["image"].shape == (40, 56, 3)
        for field in source.fields:
            assert example[field].dtype == expected[field].dtype
            np.testing.assert_array_equal(example[field], expected[field])
    seeds = np.random.SeedSequence([0, 1, 0])
    drawn = shapes.draw_scene(np.random.Generator(np.random.PCG64(seeds)), (40, 56), 4)
    np.testing.assert_array_equal(dataset.splits["val"][0]["image"], drawn["image"])


def test_colour_does_not_tell_the_class():
    """A linear classifier of single pixels stays below 0.3 mean IU; always-background has 0.12."""
    train, val = SCENES[:60], [draw(seed) for seed in range(1000, 1020)]
    pixels, labels = (
        np.concatenate([s[k].reshape(64 * 64, -1)[::7] for s in train])
        for k in ("image", "segmentation")
    )
    classify = LogisticRegression(max_iter=200).fit(pixels / 255.0, labels.ravel())
    truth = np.concatenate([s["segmentation"].ravel() for s in val])
    found = classify.predict(np.concatenate([s["image"].reshape(-1, 3) for s in val]) / 255.0)
    ratios = [
        np.sum((truth == k) & (found == k)) / np.sum((truth == k) | (found == k)) for k in range(6)
    ]
    assert np.mean(ratios) < 0.3
    assert set(truth) == {0, 1, 2, 3, 4, 5}


def test_objects_stand_out_from_the_background():
    """The mean colour of a lone object differs from that of the background around it."""
    for seed in range(40):
        scene = draw(seed, max_objects=1)
        inside = scene["segmentation"] > 0
        means = [scene["image"][where].mean(axis=0) for where in (inside, ~inside)]
        assert np.linalg.norm(means[0] - means[1]) > 40


@pytest.mark.parametrize(
    "options",
    [{"image_size": (16, 64)}, {"max_objects": 0}, {"seed": -1}, {"num_train": 0}],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(DataError, match="expected sides of 32"):
        shapes.open_source(**options)


def test_keypoints_have_names_and_lines():
    source = shapes.open_source()
    assert source.keypoint_names == ("centre", "top", "right", "bottom", "left")
    assert source.skeleton == ((0, 1), (0, 2), (0, 3), (0, 4))
    names = source.keypoint_names
    mirrored = [names[n] for n in source.keypoint_flip]
    assert mirrored == ["centre", "top", "left", "bottom", "right"]
