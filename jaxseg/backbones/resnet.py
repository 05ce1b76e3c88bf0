"""ResNet (He et al. 2016, "Deep Residual Learning for Image Recognition"), as published weights
have it: the stride of a bottleneck lies in its 3×3 convolution ("v1.5"), and any output stride by
dilation (Yu & Koltun 2016; Chen et al. 2018)."""

from functools import partial

import flax.linen as nn
from jaxtyping import Float

from jaxseg.nn.conv import ConvNorm
from jaxseg.nn.norm import Norm
from jaxseg.ops.conv import max_pool2d
from jaxseg.types import FLOAT32, Array, Precision

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class ResNet(nn.Module):
    """[B H W C] -> {2: stem, 4: stage 1, 8: stage 2, 16: stage 3, 32: stage 4}.

    cascade: more stages like the fourth (Chen et al. 2017, section 3.2), features 64, 128, 256.
    output_stride: 8, 16, 32 or, of a cascade, more. The stages beyond keep that stride and are
    dilated in its place; their features still go by the stride that they have in the undilated
    network.
    multi_grid: dilations of the blocks of stage 4 and of those like it, times the stage's own
    (section 3.2). With it, all blocks of a dilated stage have the stage's dilation; without, the
    first, in which the stride was, has that of the stage before (as torchvision has it), and the
    features are those of the undilated network, only denser.
    first, last: the stages to run, all without them. From the second stage on, x is what the stage
    before gave: so the fourth can be the head of a detector (Ren et al. 2015; He et al. 2016).
    Raises ValueError for another depth or output stride, or for a wrong number of dilations.
    """

    depth: int = 50  # 18, 34, 50 or 101
    width: int = 64  # of the first stage
    output_stride: int = 32
    multi_grid: tuple[int, ...] | None = None
    cascade: int = 0
    norm: Norm = None
    precision: Precision = FLOAT32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], *, first: int = 1, last: int | None = None
    ) -> dict[int, Array]:
        strides = tuple(2**n for n in range(3, 6 + self.cascade))
        if self.depth not in BLOCKS or self.output_stride not in strides:
            raise ValueError(
                f"ResNet-{self.depth} of output stride {self.output_stride}: expected one of "
                f"{tuple(BLOCKS)}, and of {strides}"
            )
        counts = BLOCKS[self.depth] + BLOCKS[self.depth][3:] * self.cascade
        if self.multi_grid is not None and len(self.multi_grid) != counts[3]:
            raise ValueError(
                f"multi_grid is {self.multi_grid}, expected {counts[3]} dilations, one for each "
                f"block of stage 4 of ResNet-{self.depth}"
            )
        block = BasicBlock if self.depth < 50 else Bottleneck
        block = partial(block, norm=self.norm, precision=self.precision)
        features = {}
        if first == 1:
            layer = partial(ConvNorm, norm=self.norm, precision=self.precision)
            features[2] = layer(self.width, 7, 2, name="stem")(x)
            x = max_pool2d(features[2], window=3, stride=2, padding=1)
        dilation = 1
        for stage, count in enumerate(counts, start=1):
            width = self.width << min(stage - 1, 3)
            stride = 1 if stage == 1 else 2
            entry = dilation
            if 2 ** (stage + 1) > self.output_stride:
                stride, dilation = 1, 2 * dilation
            dilations = [(entry, dilation)] + [(dilation, dilation)] * (count - 1)
            if self.multi_grid is not None:
                grid = self.multi_grid if stage >= 4 else (1,) * count
                dilations = [(dilation * rate, dilation * rate) for rate in grid]
            if not first <= stage <= (last or len(counts)):
                continue
            for i, pair in enumerate(dilations, start=1):
                name, step = f"stage{stage}_block{i}", stride if i == 1 else 1
                x = block(width, step, pair, name=name)(x)
            features[2 ** (stage + 1)] = x
        return features


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut, which is convolved where the channels differ."""

    features: int
    stride: int
    dilations: tuple[int, int]  # of the convolution with the stride, and of one after it
    norm: Norm
    precision: Precision

    @nn.compact
    def __call__(self, x: Array) -> Array:
        layer = partial(ConvNorm, norm=self.norm, precision=self.precision)
        first, second = self.dilations
        y = layer(self.features, 3, self.stride, dilation=first, name="conv1")(x)
        y = layer(self.features, 3, dilation=second, activation=None, name="conv2")(y)
        if x.shape[-1] == y.shape[-1]:
            x = x[:, :: self.stride, :: self.stride]
        else:
            x = layer(self.features, 1, self.stride, activation=None, name="shortcut")(x)
        return nn.relu(x + y)


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions, the last to four times as many channels."""

    features: int
    stride: int
    dilations: tuple[int, int]  # of the convolution with the stride, and of one after it
    norm: Norm
    precision: Precision

    @nn.compact
    def __call__(self, x: Array) -> Array:
        layer = partial(ConvNorm, norm=self.norm, precision=self.precision)
        wide = 4 * self.features
        y = layer(self.features, 1, name="conv1")(x)
        y = layer(self.features, 3, self.stride, dilation=self.dilations[0], name="conv2")(y)
        y = layer(wide, 1, activation=None, name="conv3")(y)
        if x.shape[-1] == y.shape[-1]:
            x = x[:, :: self.stride, :: self.stride]
        else:
            x = layer(wide, 1, self.stride, activation=None, name="shortcut")(x)
        return nn.relu(x + y)
