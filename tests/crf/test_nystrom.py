"""Nyström's approximation against the exact filter."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from crf_references import PHOTOS, agreement, load, photo, total_variation

from jaxseg.crf import exact, nystrom, spatial
from jaxseg.crf.energies import bilateral_features
from jaxseg.crf.filtering import normalized
from jaxseg.crf.mean_field import Pairwise, mean_field

RNG = np.random.default_rng(0)


def random(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def error(features, values, landmarks):
    expected = exact.gaussian(features)(values)
    found = nystrom.gaussian(features, landmarks)(values)
    return float(jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected))


def test_no_more_points_than_landmarks_is_exact():
    assert error(random(30, 3), random(30, 2), 30) == 0


@pytest.mark.parametrize(("d", "tolerance"), [(1, 1e-4), (2, 1e-3), (3, 0.01), (5, 0.1), (8, 0.25)])
def test_more_landmarks_are_more_exact(d, tolerance):
    features, values = random(400, d), random(400, 3)
    few, many = error(features, values, 20), error(features, values, 200)
    print(d, few, many)
    assert many < min(tolerance, 0.6 * few)


def test_kernel_is_symmetric_with_diagonal_1():
    features = 2 * random(80, 3)
    kernel = nystrom.gaussian(features, 10)(jnp.eye(80))
    np.testing.assert_allclose(kernel, kernel.T, atol=1e-6)
    np.testing.assert_allclose(jnp.diag(kernel), 1, atol=1e-5)
    assert np.linalg.eigvalsh(kernel).min() > -1e-5
    # Far from all others and from the landmarks, a point hears itself.
    far = features.copy()
    far[7] = 100
    np.testing.assert_allclose(nystrom.gaussian(far, 10)(jnp.eye(80))[7], np.eye(80)[7], atol=1e-5)


def test_landmarks_the_same():
    """Few different points, of which there are many: W is singular."""
    features = np.repeat(random(5, 3), 40, axis=0)
    assert error(features, random(200, 2), 100) < 1e-4
    slope = jax.grad(lambda f: (nystrom.gaussian(f, 100)(jnp.ones((200, 1))) ** 2).sum())
    assert np.isfinite(slope(features)).all()


def test_gradients_are_those_of_the_exact_filter():
    """To colours and to bandwidths, of a smooth picture with an edge."""
    y, x = np.indices((16, 20), np.float32)
    image = np.stack([5 * y, 6 * x, 100 + 60 * (y > 9)], axis=-1) + 5 * random(16, 20, 3)
    v = np.stack([x.ravel() / 20, y.ravel() > 9], axis=1).astype(np.float32)
    u = random(320, 2)

    def gradient(backend):
        def total(image, sigma, colour_sigma):
            filter = backend(bilateral_features(image, sigma, colour_sigma))
            return (u * normalized(filter, 320)(v)).sum()

        of = jax.jit(jax.grad(total, (0, 1, 2)))
        return of(image, jnp.float32(8.0), jnp.float32(60.0))

    found = gradient(partial(nystrom.gaussian, landmarks=100))
    for a, b in zip(found, gradient(exact.gaussian), strict=True):
        error = np.linalg.norm(a - b) / np.linalg.norm(b)
        print(error)
        assert error < 0.01


def test_double_precision_reaches_further():
    features, values = RNG.normal(size=(150, 2)), RNG.normal(size=(150, 2))
    with jax.enable_x64(True):
        features, values = jnp.asarray(features), jnp.asarray(values)
        assert nystrom.gaussian(features, 100)(values).dtype == jnp.float64
        assert error(features, values, 100) < 1e-5


def test_no_landmarks():
    with pytest.raises(ValueError, match="landmarks is 0, expected 1 or more"):
        nystrom.gaussian(random(3, 2), 0)


@pytest.mark.slow
def test_photographs(fixtures):
    """10 iterations against exact marginals."""
    reference = load(fixtures, "exact_photos")

    @jax.jit
    def infer(image, logits, sigma, colour_sigma):
        points = len(logits)
        near = normalized(spatial.gaussian(image.shape[:2], (3.0, 3.0)), points)
        alike = nystrom.gaussian(bilateral_features(image, sigma, colour_sigma))
        terms = [Pairwise(near, 3.0), Pairwise(normalized(alike, points), 10.0)]
        return jax.nn.softmax(mean_field(logits, terms, 10))

    same, variations = [], []
    for name in PHOTOS:
        marginals = np.asarray(infer(*photo(fixtures, name)))
        same.append(agreement(marginals, reference, f"{name}_it10"))
        variations.append(total_variation(marginals, reference, f"{name}_it10"))
    print(same, variations)
    assert max(variations) < 0.008
    assert np.mean(variations) < 0.005
    assert np.mean(same) > 0.994
