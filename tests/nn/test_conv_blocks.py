import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.nn.conv import Conv, ConvNorm
from jaxseg.nn.norm import make_norm
from jaxseg.types import Precision

X = jnp.asarray(np.random.default_rng(0).standard_normal((4, 6, 6, 3)), jnp.float32)


def test_default_padding_keeps_the_size():
    for kernel_size, dilation in [(1, 1), (3, 1), (3, 4), (5, 2)]:
        y, _ = Conv(2, kernel_size, dilation=dilation).init_with_output(jax.random.key(0), X)
        assert y.shape == (4, 6, 6, 2)


def test_parameters_stay_float32_under_bfloat16():
    block = ConvNorm(
        2, norm=make_norm("batch", train=True), precision=Precision(compute=jnp.bfloat16)
    )
    y, variables = block.init_with_output(jax.random.key(0), X)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert variables["params"]["conv"].keys() == {"kernel"}  # the norm brings the bias
    conv = Conv(2, precision=Precision(compute=jnp.bfloat16))
    assert conv.init_with_output(jax.random.key(0), X)[0].dtype == jnp.bfloat16
    assert y.min() >= 0


def test_batch_norm_normalises_and_keeps_running_statistics():
    norm = make_norm("batch", train=True)()
    y, variables = norm.init_with_output(jax.random.key(0), X)
    np.testing.assert_allclose(y.mean((0, 1, 2)), np.zeros(3), atol=1e-6)
    _, state = norm.apply(variables, X, mutable=["batch_stats"])
    np.testing.assert_allclose(state["batch_stats"]["mean"], 0.1 * X.mean((0, 1, 2)), atol=1e-6)
