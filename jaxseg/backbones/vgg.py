"""VGG16 (Simonyan & Zisserman 2015, configuration D): thirteen 3×3 convolutions in five stages."""

import flax.linen as nn
from jaxtyping import Float

from jaxseg.nn.conv import ConvNorm
from jaxseg.nn.norm import Norm
from jaxseg.ops.conv import max_pool2d
from jaxseg.types import FLOAT32, Array, Precision

CONVOLUTIONS = (2, 2, 3, 3, 3)
WIDTHS = (1, 2, 4, 8, 8)  # times the first stage's


class VGG16(nn.Module):
    """[B H W C] -> {stride: features after that pooling}, strides 2, 4, 8, 16, 32; or, where not
    `pooled`, {stride: features of a stage before its pooling}, strides 1, 2, 4, 8, 16.

    first_padding: of the first convolution alone (FCN has 100, so that a small picture leaves
    something for its 7×7 kernel). Odd sizes are pooled to the half rounded down, or with
    `ceil_mode` up, as Caffe does.
    output_stride: 8, 16 or 32. Beyond it poolings keep the size, convolutions after them are
    dilated in their place (the hole algorithm: Chen et al. 2015, section 3.1), and features still
    go by the stride that they have in the undilated network. Such a pooling needs a `pool_window`
    of 3, whose values lie upon the old ones, not between them.
    """

    width: int = 64
    output_stride: int = 32
    pool_window: int = 2  # or 3
    first_padding: int = 1
    ceil_mode: bool = False
    pooled: bool = True
    norm: Norm = None
    precision: Precision = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> dict[int, Array]:
        if (self.output_stride, self.pool_window) not in ((8, 3), (16, 3), (32, 3), (32, 2)):
            raise ValueError(
                f"VGG16 of output stride {self.output_stride}, pool_window {self.pool_window}: "
                "expected 8 or 16 and 3, or 32 and 2 or 3"
            )
        features, dilation = {}, 1
        for stage, (count, factor) in enumerate(zip(CONVOLUTIONS, WIDTHS, strict=True), start=1):
            for i in range(1, count + 1):
                conv = ConvNorm(
                    self.width * factor,
                    padding=self.first_padding if (stage, i) == (1, 1) else None,
                    dilation=dilation,
                    norm=self.norm,
                    precision=self.precision,
                    name=f"stage{stage}_conv{i}",
                )
                x = conv(x)
            if not self.pooled:
                features[2 ** (stage - 1)] = x
            stride = 2
            if 2**stage > self.output_stride:
                stride, dilation = 1, 2 * dilation
            window = self.pool_window
            x = max_pool2d(x, window, stride, (window - 1) // 2, ceil_mode=self.ceil_mode)
            if self.pooled:
                features[2**stage] = x
        return features
