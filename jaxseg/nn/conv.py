"""The convolution blocks that all networks use: `Conv`, and `ConvNorm` with norm and activation.

Norm and activation are injected: a network makes `norm = batch_norm(train=…)` once and hands it to
its blocks; `norm=None` leaves the convolution its bias.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
from jaxtyping import Float

from jaxseg.ops.conv import conv2d, conv_transpose2d
from jaxseg.types import FLOAT32, Array, Precision

he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")  # He et al. 2015


class Conv(nn.Module):
    """Convolution [B H W C] -> [B H2 W2 F]. `padding=None` keeps the size at stride 1."""

    features: int
    kernel_size: int = 3
    stride: int = 1
    padding: int | None = None
    dilation: int = 1
    use_bias: bool = True
    kernel_init: Callable = he_normal
    precision: Precision = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 F"]:
        params, compute = self.precision
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, params)
        padding = self.padding
        if padding is None:
            padding = self.dilation * (self.kernel_size - 1) // 2
        geometry = dict(stride=self.stride, padding=padding, dilation=self.dilation)
        x = conv2d(x.astype(compute), kernel.astype(compute), **geometry)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), params)
            x += bias.astype(compute).reshape(1, 1, 1, -1)
        return x


class ConvTranspose(nn.Module):
    """Transposed convolution [B H W C] -> [B (H−1)·stride − 2·padding + k … F]."""

    features: int
    kernel_size: int = 2
    stride: int = 2
    padding: int = 0
    use_bias: bool = True
    kernel_init: Callable = he_normal
    precision: Precision = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 F"]:
        params, compute = self.precision
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, params)
        geometry = dict(stride=self.stride, padding=self.padding)
        x = conv_transpose2d(x.astype(compute), kernel.astype(compute), **geometry)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), params)
            x += bias.astype(compute).reshape(1, 1, 1, -1)
        return x


def batch_norm(
    *, train: bool, axis_name: str | None = None, precision: Precision = FLOAT32
) -> Callable[..., nn.Module]:
    """A constructor of batch norms (Ioffe & Szegedy 2015). In training the statistics are those of
    the whole batch: under `jit` of the global one, under `pmap` across `axis_name`."""
    return partial(
        nn.BatchNorm,
        use_running_average=not train,
        momentum=0.9,
        axis_name=axis_name,
        dtype=precision.compute,
        param_dtype=precision.params,
    )


class ConvNorm(nn.Module):
    """Convolution, norm, activation. With a norm the convolution has no bias."""

    features: int
    kernel_size: int = 3
    stride: int = 1
    padding: int | None = None
    dilation: int = 1
    norm: Callable[..., nn.Module] | None = None
    activation: Callable[[Array], Array] = nn.relu
    precision: Precision = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 F"]:
        conv = Conv(
            self.features,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            use_bias=self.norm is None,
            precision=self.precision,
            name="conv",
        )
        x = conv(x)
        if self.norm is not None:
            x = self.norm(name="norm")(x)
        return self.activation(x)
