"""Free energies against sums over all labellings of a small graph."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.crf.free_energy import expected_energy, free_energy, watched_mean_field
from jaxseg.crf.mean_field import Pairwise, mean_field

POINTS, LABELS = 4, 3
RNG = np.random.default_rng(0)


def graph():
    """Kernels without a diagonal, the costs [K K] of labels, logits; and all that as terms."""
    kernels = RNG.random((2, POINTS, POINTS))
    kernels = (kernels + kernels.swapaxes(1, 2)) * (1 - np.eye(POINTS))
    matrix = RNG.normal(size=(LABELS, LABELS))
    costs = [matrix + matrix.T, 0.8 * (1 - np.eye(LABELS))]
    filters = [partial(jnp.matmul, kernel.astype(np.float32)) for kernel in kernels]
    terms = [Pairwise(filters[0], jnp.asarray(costs[0], jnp.float32)), Pairwise(filters[1], 0.8)]
    logits = RNG.normal(size=(POINTS, LABELS)).astype(np.float32)
    # Potts' model as μ = −w for labels alike, rather than w for others.
    shift = 0.5 * 0.8 * kernels[1].sum()
    return kernels, costs, logits, terms, shift


def enumerated(kernels, costs, logits, shift):
    """Every labelling [X N], and its energy [X]."""
    labellings = np.array(list(product(range(LABELS), repeat=POINTS)))
    energies = []
    for x in labellings:
        energy = -sum(logits[i, x[i]] for i in range(POINTS)) - shift
        for i, j in product(range(POINTS), repeat=2):
            energy += sum(
                0.5 * k[i, j] * c[x[i], x[j]] for k, c in zip(kernels, costs, strict=True)
            )
        energies.append(energy)
    return labellings, np.array(energies)


def test_against_all_labellings():
    kernels, costs, logits, terms, shift = graph()
    labellings, energies = enumerated(kernels, costs, logits, shift)
    log_z = np.log(np.exp(-energies).sum())
    p = np.exp(-energies - log_z)
    q_logits = RNG.normal(size=(POINTS, LABELS)).astype(np.float32)
    marginals = np.asarray(jax.nn.softmax(q_logits))
    q = np.array([np.prod(marginals[np.arange(POINTS), x]) for x in labellings])
    found = expected_energy(marginals, logits, terms)
    np.testing.assert_allclose(found, (q * energies).sum(), rtol=1e-5)
    found = free_energy(q_logits, logits, terms) + log_z
    np.testing.assert_allclose(found, (q * np.log(q / p)).sum(), rtol=1e-5)


def test_energy_of_a_labelling():
    kernels, costs, logits, terms, shift = graph()
    labellings, energies = enumerated(kernels, costs, logits, shift)
    hot = jax.nn.one_hot(labellings, LABELS)
    found = jax.vmap(lambda q: expected_energy(q, logits, terms))(hot)
    np.testing.assert_allclose(found, energies, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_iterations_are_watched(damping):
    kernels, costs, logits, terms, shift = graph()
    found, energies = jax.jit(lambda z: watched_mean_field(z, terms, 30, damping=damping))(logits)
    expected = mean_field(logits, terms, 30, damping=damping)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    for t in (1, 4):
        after = mean_field(logits, terms, t, damping=damping)
        np.testing.assert_allclose(energies[t], free_energy(after, logits, terms), rtol=1e-4)
    np.testing.assert_allclose(energies[0], free_energy(logits, logits, terms), rtol=1e-5)
    assert energies.shape == (31,)
    assert energies[-1] < energies[0] - 0.01
    _, all_energies = enumerated(kernels, costs, logits, shift)
    assert energies.min() > -np.log(np.exp(-all_energies).sum())


def test_where_it_settles_the_free_energy_has_no_slope():
    _, _, logits, terms, _ = graph()
    settled, energies = watched_mean_field(logits, terms, 200, damping=0.5)
    slope = jax.grad(free_energy)(settled, jnp.asarray(logits), terms)
    np.testing.assert_allclose(slope, 0, atol=1e-5)
    before = jax.grad(free_energy)(jnp.asarray(logits), jnp.asarray(logits), terms)
    assert np.abs(before).max() > 0.01
    assert (np.diff(energies) < 1e-5).all()
