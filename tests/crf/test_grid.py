"""The CRF on a pixel grid: weights and energies by hand, the filter as a matrix, mean field."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxseg.crf.grid import apply, edge_weights, energy, grid_crf, kernel, offsets, opposite

PICTURE = np.array([[[0.0], [1], [1]], [[0], [2], [4]]], np.float32)  # 2×3, one channel
GRIDS = [((5,), 2), ((3, 4), 4), ((3, 4), 8), ((4, 1), 8), ((1, 4), 8)]
GRIDS += [((2, 3, 2), 6), ((2, 3, 2), 18), ((2, 3, 2), 26), ((2, 1, 3), 26)]


def example(*shape, labels=3, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((*shape, labels)).astype(np.float32)
    return logits, rng.random((*shape, 2), np.float32)


def matrix(image, neighbours, weight, beta):
    """K [N N] by its definition: a double loop over places."""
    shape = image.shape[:-1]
    reach = {2: 1, 4: 1, 6: 1, 8: 2, 18: 2, 26: 3}[neighbours]
    places = list(np.ndindex(shape))
    K = np.zeros((len(places), len(places)))
    for (a, i), (b, j) in product(enumerate(places), repeat=2):
        steps = np.subtract(i, j)
        if abs(steps).max() == 1 and abs(steps).sum() <= reach:
            difference = image[i].astype(float) - image[j]
            near = weight / np.linalg.norm(steps)
            K[a, b] = near * np.exp(-beta * (difference**2).sum())
    return K


def marginals_by_enumeration(logits, weights, costs):
    """P(x_i = k), from the energies of all labellings."""
    labels = logits.shape[-1]
    logits = logits.reshape(-1, labels)
    points = np.arange(len(logits))
    K = np.asarray(apply(weights, jnp.eye(len(logits))))
    every = np.array(list(product(range(labels), repeat=len(logits))))
    joint = (K * costs[every[:, :, None], every[:, None, :]]).sum((1, 2)) / 2
    p = np.exp(logits[points, every].sum(1) - joint)
    one_hot = every[..., None] == np.arange(labels)
    return np.einsum("s,snk->nk", p / p.sum(), one_hot)


def test_neighbour_weights_by_hand():
    # Squared differences across: 1 0 | 4 4; down: 0 1 9. Their mean is 19 / 7.
    beta = 7 / 38
    across = [[1, 0, np.inf], [4, 4, np.inf]]
    down = [[0, 1, 9], [np.inf] * 3]
    expected = 2 * np.exp(-beta * np.array([across, down]))
    found = edge_weights(PICTURE, 4, weight=2.0)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_diagonal_weights_by_hand():
    # With 1 and 1 to the lower left, and 4 and 9 to the lower right, the mean is 34 / 11.
    beta = 11 / 68
    left = np.exp(-beta * np.array([[np.inf, 1, 1], [np.inf] * 3])) / np.sqrt(2)
    right = np.exp(-beta * np.array([[4, 9, np.inf], [np.inf] * 3])) / np.sqrt(2)
    found = edge_weights(PICTURE, 8)
    assert offsets(2, 8) == [(0, 1), (1, -1), (1, 0), (1, 1)]
    np.testing.assert_allclose(found[1], left, rtol=1e-6)
    np.testing.assert_allclose(found[3], right, rtol=1e-6)
    np.testing.assert_allclose(found[0, 1, 0], np.exp(-beta * 4), rtol=1e-6)


def test_contrast_is_free_of_the_unit_of_colours():
    image = (255 * example(4, 5)[1]).astype(np.uint8)
    a, b = edge_weights(image), edge_weights(image / np.float32(255))
    np.testing.assert_allclose(a, b, rtol=1e-5)


def test_without_contrast_it_is_plain_potts():
    found = edge_weights(example(3, 4)[1], 8, weight=3.0, beta=0.0)
    np.testing.assert_allclose(found[0, :, :3], 3.0)
    np.testing.assert_allclose(found[1, :2, 1:], 3 / np.sqrt(2), rtol=1e-6)
    assert not found[0, :, 3].any()
    assert not found[1, 2].any()


@pytest.mark.parametrize("image", [np.full((2, 3, 3), 0.7, np.float32), np.ones((1, 1, 3))])
def test_pictures_without_contrast(image):
    image = image.astype(np.float32)
    logits = example(*image.shape[:2])[0]
    np.testing.assert_array_equal(edge_weights(image), edge_weights(image, beta=0.0))
    by_image = jax.jit(jax.grad(lambda image: grid_crf(logits, image)[0, 0, 0]))(image)
    assert np.isfinite(by_image).all()


@pytest.mark.parametrize(("shape", "neighbours"), GRIDS)
def test_filter_is_a_symmetric_matrix(shape, neighbours):
    values, image = example(*shape)
    weights = edge_weights(image, neighbours, weight=1.5, beta=2.0)
    K = matrix(image, neighbours, 1.5, 2.0)
    values = values.reshape(-1, 3)
    np.testing.assert_allclose(kernel(weights)(values), K @ values, rtol=1e-5, atol=1e-6)
    found = np.asarray(apply(weights, jnp.eye(len(K))))
    np.testing.assert_allclose(found, K, rtol=1e-6)
    np.testing.assert_array_equal(found, found.T)


def test_neighbours_of_a_place_inside():
    for dimensions, neighbours in (1, 2), (2, 4), (2, 8), (3, 6), (3, 18), (3, 26):
        half = offsets(dimensions, neighbours)
        assert len({*half, *(opposite(o) for o in half)}) == neighbours
        assert max(np.abs(o).max() for o in half) == 1


def test_gradients():
    logits, image = example(3, 4)
    towards = example(3, 4, seed=1)[0]

    @jax.jit
    def loss(logits, image, weight, beta, compatibility):
        options = dict(neighbours=4, iterations=2)
        options |= dict(weight=weight, beta=beta, compatibility=compatibility)
        return (towards * jax.nn.softmax(grid_crf(logits, image, **options))).sum()

    numbers = jnp.array(0.4), jnp.array(1.5), 0.5 * (1 - jnp.eye(3))
    check_grads(loss, (logits, image, *numbers), 1, ["rev"], rtol=0.02, eps=1e-2)
    through_beta = partial(loss, logits, weight=0.4, beta=None, compatibility=1.0)
    check_grads(through_beta, (image,), 1, ["rev"], rtol=0.02, eps=1e-2)


def test_jit_is_eager_and_a_batch_its_pictures():
    logits, image = example(2, 4, 5)
    once = np.stack([grid_crf(*pair) for pair in zip(logits, image, strict=True)])
    np.testing.assert_allclose(jax.jit(jax.vmap(grid_crf))(logits, image), once, atol=1e-5)


@pytest.mark.parametrize("compatibility", [0.7, np.array([0.2, 0.5, 0.9], np.float32)])
def test_compatibilities_as_matrices(compatibility):
    logits, image = example(3, 4)
    weighed = np.ndim(compatibility) == 1
    as_matrix = -np.diag(compatibility) if weighed else compatibility * (1 - np.eye(3))
    as_matrix = as_matrix.astype(np.float32)
    a, b = (
        jax.nn.softmax(grid_crf(logits, image, compatibility=c)) for c in (compatibility, as_matrix)
    )
    np.testing.assert_allclose(a, b, atol=1e-5)
    labels, weights = logits.argmax(-1), edge_weights(image)
    a, b = (energy(labels, logits, weights, c) for c in (compatibility, as_matrix))
    np.testing.assert_allclose(a, b, rtol=1e-5)


def test_mean_field_of_pixels_alone_is_exact():
    logits, image = example(1, 1)
    np.testing.assert_allclose(grid_crf(logits, image, weight=5.0), logits, rtol=1e-6)
    logits, image = example(2, 3)
    found = jax.nn.softmax(grid_crf(logits, image, weight=0.0))
    weights = edge_weights(image, weight=0.0)
    exact = marginals_by_enumeration(logits, weights, 1 - np.eye(3))
    np.testing.assert_allclose(found.reshape(6, 3), exact, atol=1e-6)


@pytest.mark.parametrize(
    "costs", [1 - np.eye(3), -np.diag([0.5, 1, 2]), np.array([[0, 1, 2], [0.5, 0, 1], [3, 0, 0]])]
)
def test_mean_field_is_exact_to_first_order_of_the_weight(costs):
    logits, image = example(2, 2)

    def error(weight):
        options = dict(weight=weight, beta=1.0)
        exact = marginals_by_enumeration(logits, edge_weights(image, **options), costs)
        options |= dict(compatibility=costs.astype(np.float32))
        found = jax.nn.softmax(grid_crf(logits, image, **options))
        return np.abs(exact - found.reshape(4, 3)).max()

    assert 1e-5 < error(0.1) < 0.3 * error(0.2) < 0.02


def test_energy_by_hand():
    logits = np.zeros((2, 3, 2), np.float32)
    logits[0, 0] = 1, 2
    logits[1, 2] = 4, 8
    weights = np.zeros((2, 2, 3), np.float32)  # four neighbours
    weights[0] = [[1, 2, 0], [3, 4, 0]]
    weights[1, 0] = [10, 20, 30]
    labels = np.array([[0, 1, 1], [0, 0, 1]], np.int32)
    # Unary −1 − 8; cut are 1 in the first row, 4 in the second, and the middle column's 20.
    assert energy(labels, logits, weights) == -9 + 25
    assert energy(labels, logits, weights, 2.0) == -9 + 50
    # Alike are, as 0, the left column's 10 and 3; as 1, 2 and 30.
    gains = np.array([0.5, 0.25], np.float32)
    assert energy(labels, logits, weights, gains) == -9 - 0.5 * 13 - 0.25 * 32
    # Of a matrix that is not symmetric each order counts by half.
    costs = np.array([[0.0, 1], [3, 0]], np.float32)
    assert energy(labels, logits, weights, costs) == -9 + 2 * 25


def test_smooths_within_regions_and_not_across():
    rng = np.random.default_rng(0)
    truth = (np.arange(12)[:, None] + np.arange(16)[None] > 13).astype(np.int32)
    image = (truth[..., None] + 0.1 * rng.standard_normal((12, 16, 3))).astype(np.float32)
    logits = (np.eye(2)[truth] + rng.standard_normal((12, 16, 2))).astype(np.float32)

    def right(logits):
        return (np.asarray(logits).argmax(-1) == truth).mean()

    assert right(logits) < 0.8
    assert right(grid_crf(logits, image, weight=2.0)) > 0.98
    assert right(grid_crf(logits, image, weight=2.0)) > right(grid_crf(logits, image, beta=0.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(neighbours=5), "neighbours is 5, expected 4 or 8 in 2-D"),
        (dict(weight=-1.0), "weight is -1.0"),
        (dict(weight=np.ones(3, np.float32)), "weight is"),
        (dict(beta=np.inf), "beta is inf"),
        (dict(image=np.zeros((3, 3, 1), np.float32)), r"logits are \(2, 3, 3\), expected \(3, 3"),
        (dict(image=np.zeros(3, np.float32)), r"image is \(3,\)"),
        (dict(image=np.full((2, 3, 1), np.nan, np.float32)), "image: some colours are NaN"),
        (dict(compatibility=np.ones(2, np.float32)), r"compatibility is \(2,\), expected"),
        (dict(iterations=0), "iterations is 0"),
        (dict(logits=np.full((2, 3, 3), np.nan, np.float32)), "logits: some are NaN or infinite"),
    ],
)
def test_errors(change, message):
    logits, image = example(2, 3)
    with pytest.raises(ValueError, match=message):
        grid_crf(**dict(logits=logits, image=image) | change)


def test_errors_of_labels():
    logits, image = example(2, 3)
    weights = edge_weights(image)
    with pytest.raises(ValueError, match=r"labels are \(3, 2\), expected \(2, 3\)"):
        energy(np.zeros((3, 2), np.int32), logits, weights)
    with pytest.raises(ValueError, match="labels: some are not among 0 … 2"):
        energy(np.full((2, 3), 3, np.int32), logits, weights)
