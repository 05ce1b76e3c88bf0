"""Xception (Chollet 2017, "Xception: Deep Learning with Depthwise Separable Convolutions") as
DeepLab v3+ has it, "modified aligned Xception" (Chen et al. 2018, section 3.2 and figure 4): more
blocks in the middle, strided convolutions for all poolings, and a norm and a ReLU after each 3×3
depthwise convolution, too. With 16 middle blocks it goes by the name of Xception-65."""

from functools import partial

import flax.linen as nn
from jaxtyping import Float

from jaxseg.nn.conv import ConvNorm, SeparableConvNorm
from jaxseg.nn.norm import Norm
from jaxseg.types import FLOAT32, Array, Precision


class Xception(nn.Module):
    """[B H W C] -> {stride: the last features of that stride}, strides 2, 4, 8, 16, 32.

    output_stride: 8, 16 or 32. Beyond it strides are 1 and later convolutions dilated in their
    place; features still go by the stride that they have in the undilated network.
    Norms have the published epsilon, 1e-3. Raises ValueError for another output stride.
    """

    middle_blocks: int = 16
    width: int = 32  # of the first convolution
    output_stride: int = 32
    norm: Norm = None
    precision: Precision = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> dict[int, Array]:
        if self.output_stride not in (8, 16, 32):
            raise ValueError(f"output stride is {self.output_stride}, expected 8, 16 or 32")
        norm = self.norm and partial(self.norm, epsilon=1e-3)
        shared = dict(norm=norm, precision=self.precision)

        def channels(published: int) -> int:
            return published * self.width // 32

        x = ConvNorm(channels(32), stride=2, **shared, name="stem_conv1")(x)
        x = ConvNorm(channels(64), **shared, name="stem_conv2")(x)
        stride, dilation, features = 2, 1, {}
        blocks = [
            *[(f"entry{i}", (n, n, n)) for i, n in enumerate((128, 256, 728), start=1)],
            *[(f"middle{i}", (728, 728, 728)) for i in range(1, self.middle_blocks + 1)],
            ("exit", (728, 1024, 1024)),
        ]
        for name, published in blocks:
            halve = not name.startswith("middle")
            step = 2 if halve and stride < self.output_stride else 1
            block = Block(tuple(map(channels, published)), step, dilation, **shared, name=name)
            x, before = block(x)
            if halve:
                features[stride] = before
                stride *= 2
                dilation *= 2 // step
        separable = partial(SeparableConvNorm, dilation=dilation, norm_between=True, **shared)
        for i, published in enumerate((1536, 1536, 2048), start=1):
            x = separable(channels(published), name=f"exit_conv{i}")(x)
        return features | {32: x}


class Block(nn.Module):
    """Three times ReLU and separable convolution, the last with the stride, beside a shortcut,
    which is convolved where the channels differ. [B H W C] -> the sum; the last one's input."""

    features: tuple[int, ...]
    stride: int
    dilation: int
    norm: Norm
    precision: Precision

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        layer = partial(ConvNorm, norm=self.norm, precision=self.precision)
        linear = partial(layer, kernel_size=1, activation=None)
        y = before = x
        for i, features in enumerate(self.features, start=1):
            before, stride = y, self.stride if i == len(self.features) else 1
            depthwise = layer(
                y.shape[-1],
                stride=stride,
                dilation=self.dilation,
                depthwise=True,
                name=f"depthwise{i}",
            )
            y = linear(features, name=f"pointwise{i}")(depthwise(nn.relu(y)))
        if x.shape[-1] != y.shape[-1]:
            x = linear(self.features[-1], stride=self.stride, name="shortcut")(x)
        return x + y, before
