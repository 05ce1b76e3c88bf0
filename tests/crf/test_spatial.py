"""The filter of a grid against its matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.crf import spatial
from jaxseg.crf.energies import grid_features

RNG = np.random.default_rng(0)
# The last two are long enough for shifts, and for several blocks.
GRIDS = [((7,), (2.0,)), ((6, 5), (1.0, 2.5)), ((3, 4, 5), (0.7, 1.0, 2.0))]
GRIDS += [((3, 70), (2.0, 1.5)), ((150, 3), (2.5, 1.0))]


def matrix(size, sigmas):
    places = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1).reshape(-1, len(size))
    scaled = places / np.array(sigmas)
    return np.exp(-0.5 * ((scaled[:, None] - scaled[None]) ** 2).sum(-1))


@pytest.mark.parametrize(("size", "sigmas"), GRIDS, ids=str)
def test_against_the_matrix(size, sigmas):
    values = RNG.normal(size=(np.prod(size), 3)).astype(np.float32)
    expected = matrix(size, sigmas) @ values
    fixed = jax.jit(spatial.gaussian(size, sigmas))(values)
    np.testing.assert_allclose(fixed, expected, rtol=1e-5, atol=1e-5)
    traced = jax.jit(lambda sigmas, values: spatial.gaussian(size, sigmas)(values))
    np.testing.assert_allclose(traced(sigmas, values), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("size", "sigmas"), GRIDS[1:3], ids=str)
def test_gradients(size, sigmas):
    v, u = RNG.normal(size=(2, np.prod(size), 2)).astype(np.float32)

    def product(sigmas, v):
        return (u * spatial.gaussian(size, sigmas)(v)).sum()

    def by_matrix(sigmas, v):
        scaled = grid_features(size, sigmas)
        kernel = jnp.exp(-0.5 * ((scaled[:, None] - scaled[None]) ** 2).sum(-1))
        return (u * jnp.matmul(kernel, v, precision="highest")).sum()

    traced = tuple(map(jnp.float32, sigmas))
    found = jax.jit(jax.grad(product, (0, 1)))(traced, v)
    expected = jax.jit(jax.grad(by_matrix, (0, 1)))(traced, v)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-4)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5, atol=1e-5)
    fixed = jax.grad(lambda v: product(sigmas, v))(v)
    np.testing.assert_allclose(fixed, expected[1], rtol=1e-5, atol=1e-5)


def test_batches():
    values = RNG.normal(size=(2, 20, 3)).astype(np.float32)
    filter = spatial.gaussian((4, 5), (1.0, 2.0))
    expected = np.einsum("ij,bjk->bik", matrix((4, 5), (1.0, 2.0)), values)
    np.testing.assert_allclose(jax.vmap(filter)(values), expected, rtol=1e-5, atol=1e-5)
    slope = jax.vmap(jax.grad(lambda v: (filter(v) ** 2).sum()))(values)
    again = 2 * np.einsum("ij,bjk->bik", matrix((4, 5), (1.0, 2.0)), expected)
    np.testing.assert_allclose(slope, again, rtol=1e-5, atol=1e-4)


def test_double_precision():
    """What is cut off is less than the rounding of the values."""
    values = RNG.normal(size=(100, 1))
    with jax.enable_x64(True):
        found = spatial.gaussian((100,), (2.0,))(jnp.asarray(values))
    np.testing.assert_allclose(found, matrix((100,), (2.0,)) @ values, atol=1e-14)


@pytest.mark.parametrize("sigma", [0.0, -1.0, np.nan])
def test_bandwidths_are_above_zero(sigma):
    with pytest.raises(ValueError, match=f"sigmas is {sigma}, expected a number above zero"):
        spatial.gaussian((3, 3), (1.0, sigma))


def test_sizes_fit():
    with pytest.raises(ValueError, match="sigmas: 1 bandwidths, expected 2"):
        spatial.gaussian((3, 3), (1.0,))
    with pytest.raises(ValueError, match=r"values of 12 points, expected those of a grid \(3, 3\)"):
        spatial.gaussian((3, 3), (1.0, 1.0))(jnp.zeros((12, 3)))
