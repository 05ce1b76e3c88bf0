import jax.numpy as jnp

from jaxseg.types import Mean


def test_mean_of_unequal_parts_is_exact():
    parts = [Mean(jnp.float32(6), jnp.float32(3)), Mean(jnp.float32(10), jnp.float32(1))]
    whole = Mean(*(sum(x) for x in zip(*parts, strict=True)))
    assert whole.value() == 4.0


def test_mean_of_nothing_is_zero():
    assert Mean(jnp.float32(0), jnp.float32(0)).value() == 0.0
