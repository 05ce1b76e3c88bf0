import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import config as jaxseg_config
from jaxseg.train.optim import make_optimizer, make_schedule, path_multipliers

PARAMS = {
    "stem": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
    "head": {"kernel": jnp.ones((2, 2)), "scale": jnp.ones(2)},
}


def optim(**changes):
    settings = jaxseg_config.default().optim
    settings.update(schedule="constant", learning_rate=0.1, **changes)
    return settings


def updated(settings, gradient=1.0):
    optimizer = make_optimizer(settings, steps=10)
    grads = jax.tree.map(lambda p: jnp.full(p.shape, gradient), PARAMS)
    updates, _ = optimizer.update(grads, optimizer.init(PARAMS), PARAMS)
    return jax.tree.map(lambda u: float(u.ravel()[0]), updates)


@pytest.mark.parametrize(
    ("changes", "values"),
    [
        (dict(schedule="constant"), {0: 1.0, 99: 1.0}),
        (dict(schedule="poly", power=0.5), {0: 1.0, 75: 0.5, 100: 0.0}),
        (dict(schedule="cosine"), {0: 1.0, 50: 0.5, 100: 0.0}),
        (dict(schedule="step", milestones=(30, 60)), {29: 1.0, 31: 0.1, 61: 0.01}),
        (dict(schedule="poly", power=1.0, warmup_steps=20), {0: 0.0, 10: 0.5, 20: 1.0, 60: 0.5}),
        (dict(schedule="step", milestones=(30,), warmup_steps=20), {29: 1.0, 31: 0.1}),
    ],
)
def test_schedules(changes, values):
    settings = optim()
    settings.update(learning_rate=1.0, **changes)
    schedule = make_schedule(settings, steps=100)
    for step, value in values.items():
        np.testing.assert_allclose(schedule(step), value, atol=1e-6)


def test_sgd_decays_kernels_alone():
    updates = updated(optim(name="sgd", weight_decay=0.5))
    np.testing.assert_allclose(updates["stem"]["kernel"], -0.15)
    np.testing.assert_allclose(updates["stem"]["bias"], -0.1)
    np.testing.assert_allclose(updates["head"]["scale"], -0.1)


def test_adamw_decay_is_not_rescaled():
    updates = updated(optim(name="adamw", weight_decay=0.5), gradient=100.0)
    np.testing.assert_allclose(updates["stem"]["bias"], -0.1, rtol=1e-5)
    np.testing.assert_allclose(updates["stem"]["kernel"], -0.15, rtol=1e-5)


def test_clipping_is_by_the_norm_of_all():
    updates = updated(optim(name="sgd", clip_norm=1.0))
    np.testing.assert_allclose(updates["stem"]["kernel"], -0.1 / np.sqrt(12), rtol=1e-5)


def test_multipliers_by_path():
    settings = optim(name="sgd", weight_decay=0.5, clip_norm=100.0)
    settings.multipliers = {"stem": 0.0, "bias$": 2.0, "head": 5.0, "kernel": 2.0}
    updates = updated(settings)
    assert updates["stem"] == {"kernel": 0.0, "bias": 0.0}
    np.testing.assert_allclose(updates["head"]["kernel"], -1.5)
    np.testing.assert_allclose(updates["head"]["scale"], -0.5)


def test_frozen_parts_have_no_part_in_the_norm():
    settings = optim(name="sgd", clip_norm=1.0)
    settings.multipliers = {"stem": 0.0}
    np.testing.assert_allclose(updated(settings)["head"]["kernel"], -0.1 / np.sqrt(6), rtol=1e-5)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="'neck' is found in no parameter"):
        path_multipliers(PARAMS, {"neck": 0.1})
    with pytest.raises(ValueError, match=r"optim\.name is 'adam'"):
        make_optimizer(optim(name="adam"), 10)
    settings = optim()
    settings.schedule = "linear"
    with pytest.raises(ValueError, match="expected constant, poly, cosine or step"):
        make_schedule(settings, 10)
