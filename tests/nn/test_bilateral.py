import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxseg.crf import exact
from jaxseg.nn.bilateral import BilateralConv, MeanFieldSteps, lattices


def points(batch: int, n: int, d: int) -> jax.Array:
    return jax.random.uniform(jax.random.key(0), (batch, n, d), maxval=3.0)


@pytest.mark.parametrize(("size", "error"), [(1, 0.02), (2, 0.015)])
def test_layer_at_first_is_the_gaussian_mean(size, error):
    features, x = points(2, 150, 2), jax.random.uniform(jax.random.key(1), (2, 100, 3))
    layer = BilateralConv(3, size, depthwise=True)
    found, variables = layer.init_with_output(jax.random.key(2), x, lattices(features, size))
    assert found.shape == (2, 150, 3)
    assert variables["params"]["kernel"].shape == (7 if size == 1 else 19, 3)
    for i in range(2):
        known = exact.gaussian(features[i])
        padded = jnp.pad(jnp.concatenate([x[i], jnp.ones((100, 1))], 1), ((0, 50), (0, 0)))
        sums = known(padded)
        truth = sums[:, :3] / sums[:, 3:]
        assert jnp.linalg.norm(found[i] - truth) < error * jnp.linalg.norm(truth)


def test_layer_at_first_is_a_1x1_convolution_of_the_gaussian_mean():
    x, lattice = jax.random.normal(jax.random.key(1), (2, 60, 3)), lattices(points(2, 60, 2))
    layer = BilateralConv(5)
    found, variables = layer.init_with_output(jax.random.key(2), x, lattice)
    kernel = variables["params"]["kernel"]
    mean = BilateralConv(3, depthwise=True)
    means, _ = mean.init_with_output(jax.random.key(2), x, lattice)
    mixing = kernel[3] / jnp.abs(kernel[3]).max()
    ratio = (means @ mixing) / found
    np.testing.assert_allclose(ratio, ratio[0, 0, 0], rtol=2e-3)
    with pytest.raises(ValueError, match="features is 5, expected 3"):
        BilateralConv(5, depthwise=True).init(jax.random.key(0), x, lattice)


def test_out_of_reach_is_the_bias_and_low_precision_stays():
    features = jnp.array([[[0.0, 0.0], [0.1, 0.0], [50.0, 50.0]]])
    x = jnp.ones((1, 2, 4), jnp.bfloat16)
    layer = BilateralConv(4, depthwise=True)
    variables = layer.init(jax.random.key(0), x, lattices(features, capacity=12))
    variables["params"]["bias"] += 3
    found = layer.apply(variables, x, lattices(features, capacity=12))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found[0].astype(jnp.float32), [[4] * 4, [4] * 4, [3] * 4], rtol=1e-2)
    gradient = jax.grad(lambda v: layer.apply(v, x, lattices(features, capacity=12)).sum())
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient(variables)))


def two_colours() -> tuple[jax.Array, list[jax.Array], jax.Array]:
    """Logits [1 N 2] of a noisy classifier, features of places and of colours, and true labels."""
    y, x = jnp.mgrid[:12.0, :12.0].reshape(2, -1)
    labels = (x + 0.5 * y > 8).astype(jnp.int32)
    logits = 1.5 * jax.random.normal(jax.random.key(3), (144, 2))
    logits += 1.0 * jax.nn.one_hot(labels, 2)
    places = jnp.stack([y, x], 1)
    bilateral = jnp.concatenate([places / 4, 4.0 * labels[:, None]], 1)
    return logits[None], [(places / 1.5)[None], bilateral[None]], labels[None]


@pytest.mark.parametrize(
    ("steps", "shared", "per_label", "potts", "parameters"),
    [
        pytest.param(1, True, False, False, 4, id="MF-1", marks=pytest.mark.slow),
        pytest.param(2, True, True, False, 4, id="MF-2", marks=pytest.mark.slow),
        pytest.param(2, False, False, True, 8, id="loose MF-2"),
    ],
)
def test_training_lowers_the_loss(steps, shared, per_label, potts, parameters):
    logits, features, labels = two_colours()
    grids = [lattices(f) for f in features]
    layer = MeanFieldSteps((1.0, 1.0), steps, shared, filter_per_label=per_label, potts=potts)
    variables = layer.init(jax.random.key(0), logits, grids)
    assert len(jax.tree.leaves(variables)) == parameters

    def loss(variables):
        scores = layer.apply(variables, logits, grids)
        return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()

    def accuracy(scores):
        return (scores.argmax(-1) == labels).mean()

    optimiser = optax.adam(0.03)

    @jax.jit
    def step(variables, state):
        value, gradient = jax.value_and_grad(loss)(variables)
        updates, state = optimiser.update(gradient, state)
        return optax.apply_updates(variables, updates), state, value, gradient

    state, losses = optimiser.init(variables), []
    for _ in range(12):
        variables, state, value, gradient = step(variables, state)
        assert all(np.isfinite(g).all() and np.any(g) for g in jax.tree.leaves(gradient))
        losses.append(float(value))
    unary = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    assert losses[0] < 0.9 * unary
    assert losses[-1] < 0.9 * losses[0]
    assert accuracy(layer.apply(variables, logits, grids)) > accuracy(logits) + 0.05
    np.testing.assert_allclose(loss(variables), jax.jit(loss)(variables), rtol=1e-4)
