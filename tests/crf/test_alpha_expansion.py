"""α-expansion: beside all labellings, and beside mean field."""

from itertools import product

import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.crf.alpha_expansion import alpha_expansion, least
from jaxseg.crf.grid import apply, edge_weights, energy, grid_crf

WEIGHTS = np.array([0.5, 1.0, 2.0], np.float32)
DISTANCE = np.array([[0.0, 1, 1.5], [1, 0, 1], [1.5, 1, 0]], np.float32)  # a metric


def example(*shape, labels=2, seed=0, neighbours=8, weight=0.8):
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((*shape, labels)).astype(np.float32)
    image = rng.random((*shape, 3), np.float32)
    return logits, image, np.asarray(edge_weights(image, neighbours, weight=weight))


def least_energy(logits, weights, costs):
    """Of all labellings, from the definition."""
    labels = logits.shape[-1]
    logits = logits.reshape(-1, labels)
    points = np.arange(len(logits))
    K = np.asarray(apply(weights, jnp.eye(len(logits))))
    every = np.array(list(product(range(labels), repeat=len(logits))))
    joint = (K * costs[every[:, :, None], every[:, None, :]]).sum((1, 2)) / 2
    return (joint - logits[points, every].sum(1)).min()


POTTS = 1 - np.eye(3)


@pytest.mark.parametrize(("shape", "neighbours"), [((3, 3), 4), ((3, 3), 8), ((2, 2, 2), 26)])
@pytest.mark.parametrize(
    ("compatibility", "costs"),
    [(1.5, 1.5 * POTTS), (WEIGHTS[:2], -np.diag(WEIGHTS)), (DISTANCE[:2, :2], DISTANCE)],
)
def test_two_labels_reach_the_optimum(shape, neighbours, compatibility, costs):
    for seed in range(5):
        logits, _, weights = example(*shape, seed=seed, neighbours=neighbours)
        expected = least_energy(logits, weights, costs)
        for start in None, np.zeros(shape, np.int32), np.ones(shape, np.int32):
            labels, energies = alpha_expansion(logits, weights, compatibility, start=start)
            np.testing.assert_allclose(energies[-1], expected, atol=1e-5)
        found = energy(labels, logits, weights, compatibility)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_move_is_the_best_of_all():
    rng = np.random.default_rng(0)
    i, j = np.triu_indices(6, 1)
    every = np.array(list(product([0, 1], repeat=6)))
    for _ in range(20):
        take, excess = rng.standard_normal(6), rng.random(15) * rng.integers(0, 2, 15)
        values = every @ take + ((1 - every[:, i]) * every[:, j]) @ excess
        found = least(take, i, j, excess)
        np.testing.assert_array_equal(found, every[values.argmin()])


@pytest.mark.parametrize("compatibility", [1.0, WEIGHTS, DISTANCE])
@pytest.mark.parametrize("neighbours", [4, 8])
def test_more_labels(compatibility, neighbours):
    for seed in range(3):
        logits, image, weights = example(8, 9, labels=3, seed=seed, neighbours=neighbours)
        labels, energies = alpha_expansion(logits, weights, compatibility)
        assert (np.diff(energies) < 0).all()
        assert len(energies) > 1
        start = energy(logits.argmax(-1), logits, weights, compatibility)
        np.testing.assert_allclose(energies[0], start, rtol=1e-5)
        last = energy(labels, logits, weights, compatibility)
        np.testing.assert_allclose(energies[-1], last, rtol=1e-5)
        options = dict(neighbours=neighbours, weight=0.8, compatibility=compatibility)
        by_mean_field = grid_crf(logits, image, **options).argmax(-1)
        assert last <= energy(by_mean_field, logits, weights, compatibility)
        # Where no move helps, it ends at once.
        again, energies = alpha_expansion(logits, weights, compatibility, start=labels)
        np.testing.assert_array_equal(again, labels)
        assert len(energies) == 1


def test_at_most_twice_the_optimum():
    for seed in range(5):
        logits, _, weights = example(2, 3, labels=3, seed=seed)
        logits = -np.abs(logits)  # no energy is below zero
        bound = 2 * least_energy(logits, weights, POTTS)
        assert 0 < alpha_expansion(logits, weights)[1][-1] <= bound


def test_one_pixel_takes_its_likeliest_label():
    logits, _, weights = example(1, 1, labels=4)
    labels, energies = alpha_expansion(logits, weights, start=np.zeros((1, 1), np.int32))
    assert labels[0, 0] == logits.argmax()
    np.testing.assert_allclose(energies, [-logits[0, 0, 0], -logits.max()])


def test_one_colour_and_strong_edges_give_one_label():
    logits, _, _ = example(4, 5, labels=3)
    weights = edge_weights(np.ones((4, 5, 3), np.float32), weight=100.0)
    labels, energies = alpha_expansion(logits, weights)
    assert (labels == logits.sum((0, 1)).argmax()).all()
    np.testing.assert_allclose(energies[-1], -logits.sum((0, 1)).max(), rtol=1e-6)


def test_labels_that_are_certain_stay():
    logits, _, weights = example(4, 5, weight=0.2)
    certain = np.zeros((4, 5), bool)
    certain[1, 1:4] = True
    logits[certain] = [-1e12, 0]
    labels, _ = alpha_expansion(logits, weights)
    assert (labels[certain] == 1).all()
    # The other capacities are not rounded away beside theirs.
    milder = np.where(certain[..., None], np.array([-1e3, 0], np.float32), logits)
    np.testing.assert_array_equal(labels, alpha_expansion(milder, weights)[0])
    assert len(np.unique(labels)) == 2
    assert (labels != logits.argmax(-1)).any()


def test_where_labels_are_alike_nothing_moves():
    labels, energies = alpha_expansion(
        np.zeros((3, 3, 2), np.float32), np.zeros((2, 3, 3), np.float32)
    )
    assert not labels.any()
    np.testing.assert_array_equal(energies, [0])


def test_no_metric():
    logits, _, weights = example(2, 3, labels=3)
    squares = np.array([[0.0, 1, 4], [1, 0, 1], [4, 1, 0]], np.float32)
    with pytest.raises(ValueError, match=r"no metric: with labels 1, 0, 2, .* is 4, above .* 2$"):
        alpha_expansion(logits, weights, squares)
    with pytest.raises(ValueError, match="no metric"):
        alpha_expansion(logits, weights, -WEIGHTS)
    alpha_expansion(logits, weights, np.minimum(squares, 2))  # truncated it is one


def test_errors():
    logits, _, weights = example(2, 3)
    with pytest.raises(ValueError, match=r"logits are \(3, 2, 2\), expected \(2, 3, 'K'\)"):
        alpha_expansion(logits.transpose(1, 0, 2), weights)
    with pytest.raises(ValueError, match=r"compatibility is \(3,\), expected \(\), \(2,\) or"):
        alpha_expansion(logits, weights, WEIGHTS)
    with pytest.raises(ValueError, match=r"labels are \(3, 2\), expected \(2, 3\)"):
        alpha_expansion(logits, weights, start=np.zeros((3, 2), np.int32))
    with pytest.raises(ValueError, match="labels: some are not among 0 … 1"):
        alpha_expansion(logits, weights, start=np.full((2, 3), 2, np.int32))
    with pytest.raises(ValueError, match="logits: some are NaN or infinite"):
        alpha_expansion(np.full_like(logits, np.nan), weights)
    with pytest.raises(ValueError, match="compatibility: some are NaN or infinite"):
        alpha_expansion(logits, weights, np.nan)
    with pytest.raises(ValueError, match="weights: some are not finite, or below zero"):
        alpha_expansion(logits, -weights)
    with pytest.raises(ValueError, match="neighbours is 6, expected 4 or 8 in 2-D"):
        alpha_expansion(logits, weights[:3])
