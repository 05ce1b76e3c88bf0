"""Masks on the host: pasted as the operation on devices does it, and in COCO's run-length codes."""

import json

import numpy as np
import pytest

from jaxseg.metrics.masks import decode_mask, encode_mask, paste_mask
from jaxseg.ops.masks import paste_masks


def test_rle_by_hand():
    """COCO counts down the columns, zeros first: 1 zero, 2 ones, 3 zeros. Each is a character, 48 +
    the number, from the third on less the one two before it: 3 - 1."""
    mask = np.array([[0, 0], [1, 0], [1, 0]], bool)
    rle = encode_mask(mask)
    assert rle["size"] == [3, 2]
    assert rle["counts"] == "123"
    np.testing.assert_array_equal(decode_mask(json.loads(json.dumps(rle))), mask)


def test_rle_of_any_mask():
    mask = np.random.default_rng(0).random((13, 17)) > 0.7
    for m in (mask, ~mask, mask & False, mask | True, mask.T):
        np.testing.assert_array_equal(decode_mask(encode_mask(m)), m)


def test_paste_by_hand():
    """A box of 4 by 2 pixels. A mask of one pixel is 3 with its frame, the box 12 by 6 about the
    same centre: x from 4 to 16 and y from 8 to 14, the last pixels included. The pixel x - 4 lies
    at (x - 4 + 0.5) 3/13 - 0.5 of the mask, whose one is at 1: the share of it is 7/13 for x = 8,
    10/13 for 9 and 1 for 10; likewise, with 3/7, 4/7 for y = 10 and 1 for 11. Shares multiply."""
    pasted = paste_mask(np.ones((1, 1)), np.array([8.0, 10, 12, 12]), (20, 24))
    expected = np.zeros((20, 24), bool)
    expected[11, 8:13] = expected[10:13, 10] = True
    np.testing.assert_array_equal(pasted, expected)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize(
    "box",
    [
        [3.2, 5.7, 40.1, 31.0],
        [-20.5, -7.0, 25.0, 12.3],
        [30.0, 20.0, 90.0, 77.0],
        [10.0, 10.0, 10.0, 10.0],
        [-30.0, -30.0, -10.0, -10.0],
        [90.0, 3.0, 99.0, 5.0],
        [0.0, 0.0, 50.0, 40.0],
    ],
)
def test_paste_is_that_of_the_devices(box, aligned):
    mask = np.random.default_rng(0).random((28, 28)).astype(np.float32)
    box = np.array(box, np.float32)
    expected = np.asarray(paste_masks(mask[None], box[None], (40, 50), aligned=aligned)[0])
    pasted = paste_mask(mask, box, (40, 50), aligned=aligned)
    sure = np.abs(expected - 0.5) > 1e-4  # of 0.5 itself, the one may see more, the other less
    assert sure.mean() > 0.99
    np.testing.assert_array_equal(pasted[sure], (expected >= 0.5)[sure])
