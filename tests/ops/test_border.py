"""U-Net's border map against values worked out by hand and a brute-force formula."""

import numpy as np

from jaxseg.ops.border import border_weights


def test_a_row_by_hand():
    # Objects at 0 and at 4. Pixel 1: d1 = 1, d2 = 3, as for 3; pixel 2: 2 + 2; pixel 5: 1 + 5.
    instances = np.array([[1, 0, 0, 0, 2, 0]])
    between, outside = 10 * np.exp(-(4**2) / 50), 10 * np.exp(-(6**2) / 50)
    expected = [[1, 1 + between, 1 + between, 1 + between, 1, 1 + outside]]
    weights = border_weights(instances)
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    assert weights.dtype == np.float32


def test_w0_sigma_and_class_weights():
    instances = np.array([[7, 0, 3]])
    weights = border_weights(instances, w0=4.0, sigma=1.0, class_weights=(0.5, 2.0))
    np.testing.assert_allclose(weights, [[2, 0.5 + 4 * np.exp(-2), 2]], rtol=1e-6)


def test_distances_of_three_objects_are_the_two_smallest():
    random = np.random.default_rng(0)
    instances = np.zeros((12, 15), int)
    for k, (y, x) in enumerate(((1, 2), (9, 3), (5, 11)), start=1):
        instances[y : y + 2, x : x + 3] = random.permutation([k, k, 0])
    pixels = np.argwhere(np.ones(instances.shape, bool))
    nearest = np.sort(
        [
            np.linalg.norm(pixels[:, None] - np.argwhere(instances == k), axis=-1).min(axis=1)
            for k in (1, 2, 3)
        ],
        axis=0,
    )
    border = 10 * np.exp(-((nearest[0] + nearest[1]) ** 2) / 50).reshape(instances.shape)
    expected = 1 + border * (instances == 0)
    np.testing.assert_allclose(border_weights(instances), expected, rtol=1e-5)


def test_fewer_than_two_objects_leave_the_class_weights():
    empty, one = np.zeros((2, 3), int), np.array([[0, 0, 5], [0, 0, 5]])
    np.testing.assert_array_equal(border_weights(empty, class_weights=(0.5, 2.0)), 0.5)
    expected = [[0.5, 0.5, 2], [0.5, 0.5, 2]]
    np.testing.assert_array_equal(border_weights(one, class_weights=(0.5, 2.0)), expected)
    np.testing.assert_array_equal(border_weights(np.zeros((0, 2, 3), bool)), 1)


def test_masks_equal_instances_and_padding_is_left_out():
    instances = np.array([[1, 0, 0, 2], [1, 0, 0, 0], [0, 0, 3, 3]])
    masks = np.stack([instances == k for k in (1, 2, 3, 4)])  # there is no object 4
    np.testing.assert_array_equal(border_weights(masks), border_weights(instances))
