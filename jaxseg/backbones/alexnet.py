"""AlexNet (Krizhevsky et al. 2012), in the widths of Krizhevsky 2014, "One weird trick for
parallelizing convolutional neural networks", which published weights have: five convolutions."""

import flax.linen as nn
from jaxtyping import Float

from jaxseg.nn.conv import Conv
from jaxseg.nn.norm import Norm
from jaxseg.ops.conv import max_pool2d
from jaxseg.types import FLOAT32, Array, Precision

# (kernel size, stride, padding, width over the first's): the strides of the rest lie in poolings.
CONVOLUTIONS = ((11, 4, 2, 1), (5, 1, 2, 3), (3, 1, 1, 6), (3, 1, 1, 4), (3, 1, 1, 4))
POOLED = {1: 8, 2: 16, 5: 32}  # a 3×3 pooling of stride 2 after these; the stride it leads to


class AlexNet(nn.Module):
    """[B H W C] -> {4: first convolution, 8, 16, 32: after the pooling to that stride}.

    first_padding: of the first convolution alone; ceil_mode: see `ops.conv.max_pool2d`.
    """

    width: int = 64
    first_padding: int = 2
    ceil_mode: bool = False
    norm: Norm = None
    precision: Precision = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> dict[int, Array]:
        features = {}
        for i, (kernel_size, stride, padding, factor) in enumerate(CONVOLUTIONS, start=1):
            conv = Conv(
                self.width * factor,
                kernel_size,
                stride,
                self.first_padding if i == 1 else padding,
                use_bias=self.norm is None,
                precision=self.precision,
                name=f"conv{i}",
            )
            x = conv(x)
            if self.norm is not None:
                x = self.norm(name=f"norm{i}")(x)
            x = nn.relu(x)
            if i == 1:
                features[stride] = x
            if i in POOLED:
                x = max_pool2d(x, window=3, stride=2, ceil_mode=self.ceil_mode)
                features[POOLED[i]] = x
        return features
