"""Heatmap targets, and coordinates from heatmaps."""

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest

from jaxseg.ops.keypoints import (
    _bicubic_matrix,
    heatmaps_to_keypoints,
    keypoint_targets,
    quarter_offset_peaks,
)


def test_targets_by_hand():
    box = jnp.asarray([[10.0, 20, 18, 28]])  # 4 × 4 pixels, each of 2 × 2
    keypoints = jnp.asarray(
        [[10, 20, 2], [13.9, 25, 1], [18, 28, 2], [18.1, 24, 2], [12, 24, 0], [9.9, 24, 2]]
    )[None]
    pixel, counts = jax.jit(keypoint_targets, static_argnums=2)(keypoints, box, 4)
    np.testing.assert_array_equal(counts[0], [True, True, True, False, False, False])
    np.testing.assert_array_equal(pixel[0], [0, 2 * 4 + 1, 15, 0, 0, 0])


def test_targets_on_a_border_are_torchs():
    """35 of 49 pixels are 40 of 56, but 56 times the reciprocal of 49 is less than 8/7."""
    keypoint, box = jnp.asarray([[[52.0, 3, 2]]]), jnp.asarray([[17.0, 3, 66, 31]])
    pixel, _ = jax.jit(keypoint_targets)(keypoint, box)
    assert pixel.tolist() == [[39]]


def test_targets_of_boxes_without_area_do_not_count():
    boxes = jnp.asarray([[5.0, 5, 5, 9], [3, 3, 3, 3], [9, 9, 1, 1]])
    keypoints = jnp.full((3, 1, 3), 5.0)
    pixel, counts = keypoint_targets(keypoints, boxes)
    assert not counts.any()
    np.testing.assert_array_equal(pixel, 0)


@pytest.mark.parametrize("size", [(14, 20), (13, 23), (4, 5), (1, 1), (3, 31)])
def test_bicubic_matrix(fixtures, size):
    arrays = published.read(fixtures, "ops/dense").arrays
    x = arrays["interp_inputs/input"][0]
    matrices = [
        _bicubic_matrix(jnp.arange(n), n, m) for n, m in zip(size, x.shape[1:], strict=True)
    ]
    found = jnp.einsum("yh,chw,xw->cyx", matrices[0], x, matrices[1])
    expected = arrays[f"bicubic_{size[0]}x{size[1]}_ac0/y"][0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_peaks_of_the_stretched_map():
    """As if the map were stretched as a whole, boxes of one tile and of several."""
    heatmaps = jax.random.normal(jax.random.key(0), (3, 8, 8, 3))
    boxes = np.asarray([[3, 4, 20.5, 30.2], [-9, 7, 70.3, 150.6], [5, 5, 5.2, 5.1]], np.float32)
    keypoints, scores = jax.jit(heatmaps_to_keypoints)(heatmaps, jnp.asarray(boxes))
    np.testing.assert_array_equal(keypoints[:, :, 2], 1)
    for i, (left, top, right, bottom) in enumerate(boxes):
        sides = np.maximum([right - left, bottom - top], np.float32(1))
        width, height = np.ceil(sides).astype(int)
        rows, columns = (
            np.asarray(_bicubic_matrix(jnp.arange(n), n.item(), 8)) for n in (height, width)
        )
        whole = np.einsum("yh,hwj,xw->jyx", rows, heatmaps[i], columns, optimize=True)
        for joint, stretched in enumerate(whole):
            y, x = np.unravel_index(stretched.argmax(), stretched.shape)
            expected = (np.array([x, y]) + 0.5) * sides / [width, height] + [left, top]
            np.testing.assert_allclose(keypoints[i, joint, :2], expected, rtol=1e-5)
            np.testing.assert_allclose(scores[i, joint], stretched.max(), rtol=1e-4)


def test_quarter_offsets_of_numpy_heatmaps():
    place, _ = quarter_offset_peaks(np.eye(3, 4, dtype=np.float32)[:, ::-1, None])
    assert place.tolist() == [[3.5, 0.5]]


def test_of_equal_peaks_the_first_is_taken():
    boxes = jnp.asarray([[0.0, 0, 130, 130]])
    keypoints, scores = heatmaps_to_keypoints(jnp.zeros((1, 4, 4, 2)), boxes)
    np.testing.assert_allclose(keypoints[0], [[0.5, 0.5, 1]] * 2)
    np.testing.assert_array_equal(scores, 0)


def test_targets_and_peaks_agree():
    box = jnp.asarray([[12.0, 8, 124, 120]])  # two pixels of the image to one of the heatmap
    keypoints = jnp.asarray([[[31.0, 55, 2], [100, 20, 2], [123, 119, 2]]])
    pixel, _ = keypoint_targets(keypoints, box)
    heatmaps = jax.nn.one_hot(pixel, 56 * 56, axis=1).reshape(1, 56, 56, 3)
    found, _ = heatmaps_to_keypoints(heatmaps, box)
    assert np.abs(found[..., :2] - keypoints[..., :2]).max() <= 1.5


def test_quarter_offsets():
    heatmap = np.zeros((5, 6, 3), np.float32)
    heatmap[2, 3, 0], heatmap[2, 4, 0], heatmap[1, 3, 0] = 1, 0.5, 0.2  # to the right, up
    heatmap[0, 0, 1], heatmap[0, 1, 1] = 2, 1  # in a corner, which has one neighbour a side
    heatmap[3, 3, 2] = 3  # neighbours are equal
    place, score = jax.jit(quarter_offset_peaks)(heatmap)
    np.testing.assert_allclose(place, [[3.75, 2.25], [0.5, 0.5], [3.5, 3.5]])
    np.testing.assert_array_equal(score, [1, 2, 3])
    together, _ = jax.vmap(quarter_offset_peaks)(jnp.stack([heatmap, heatmap]))
    np.testing.assert_array_equal(together[1], place)
