"""VGG16 (Simonyan & Zisserman 2015, configuration D): thirteen 3×3 convolutions in five stages."""

from collections.abc import Callable

import flax.linen as nn
from jaxtyping import Float

from jaxseg.nn.conv import ConvNorm
from jaxseg.ops.conv import max_pool2x2
from jaxseg.types import FLOAT32, Array, Precision

CONVOLUTIONS = (2, 2, 3, 3, 3)
WIDTHS = (1, 2, 4, 8, 8)  # times the first stage's


class VGG16(nn.Module):
    """[B H W C] -> {stride: features after that pooling}, strides 2, 4, 8, 16, 32.

    first_padding: of the first convolution alone (FCN has 100, so that a small picture leaves
    something for its 7×7 kernel). Odd sizes are pooled to the half rounded up, as Caffe does.
    """

    width: int = 64
    first_padding: int = 1
    norm: Callable[..., nn.Module] | None = None
    precision: Precision = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> dict[int, Array]:
        features = {}
        for stage, (count, factor) in enumerate(zip(CONVOLUTIONS, WIDTHS, strict=True), start=1):
            for i in range(1, count + 1):
                conv = ConvNorm(
                    self.width * factor,
                    padding=self.first_padding if (stage, i) == (1, 1) else 1,
                    norm=self.norm,
                    precision=self.precision,
                    name=f"stage{stage}_conv{i}",
                )
                x = conv(x)
            x = features[2**stage] = max_pool2x2(x)
        return features
