"""U-Net (Ronneberger, Fischer & Brox 2015, "U-Net: Convolutional Networks for Biomedical Image
Segmentation").

A contracting path of two 3×3 convolutions and a 2×2 max pooling a level, doubling the channels
each time, and an expanding path that doubles the size again, joins the features copied from the
level's other side, and convolves twice (figure 1). The defaults are the paper's: unpadded
convolutions, so that the output is smaller than the input and the copied features are cropped; no
batch norm; transposed convolutions; 64 channels at the top, four poolings.

A picture of any size is continued by mirroring (section 2, figure 2) until the output covers it.

`EncoderUNet` has a ResNet as its contracting path, for the sake of its published weights.
"""

from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from jaxseg.backbones.resnet import ResNet
from jaxseg.nn.conv import Conv, ConvNorm, ConvTranspose
from jaxseg.nn.norm import Norm, NormKind, make_norm
from jaxseg.nn.semantic import segmentation_model
from jaxseg.ops.conv import max_pool2d, mirror_pad, resize_bilinear
from jaxseg.ops.unpool import upsample_nearest
from jaxseg.types import FLOAT32, Array, Model, Precision

Padding = Literal["valid", "same"]


class UNet(nn.Module):
    """[B H W C] -> logits [B H W K], for pictures of any size."""

    num_classes: int
    width: int = 64
    depth: int = 4
    padding: Padding = "valid"
    upsampling: Literal["transposed", "bilinear"] = "transposed"
    norm: NormKind = "none"
    dropout: float = 0.5  # at the end of the contracting path (section 3.1)
    remat: bool = False
    axis_name: str | None = None
    precision: Precision = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool = False) -> Array:
        height, width = x.shape[1:3]
        (h0, h1), (w0, w1) = (tile_sizes(n, self.depth, self.padding) for n in (height, width))
        top, left = (h0 - h1) // 2, (w0 - w1) // 2
        x = mirror_pad(x, (top, left), (h0 - top - height, w0 - left - width))

        precision = self.precision
        norm = make_norm(self.norm, train=train, axis_name=self.axis_name, precision=precision)
        block = partial(
            nn.remat(DoubleConv) if self.remat else DoubleConv,
            padding=0 if self.padding == "valid" else 1,
            norm=norm,
            precision=precision,
        )
        copied = []
        for level in range(self.depth):
            x = block(self.width << level, name=f"down{level}")(x)
            copied.append(x)
            x = max_pool2d(x)
        x = block(self.width << self.depth, name="bottom")(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        for level in reversed(range(self.depth)):
            features = self.width << level
            if self.upsampling == "transposed":
                x = ConvTranspose(features, precision=precision, name=f"up{level}_conv")(x)
            else:  # a 1×1 convolution commutes with the interpolation and is cheaper before it
                x = Conv(features, 1, precision=precision, name=f"up{level}_conv")(x)
                x = resize_bilinear(x, (2 * x.shape[1], 2 * x.shape[2]))
            x = jnp.concatenate([center_crop(copied[level], like=x), x], axis=-1)
            x = block(features, name=f"up{level}")(x)
        x = Conv(self.num_classes, 1, precision=precision, name="classifier")(x)
        return x[:, :height, :width].astype(jnp.float32)


class EncoderUNet(nn.Module):
    """[B H W C] -> logits [B H W K], for pictures of any size: features of a ResNet, and five times
    nearest-neighbour upsampling, features of the same size copied, two convolutions (as
    segmentation_models_pytorch has it)."""

    num_classes: int
    backbone: str = "resnet34"  # or "resnet18", "resnet50", "resnet101"
    width: int = 64  # of the backbone's first stage
    decoder_widths: tuple[int, ...] = (256, 128, 64, 32, 16)
    norm: NormKind = "batch"
    axis_name: str | None = None
    precision: Precision = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool = False) -> Array:
        height, width = x.shape[1:3]
        x = mirror_pad(x, (0, 0), (-height % 32, -width % 32))
        norm = make_norm(self.norm, train=train, axis_name=self.axis_name, precision=self.precision)
        depth = int(self.backbone.removeprefix("resnet"))
        encoder = ResNet(depth, self.width, norm=norm, precision=self.precision, name="backbone")
        features = encoder(x)
        x = features[32]
        strides = (16, 8, 4, 2, 1)
        for i, (stride, channels) in enumerate(zip(strides, self.decoder_widths, strict=True), 1):
            x = upsample_nearest(x, 2)
            if stride in features:
                x = jnp.concatenate([x, features[stride]], axis=-1)
            x = DoubleConv(channels, 1, norm, self.precision, name=f"up{i}")(x)
        x = Conv(self.num_classes, 3, precision=self.precision, name="classifier")(x)
        return x[:, :height, :width].astype(jnp.float32)


class DoubleConv(nn.Module):
    """Two 3×3 convolutions, each with norm and ReLU."""

    features: int
    padding: int
    norm: Norm
    precision: Precision

    @nn.compact
    def __call__(self, x: Array) -> Array:
        block = partial(
            ConvNorm, self.features, padding=self.padding, norm=self.norm, precision=self.precision
        )
        return block(name="conv2")(block(name="conv1")(x))


def tile_sizes(size: int, depth: int, padding: Padding) -> tuple[int, int]:
    """(input, output) size in pixels of the smallest tile whose output covers `size` pixels.

    Every pooling needs an even size, which leaves inputs 4 + 2·(4 + 2·(… b)) for b pixels at the
    bottom. Depth 4, valid: 388 -> (572, 388), as in figure 1.
    """
    if padding == "same":
        tile = -(-size // 2**depth) * 2**depth
        return tile, tile
    bottom = 1
    while True:
        inside, outside = bottom, bottom - 4
        for _ in range(depth):
            inside, outside = 2 * inside + 4, 2 * outside - 4
        if outside >= size:
            return inside, outside
        bottom += 1


def center_crop(x: Float[Array, "B H W C"], like: Float[Array, "B H2 W2 D"]) -> Array:
    """The middle of feature maps, of the size of `like`."""
    height, width = like.shape[1:3]
    top, left = (x.shape[1] - height) // 2, (x.shape[2] - width) // 2
    return x[:, top : top + height, left : left + width]


def build(
    num_classes: int,
    *,
    backbone: str | None = None,
    losses: tuple[str, ...] = ("cross_entropy",),
    class_weights: tuple[float, ...] | None = None,
    crf_rnn: bool | dict[str, Any] | None = None,
    **network: Any,
) -> Model:
    """The U-Net as a `Model`; network: fields of `UNet`, or with a backbone of `EncoderUNet`. See
    `nn.semantic.segmentation_model`."""
    if backbone is None:
        net = UNet(num_classes, **network)
    else:
        net = EncoderUNet(num_classes, backbone, **network)
    return segmentation_model(net, losses, class_weights, crf_rnn=crf_rnn)
