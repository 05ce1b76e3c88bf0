"""Unary logits and features, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.crf.energies import (
    bilateral_features,
    grid_features,
    logits_from_labels,
    logits_from_probabilities,
)
from jaxseg.types import IGNORE


def test_probabilities_have_a_floor():
    found = logits_from_probabilities(jnp.array([[0.0, 0.25, 0.75]]))
    np.testing.assert_allclose(found, [np.log([1e-7, 0.25, 0.75])], rtol=1e-6)
    found = logits_from_probabilities(jnp.array([0.0, 1.0]), floor=0.01)
    np.testing.assert_allclose(found, np.log([0.01, 1.0]), rtol=1e-6)


def test_labels_are_believed_so_far():
    labels = np.array([[0, 2], [IGNORE, 1]])
    found = np.exp(logits_from_labels(labels, 3, confidence=0.6))
    np.testing.assert_allclose(found[0, 0], [0.6, 0.2, 0.2], rtol=1e-6)
    np.testing.assert_allclose(found[0, 1], [0.2, 0.2, 0.6], rtol=1e-6)
    np.testing.assert_allclose(found[1, 0], [1 / 3] * 3, rtol=1e-6)
    np.testing.assert_allclose(found[1, 1], [0.2, 0.6, 0.2], rtol=1e-6)
    unknown = np.exp(logits_from_labels(np.array([0, 1]), 2, ignore=0))
    np.testing.assert_allclose(unknown, [[0.5, 0.5], [0.3, 0.7]], rtol=1e-6)


@pytest.mark.parametrize("label", [-1, 3, 254])
def test_labels_out_of_range(label):
    with pytest.raises(ValueError, match=f"labels: {label}, expected 0 … 2, or 255"):
        logits_from_labels(np.array([0, label]), 3)


def test_traced_labels_are_not_looked_at():
    labels = np.array([0, 2, IGNORE])
    traced = jax.jit(lambda labels: logits_from_labels(labels, 3))(labels)
    np.testing.assert_allclose(traced, logits_from_labels(labels, 3), rtol=1e-6)


@pytest.mark.parametrize("confidence", [1 / 3, 1.0, -0.5])
def test_confidence_out_of_range(confidence):
    with pytest.raises(ValueError, match="confidence"):
        logits_from_labels(np.array([0]), 3, confidence)


def test_features_of_pixels():
    image = np.arange(2 * 3 * 3, dtype=np.float32).reshape(2, 3, 3)
    found = bilateral_features(image, 2.0, 4)
    assert found.shape == (6, 5)
    np.testing.assert_allclose(found[1], [0.5, 0, 0.75, 1, 1.25], rtol=1e-6)
    np.testing.assert_allclose(found[4], [0.5, 0.5, 3, 3.25, 3.5], rtol=1e-6)


def test_features_of_voxels():
    depth = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)
    found = grid_features((2, 3, 2), (1.0, 2.0, 4.0), depth, (10.0, 0.5))
    assert found.shape == (12, 5)
    np.testing.assert_allclose(found[-1], [0.25, 1, 1, 2.2, 46], rtol=1e-6)
    np.testing.assert_allclose(found[3], [0.25, 0.5, 0, 0.6, 14], rtol=1e-6)
    alone = grid_features((2, 3, 2), (1.0, 2.0, 4.0))
    np.testing.assert_array_equal(alone, found[:, :3])
    # An array of bandwidths, which may be traced.
    traced = jax.jit(lambda s: grid_features((2, 3, 2), s[:3], depth, s[3:]))
    np.testing.assert_allclose(traced(jnp.array([1.0, 2, 4, 10, 0.5])), found, rtol=1e-6)


@pytest.mark.parametrize("sigma", [0, 0.0, -1.0, np.nan, np.inf])
def test_bandwidths_are_above_zero(sigma):
    image = np.zeros((2, 2, 3), np.float32)
    with pytest.raises(ValueError, match=f"^sigmas is {sigma}, expected a number above zero"):
        bilateral_features(image, sigma, 1.0)
    with pytest.raises(ValueError, match=f"channel_sigmas is {sigma}, expected"):
        bilateral_features(image, 1.0, sigma)


def test_a_bandwidth_for_each_axis():
    with pytest.raises(ValueError, match="sigmas: 1 bandwidths, expected 2"):
        grid_features((2, 2), (1.0,))
    with pytest.raises(ValueError, match="channel_sigmas: 2 bandwidths, expected 3"):
        grid_features((2, 2), (1.0, 1.0), np.zeros((2, 2, 3), np.float32), (1.0, 2.0))


def test_precision_of_the_image_is_kept():
    image = np.random.default_rng(0).random((2, 3, 1))
    # bfloat16 has too few digits for coordinates.
    assert bilateral_features(image.astype(jnp.bfloat16), 2.0, 3.0).dtype == jnp.float32
    with jax.enable_x64(True):
        found = bilateral_features(image, 2.0, 3.0)
        assert bilateral_features(image.astype(np.float32), 2.0, 3.0).dtype == jnp.float32
        assert grid_features((2, 3), (0.3, 0.3)).dtype == jnp.float64
    assert found.dtype == np.float64
    np.testing.assert_allclose(found[:, 2], image.ravel() / 3, rtol=1e-15)
