"""GoogLeNet (Szegedy et al. 2015, "Going Deeper with Convolutions"), as published weights have it:
with batch norm (Ioffe & Szegedy 2015), and 3×3 convolutions for the third branch's 5×5 ones."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from jaxseg.nn.conv import ConvNorm
from jaxseg.nn.norm import Norm
from jaxseg.ops.conv import max_pool2d
from jaxseg.types import FLOAT32, MEAN, STD, Array, Precision

# Table 1 of the paper: 1×1 | 1×1 before 3×3, 3×3 | 1×1 before 5×5, 5×5 | 1×1 after the pooling.
INCEPTIONS = {
    8: {"3a": (64, 96, 128, 16, 32, 32), "3b": (128, 128, 192, 32, 96, 64)},
    16: {
        "4a": (192, 96, 208, 16, 48, 64),
        "4b": (160, 112, 224, 24, 64, 64),
        "4c": (128, 128, 256, 24, 64, 64),
        "4d": (112, 144, 288, 32, 64, 64),
        "4e": (256, 160, 320, 32, 128, 128),
    },
    32: {"5a": (256, 160, 320, 32, 128, 128), "5b": (384, 192, 384, 48, 128, 128)},
}


class GoogLeNet(nn.Module):
    """[B H W C] -> {stride: its last features}, strides 2, 4, 8, 16, 32.

    width: of the first convolution; all others go with it. first_padding: of the first alone.
    transform_input: published weights want colours on the scale −1 … 1; this takes them there from
    the usual normalisation of `types.MEAN` and `types.STD`. Poolings keep a last window that is not
    whole (`ceil_mode`).
    """

    width: int = 64
    first_padding: int = 3
    transform_input: bool = False
    norm: Norm = None
    precision: Precision = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> dict[int, Array]:
        norm = None if self.norm is None else partial(self.norm, epsilon=1e-3)
        layer = partial(ConvNorm, norm=norm, precision=self.precision)
        if self.transform_input:
            mean, std = (array.reshape(1, 1, 1, 3) for array in (MEAN, STD))
            x = (x * std + mean - 0.5) / 0.5
        features = {}
        x = features[2] = layer(self.width, 7, 2, self.first_padding, name="conv1")(x)
        x = max_pool2d(x, window=3, stride=2, ceil_mode=True)
        x = layer(self.width, 1, name="conv2")(x)
        x = features[4] = layer(3 * self.width, 3, name="conv3")(x)
        for stride, blocks in INCEPTIONS.items():
            x = max_pool2d(x, window=2 if stride == 32 else 3, stride=2, ceil_mode=True)
            for name, widths in blocks.items():
                scaled = tuple(max(width * self.width // 64, 1) for width in widths)
                x = Inception(scaled, norm, self.precision, name=f"inception{name}")(x)
            features[stride] = x
        return features


class Inception(nn.Module):
    """Four branches beside each other, concatenated (figure 2b). widths: as in `INCEPTIONS`."""

    widths: tuple[int, ...]
    norm: Norm
    precision: Precision

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w F"]:
        layer = partial(ConvNorm, norm=self.norm, precision=self.precision)
        one, reduce_three, three, reduce_five, five, pooled = self.widths
        y = [
            layer(one, 1, name="branch1")(x),
            layer(three, 3, name="branch2")(layer(reduce_three, 1, name="branch2_reduce")(x)),
            layer(five, 3, name="branch3")(layer(reduce_five, 1, name="branch3_reduce")(x)),
            layer(pooled, 1, name="branch4")(max_pool2d(x, window=3, stride=1, padding=1)),
        ]
        return jnp.concatenate(y, axis=-1)
