import numpy as np
import published
import pytest

from jaxseg.ops.anchors import anchors_of_maps, cell_anchors, grid_anchors, pyramid_anchors


def test_cells_by_hand():
    # Twice as high as wide, of the area of 16×16: 11.3×22.6; halves go to the even neighbour.
    assert cell_anchors([16], [2.0]).tolist() == [[-6, -11, 6, 11]]
    assert cell_anchors([5, 7], [1.0]).tolist() == [[-2, -2, 2, 2], [-4, -4, 4, 4]]
    two_by_two = cell_anchors([32, 64], [1.0, 4.0])
    assert (two_by_two[:, 2:] * 2).tolist() == [[32, 32], [64, 64], [16, 64], [32, 128]]


def test_grids_by_hand():
    cell = cell_anchors([4, 8], [1.0])
    anchors = grid_anchors(cell, (2, 3), (10, 20))
    assert anchors.shape == (12, 4)
    assert anchors.dtype == np.float32
    assert anchors[0].tolist() == [-2, -2, 2, 2]
    assert anchors[1].tolist() == [-4, -4, 4, 4]
    assert anchors[2].tolist() == [18, -2, 22, 2]  # one place to the right
    assert anchors[6].tolist() == [-2, 8, 2, 12]  # one row down


@pytest.mark.parametrize("name", ["fasterrcnn", "retinanet", "fcos", "single_level"])
def test_anchors_are_torchvisions(fixtures, name):
    reference = published.read(fixtures, "ops/boxes")
    about = reference.meta["cases"][f"anchors_{name}"]
    settings = about["sizes"], about["aspect_ratios"], about["grid"], about["image"]
    sizes, ratios, grid, image = settings
    levels = pyramid_anchors(sizes, ratios, [(h, w) for h, w in grid], tuple(image))
    np.testing.assert_array_equal(np.concatenate(levels), reference.arrays[f"anchors_{name}/y"])
    for i, (size, ratio) in enumerate(zip(sizes, ratios, strict=True)):
        expected = reference.arrays[f"anchors_{name}/cell{i}"]
        np.testing.assert_array_equal(cell_anchors(size, ratio), expected)


def test_anchors_of_maps():
    """Two maps of an image of 8×16 pixels, of strides 4 and 8."""
    image, *maps = (np.zeros((1, *size, 1), np.float32) for size in ((8, 16), (2, 4), (1, 2)))
    fine, coarse = anchors_of_maps(image, maps, [(4,), (8,)], (1.0,))
    assert fine.shape == (8, 4)
    assert fine[5].tolist() == [2, 2, 6, 6]
    assert coarse.tolist() == [[-4, -4, 4, 4], [4, -4, 12, 4]]
    with pytest.raises(ValueError, match="anchors of 1 levels, expected 2"):
        anchors_of_maps(image, maps, [(4,)], (1.0,))
