"""Pictures pixel by pixel, and by their properties where they hold text."""

import os

import matplotlib
import numpy as np
import pytest
from PIL import Image

from jaxseg.types import IGNORE
from jaxseg.viz.draw import (
    colorize,
    confusion_picture,
    default_palette,
    denormalize,
    enlarge,
    errors,
    legend,
    lost_picture,
    overlay,
    panel,
    precision_recall_picture,
    write_indexed_png,
    write_png,
)

PALETTE = np.array([[0, 0, 0], [200, 0, 0], [0, 100, 50]], np.uint8)
BLOCK = np.array([[1, 1, 1], [1, 1, 1], [1, 1, 1]])


def picture(height, width, value):
    return np.full((height, width, 3), value, np.uint8)


def test_palette_is_that_of_voc():
    palette = default_palette(256)
    assert palette[:5].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    assert palette[20].tolist() == [0, 64, 128]  # tvmonitor
    assert palette[255].tolist() == [224, 224, 192]  # void
    assert len(np.unique(palette, axis=0)) == 256
    with pytest.raises(ValueError, match="256 colours, not 257"):
        default_palette(257)


def test_denormalize_restores_every_value():
    original = np.arange(256 * 3).reshape(16, 16, 3) % 256
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    image = ((original / 255 - mean) / std).astype(np.float32)
    restored = denormalize(image, mean, std)
    np.testing.assert_array_equal(restored, original)
    assert restored.dtype == np.uint8
    clipped = denormalize(np.array([[[-9.0, 0, 9]]]), mean, std)
    assert clipped.tolist() == [[[0, round(0.456 * 255), 255]]]


def test_colorize():
    colours = colorize(np.array([[0, 1], [2, IGNORE]]), PALETTE)
    assert colours[0].tolist() == [[0, 0, 0], [200, 0, 0]]
    assert colours[1, 0].tolist() == [0, 100, 50]
    assert colours.dtype == np.uint8
    hatch = colorize(np.full((12, 12), IGNORE, np.uint8), PALETTE)
    assert set(np.unique(hatch)) == {205, 240}
    with pytest.raises(ValueError, match=r"labels \[-1, 3\] in a palette of 3"):
        colorize(np.array([[3, -1, IGNORE]]), PALETTE)


def test_overlay_blends_inside_and_is_pure_on_contours():
    segmentation = np.zeros((5, 5), int)
    segmentation[1:4, 1:4] = 1
    image = picture(5, 5, 100)
    result = overlay(image, segmentation, PALETTE, opacity=0.25)
    inside, contour, outside = result[2, 2], result[1, 1:4], result[0]
    assert inside.tolist() == [125, 75, 75]
    assert contour.tolist() == [[200, 0, 0]] * 3
    assert outside.tolist() == [[100, 100, 100]] * 5
    assert (image == 100).all()


def test_overlay_does_not_paint_black():
    image = picture(3, 3, 100)
    assert (overlay(image, 0 * BLOCK, PALETTE, opacity=0.5) == 100).all()
    assert (overlay(image, 0 * BLOCK, PALETTE + np.uint8(50), opacity=0.5) == 75).all()


def test_enlarge_by_whole_times():
    assert enlarge(np.array([[1, 2]]), 3).tolist() == [[1, 1, 1, 2, 2, 2]] * 3
    assert enlarge(picture(7, 2, 100), 7).shape == (7, 2, 3)


def test_overlay_leaves_ignored_pixels_alone():
    segmentation = np.where(np.eye(3, dtype=bool), IGNORE, BLOCK)
    result = overlay(picture(3, 3, 100), segmentation, PALETTE)
    assert (result[np.eye(3, dtype=bool)] == 100).all()
    assert (result[[0, 1, 1, 2], [1, 0, 2, 1]] == PALETTE[1]).all()  # these touch the diagonal
    assert result[[0, 2], [2, 0]].tolist() == [[150, 50, 50]] * 2


def test_errors():
    result = errors(np.array([[0, 1, 2, IGNORE]]), np.array([[0, 2, IGNORE, IGNORE]]))
    right, wrong, *ignored = result[0].tolist()
    assert right == [150, 150, 150]
    assert wrong == [214, 39, 40]
    assert ignored == [[255, 255, 255]] * 2


def test_panel_places_pictures():
    rows = [[picture(4, 6, 10), picture(2, 3, 20)], [picture(5, 4, 30)]]
    result = panel(rows, margin=2)
    assert result.shape == (2 + 4 + 2 + 5 + 2, 2 + 6 + 2 + 3 + 2, 3)
    expected = np.full(result.shape, 255)
    expected[2:6, 2:8] = 10
    expected[3:5, 10:13] = 20  # in the middle of the row
    expected[8:13, 3:7] = 30  # in the middle of the column
    np.testing.assert_array_equal(result, expected)


def test_panel_titles_stand_above_their_columns():
    rows = [[picture(20, 80, 10), picture(20, 80, 20)]]
    plain, titled = panel(rows), panel(rows, titles=["image", "truth"])
    extra = titled.shape[0] - plain.shape[0]
    np.testing.assert_array_equal(titled[extra:], plain)
    dark = (titled[: extra + 6] < 128).all(axis=-1).any(axis=0)
    assert dark[6:86].any()
    assert dark[92:172].any()
    assert not dark[86:92].any()
    with pytest.raises(ValueError, match="2 titles for 1 columns"):
        panel([[picture(2, 2, 0)]], titles=["a", "b"])


def test_legend_shows_each_colour_and_wraps():
    names, palette = [f"class {k}" for k in range(21)], default_palette(21)
    wide, narrow = legend(names, palette, width=4000), legend(names, palette, width=300)
    assert wide.shape[1] == 4000
    assert narrow.shape[1] == 300
    assert narrow.shape[0] >= 5 * wide.shape[0]
    for strip in (wide, narrow):
        shown = {tuple(colour) for colour in np.unique(strip.reshape(-1, 3), axis=0).tolist()}
        assert {tuple(colour) for colour in palette.tolist()} <= shown
        assert (strip[:, -3:] == 255).all()  # nothing is cut at the right edge
    with pytest.raises(ValueError, match="2 names for 21 colours"):
        legend(names[:2], palette)


def test_confusion_picture_grows_darker_with_the_share():
    blues = matplotlib.colormaps["Blues"]
    result = confusion_picture(np.array([[3, 1], [0, 7]]), ["cat", "dog"])
    assert result.ndim == 3
    assert result.dtype == np.uint8
    shown = {tuple(colour) for colour in np.unique(result.reshape(-1, 3), axis=0).tolist()}
    for share in (0.75, 0.25, 0.0, 1.0):  # row by row, not of all pixels
        assert tuple(map(int, blues(share, bytes=True)[:3])) in shown
    assert tuple(map(int, blues(7 / 11, bytes=True)[:3])) not in shown
    with pytest.raises(ValueError, match="1 names for a matrix of 2"):
        confusion_picture(np.eye(2, dtype=int), ["cat"])


def test_confusion_picture_of_an_absent_class_and_of_many():
    names = [f"class {k}" for k in range(21)]
    few = confusion_picture(np.zeros((2, 2), int), names[:2])
    many = confusion_picture(np.eye(21, dtype=int), names)
    assert many.shape[0] > few.shape[0] + 19 * 30  # at least 30 pixels a cell: room for "100"
    empty = matplotlib.colormaps["Blues"](0.0, bytes=True)[:3]
    assert (few == empty).all(axis=-1).mean() > 0.1  # the cells are drawn, and empty


def test_png_keeps_every_pixel_and_leaves_no_other_file(tmp_path):
    original = np.random.default_rng(0).integers(0, 256, (7, 9, 3)).astype(np.uint8)
    write_png(tmp_path / "a.png", picture(2, 2, 0))
    write_png(tmp_path / "a.png", original)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), original)
    assert os.listdir(tmp_path) == ["a.png"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    write_png(tmp_path / "a.png", picture(2, 2, 7))

    def half_a_file(image, path, format):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", half_a_file)
    with pytest.raises(OSError, match="disk full"):
        write_png(tmp_path / "a.png", picture(3, 3, 9))
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["a.png"]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), picture(2, 2, 7))


def test_indexed_png_holds_labels_and_colours(tmp_path):
    segmentation = np.array([[0, 1, 2], [IGNORE, 2, 0]])
    write_indexed_png(tmp_path / "a.png", segmentation, PALETTE)
    image = Image.open(tmp_path / "a.png")
    assert image.mode == "P"
    np.testing.assert_array_equal(np.asarray(image), segmentation)
    colours = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(colours[0], PALETTE)
    assert colours[1, 0].tolist() == [224, 224, 192]
    with pytest.raises(ValueError, match="labels \\[3\\]"):
        write_indexed_png(tmp_path / "b.png", np.array([[3]]), PALETTE)


def test_precision_recall_picture():
    """Lines of two classes in their own colours; an absent one is left out."""
    falling = np.linspace(1, 0, 101)[:, None]
    curves = np.concatenate([falling, falling**2, np.full((101, 1), np.nan)], axis=1)
    result = precision_recall_picture(curves, ["cat", "dog", "owl"])
    assert result.ndim == 3
    assert result.dtype == np.uint8
    found = {tuple(colour) for colour in np.unique(result.reshape(-1, 3), axis=0).tolist()}
    colours = [matplotlib.colormaps["tab20"](n, bytes=True)[:3] for n in range(3)]
    assert [tuple(map(int, c)) in found for c in colours] == [True, True, False]
    empty = precision_recall_picture(curves[:, 2:], ["owl"])
    assert empty.shape[2] == 3
    with pytest.raises(ValueError, match="1 names for curves of 3 classes"):
        precision_recall_picture(curves, ["cat"])


def test_lost_picture():
    """Bars in the classes' colours, as long as what they lost; an absent class is left out."""
    lost = np.array([[0.3, 0.1, np.nan], [0.0, 0.2, np.nan]])
    result = lost_picture(lost, ["missed", "both"], ["cat", "dog", "owl"])
    cat, dog, owl = (matplotlib.colormaps["tab20"](n, bytes=True)[:3] for n in range(3))
    # The legend stands to the right of the bars.
    widths = [(result == np.array(c)).all(-1)[:, :450].sum(axis=1).max() for c in (cat, dog)]
    assert widths[0] == pytest.approx(1.5 * widths[1], rel=0.05)
    assert not (result == np.array(owl)).all(-1).any()
    with pytest.raises(ValueError, match=r"1 errors and 3 classes for \(2, 3\)"):
        lost_picture(lost, ["missed"], ["cat", "dog", "owl"])
