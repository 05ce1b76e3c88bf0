import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxseg.nn.norm import make_norm
from jaxseg.types import Precision

KEY = jax.random.key(0)
X = jnp.asarray(2 + 3 * np.random.default_rng(0).standard_normal((8, 4, 5, 3)), jnp.float32)


def train(norm, variables, x):
    y, state = norm.apply(variables, x, mutable=["batch_stats"])
    return y, state["batch_stats"]


def test_values_and_running_statistics_by_hand():
    norm = make_norm("batch", train=True, momentum=0.75, epsilon=1.0)()
    x = jnp.array([[1.0], [2.0], [6.0]])  # mean 3, variance 14/3, unbiased 7
    variables = norm.init(KEY, x)
    variables["params"] = {"scale": jnp.array([2.0]), "bias": jnp.array([10.0])}
    y, statistics = train(norm, variables, x)
    np.testing.assert_allclose(y, 10 + 2 * (x - 3) / np.sqrt(14 / 3 + 1), rtol=1e-6)
    np.testing.assert_allclose(statistics["mean"], [0.75 * 0 + 0.25 * 3], rtol=1e-6)
    np.testing.assert_allclose(statistics["var"], [0.75 * 1 + 0.25 * 7], rtol=1e-6)

    tested = make_norm("batch", train=False, epsilon=1.0)()
    y = tested.apply({**variables, "batch_stats": statistics}, x)
    np.testing.assert_allclose(y, 10 + 2 * (x - 0.75) / np.sqrt(2.5 + 1), rtol=1e-6)


def test_statistics_are_those_at_the_beginning_until_the_first_step():
    variables = make_norm("batch", train=True)().init(KEY, X)
    assert variables["batch_stats"]["mean"].tolist() == [0, 0, 0]
    assert variables["batch_stats"]["var"].tolist() == [1, 1, 1]


def test_one_value_has_no_spread():
    norm = make_norm("batch", train=True)()
    x = jnp.full((1, 1, 1, 2), 7.0)
    y, statistics = train(norm, norm.init(KEY, x), x)
    assert y.ravel().tolist() == [0, 0]
    np.testing.assert_allclose(statistics["var"], [0.9, 0.9])


def test_statistics_of_nothing_are_0_and_1():
    """Of regions of which none counts: values stay what they are, and running statistics, too."""
    norm = make_norm("batch", train=True, epsilon=3.0)(mask=jnp.zeros(len(X), bool))
    variables = norm.init(KEY, X)
    y, statistics = train(norm, variables, X)
    np.testing.assert_allclose(y, X / 2, rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, statistics, variables["batch_stats"])


@pytest.mark.parametrize("kind", ["batch", "group"])
def test_close_values_far_from_zero_keep_their_digits(kind):
    norm = make_norm(kind, train=True, epsilon=1e-12)()
    x = X / 16 + 512  # of variance 0.035, where squares are known to 0.03
    y, _ = norm.init_with_output(KEY, x)
    axes = (0, 1, 2) if kind == "batch" else (1, 2, 3)  # 3 channels are one group
    expected = np.asarray(x, np.float64)
    expected -= expected.mean(axes, keepdims=True)
    expected /= expected.std(axes, keepdims=True)
    np.testing.assert_allclose(y, expected, atol=0.005)


def test_frozen_statistics_scale_and_bias_stay():
    norm = make_norm("frozen", train=True)()
    variables = norm.init(KEY, X)
    variables["batch_stats"] = {"mean": jnp.array([1.0, 2, 3]), "var": jnp.array([4.0, 4, 4])}
    y, statistics = train(norm, variables, X)
    np.testing.assert_allclose(y, (X - jnp.array([[[[1.0, 2, 3]]]])) / 2, atol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, statistics, variables["batch_stats"])

    def loss(params, x):
        return (norm.apply({**variables, "params": params}, x) ** 2).sum()

    of_params, of_x = jax.grad(loss, argnums=(0, 1))(variables["params"], X)
    assert optax.tree.norm(of_params) == 0
    np.testing.assert_allclose(of_x, y, rtol=1e-4, atol=1e-4)  # 2 y · 1/2


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (48, 16), (6, 2)])
def test_groups_of_channels(channels, groups):
    norm = make_norm("group", train=True)()
    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 3, 3, channels)), jnp.float32)
    y, variables = norm.init_with_output(KEY, x)
    assert variables.keys() == {"params"}
    grouped = y.reshape(2, 9, groups, -1)
    np.testing.assert_allclose(grouped.mean((1, 3)), np.zeros((2, groups)), atol=1e-5)
    np.testing.assert_allclose(grouped.var((1, 3)), np.ones((2, groups)), atol=1e-3)
    np.testing.assert_allclose(y[:1], norm.apply(variables, x[:1]), atol=1e-5)


@pytest.mark.parametrize("spread", [jax.pmap, jax.vmap])
def test_statistics_across_devices_are_those_of_the_whole_batch(spread):
    alone, together = (make_norm("batch", train=True, axis_name=a)() for a in (None, "data"))
    variables = alone.init(KEY, X)
    expected, statistics = train(alone, variables, X)

    def step(x):
        def loss(x):
            y, state = train(together, variables, x)
            return (y**3).sum(), (y, state)

        grad, (y, state) = jax.grad(loss, has_aux=True)(x)
        return grad, y, state

    pieces = X.reshape(4, 2, *X.shape[1:])
    grad, y, found = spread(step, axis_name="data")(pieces)
    np.testing.assert_allclose(y.reshape(X.shape), expected, atol=1e-5)
    for name, of_all in statistics.items():
        for of_one in found[name]:
            np.testing.assert_allclose(of_one, of_all, rtol=1e-5)
    whole = jax.grad(lambda x: (train(alone, variables, x)[0] ** 3).sum())(X)
    np.testing.assert_allclose(grad.reshape(X.shape), whole, atol=1e-4)


@pytest.mark.parametrize("kind", ["batch", "frozen", "group"])
def test_bfloat16_only_rounds_the_result(kind):
    precision = Precision(compute=jnp.bfloat16)
    half, full = (make_norm(kind, train=True, precision=p)() for p in (precision, Precision()))
    x = X.astype(jnp.bfloat16)
    y, variables = half.init_with_output(KEY, x)
    assert y.dtype == jnp.bfloat16
    assert {v.dtype for v in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    expected, _ = full.apply(variables, x.astype(jnp.float32), mutable=["batch_stats"])
    np.testing.assert_allclose(y.astype(jnp.float32), expected, rtol=0.01, atol=0.01)
    if kind == "batch":
        _, statistics = train(half, variables, x)
        mean = x.astype(jnp.float32).mean((0, 1, 2))
        np.testing.assert_allclose(statistics["mean"], 0.1 * mean, rtol=1e-5)
        assert statistics["mean"].dtype == jnp.float32


def test_kinds_by_name():
    assert make_norm("none", train=True) is None
    unchecked = inspect.unwrap(make_norm)  # the tests' own check of types would refuse it first
    with pytest.raises(ValueError, match="norm is 'layer', expected none, batch, frozen or group"):
        unchecked("layer", train=True)


def test_a_block_may_set_momentum_and_epsilon_of_any_norm():
    for kind in ("batch", "frozen", "group"):
        norm: nn.Module = make_norm(kind, train=True)(epsilon=1e-3, momentum=0.99)
        assert norm.epsilon == 1e-3
        assert norm.init_with_output(KEY, X)[0].shape == X.shape
