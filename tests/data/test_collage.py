import numpy as np
import pytest

from jaxseg.data import collage


def example(*objects, size=(8, 8), color=0, **fields):
    """Boxes (x0, y0, x1, y1) filled with their number, on a ground of `color`."""
    masks = np.zeros((len(objects), *size), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, objects, strict=True):
        mask[y0:y1, x0:x1] = True
    labels = np.arange(1, len(objects) + 1, dtype=np.int32)
    painted = (masks * labels[:, None, None]).max(0, initial=0) + color
    return {
        "image": np.repeat(painted[..., None], 3, axis=-1).astype(np.uint8),
        "segmentation": painted.astype(np.uint8),
        "boxes": np.array(objects, np.float32).reshape(-1, 4),
        "labels": labels,
        "area": masks.sum((1, 2), dtype=np.float32) * 2,  # as annotated, not as the mask has it
        "masks": masks,
        **fields,
    }


GROUND = example((0, 0, 4, 4), (4, 4, 8, 8), (6, 0, 8, 2))
ABOVE = example((2, 1, 6, 3), (5, 5, 7, 7), (6, 0, 8, 3), color=50)


def pasted(*chosen, ground=GROUND, **options):
    return collage.paste(ground, ABOVE, np.isin(np.arange(3), chosen), **options)


def test_pasted_objects_cut_those_below():
    """The first two lose four of their sixteen pixels each, and nothing of their boxes."""
    found = pasted(0, 1)
    assert found["labels"].tolist() == [1, 2, 3, 1, 2]
    assert found["boxes"].tolist() == [
        [0, 0, 4, 4], [4, 4, 8, 8], [6, 0, 8, 2], [2, 1, 6, 3], [5, 5, 7, 7],
    ]  # fmt: skip
    assert found["masks"].sum((1, 2)).tolist() == [12, 12, 4, 8, 4]
    assert found["area"].tolist() == [24, 24, 8, 16, 8]
    assert not (found["masks"].sum(0) > 1).any()  # each pixel has one object
    for field in (found["image"][..., 0], found["segmentation"]):
        assert field[1].tolist() == [1, 1, 51, 51, 51, 51, 3, 3]
        assert field[5].tolist() == [0, 0, 0, 0, 2, 52, 52, 2]
        assert field[0].tolist() == [1, 1, 1, 1, 0, 0, 3, 3]


def test_boxes_are_drawn_around_what_is_left():
    ground = example((0, 0, 8, 3), (3, 1, 7, 8))
    found = pasted(2, ground=ground)  # covers columns 6 and 7 of rows 0 … 2
    assert found["boxes"][:2].tolist() == [[0, 0, 6, 3], [3, 1, 7, 8]]
    assert found["masks"].sum((1, 2)).tolist() == [18, 26, 6]


def test_what_is_covered_is_dropped():
    assert pasted(2)["labels"].tolist() == [1, 2, 3]  # the third of the ground is now the other's
    assert pasted(2)["boxes"].tolist() == [[0, 0, 4, 4], [4, 4, 8, 8], [6, 0, 8, 3]]
    # Three quarters of the first two are left.
    assert pasted(0, 1, min_visible=0.75)["labels"].tolist() == [1, 2, 3, 1, 2]
    assert pasted(0, 1, min_visible=0.76)["labels"].tolist() == [3, 1, 2]
    crowd = {**GROUND, "crowd": np.array([True, False, True])}
    other = {**ABOVE, "crowd": np.zeros(3, bool)}
    found = collage.paste(crowd, other, np.array([True, True, True]), 0.76)
    assert found["labels"].tolist() == [1, 1, 2, 3]  # a crowd stays as long as a pixel is left
    assert found["crowd"].tolist() == [True, False, False, False]


def test_objects_without_a_mask_of_their_own_stay():
    ground = {**GROUND, "masks": GROUND["masks"] & np.array([True, False, True])[:, None, None]}
    found = pasted(1, ground=ground)
    assert found["boxes"][1].tolist() == [4, 4, 8, 8]
    assert found["area"][1] == 32


def test_covered_keypoints_become_hidden():
    points = np.array([[[2.5, 1.5, 2], [3.9, 2.9, 1], [1.5, 1.5, 2], [0, 0, 0]]], np.float32)
    ground = example((0, 0, 4, 4), keypoints=points)
    other = {**ABOVE, "keypoints": np.full((3, 4, 3), 2, np.float32)}
    found = collage.paste(ground, other, np.array([True, False, False]))
    assert found["keypoints"][0, :, 2].tolist() == [1, 1, 2, 0]
    assert found["keypoints"][0, :, :2].tolist() == points[0, :, :2].tolist()
    assert (found["keypoints"][1] == 2).all()
    assert points[0, 0, 2] == 2  # the example that was given is not written to


def test_nothing_chosen_changes_nothing():
    for name, value in pasted().items():
        np.testing.assert_array_equal(value, GROUND[name], err_msg=name)
    empty = example()
    found = collage.paste(empty, ABOVE, np.array([False, True, False]))
    assert found["boxes"].tolist() == [[5, 5, 7, 7]]


@pytest.mark.parametrize("axis", [0, 1])
def test_beside(axis):
    first = example((1, 1, 3, 2), size=(4, 4), keypoints=np.array([[[1, 1, 2]]], np.float32))
    second = example(
        (0, 2, 4, 4), size=(4, 4), color=7, keypoints=np.array([[[3, 2.5, 1], ]], np.float32)
    )  # fmt: skip
    found = collage.beside(first, second, axis)
    x, y = (0, 4) if axis == 0 else (4, 0)
    assert found["boxes"].tolist() == [[1, 1, 3, 2], [x, y + 2, x + 4, y + 4]]
    assert found["keypoints"].tolist() == [[[1, 1, 2]], [[x + 3, y + 2.5, 1]]]
    assert found["area"].tolist() == [4, 16]
    for name in ("image", "segmentation"):
        np.testing.assert_array_equal(
            found[name], np.concatenate([first[name], second[name]], axis)
        )
    np.testing.assert_array_equal(found["masks"][1], found["segmentation"] == 8)
    np.testing.assert_array_equal(found["masks"][0], found["segmentation"] == 1)
    assert first["masks"].shape == (1, 4, 4)


def test_absent_keypoints_stay_at_zero():
    absent = example((0, 0, 2, 2), size=(4, 4), keypoints=np.zeros((1, 2, 3), np.float32))
    assert (collage.beside(absent, absent, 1)["keypoints"] == 0).all()


def test_blended_pictures():
    first = example((0, 0, 2, 1), size=(2, 3), color=10)
    second = example((1, 0, 3, 2), size=(2, 3), color=20)
    found = collage.blend(first, second)
    mean = np.mean([first["image"], second["image"]], axis=0)
    np.testing.assert_array_equal(found["image"], np.rint(mean))
    assert found["boxes"].tolist() == [[0, 0, 2, 1], [1, 0, 3, 2]]
    np.testing.assert_array_equal(found["masks"], [first["masks"][0], second["masks"][0]])
    assert (found["segmentation"] == 255).all()  # no label in both
    assert (collage.blend(first, first)["segmentation"] == first["segmentation"]).all()


def test_mosaic():
    """Around the point (3, 2) of a canvas of 6 by 8."""
    sizes = [(2, 3), (2, 5), (4, 3), (4, 5)]
    pieces = [example((0, 0, 2, 1), size=s, color=10 * i) for i, s in enumerate(sizes)]
    found = collage.mosaic(pieces)
    assert found["image"].shape == (6, 8, 3)
    assert found["boxes"].tolist() == [[0, 0, 2, 1], [3, 0, 5, 1], [0, 2, 2, 3], [3, 2, 5, 3]]
    assert found["segmentation"][2].tolist() == [21, 21, 20, 31, 31, 30, 30, 30]
    for mask, number in zip(found["masks"], (1, 11, 21, 31), strict=True):
        np.testing.assert_array_equal(mask, found["segmentation"] == number)


def test_mosaic_of_pictures_without_objects():
    pieces = [{"image": np.full((2, 2, 3), i, np.uint8)} for i in range(4)]
    assert collage.mosaic(pieces)["image"][..., 0].tolist() == [
        [0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3],
    ]  # fmt: skip
