"""LR-ASPP on MobileNetV3 (Howard et al. 2019, "Searching for MobileNetV3", section 6.4): a small
segmentation head with one branch of convolution, weighted by one of the picture as a whole, and
a skip connection from finer features (figure 10). As torchvision has it, the whole is the mean of
all features, not of windows of 49×49.

    s    stride of the coarse features: 16, or 32
    D    width of the head
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from jaxseg.backbones.mobilenet import FIRST_MAPS, MobileNetV3Large
from jaxseg.nn.conv import Conv, ConvNorm
from jaxseg.nn.norm import Norm, NormKind, make_norm
from jaxseg.nn.semantic import segmentation_model
from jaxseg.ops.conv import resize_bilinear
from jaxseg.types import FLOAT32, Array, Model, Precision


class LRASPP(nn.Module):
    """[B H W C] -> logits [B H W K]."""

    num_classes: int
    width: int = 16  # of the backbone's first layer
    head_width: int = 128
    output_stride: int = 16  # or 32
    norm: NormKind = "batch"
    axis_name: str | None = None
    precision: Precision = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool = False) -> Array:
        height, width = x.shape[1:3]
        precision = self.precision
        norm = make_norm(self.norm, train=train, axis_name=self.axis_name, precision=precision)
        backbone = MobileNetV3Large(
            self.width,
            self.output_stride,
            FIRST_MAPS,
            norm=norm,
            precision=precision,
            name="backbone",
        )
        features = backbone(x)
        head = Head(self.num_classes, self.head_width, norm, precision, name="head")
        logits = head(features[8], features[32])
        return resize_bilinear(logits.astype(jnp.float32), (height, width))


class Head(nn.Module):
    """Features of stride 8, and of stride s, to logits of stride 8."""

    num_classes: int
    width: int
    norm: Norm
    precision: Precision

    @nn.compact
    def __call__(
        self, low: Float[Array, "B H8 W8 C8"], high: Float[Array, "B Hs Ws Cs"]
    ) -> Float[Array, "B H8 W8 K"]:
        shared = dict(kernel_size=1, precision=self.precision)
        x = ConvNorm(self.width, norm=self.norm, name="conv", **shared)(high)
        whole = high.mean((1, 2), keepdims=True)
        x *= nn.sigmoid(Conv(self.width, use_bias=False, name="scale", **shared)(whole))
        x = resize_bilinear(x, (low.shape[1], low.shape[2]))
        x = Conv(self.num_classes, name="high_classifier", **shared)(x)
        return x + Conv(self.num_classes, name="low_classifier", **shared)(low)


def build(
    num_classes: int,
    *,
    losses: tuple[str, ...] = ("cross_entropy",),
    class_weights: tuple[float, ...] | None = None,
    crf_rnn: bool | dict[str, Any] | None = None,
    **network: Any,
) -> Model:
    """LR-ASPP as a `Model`; network: fields of `LRASPP`. See `nn.semantic.segmentation_model`."""
    net = LRASPP(num_classes, **network)
    return segmentation_model(net, losses, class_weights, crf_rnn=crf_rnn)
