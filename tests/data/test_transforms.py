import numpy as np
import pytest
from runs import get_config
from scipy.ndimage import map_coordinates

from jaxseg import run
from jaxseg.data import pipeline
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


# Elastic deformation


def bent(seed, size=(96, 96), **kwargs):
    return t.elastic_field(np.random.default_rng(seed), size, **{"sigma": 3.0, **kwargs})


@pytest.mark.parametrize("matrix", [np.eye(3), t.flip_matrix(60), t.shift_matrix(3, -2)])
def test_a_field_of_zeros_is_only_the_matrix(matrix):
    example = rectangle()
    moved = t.warp(example, matrix, (40, 60), field=np.zeros((40, 60, 2), np.float32))
    for name, value in t.warp(example, matrix, (40, 60)).items():
        np.testing.assert_array_equal(moved[name], value, err_msg=name)


def test_a_constant_field_is_a_translation():
    """Pixels are fetched from (3, -2) away, so everything moves by (-3, 2)."""
    example = {**rectangle(), "image": RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8)}
    field = np.zeros((40, 60, 2), np.float32) + np.array([3, -2], np.float32)
    moved = t.warp(example, np.eye(3), (40, 60), field=field)
    for name, value in t.warp(example, t.shift_matrix(-3, 2), (40, 60)).items():
        np.testing.assert_array_equal(moved[name], value, err_msg=name)
    assert moved["boxes"].tolist() == [[7, 8, 28, 27]]
    assert (moved["segmentation"][:2] == IGNORE).all()


def test_the_field_goes_through_the_random_vectors_of_its_grid():
    field = bent(0, (15, 27), points=3, sigma=10.0)
    vectors = np.random.default_rng(0).normal(0, 10, (3, 3, 2))
    np.testing.assert_allclose(field[2::5, 4::9], vectors, atol=1e-4)  # the middles of the tiles
    fine = bent(0, (300, 300), points=3, sigma=10.0)
    assert np.abs(np.diff(fine, axis=0)).max() < 1  # smooth: 100 pixels between the vectors
    many = np.concatenate([bent(seed, (3, 3), sigma=10.0).ravel() for seed in range(200)])
    assert abs(many.mean()) < 0.5
    assert abs(many.std() - 10) < 0.5


@pytest.mark.parametrize("seed", range(6))
def test_everything_bends_together(seed):
    rng = np.random.default_rng(seed)
    size = (96, 96)
    matrix = t.random_crop(rng, (40, 60), (96, 96), size, scales=(1.0, 1.5), flip=True)
    moved = t.warp(rectangle(), matrix, size, field=bent(seed))
    seen = moved["segmentation"] == 1
    np.testing.assert_array_equal(moved["masks"][0], seen)
    bright = moved["image"][..., 0] > 190
    assert (bright == seen).mean() > 0.98
    x0, y0, x1, y1 = moved["boxes"][0]
    left, top, right, bottom = bounds(seen)
    assert x0 - 1 <= left <= x0 + 1 <= x1 - 1 <= right <= x1 + 1
    assert y0 - 1 <= top <= y0 + 1 <= y1 - 1 <= bottom <= y1 + 1


@pytest.mark.parametrize("seed", range(3))
def test_keypoints_lie_where_the_picture_shows_them(seed):
    """Each pixel's colour says where it was; colours that rise evenly are interpolated exactly."""
    y, x = np.indices((60, 80))
    image = np.stack([3 * x + 5, 4 * y + 5, 0 * x], axis=-1).astype(np.uint8)
    places = np.random.default_rng(seed).uniform(15, (65, 45), (20, 2))
    example = {
        "image": image,
        "boxes": np.array([[0, 0, 80, 60]], np.float32),
        "keypoints": np.c_[places, np.full(20, 2)][None].astype(np.float32),
    }
    matrix = t.flip_matrix(96) @ t.shift_matrix(4, 9) @ t.resize_matrix((60, 80), (66, 84))
    moved = t.warp(example, matrix, (96, 96), field=bent(seed))
    x, y, visible = moved["keypoints"][0].T
    assert (visible == 2).all()
    seen = [
        map_coordinates(moved["image"][..., c].astype(float), (y - 0.5, x - 0.5), order=1)
        for c in (0, 1)
    ]
    found = (np.stack(seen, axis=-1) - 5) / (3, 4) + 0.5
    np.testing.assert_allclose(found, places, atol=0.25)  # colours are whole numbers


def augment(rng, **options):
    example = {**rectangle(64, 64), "image_id": 0}
    settings = dict(image_size=(64, 64), crop_size=(64, 64), scales=(1.0, 1.0), flip=True)
    color = {"brightness": 0.3}
    return pipeline.augment_example(example, rng, color=color, num_classes=2, **settings, **options)


def test_elastic_augmentation_depends_on_the_generator_alone():
    """And it makes border weights of the bent labels."""
    options = {"elastic": (3, 3.0), "border_weights": (10.0, 5.0)}
    one, same, other = (augment(np.random.default_rng(s), **options) for s in (0, 0, 1))
    for name, value in one.items():
        np.testing.assert_array_equal(value, same[name], err_msg=name)
    assert (one["segmentation"] != other["segmentation"]).any()
    straight = augment(np.random.default_rng(0), border_weights=(10.0, 5.0))
    assert (one["segmentation"] != straight["segmentation"]).any()
    expected = t.add_border_weights({"masks": (one["segmentation"] == 1)[None]}, 10.0, 5.0)
    np.testing.assert_array_equal(one["pixel_weights"], expected["pixel_weights"])


def test_no_elastic_deformation_takes_no_random_numbers():
    rng, plain = np.random.default_rng(0), np.random.default_rng(0)
    augment(rng)
    t.random_crop(plain, (64, 64), (64, 64), (64, 64), (1.0, 1.0), True)
    t.jitter_color(IMAGE, plain, brightness=0.3)
    assert rng.random() == plain.random()


def test_the_setting_of_elastic_deformation_is_checked():
    config = get_config()
    for value in ((), (3, 10.0), (2, 0.0)):
        config.augment.elastic = value
        run.check_config(config)
    for value in ((3,), (1, 10.0), (3, -1.0)):
        config.augment.elastic = value
        with pytest.raises(ValueError, match=r"augment\.elastic is .*expected \(grid points"):
            run.check_config(config)
