"""FCN-32s, FCN-16s and FCN-8s (Long, Shelhamer & Darrell 2015, "Fully Convolutional Networks for
Semantic Segmentation") on VGG16.

The classifier's dense layers become convolutions (7×7 and 1×1), scores are upsampled, and the finer
variants add scores from pool4, and pool3 (figure 3). The details are those of the published
networks: 100 pixels of padding in the first convolution, crops that align the maps, scoring layers
that start at zero, learned 2× upsampling that starts bilinear, a last one that is fixed bilinear.

    s       the stride of the finest scores: 32, 16 or 8
    h w     size of the coarsest scores, about H/32 W/32
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxseg.backbones.vgg import VGG16
from jaxseg.nn.conv import Conv, ConvTranspose, batch_norm
from jaxseg.nn.semantic import segmentation_model
from jaxseg.ops.conv import bilinear_kernel, conv_transpose2d
from jaxseg.types import FLOAT32, Array, Model, Precision

PADDING = 100
# Where the first pixel lies in the scores upsampled from stride s, and the first of those pool3 and
# pool4 positions that the coarser scores cover: all follow from kernels, strides and PADDING.
FIRST_PIXEL = {32: PADDING - 81, 16: PADDING - 73, 8: PADDING - 69}
FIRST_IN_POOL4, FIRST_IN_POOL3 = 5, 9


class FCN(nn.Module):
    """[B H W C] -> logits [B H W K]."""

    num_classes: int
    stride: int = 8  # 32, 16 or 8
    width: int = 64  # of VGG16's first stage
    head_width: int = 4096  # of the convolutionised dense layers
    dropout: float = 0.5
    use_batch_norm: bool = False
    axis_name: str | None = None
    precision: Precision = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool = False) -> Array:
        if self.stride not in FIRST_PIXEL:
            raise ValueError(f"stride is {self.stride}, expected 32, 16 or 8")
        size, precision = x.shape[1:3], self.precision
        norm = None
        if self.use_batch_norm:
            norm = batch_norm(train=train, axis_name=self.axis_name, precision=precision)
        backbone = VGG16(self.width, PADDING, norm, precision, name="backbone")
        features = backbone(x)

        x = features[32]
        for name, kernel_size in (("fc6", 7), ("fc7", 1)):
            conv = Conv(self.head_width, kernel_size, padding=0, precision=precision, name=name)
            x = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(conv(x)))
        scores = self._score(x, "score_fc7")
        if self.stride <= 16:
            scores = self._double(scores, "up_fc7")
            scores += crop(self._score(features[16], "score_pool4"), FIRST_IN_POOL4, scores)
        if self.stride <= 8:
            scores = self._double(scores, "up_pool4")
            scores += crop(self._score(features[8], "score_pool3"), FIRST_IN_POOL3, scores)
        scores = upsample_bilinear(scores.astype(jnp.float32), self.stride)
        first = FIRST_PIXEL[self.stride]
        return scores[:, first : first + size[0], first : first + size[1]]

    def _score(self, x: Array, name: str) -> Array:
        zeros = nn.initializers.zeros
        conv = Conv(self.num_classes, 1, kernel_init=zeros, precision=self.precision, name=name)
        return conv(x)

    def _double(self, scores: Array, name: str) -> Array:
        up = ConvTranspose(
            self.num_classes,
            kernel_size=4,
            use_bias=False,
            kernel_init=bilinear_init,
            precision=self.precision,
            name=name,
        )
        return up(scores)


def crop(x: Float[Array, "B H W K"], first: int, like: Float[Array, "B h w K"]) -> Array:
    """The part of `x` that lies under `like`."""
    return x[:, first : first + like.shape[1], first : first + like.shape[2]]


def upsample_bilinear(x: Float[Array, "B h w K"], stride: int) -> Float[Array, "B H W K"]:
    """Transposed convolution of every channel with the bilinear kernel of `stride`:
    H = (h − 1)·stride + 2·stride."""
    b, h, w, k = x.shape
    kernel = jnp.asarray(bilinear_kernel(stride))[..., None, None]
    planes = x.transpose(0, 3, 1, 2).reshape(b * k, h, w, 1)
    planes = conv_transpose2d(planes, kernel, stride=stride)
    return planes.reshape(b, k, *planes.shape[1:3]).transpose(0, 2, 3, 1)


def bilinear_init(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """Kernel [2s 2s K K] that upsamples every channel by itself (section 3.3)."""
    del key
    size, _, channels, _ = shape
    diagonal = np.eye(channels, dtype=np.float32)
    return jnp.asarray(bilinear_kernel(size // 2)[..., None, None] * diagonal, dtype)


def build(
    num_classes: int,
    *,
    losses: tuple[str, ...] = ("cross_entropy",),
    class_weights: tuple[float, ...] | None = None,
    **network,
) -> Model:
    """The FCN as a `Model`; network: fields of `FCN`. See `nn.semantic.segmentation_model`."""
    return segmentation_model(FCN(num_classes, **network), losses, class_weights)
