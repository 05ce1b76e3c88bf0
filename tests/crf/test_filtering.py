"""Normalisation against matrices, and what holds for every backend."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import slow_but
from crf_references import NORMALIZATIONS

from jaxseg.crf import filtering
from jaxseg.crf.filtering import normalized

BACKENDS = {"permutohedral": {}, "nystrom": {"landmarks": 20}, "exact": {}}
RNG = np.random.default_rng(0)


def random(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


@pytest.mark.parametrize("self_message", [True, False])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_normalized(normalization, self_message):
    features, values = random(12, 2), random(12, 3)
    kernel = np.exp(
        -((np.subtract.outer(features, features)[:, [0, 1], :, [0, 1]]) ** 2).sum(0) / 2
    )
    d = kernel.sum(1)
    expected = {
        "none": kernel,
        "before": kernel / d[None, :],
        "after": kernel / d[:, None],
        "symmetric": kernel / np.sqrt(np.outer(d, d)),
    }[normalization]
    expected = expected if self_message else expected - np.diag(np.diag(expected))
    found = normalized(
        filtering.gaussian(features, "exact"), 12, normalization, self_message=self_message
    )
    np.testing.assert_allclose(found(values), expected @ values, rtol=1e-5, atol=1e-6)


def test_unknown_names():
    with pytest.raises(ValueError, match="backend is 'lattice', expected one of permutohedral"):
        filtering.gaussian(jnp.zeros((2, 1)), "lattice")
    with pytest.raises(ValueError, match="normalization is 'both', expected one of none, before"):
        normalized(lambda v: v, 2, "both")


def test_rows_that_sum_to_less_than_a_kernel_can():
    """Approximations might; then weights stay finite and not negative. What is NaN stays so."""
    row_sums = jnp.array([[4.0], [-2.0], [0.0], [jnp.nan]])
    found = normalized(lambda v: row_sums * v, 4, "after")(jnp.ones((4, 1)))
    np.testing.assert_allclose(found, [[1], [-5], [0], [np.nan]], rtol=1e-6)


@pytest.mark.parametrize(
    ("d", "normalization"),
    slow_but(2, [(2, "none"), (6, "symmetric"), (4, "before"), (3, "none"), (5, "none")]),
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_adjoint(backend, d, normalization):
    """⟨K v, u⟩ = ⟨v, Kᵀ u⟩, the latter by the gradient of the filter."""
    features, v, u = random(60, d), random(60, 2), random(60, 2)

    @jax.jit
    def both(features, v, u):
        filter = filtering.gaussian(features, backend, **BACKENDS[backend])
        filtered, pull = jax.vjp(normalized(filter, 60, normalization), v)
        return filtered, *pull(u)

    filtered, adjoint = both(features, v, u)
    scale = np.linalg.norm(filtered) * np.linalg.norm(u)
    assert abs((filtered * u).sum() - (v * adjoint).sum()) < 1e-6 * scale
    assert np.linalg.norm(filtered) > 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_batches(backend):
    """Traced or not, one by one or at once: the same."""
    features, values = random(3, 40, 3), random(3, 40, 2)

    def filtered(features, values):
        return filtering.gaussian(features, backend, **BACKENDS[backend])(values)

    eager = [filtered(f, v) for f, v in zip(features, values, strict=True)]
    np.testing.assert_allclose(jax.jit(filtered)(features[0], values[0]), eager[0], rtol=1e-5)
    together = jax.jit(jax.vmap(filtered))(features, values)
    np.testing.assert_allclose(together, eager, rtol=1e-4, atol=1e-5)
    in_turn = jax.lax.map(lambda both: filtered(*both), (features, values))
    np.testing.assert_allclose(in_turn, eager, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_point_and_points_that_are_the_same(backend):
    one = filtering.gaussian(random(1, 5), backend)(jnp.array([[2.0, -3.0]]))
    assert 0.4 < one[0, 0] / 2 < 1.1
    np.testing.assert_allclose(one[0, 1], -1.5 * one[0, 0], rtol=1e-5)
    same = jnp.tile(random(1, 3), (50, 1))
    filter = filtering.gaussian(same, backend, **BACKENDS[backend])
    values = random(50, 2)
    found = normalized(filter, 50)(values)
    expected = np.broadcast_to(values.mean(0), (50, 2))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
