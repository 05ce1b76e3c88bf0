"""The step on a tiny U-Net, with what makes equality hard: batch norm and ragged weights."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxseg.models import unet
from jaxseg.train.mesh import make_parallel
from jaxseg.train.step import init_state, make_step, variables_of
from jaxseg.types import IGNORE, Mean, Model

STEPS = 20


def batches(count=STEPS):
    rng = np.random.default_rng(0)
    for _ in range(count):
        labels = rng.integers(0, 3, (8, 8, 8)).astype(np.int32)
        labels[rng.random(labels.shape) < rng.random((8, 1, 1))] = IGNORE  # ragged weights
        yield {
            "image": rng.standard_normal((8, 8, 8, 3)).astype(np.float32),
            "segmentation": labels,
            "valid": np.ones(8, bool),
        }


def train(kind="jit", devices=1, norm=True, **options):
    parallel = make_parallel(kind, jax.devices()[:devices])
    network = dict(width=4, depth=1, padding="same", dropout=0.0, norm="batch" if norm else "none")
    losses = ("cross_entropy", "dice", "hard_cross_entropy")
    model = unet.build(3, losses=losses, axis_name=parallel.axis_name, **network)
    optimizer = optax.sgd(0.1, momentum=0.9)
    first = next(batches())
    state = init_state(model.init(jax.random.key(0), first), optimizer, ema=True)
    step = make_step(
        model, optimizer, seed=0, ema_decay=0.9, axis_name=parallel.axis_name, **options
    )
    compiled, state = parallel.compile(step), parallel.put_state(state)
    history = []
    for batch in batches():
        state, report = compiled(state, parallel.put_batch(batch))
        report = parallel.fetch(report)
        history.append([float(m.value()) for m in report.losses.values()])
    return parallel.fetch(state), np.array(history)


@pytest.fixture(scope="module")
def reference():
    return train()


@pytest.mark.parametrize(("kind", "devices"), [("jit", 8), ("pmap", 1), ("pmap", 8)])
def test_devices_change_nothing(reference, kind, devices):
    state, history = train(kind, devices)
    np.testing.assert_allclose(history, reference[1], atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state, reference[0])


@pytest.mark.parametrize("devices", [1, 2])
def test_accumulation_changes_nothing(devices):
    whole, pieces = (train("jit", devices, norm=False, accumulate=n) for n in (1, 4))
    np.testing.assert_allclose(pieces[1], whole[1], atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), pieces[0], whole[0])


def test_the_reference_learns(reference):
    assert reference[1][-1].sum() < reference[1][0].sum()


def quadratic():
    """loss = mean over rows of x · w, whose gradient is the mean of x."""

    def loss(variables, batch, key):
        values = batch["x"] * variables["params"]["w"]
        count = jnp.asarray(len(batch["x"]), jnp.float32)
        return {"product": Mean(values.sum(), count)}, {"seen": variables["seen"] + 1}

    init = lambda key, batch: {"params": {"w": jnp.float32(1)}, "seen": jnp.int32(0)}  # noqa: E731
    return Model(init, loss, lambda variables, image: {})


def run_quadratic(rows, **options):
    model, optimizer = quadratic(), optax.sgd(0.5)
    state = init_state(model.init(None, None), optimizer, ema="ema_decay" in options)
    step = jax.jit(make_step(model, optimizer, seed=0, **options))
    for row in rows:
        state, report = step(state, {"x": jnp.asarray(row, jnp.float32)})
    return state, report


def test_a_step_by_hand():
    state, report = run_quadratic([[1.0, 3.0]])
    assert state.params["w"] == 0.0  # 1 − 0.5 · mean(1, 3)
    assert report.losses["product"].value() == 2.0
    assert report.gradient_norm == 2.0
    assert state.step == 1


def test_moving_average_by_hand():
    state, _ = run_quadratic([[2.0], [2.0]], ema_decay=0.9)
    decay = [0.1, 2 / 11]  # (1 + t) / (10 + t)
    first = decay[0] * 1 + (1 - decay[0]) * 0.0
    second = decay[1] * first + (1 - decay[1]) * -1.0
    np.testing.assert_allclose(state.ema["w"], second, rtol=1e-6)
    assert variables_of(state)["params"]["w"] == state.ema["w"]
    assert variables_of(state, averaged=False)["params"]["w"] == -1.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_step_that_is_not_finite_changes_nothing(bad):
    state, report = run_quadratic([[2.0], [bad], [2.0]], ema_decay=0.9)
    good, _ = run_quadratic([[2.0], [2.0]])
    assert report.finite
    assert state.params["w"] == good.params["w"]
    assert state.model_state["seen"] == 2
    assert (state.step, state.skipped) == (3, 1)


def test_dropout_differs_from_step_to_step_but_not_from_run_to_run():
    model = unet.build(3, width=2, depth=1, dropout=0.5)
    optimizer = optax.sgd(0.0)
    batch = next(batches())
    state = init_state(model.init(jax.random.key(0), batch), optimizer, ema=False)
    step = jax.jit(make_step(model, optimizer, seed=0))

    def losses(state):
        values = []
        for _ in range(2):
            state, report = step(state, batch)
            values.append(float(report.losses["cross_entropy"].value()))
        return values

    first = losses(state)
    assert first[0] != first[1]
    assert losses(state) == first
