import json
from itertools import permutations, product

import cv2
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


def test_keypoints_at_the_border_have_a_mirror_image():
    example = {"boxes": np.array([[0, 0, 9, 9]], np.float32), "labels": np.ones(1, np.int32)}
    example["keypoints"] = np.array([[[0, 5, 2], [80, 60, 1], [81, 5, 2]]], np.float32)
    moved = t.warp(example, t.flip_matrix(80), (60, 80))
    assert moved["keypoints"][0].tolist() == [[80, 5, 2], [0, 60, 1], [0, 0, 0]]


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


def test_colours_and_draws_of_a_jitter_that_is_always_applied():
    """Those of every run so far: nothing more is drawn where the new settings are not used."""
    pixels = np.array([[[200, 40, 90], [10, 60, 250], [120, 200, 0]]], np.uint8)
    rng = np.random.default_rng(5)
    image = t.jitter_color(pixels, rng, brightness=0.3, contrast=0.4, saturation=0.5, hue=0.2)
    assert image.tolist() == [[[255, 27, 215], [0, 186, 255], [255, 234, 0]]]
    assert rng.random() == np.random.default_rng(5).random(5)[4]


def test_colours_of_ssd():
    """Each of the four by itself half of the time, the contrast before or after the last two."""
    amounts = {"b": ("brightness", 0.125), "c": ("contrast", 0.5)}
    amounts |= {"s": ("saturation", 0.5), "h": ("hue", 0.05)}
    found = []

    def jittered(image, seed, operations, **options):
        given = dict(amounts[o] for o in operations)
        return t.jitter_color(image, np.random.default_rng(seed), **given, **options)

    def in_order(seed, parts):
        """All with the amounts that the seed draws."""
        image = IMAGE
        for part in parts.split():
            image = jittered(image, seed, part)
        return image

    orders = {parts for b, c, s, h in product(*[(o, "") for o in "bcsh"])
              for parts in (f"{b + c} {s} {h}", f"{b} {s} {h} {c}")}  # fmt: skip
    for seed in range(200):
        image = jittered(IMAGE, seed, "bcsh", color_probability=0.5)
        same = [parts for parts in sorted(orders) if np.array_equal(image, in_order(seed, parts))]
        assert same, seed
        found.append(same[0])
    for operation in "bcsh":
        assert 0.4 < np.mean([operation in parts for parts in found]) < 0.6
    both = [parts for parts in found if "c" in parts and "s" in parts]
    assert 0.35 < np.mean([parts.endswith("c") for parts in both]) < 0.65
    np.testing.assert_array_equal(jittered(IMAGE, 0, "bcsh", color_probability=0.0), IMAGE)


def test_channels_are_exchanged():
    rng = np.random.default_rng(0)
    images = [t.jitter_color(IMAGE, rng, channel_shuffle=0.5) for _ in range(300)]
    found = {
        order: sum(np.array_equal(image, IMAGE[..., order]) for image in images)
        for order in permutations(range(3))
    }
    assert sum(found.values()) == 300
    assert 0.5 < found.pop((0, 1, 2)) / 300 < 0.67  # expected 7/12, and 1/12 of the others
    assert all(0.04 < count / 300 < 0.13 for count in found.values())


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


# Pictures of detectors


@pytest.mark.parametrize(
    ("size", "canvas", "expected"),
    [
        ((480, 640), (1344, 1344), (800, 1066)),  # the shorter side becomes 800: 1066.7, cut off
        ((640, 480), (1344, 1344), (1066, 800)),
        ((400, 1000), (1344, 1344), (533, 1333)),  # the longer would have 2000
        ((1600, 1600), (1344, 1344), (800, 800)),
        ((480, 640), (400, 1344), (400, 533)),  # a canvas that is too small
    ],
)
def test_the_shorter_side_is_given_unless_the_longer_exceeds_its_limit(size, canvas, expected):
    matrix, new_size = t.whole_picture(size, canvas, (800, 1333))
    assert new_size == expected
    corner = matrix @ (size[1], size[0], 1)
    np.testing.assert_allclose(corner[:2], new_size[::-1])


def test_sizes_are_torchs():
    torch = pytest.importorskip("torch")
    for height, width in np.random.default_rng(0).integers(8, 90, (60, 2)).tolist():
        scale = min(40 / min(height, width), 66 / max(height, width))
        small = torch.nn.functional.interpolate(
            torch.zeros(1, 1, height, width), scale_factor=scale, recompute_scale_factor=True
        )
        found = t.whole_picture((height, width), (66, 66), (40, 66))[1]
        assert found == tuple(small.shape[2:])


def test_pictures_are_those_of_torchvisions_detectors(fixtures):
    folder = fixtures / "torchvision"
    for path in sorted((folder / "det").glob("*_fpn*.npz")):
        stored = np.load(path)
        meta = json.loads(bytes(stored["meta"]))
        sides = tuple(meta["config"].get(name) for name in ("min_size", "max_size"))
        if None in sides:
            continue
        array = meta["arrays"]["image"]
        canvas = array["shape"][2:]
        found = np.zeros((len(meta["images"]), *canvas, 3), np.float32)
        for i, name in enumerate(meta["images"]):
            image = cv2.imread(str(folder / f"{name}.png"))[..., ::-1]
            picture, (height, width) = t.picture_on_canvas(image, tuple(canvas), sides)
            assert [height, width] == stored["image_sizes"][i].tolist()
            np.testing.assert_allclose(picture[height:], 0, atol=0.01)
            found[i, :height, :width] = picture[:height, :width]
        flat = found.transpose(0, 3, 1, 2).ravel()
        np.testing.assert_allclose(flat[:: array["step"]], stored["image"], atol=1e-4)
        np.testing.assert_allclose(np.abs(flat).sum(dtype=np.float64), array["abssum"], rtol=1e-5)


def test_without_resize_the_picture_is_warped():
    picture, size = t.picture_on_canvas(IMAGE, (3, 5))
    assert size == (3, 4)
    warped = t.warp({"image": IMAGE}, t.resize_matrix((6, 8), (3, 4)), (3, 5))["image"]
    np.testing.assert_array_equal(picture, t.normalize(warped))


def test_buckets():
    buckets = ((800, 1344), (1344, 800), (832, 832))
    sizes = np.array([(480, 640), (640, 480), (500, 500), (300, 900), (333, 333), (480, 640)])
    chosen = [t.choose_bucket((h, w), buckets, (800, 1333)) for h, w in sizes.tolist()]
    assert chosen == [0, 1, 2, 0, 2, 0]
    groups = t.group_by_bucket(sizes, buckets, (800, 1333))
    assert [group.tolist() for group in groups] == [[0, 3, 5], [1], [2, 4]]
    # Nothing holds 1000 by 1000: it shrinks to 832 in the third, to 800 in the others.
    assert t.choose_bucket((1000, 1000), buckets) == 2
    assert t.choose_bucket((100, 90), buckets) == 2  # not enlarged: the smallest holds it
    assert [len(g) for g in t.group_by_bucket(sizes[:1], buckets)] == [0, 0, 1]


# Random geometry of detectors


def test_a_smaller_picture_lies_at_the_top_left_unless_anywhere():
    for seed in range(20):
        for flip in (False, True):
            rng = np.random.default_rng(seed)
            arguments = (rng, (10, 20), (40, 60), (40, 60), (0.5, 1.0), flip, (20, 50))
            matrix = t.random_crop(*arguments, anywhere=False)
            height, width = t.reach(matrix, (10, 20), (40, 60))
            assert 10 <= height <= 20
            assert 20 <= width <= 40
            corners = matrix[:2, :2] @ np.array([[0, 20], [0, 10]]) + matrix[:2, 2:]
            np.testing.assert_allclose(corners.min(1), 0, atol=1e-9)
            np.testing.assert_allclose(corners.max(1), (width, height), atol=1e-9)


def test_unscaled_a_detector_trains_on_the_sizes_it_is_scored_on():
    canvas, resize = (66, 66), (40, 66)
    for height, width in np.random.default_rng(0).integers(8, 90, (20, 2)).tolist():
        size = height, width
        matrix = t.random_crop(np.random.default_rng(1), size, canvas, canvas, resize=resize)
        expected = t.whole_picture(size, canvas, resize)[0]
        np.testing.assert_array_equal(matrix[:2, :2], expected[:2, :2])


def test_padding_is_not_mixed_into_an_enlarged_picture():
    matrix = t.shift_matrix(3, 2) @ t.resize_matrix((6, 8), (15, 24))
    moved = t.warp({"image": IMAGE, "segmentation": IMAGE[..., 0]}, matrix, (20, 30))
    alone = cv2.resize(IMAGE, (24, 15)).astype(int)
    np.testing.assert_allclose(moved["image"][2:17, 3:27], alone, atol=9)  # OpenCV's 32nds
    np.testing.assert_allclose(moved["image"][[2, 16], [3, 26]], IMAGE[[0, 5], [0, 7]])
    moved["image"][2:17, 3:27] = FILL
    assert (moved["image"] == FILL).all()
    assert (np.delete(moved["segmentation"], np.s_[2:17], 0) == IGNORE).all()


def test_a_larger_picture_covers_the_crop():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        matrix = t.random_crop(
            rng, (10, 20), (40, 60), (12, 16), (1.0, 2.0), True, (20, 50), anywhere=False
        )
        corners = matrix[:2, :2] @ np.array([[0, 20], [0, 10]]) + matrix[:2, 2:]
        assert (corners.min(1) <= 1e-9).all()
        assert (corners.max(1) >= (16 - 1e-9, 12 - 1e-9)).all()
        assert t.reach(matrix, (10, 20), (12, 16)) == (12, 16)


@pytest.mark.parametrize("seed", range(6))
def test_a_mirrored_crop_is_the_mirror_of_the_crop(seed):
    """Padding and all, with the same random numbers."""
    crop, sizes = (7, 30), ((10, 20), (10, 20))
    rngs = [np.random.default_rng(seed) for _ in range(2)]
    plain = t.random_crop(rngs[0], *sizes, crop, (0.5, 2.0))
    mirrored = t.random_crop(rngs[1], *sizes, crop, (0.5, 2.0), flip=True)
    if rngs[0].random() < 0.5:
        plain = t.flip_matrix(30) @ plain
    np.testing.assert_allclose(mirrored, plain, atol=1e-9)


def test_turns_are_exact():
    example = {**rectangle(6, 8, (1, 2, 4, 5)), "image": IMAGE}
    turned = t.warp(example, t.turn_matrix(6), (8, 6))
    np.testing.assert_array_equal(turned["image"], np.rot90(IMAGE, -1))
    np.testing.assert_array_equal(turned["masks"][0], np.rot90(example["masks"][0], -1))
    assert turned["boxes"].tolist() == [[1, 1, 4, 4]]
    upended = t.warp(example, t.upend_matrix(6), (6, 8))
    np.testing.assert_array_equal(upended["image"], IMAGE[::-1])
    assert upended["boxes"].tolist() == [[1, 1, 4, 4]]


def test_random_turns_reach_all_eight_and_exchange_keypoints_where_they_mirror():
    points = np.array([[[1, 1, 2], [7, 1, 2], [4, 5, 2]]], np.float32)  # left, right, bottom
    boxes = np.array([[0, 0, 8, 6]], np.float32)
    example = {"image": IMAGE, "boxes": boxes, "keypoints": points}
    rng, seen = np.random.default_rng(0), {}
    for _ in range(100):
        matrix, size = t.random_turn(rng, (6, 8), vertical_flip=True, rotate=True)
        moved = t.warp(example, matrix, size, keypoint_flip=(1, 0, 2))
        seen[moved["image"].tobytes()] = moved
        (left, right, bottom) = moved["keypoints"][0, :, :2]
        side = np.linalg.det([right - left, bottom - left])  # in every picture, as before
        np.testing.assert_allclose(side, np.linalg.det([[6, 0], [3, 4]]))
    assert len(seen) == 8
    turn = t.random_turn(rng, (6, 8))
    assert turn[1] == (6, 8)
    np.testing.assert_array_equal(turn[0], np.eye(3))


# What is left of objects


def test_areas_follow_their_objects():
    example = {**rectangle(), "area": np.array([100], np.float32)}  # of 21 by 19 pixels
    assert t.warp(example, t.shift_matrix(3, 2), (40, 60))["area"].tolist() == [100]
    doubled = t.warp(example, t.resize_matrix((40, 60), (80, 120)), (80, 120))
    assert doubled["area"].tolist() == [400]
    cut = t.warp(example, t.shift_matrix(-17, 0), (40, 60))  # 7 of its 21 columns are outside
    np.testing.assert_allclose(cut["area"], 100 * 14 / 21, rtol=1e-6)
    del example["masks"]
    cut = t.warp(example, t.shift_matrix(-17, 0), (40, 60))
    np.testing.assert_allclose(cut["area"], 100 * 14 / 21, rtol=1e-6)


def triangle(**fields):
    """The lower left half of a box of 20 by 20 pixels."""
    mask = np.zeros((40, 40), bool)
    mask[10:30, 10:30] = np.tri(20, dtype=bool)
    return {
        "image": np.zeros((40, 40, 3), np.uint8),
        "boxes": np.array([[10, 10, 30, 30]], np.float32),
        "area": np.array([210], np.float32),
        "masks": mask[None],
        **fields,
    }


def test_slivers_are_dropped_by_their_pixels():
    """Of the triangle's 210 pixels the ten right columns, half of the box, hold 55."""
    matrix = t.shift_matrix(-20, 0)
    moved = t.warp(triangle(), matrix, (40, 40), min_visible=0.26)
    assert moved["boxes"].tolist() == [[0, 10, 10, 30]]
    np.testing.assert_allclose(moved["area"], 55)
    assert len(t.warp(triangle(), matrix, (40, 40), min_visible=0.27)["boxes"]) == 0
    crowd = triangle(crowd=np.array([True]))
    assert len(t.warp(crowd, matrix, (40, 40), min_visible=0.27)["boxes"]) == 1
    boxes = {name: value for name, value in triangle().items() if name != "masks"}
    assert len(t.warp(boxes, matrix, (40, 40), min_visible=0.5)["boxes"]) == 1
    assert len(t.warp(boxes, matrix, (40, 40), min_visible=0.51)["boxes"]) == 0


def test_objects_of_which_no_pixel_is_left_are_dropped():
    """The upper right corner of the box is in the picture, and has nothing of the triangle."""
    assert len(t.warp(triangle(), t.shift_matrix(-25, 25), (40, 40))["boxes"]) == 0
    without = triangle(masks=np.zeros((1, 40, 40), bool))  # a box that never had a mask
    moved = t.warp(without, t.shift_matrix(-25, 25), (40, 40))
    assert moved["boxes"].tolist() == [[0, 35, 5, 40]]


def two_objects():
    example = rectangle(60, 80, (5, 5, 25, 25))
    return {
        **example,
        "boxes": np.array([[5, 5, 25, 25], [50, 30, 75, 55], [0, 0, 80, 60]], np.float32),
        "labels": np.array([1, 2, 3], np.int32),
        "crowd": np.array([False, False, True]),
        "masks": np.repeat(example["masks"], 3, axis=0) | True,
        "keypoints": np.repeat(example["keypoints"], 3, axis=0),
    }


@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.3, 0.5])
def test_random_parts_keep_objects(overlap):
    sizes = set()
    for seed in range(30):
        rng = np.random.default_rng(seed)
        example = two_objects()
        y, x = np.indices((60, 80), np.uint8)
        example["image"] = np.stack([x, y, y], axis=-1)  # each pixel says where it was
        part = t.crop_around_objects(rng, example, (overlap,))
        height, width = part["image"].shape[:2]
        sizes.add((height, width))
        left, top = part["image"][0, 0, :2].tolist()
        assert 18 <= height <= 60
        assert 24 <= width <= 80
        assert 0.5 <= width / height <= 2
        assert part["labels"].tolist() in ([1, 3], [2, 3], [1, 2, 3])  # the crowd stays
        best = 0
        for label, box in zip([1, 2], two_objects()["boxes"], strict=False):
            clipped = box.clip((left, top) * 2, (left + width, top + height) * 2)
            shared = np.prod((clipped[2:] - clipped[:2]).clip(0))
            own = np.prod(box[2:] - box[:2])
            best = max(best, shared / (own + width * height - shared))
            centre = (box[:2] + box[2:]) / 2 - (left, top)
            inside = (centre >= 0).all() and (centre < (width, height)).all()
            assert inside == (label in part["labels"])
            if inside:
                moved = part["boxes"][part["labels"] == label][0]
                np.testing.assert_array_equal(moved, clipped - (left, top) * 2)
        assert best >= overlap or (height, width) == (60, 80)  # there was no such part
    assert len(sizes) > 5


def test_the_whole_picture_is_left_where_no_part_will_do():
    rng = np.random.default_rng(0)
    assert t.crop_around_objects(rng, two_objects(), (1.0,))["image"].shape == (60, 80, 3)
    # No part of at least 18 by 24 pixels overlaps a point, nor, without others, a crowd.
    point = t.select_objects(two_objects(), np.array([True, False, False]))
    point["boxes"] = np.array([[5, 5, 6, 6]], np.float32)
    assert t.crop_around_objects(rng, point, (0.3,))["image"].shape == (60, 80, 3)
    crowd = t.select_objects(two_objects(), np.array([False, False, True]))
    assert t.crop_around_objects(rng, crowd, (0.1,))["image"].shape == (60, 80, 3)
