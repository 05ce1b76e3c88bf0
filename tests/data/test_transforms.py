import numpy as np
import pytest

from jaxseg.data import transforms as t
from jaxseg.types import IGNORE, MEAN, STD

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)
FILL = (MEAN * 255).round().astype(np.uint8)


def rectangle(height=40, width=60, box=(10, 6, 31, 25)):
    """An example with one rectangle, marked in every way at once."""
    x0, y0, x1, y1 = box
    mask = np.zeros((height, width), bool)
    mask[y0:y1, x0:x1] = True
    image = np.zeros((height, width, 3), np.uint8)
    image[mask] = 255
    return {
        "image": image,
        "segmentation": mask.astype(np.uint8),
        "boxes": np.array([box], np.float32),
        "labels": np.array([1], np.int32),
        "crowd": np.array([False]),
        "masks": mask[None],
        "keypoints": np.array([[[x0, y0, 2], [x1 - 0.5, y1 - 0.5, 2], [0, 0, 0]]], np.float32),
    }


def bounds(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def test_identity_changes_nothing():
    example = rectangle()
    moved = t.warp(example, np.eye(3), (40, 60))
    for name, value in example.items():
        np.testing.assert_array_equal(moved[name], value, err_msg=name)


def test_flip_is_exact():
    example = {"image": IMAGE, "segmentation": IMAGE[..., 0]}
    moved = t.warp(example, t.flip_matrix(8), (6, 8))
    np.testing.assert_array_equal(moved["image"], IMAGE[:, ::-1])
    np.testing.assert_array_equal(moved["segmentation"], IMAGE[:, ::-1, 0])


def test_shift_pads_with_the_mean_colour_and_ignore():
    moved = t.warp({"image": IMAGE, "segmentation": IMAGE[..., 0]}, t.shift_matrix(3, 2), (6, 8))
    np.testing.assert_array_equal(moved["image"][2:, 3:], IMAGE[:4, :5])
    assert (moved["image"][:2] == FILL).all()
    assert (moved["segmentation"][:, :3] == IGNORE).all()
    np.testing.assert_allclose(t.normalize(moved["image"])[0, 0], 0, atol=0.01)


def test_halving_averages():
    matrix, size = t.whole_picture((6, 8), (3, 4))
    assert size == (3, 4)
    moved = t.warp({"image": IMAGE}, matrix, (3, 4))["image"]
    means = IMAGE.reshape(3, 2, 4, 2, 3).mean((1, 3))
    np.testing.assert_allclose(moved, means, atol=0.51)


@pytest.mark.parametrize("seed", range(8))
def test_everything_moves_together(seed):
    rng = np.random.default_rng(seed)
    crop = (48, 48)
    matrix = t.random_crop(rng, (40, 60), (40, 60), crop, scales=(0.6, 2.0), flip=True)
    moved = t.warp(rectangle(), matrix, crop)
    if not len(moved["boxes"]):
        assert not moved["segmentation"][moved["segmentation"] != IGNORE].any()
        return
    seen = moved["segmentation"] == 1
    np.testing.assert_allclose(bounds(seen), moved["boxes"][0], atol=1)
    np.testing.assert_allclose(bounds(moved["masks"][0]), moved["boxes"][0], atol=1)
    bright = moved["image"][..., 0] > 190  # the fill is 124
    assert (bright == seen).mean() > 0.95
    for x, y, visible in moved["keypoints"][0, :2]:
        if visible:  # two opposite corners of the rectangle
            box = moved["boxes"][0].reshape(2, 2)
            assert np.abs(box[:, 0] - x).min() <= 1.5
            assert np.abs(box[:, 1] - y).min() <= 1.5
    assert (moved["keypoints"][0, 2] == 0).all()


def test_keypoints_change_sides_in_the_mirror():
    moved = t.warp(rectangle(), t.flip_matrix(60), (40, 60), keypoint_flip=(1, 0, 2))
    assert moved["keypoints"][0].tolist() == [[29.5, 24.5, 2], [50, 6, 2], [0, 0, 0]]
    assert moved["boxes"][0].tolist() == [29, 6, 50, 25]


def test_objects_outside_are_dropped():
    moved = t.warp(rectangle(), t.shift_matrix(-40, 0), (40, 60))
    assert moved["boxes"].shape == (0, 4)
    assert moved["labels"].shape == moved["crowd"].shape == (0,)
    assert moved["masks"].shape == (0, 40, 60)
    assert moved["keypoints"].shape == (0, 3, 3)


def test_crops_reach_every_corner_and_stay_inside():
    rng = np.random.default_rng(0)
    shifts = np.array([t.random_crop(rng, (10, 12), (10, 12), (8, 9))[:2, 2] for _ in range(200)])
    assert shifts.max(0).tolist() == [0, 0]
    assert shifts.min(0).tolist() == [-3, -2]


def test_pictures_are_never_enlarged_to_fit():
    assert t.fit_scale((10, 10), (100, 100)) == 1
    assert t.fit_scale((100, 50), (50, 50)) == 0.5
    assert t.whole_picture((100, 50), (50, 50))[1] == (50, 25)


def test_color_jitter():
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(t.jitter_color(IMAGE, rng), IMAGE)
    gray = np.full((4, 4, 3), 100, np.uint8)
    assert (t.jitter_color(gray, rng, saturation=0.9) == 100).all()
    assert (t.jitter_color(gray, rng, contrast=0.9) == 100).all()
    brighter = [t.jitter_color(gray, rng, brightness=0.2)[0, 0, 0] for _ in range(50)]
    assert 80 <= min(brighter) < 90
    assert 110 < max(brighter) <= 120
    red = np.zeros((2, 2, 3), np.uint8) + np.array([200, 0, 0], np.uint8)
    turned = {tuple(t.jitter_color(red, rng, hue=0.5)[0, 0].tolist()) for _ in range(20)}
    assert len(turned) > 10
    assert all(max(color) == 200 and min(color) == 0 for color in turned)


def test_normalize():
    white = np.full((1, 1, 3), 255, np.uint8)
    np.testing.assert_allclose(t.normalize(white)[0, 0], (1 - MEAN) / STD, rtol=1e-5)


def test_pad_objects():
    padded = t.pad_objects(rectangle(), 3)
    assert padded["object_mask"].tolist() == [True, False, False]
    assert padded["boxes"].shape == (3, 4)
    assert padded["masks"].shape == (3, 40, 60)
    with pytest.raises(ValueError, match=r"1 objects, data\.max_objects is 0"):
        t.pad_objects(rectangle(), 0)


def test_present_classes():
    assert t.present_classes(rectangle(), 3)["classes"].tolist() == [False, True, False]
    only_pixels = {"segmentation": np.array([[0, 2, IGNORE]])}
    assert t.present_classes(only_pixels, 3)["classes"].tolist() == [True, False, True]
