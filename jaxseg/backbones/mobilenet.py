"""MobileNetV3-Large (Howard et al. 2019, "Searching for MobileNetV3", table 1), with the details of
its published weights."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
from flax.core import FrozenDict
from jaxtyping import Float

from jaxseg.nn.conv import Conv, ConvNorm
from jaxseg.nn.norm import Norm
from jaxseg.types import FLOAT32, Array, Precision


class Row(NamedTuple):
    """A block: widths are those of the published network, whose first layer has 16 channels."""

    kernel_size: int
    expanded: int
    width: int
    squeezed: bool
    activation: str  # the name of a function in flax.linen
    stride: int = 1


BLOCKS = (
    Row(3, 16, 16, False, "relu"),
    Row(3, 64, 24, False, "relu", 2),
    Row(3, 72, 24, False, "relu"),
    Row(5, 72, 40, True, "relu", 2),
    Row(5, 120, 40, True, "relu"),
    Row(5, 120, 40, True, "relu"),
    Row(3, 240, 80, False, "hard_swish", 2),
    Row(3, 200, 80, False, "hard_swish"),
    Row(3, 184, 80, False, "hard_swish"),
    Row(3, 184, 80, False, "hard_swish"),
    Row(3, 480, 112, True, "hard_swish"),
    Row(3, 672, 112, True, "hard_swish"),
    Row(5, 672, 160, True, "hard_swish", 2),
    Row(5, 960, 160, True, "hard_swish"),
    Row(5, 960, 160, True, "hard_swish"),
)
TOP = 960
# Of a detector: half the channels between the stage of stride 16 and the end (section 6.3).
REDUCED_BLOCKS = (
    *BLOCKS[:12],
    BLOCKS[12]._replace(width=80),
    *[BLOCKS[13]._replace(expanded=480, width=80)] * 2,
)
REDUCED_TOP = 480
LAST_MAPS = FrozenDict({2: 1, 4: 3, 8: 6, 16: 12, 32: len(BLOCKS) + 1})
FIRST_MAPS = FrozenDict({**LAST_MAPS, 8: 4})  # published decoders go back to this stride's first


class MobileNetV3Large(nn.Module):
    """[B H W C] -> {stride: features}.

    width: of the first layer; all others go with it, in multiples of 8.
    output_stride: 16 or 32. With 16 the last three blocks keep that stride and have dilation 2;
    their features still go by stride 32.
    maps: {stride, or another name: block whose output stands for it}, 0 the first layer and 16 the
        last; "expand13" is the first layer of block 13.
    reduced_tail: the last three blocks, and the last layer, with half the channels.
    """

    width: int = 16
    output_stride: int = 32
    maps: Mapping[Any, int | str] = LAST_MAPS
    reduced_tail: bool = False
    norm: Norm = None
    precision: Precision = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> dict[Any, Array]:
        if self.output_stride not in (16, 32):
            raise ValueError(f"output_stride is {self.output_stride}, expected 16 or 32")
        norm = self.norm and partial(self.norm, epsilon=1e-3, momentum=0.99)
        shared = dict(norm=norm, precision=self.precision)
        ends = partial(ConvNorm, activation=nn.hard_swish, **shared)

        def scaled(width: int) -> int:
            return make_divisible(width * self.width / 16)

        x = ends(scaled(16), 3, 2, name="stem")(x)
        outputs: dict[int | str, Array] = {0: x}
        stride = 2
        for i, row in enumerate(REDUCED_BLOCKS if self.reduced_tail else BLOCKS, start=1):
            stride *= row.stride
            row = row._replace(expanded=scaled(row.expanded), width=scaled(row.width))
            dilated = stride > self.output_stride
            if dilated:
                row = row._replace(stride=1)
            block = InvertedResidual(row, 2 if dilated else 1, name=f"block{i}", **shared)
            if f"expand{i}" in self.maps.values():
                x, outputs[f"expand{i}"] = block(x, with_expanded=True)
            else:
                x = block(x)
            outputs[i] = x
        top = REDUCED_TOP if self.reduced_tail else TOP
        outputs[len(BLOCKS) + 1] = ends(scaled(top), 1, name="top")(x)
        return {stride: outputs[block] for stride, block in self.maps.items()}


class InvertedResidual(nn.Module):
    """1×1 convolution to more channels, depthwise convolution, squeeze-and-excitation, 1×1
    convolution to few, beside a shortcut where the shapes allow (figures 3 and 4)."""

    row: Row
    dilation: int
    norm: Norm
    precision: Precision

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, with_expanded: bool = False) -> Any:
        """[B H2 W2 F]; and, if wanted, [B H W E] after the first of the convolutions."""
        row, activation = self.row, getattr(nn, self.row.activation)
        layer = partial(ConvNorm, norm=self.norm, precision=self.precision)
        y = x
        if row.expanded != x.shape[-1]:
            y = layer(row.expanded, 1, activation=activation, name="expand")(y)
        expanded = y
        y = layer(
            row.expanded,
            row.kernel_size,
            row.stride,
            dilation=self.dilation,
            depthwise=True,
            activation=activation,
            name="depthwise",
        )(y)
        if row.squeezed:
            y *= self._excitation(y)
        y = layer(row.width, 1, activation=None, name="project")(y)
        y = x + y if x.shape == y.shape else y
        return (y, expanded) if with_expanded else y

    def _excitation(self, x: Array) -> Float[Array, "B 1 1 C"]:
        """A factor of 0 … 1 for each channel (Hu et al. 2018), by the hard sigmoid (equation 4)."""
        conv = partial(Conv, kernel_size=1, precision=self.precision)
        squeezed = conv(make_divisible(x.shape[-1] / 4), name="squeeze")(
            x.mean((1, 2), keepdims=True)
        )
        return nn.hard_sigmoid(conv(x.shape[-1], name="excite")(nn.relu(squeezed)))


def make_divisible(width: float, divisor: int = 8) -> int:
    """The nearest multiple of `divisor`, or the next above where that takes away over a tenth."""
    nearest = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return nearest if nearest >= 0.9 * width else nearest + divisor
