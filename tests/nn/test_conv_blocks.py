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
