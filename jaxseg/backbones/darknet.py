"""Darknet: the networks of YOLO, from v1's (Redmon et al. 2016, "You Only Look Once", figure 3) to
Darknet-53 (Redmon & Farhadi 2018, "YOLOv3", table 1).

All activations are leaky ReLUs of slope 0.1. Batch norms average slowly, with momentum 0.99, and
have epsilon 1e-5 within the root, which is what Darknet computes on a GPU (on a CPU, and so in a
hand full of its ports, it adds 1e-6 to the root).
"""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from jaxseg.nn.conv import ConvNorm
from jaxseg.nn.norm import Norm
from jaxseg.ops.conv import max_pool2d
from jaxseg.types import FLOAT32, Array, Precision

# A convolution is (features, in those of the first one; kernel; stride), a pooling its stride.
Layers = tuple[tuple[int, int, int] | int, ...]

_PAIR, _WIDE_PAIR = ((4, 1, 1), (8, 3, 1)), ((8, 1, 1), (16, 3, 1))
YOLO: Layers = (
    *((1, 7, 2), 2, (3, 3, 1), 2),
    *((2, 1, 1), (4, 3, 1), (4, 1, 1), (8, 3, 1), 2),
    *(*_PAIR, *_PAIR, *_PAIR, *_PAIR, *_WIDE_PAIR, 2),
    *(*_WIDE_PAIR, *_WIDE_PAIR, (16, 3, 1), (16, 3, 2), (16, 3, 1), (16, 3, 1)),
)
# The paper gives only the number of layers, nine; these are of Darknet's tiny-yolo.
FAST_YOLO: Layers = (
    *((1, 3, 1), 2, (2, 3, 1), 2, (4, 3, 1), 2, (8, 3, 1), 2, (16, 3, 1), 2, (32, 3, 1), 2),
    *((64, 3, 1), (64, 3, 1), (64, 3, 1)),
)
YOLOV3_TINY: Layers = (
    *((1, 3, 1), 2, (2, 3, 1), 2, (4, 3, 1), 2, (8, 3, 1), 2, (16, 3, 1), 2),
    *((32, 3, 1), 1, (64, 3, 1)),
)


def darknet_layer(norm: Norm, precision: Precision = FLOAT32) -> partial[ConvNorm]:
    """A constructor of Darknet's convolutions; see `nn.conv.ConvNorm`."""
    norm = norm and partial(norm, momentum=0.99)
    activation = partial(nn.leaky_relu, negative_slope=0.1)
    return partial(ConvNorm, norm=norm, activation=activation, precision=precision)


def darknet_pool(x: Float[Array, "B H W C"], stride: int) -> Float[Array, "B H2 W2 C"]:
    """Maximum over 2×2 pixels from each place on, to the right and downwards: with stride 1, too,
    one for each place. What lies beyond the border never wins."""
    if stride == 1:
        x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=-jnp.inf)
    return max_pool2d(x, 2, stride, ceil_mode=True)


class Chain(nn.Module):
    """[B H W C] -> {stride: features of the last layer of this stride}, of layers in a row: YOLO
    (`width` 64 as published), FAST_YOLO (16) or YOLOV3_TINY (16).

    width: features of the first convolution; all others go with it.
    output_stride: whatever would lead beyond it keeps the size: a convolution loses its stride, a
    pooling is left out.
    """

    layers: Layers
    width: int
    output_stride: int = 64
    norm: Norm = None
    precision: Precision = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> dict[int, Array]:
        layer = darknet_layer(self.norm, self.precision)
        features, stride, count = {}, 1, 0
        for item in self.layers:
            step = item if isinstance(item, int) else item[2]
            beyond = stride * step > self.output_stride
            stride *= 1 if beyond else step
            if not isinstance(item, int):
                count += 1
                times, kernel, _ = item
                conv = layer(self.width * times, kernel, 1 if beyond else step, name=f"conv{count}")
                x = conv(x)
            elif not beyond:
                x = darknet_pool(x, step)
            features[stride] = x
        return features


class Darknet53(nn.Module):
    """[B H W C] -> {1: first layer, 2: stage 1, 4, 8, 16, 32: stage 5}. A stage is a convolution of
    stride 2 and residual blocks: 1×1 to half of the features, and 3×3 back."""

    width: int = 32  # of the first layer
    norm: Norm = None
    precision: Precision = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> dict[int, Array]:
        layer = darknet_layer(self.norm, self.precision)
        features = {1: layer(self.width, 3, name="stem")(x)}
        for stage, count in enumerate((1, 2, 8, 8, 4), start=1):
            width = self.width << stage
            x = layer(width, 3, 2, name=f"stage{stage}_down")(features[2 ** (stage - 1)])
            for i in range(1, count + 1):
                block = Residual(width, self.norm, self.precision, name=f"stage{stage}_block{i}")
                x = block(x)
            features[2**stage] = x
        return features


class Residual(nn.Module):
    features: int
    norm: Norm
    precision: Precision

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        layer = darknet_layer(self.norm, self.precision)
        y = layer(self.features // 2, 1, name="conv1")(x)
        return x + layer(self.features, 3, name="conv2")(y)
