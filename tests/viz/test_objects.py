"""Objects drawn into pictures, pixel by pixel where lines are straight."""

import numpy as np
import pytest

from jaxseg.viz.objects import (
    LEFT,
    MIDDLE,
    RIGHT,
    draw_boxes,
    draw_keypoints,
    draw_masks,
    draw_objects,
    line_width,
    object_colours,
    write_texts,
)

RED, BLUE = [200, 0, 0], [0, 0, 100]
COLOURS = np.array([RED, BLUE], np.uint8)


def picture(height, width, value=100):
    return np.full((height, width, 3), value, np.uint8)


def shown(image, colour):
    """bool [H W]: where a picture has exactly this colour."""
    return (image == np.array(colour)).all(-1)


def test_boxes_are_frames_inside():
    image = picture(8, 10)
    drawn = draw_boxes(image, np.array([[1.0, 2, 6, 7]]), COLOURS[:1], width=1)
    expected = np.zeros((8, 10), bool)
    expected[2:7, 1:6] = True
    expected[3:6, 2:5] = False
    np.testing.assert_array_equal(shown(drawn, RED), expected)
    assert (drawn[~expected] == 100).all()
    assert (image == 100).all()
    thick = draw_boxes(image, np.array([[1.0, 2, 6, 7]]), COLOURS[:1], width=2)
    assert shown(thick, RED).sum() == 25 - 1


def test_boxes_beyond_the_picture_and_without_size():
    boxes = np.array([[-3.0, -3, 40, 5.4], [2, 2, 2, 2]])
    drawn = draw_boxes(picture(8, 10), boxes, COLOURS)
    assert shown(drawn, RED)[[0, 4], :].all()
    assert shown(drawn, RED)[:5, [0, 9]].all()
    assert not shown(drawn, RED)[5:].any()
    assert not shown(drawn, BLUE).any()
    assert (draw_boxes(picture(8, 10), np.zeros((0, 4)), COLOURS[:0]) == 100).all()


def test_later_boxes_lie_on_top():
    drawn = draw_boxes(picture(8, 10), np.array([[1.0, 1, 9, 7]] * 2), COLOURS)
    assert not shown(drawn, RED).any()
    assert shown(drawn, BLUE).any()


def test_masks_are_tinted_inside_a_contour():
    mask = np.zeros((9, 9), bool)
    mask[2:7, 2:7] = True
    drawn = draw_masks(picture(9, 9), [mask], COLOURS[:1], opacity=0.25)
    inner = np.zeros_like(mask)
    inner[3:6, 3:6] = True
    np.testing.assert_array_equal(shown(drawn, RED), mask & ~inner)
    assert (drawn[inner] == [125, 75, 75]).all()
    assert (drawn[~mask] == 100).all()
    full = draw_masks(picture(9, 9), [mask | True], COLOURS[:1])
    assert shown(full, RED)[0].all()  # the picture's border is a border, too


@pytest.mark.parametrize("side", [48, 480])
def test_skeletons_tell_left_from_right(side):
    places = np.array([[0.2, 0.2], [0.2, 0.8], [0.8, 0.2], [0.8, 0.8], [0.5, 0.5]])
    places = np.floor(places * side) + 0.5
    points = np.concatenate([places, np.ones((5, 1))], axis=1)[None]
    names = ("left hip", "left_knee", "right hip", "right_knee", "neck")
    ground = picture(side, side)
    drawn = draw_keypoints(ground, points, names, [(0, 1), (2, 3), (0, 2), (0, 4)])

    def at(x, y):
        return pytest.approx(drawn[int(y * side), int(x * side)].astype(int), abs=25)

    assert at(0.2, 0.5) == [*LEFT]
    assert at(0.8, 0.5) == [*RIGHT]
    assert at(0.5, 0.2) == [*MIDDLE]  # from left to right
    assert at(0.5, 0.5) == [*MIDDLE]
    assert at(0.2, 0.8) == [*LEFT]  # joints
    assert at(0.8, 0.8) == [*RIGHT]
    assert (drawn[:, : side // 10] == 100).all()
    hidden = points * [1, 1, 0]
    assert (draw_keypoints(ground, hidden, names, [(0, 1)]) == 100).all()
    assert (ground == 100).all()


def test_keypoints_lie_where_their_coordinates_say():
    """The middle of pixel (row 20, column 30) is (30.5, 20.5)."""
    drawn = draw_keypoints(picture(60, 80), np.array([[[30.5, 20.5, 2]]]))
    rows, columns = np.nonzero((drawn != 100).any(-1))
    assert (rows.mean(), columns.mean()) == (20, 30)
    assert rows.max() - rows.min() < 8
    far = draw_keypoints(picture(60, 80), np.array([[[-1e30, 5.0, 2]]]))
    assert (far == 100).all()


def test_texts_stand_above_or_inside_and_whole():
    boxes = np.array([[40.0, 50, 80, 90], [170, 0, 199, 60]])
    drawn = write_texts(picture(100, 200), boxes, COLOURS, ["disc 0.87", "triangle 0.50"])
    above, inside = (np.argwhere((drawn == np.array(c)).all(-1)) for c in (RED, BLUE))
    assert above[:, 0].max() == 49
    assert above[:, 1].min() == 40
    assert np.ptp(above[:, 1]) > 40
    assert inside[:, 0].min() == 0
    assert inside[:, 1].max() == 199
    for colour, plate in zip((RED, BLUE), (above, inside), strict=True):
        (top, left), (bottom, right) = plate.min(0), plate.max(0)
        letters = drawn[top : bottom + 1, left : right + 1]
        assert (letters > 200).all(-1).any(), colour  # white on a dark ground
        assert shown(letters, colour)[:, [0, -1]].all()  # nothing is cut
    tiny = write_texts(picture(100, 200), np.array([[40.0, 50, 45, 55]]), COLOURS[:1], ["disc"])
    assert (tiny == 100).all()


def test_letters_grow_with_the_picture():
    heights = []
    for side in (128, 1000):
        box = np.array([[0.3, 0.4, 0.8, 0.9]]) * side
        drawn = write_texts(picture(side, side), box, COLOURS[:1], ["disc"])
        heights.append(np.ptp(np.nonzero(shown(drawn, RED))[0]) + 1)
    assert heights[0] == 12
    assert heights[1] == 34
    assert [line_width(picture(n, n)) for n in (64, 128, 480, 1080)] == [1, 1, 2, 4]


def test_colours_differ():
    colours = object_colours(100).astype(int)
    apart = np.abs(colours[:, None] - colours[None]).max(-1) + 255 * np.eye(100, dtype=int)
    assert apart.min() >= 3
    following = np.abs(np.diff(colours, axis=0)).max(-1)
    assert following.min() > 90
    assert object_colours(0).shape == (0, 3)


def test_objects_have_colours_of_their_class_or_their_own():
    boxes = np.array([[5.0, 20, 25, 40], [30, 20, 50, 40], [5, 42, 25, 60]])
    objects = {"boxes": boxes, "labels": np.array([1, 2, 1]), "scores": np.array([0.5, 0.9, 0.7])}
    classes = ("background", "cat", "dog")
    plain = draw_objects(picture(64, 64), objects, classes)
    colours = object_colours(3)
    assert [shown(plain, c).any() for c in colours] == [True, True, False]
    masks = np.zeros((3, 64, 64), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.astype(int), strict=True):
        mask[y0 + 5 : y1 - 5, x0 + 5 : x1 - 5] = True
    own = draw_objects(picture(64, 64), objects, classes, masks=masks)
    for colour, (x0, y0, *_) in zip(colours, boxes.astype(int), strict=True):
        assert shown(own, colour)[y0 + 5, x0 + 7]
    none = {"boxes": np.zeros((0, 4)), "labels": np.zeros(0, int), "scores": np.zeros(0)}
    assert (draw_objects(picture(64, 64), none, classes, masks=[]) == 100).all()


def test_the_best_lie_on_top():
    boxes = np.array([[5.0, 20, 60, 60]] * 2)
    objects = {"boxes": boxes, "labels": np.array([1, 2]), "scores": np.array([0.9, 0.5])}
    drawn = draw_objects(picture(64, 64), objects, ("background", "cat", "dog"))
    colours = object_colours(2)
    assert shown(drawn, colours[0])[40, 5]
    assert not shown(drawn, colours[1])[20:].any()
