"""The convolution blocks that all networks use: `Conv`, and `ConvNorm` with norm and activation.

Norm (see nn/norm.py) and activation are injected; without a norm a convolution has a bias.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
from jaxtyping import Float

from jaxseg.nn.norm import Norm
from jaxseg.ops.conv import conv2d, conv_transpose2d, depthwise_conv2d
from jaxseg.types import FLOAT32, Array, Precision

he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")  # He et al. 2015


class Conv(nn.Module):
    """Convolution [B H W C] -> [B H2 W2 F]. `padding=None` keeps the size at stride 1; `depthwise`
    convolves every channel by itself (F = C)."""

    features: int
    kernel_size: int = 3
    stride: int = 1
    padding: int | None = None
    dilation: int = 1
    depthwise: bool = False
    use_bias: bool = True
    kernel_init: Callable = he_normal
    bias_init: Callable = nn.initializers.zeros
    precision: Precision = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 F"]:
        params, compute = self.precision
        channels = 1 if self.depthwise else x.shape[-1]
        shape = (self.kernel_size, self.kernel_size, channels, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, params)
        padding = self.padding
        if padding is None:
            padding = self.dilation * (self.kernel_size - 1) // 2
        geometry = dict(stride=self.stride, padding=padding, dilation=self.dilation)
        convolve = depthwise_conv2d if self.depthwise else conv2d
        x = convolve(x.astype(compute), kernel.astype(compute), **geometry)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), params)
            x += bias.astype(compute).reshape(1, 1, 1, -1)
        return x


class ConvTranspose(nn.Module):
    """Transposed convolution [B H W C] -> [B H2 W2 F], H2 = (H−1)·stride − 2·padding + k
    + output_padding."""

    features: int
    kernel_size: int = 2
    stride: int = 2
    padding: int = 0
    output_padding: int = 0
    use_bias: bool = True
    kernel_init: Callable = he_normal
    precision: Precision = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 F"]:
        params, compute = self.precision
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, params)
        x = conv_transpose2d(
            x.astype(compute),
            kernel.astype(compute),
            stride=self.stride,
            padding=self.padding,
            output_padding=self.output_padding,
        )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), params)
            x += bias.astype(compute).reshape(1, 1, 1, -1)
        return x


class ConvNorm(nn.Module):
    """Convolution, norm, activation [B H W C] -> [B H2 W2 F]. With a norm there is no bias."""

    features: int
    kernel_size: int = 3
    stride: int = 1
    padding: int | None = None
    dilation: int = 1
    depthwise: bool = False  # F = C
    norm: Norm = None
    activation: Callable[[Array], Array] | None = nn.relu
    precision: Precision = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 F"]:
        conv = Conv(
            self.features,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.depthwise,
            use_bias=self.norm is None,
            precision=self.precision,
            name="conv",
        )
        x = conv(x)
        if self.norm is not None:
            x = self.norm(name="norm")(x)
        return x if self.activation is None else self.activation(x)


class SeparableConvNorm(nn.Module):
    """Depthwise, then 1×1 convolution, then norm and activation [B H W C] -> [B H2 W2 F]: the
    atrous separable convolution of Chen et al. 2018 (DeepLab v3+, figure 3) for dilations above 1.

    norm_between: norm and activation after the depthwise convolution, too.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    dilation: int = 1
    norm: Norm = None
    norm_between: bool = False
    activation: Callable[[Array], Array] | None = nn.relu
    precision: Precision = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 F"]:
        def normalise(x: Array, name: str) -> Array:
            x = x if self.norm is None else self.norm(name=name)(x)
            return x if self.activation is None else self.activation(x)

        layer = partial(Conv, use_bias=self.norm is None, precision=self.precision)
        x = layer(
            x.shape[-1],
            self.kernel_size,
            self.stride,
            dilation=self.dilation,
            depthwise=True,
            name="depthwise",
        )(x)
        if self.norm_between:
            x = normalise(x, "depthwise_norm")
        x = layer(self.features, 1, name="pointwise")(x)
        return normalise(x, "norm")
