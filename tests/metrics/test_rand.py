"""Rand and pixel errors of membranes, worked out by hand."""

import math

import numpy as np
import pytest

from jaxseg.metrics import rand
from jaxseg.types import IGNORE

# Two cells of 9 pixels, 36 pairs each, and a membrane of one pixel's width between them.
TRUTH = np.array([[1, 1, 1, 0, 1, 1, 1]] * 3)
SURE = np.where(TRUTH == 1, 0.95, 0.05)
GAP = SURE.copy()
GAP[1, 3] = 0.35  # a hole in the membrane, for thresholds below


def test_cells_that_are_seen_as_they_are():
    assert rand.rand_error([SURE], [TRUTH]) == (0, 0.1)
    assert rand.rand_error([SURE], [TRUTH], thin=True) == (0, 0.1)
    assert rand.pixel_error([SURE], [TRUTH]) == 0
    assert rand.pixel_f_error([SURE], [TRUTH]) == (0, 0.1)


@pytest.mark.parametrize("thin", [False, True])
def test_two_cells_merged_by_a_gap_of_one_pixel(thin):
    """All 18 true pixels in one segment: 153 pairs, of which 72 are right, of 72 true ones."""
    error, threshold = rand.rand_error([GAP], [TRUTH], thresholds=(0.3,), thin=thin)
    assert error == pytest.approx(1 - 2 * 72 / (153 + 72))
    assert threshold == 0.3
    assert rand.rand_error([GAP], [TRUTH], thin=thin) == (0, 0.4)  # the first that closes it


def test_a_cell_that_is_split():
    """5 pixels, 10 pairs; 2 + 2 pixels and one of membrane are left: 2 pairs, both right."""
    error, _ = rand.rand_error([np.array([[1.0, 1, 0, 1, 1]])], [np.ones((1, 5), int)])
    assert error == pytest.approx(1 - 2 * 2 / (2 + 10))


def test_membranes_only_are_no_pair_at_all():
    assert rand.rand_error([np.zeros((3, 7))], [TRUTH]) == (1, 0)


def test_slices_are_counted_together_and_never_connected():
    """144 true pairs, 153 + 72 predicted, 144 of them right; per slice it would be 0.36 and 0."""
    error, _ = rand.rand_error([GAP, SURE], [TRUTH, TRUTH], thresholds=(0.3,))
    assert error == pytest.approx(1 - 2 * 144 / (225 + 144))
    other = np.ones((1, 4), int)  # of another size: 6 pairs
    error, _ = rand.rand_error([GAP, np.ones((1, 4))], [TRUTH, other], thresholds=(0.3,))
    assert error == pytest.approx(1 - 2 * 78 / (153 + 6 + 78))


def test_cells_do_not_touch_at_corners():
    truth = 1 - np.eye(4, dtype=int)
    assert rand.rand_error([truth * 1.0], [truth])[0] == 0
    assert rand.rand_error([truth * 1.0], [truth], thin=True)[0] == 0


def test_only_true_cells_count():
    """What is predicted on a membrane, or where nobody knows, changes nothing."""
    truth = TRUTH.copy()
    truth[:, 6] = IGNORE
    seen = SURE.copy()
    seen[:, 6] = 0
    assert rand.rand_error([seen], [truth])[0] == 0


def test_thinning_forgives_thick_membranes():
    """Three columns of membrane leave 6 of a cell's 9 pixels together: 15 of 36 pairs."""
    thick = SURE.copy()
    thick[:, 2:5] = 0.05
    error, _ = rand.rand_error([thick], [TRUTH], (0.5,))
    assert error == pytest.approx(1 - 2 * 30 / (30 + 72))
    assert rand.rand_error([thick], [TRUTH], (0.5,), thin=True)[0] == 0


def test_thinned_membranes_still_reach_the_edge_of_the_picture():
    cells = np.ones((40, 40), bool)
    cells[:, 15:26] = cells[10:17] = False
    thinned = rand.thin_membranes(cells)
    assert (thinned | ~cells).all()
    lines = ~thinned
    assert lines.sum(axis=1)[18:].tolist() == [1] * 22
    assert lines.sum(axis=0)[:10].tolist() == [1] * 10
    assert lines.any(axis=1).all()
    assert lines.any(axis=0).all()


def test_pixel_errors_by_hand():
    truth = np.array([[1, 1, 0, 0, IGNORE]])
    seen = np.array([[0.9, 0.4, 0.6, 0.1, 0.9]])
    assert rand.pixel_error([seen], [truth]) == 0.5
    assert rand.pixel_error([seen], [truth], threshold=0.3) == 0.25
    # Above 0.3 lie 3 pixels, of which 2 are right, of 2: F = 4/5; above 0.6, one: F = 2/3.
    error, threshold = rand.pixel_f_error([seen], [truth])
    assert error == pytest.approx(1 / 5)
    assert threshold == 0.1
    assert rand.pixel_f_error([seen], [truth], (0.6,))[0] == pytest.approx(1 / 3)


def test_nothing_to_score():
    unknown, membrane = np.full((3, 7), IGNORE), np.zeros((3, 7), int)
    assert math.isnan(rand.pixel_error([SURE], [unknown]))
    for truth in (unknown, membrane):
        assert math.isnan(rand.rand_error([SURE], [truth])[0])
        assert math.isnan(rand.pixel_f_error([SURE], [truth])[0])


@pytest.mark.parametrize("thin", [False, True])
def test_real_membranes_are_their_own_best_prediction(real_data, tmp_path, thin):
    from jaxseg.data.builders import prepare

    if not (real_data / "isbi2012_em").is_dir():
        pytest.skip("isbi2012_em is not there")
    dataset = prepare("isbi", real_data / "isbi2012_em", held_out=1, cache=tmp_path)
    truth = dataset.splits["val"][0]["segmentation"]
    assert rand.rand_error([truth * 1.0], [truth], (0.5,), thin=thin)[0] == 0
    erased = truth.copy()
    erased[200:300] = 1  # membranes are missing there
    assert rand.rand_error([erased * 1.0], [truth], (0.5,), thin=thin)[0] > 0.05
