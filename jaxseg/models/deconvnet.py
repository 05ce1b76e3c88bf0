"""DeconvNet (Noh, Hong & Han 2015, "Learning Deconvolution Network for Semantic Segmentation").

VGG16 down to one vector, and its mirror image back up (table 1): each unpooling puts values where
the maxima of its pooling were (the switches), and transposed convolutions make dense maps of these.
Batch norm after every layer: where fc6 has one position a picture, its statistics are of as many
values as the batch has pictures. The paper trains in two stages, on crops of single objects first,
and at test fuses object proposals; both are matters of the data, and not here.

    h w     size after five poolings, H/32 W/32
"""

from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from jaxseg.backbones.vgg import CONVOLUTIONS, VGG16, WIDTHS
from jaxseg.nn.conv import Conv, ConvTranspose
from jaxseg.nn.norm import Norm, NormKind, make_norm
from jaxseg.nn.semantic import segmentation_model
from jaxseg.ops.conv import mirror_pad
from jaxseg.ops.unpool import bed_of_nails, max_pool_with_switches, max_unpool, upsample_nearest
from jaxseg.types import FLOAT32, Array, Model, Precision

Upsampling = Literal["switches", "nearest", "nails", "transposed"]


class DeconvNet(nn.Module):
    """[B H W C] -> logits [B H W K]. Pictures are continued by mirroring to multiples of 32 pixels,
    and at least to 32·window: what `fc6` needs (the paper's are 224×224).

    upsampling: by the switches, as published, or without them (ops/unpool.py).
    """

    num_classes: int
    width: int = 64  # of VGG16's first stage
    head_width: int = 4096  # of fc6 and fc7
    window: int = 7  # of fc6
    upsampling: Upsampling = "switches"
    shortcuts: bool = False  # add the features of the same size from the way down
    norm: NormKind = "batch"
    axis_name: str | None = None
    precision: Precision = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool = False) -> Array:
        height, width = x.shape[1:3]
        bottom, right = (max(-n % 32, 32 * self.window - n) for n in (height, width))
        x = mirror_pad(x, (0, 0), (bottom, right))
        precision = self.precision
        norm = make_norm(self.norm, train=train, axis_name=self.axis_name, precision=precision)
        layer = partial(DeconvNorm, norm=norm, precision=precision)

        encoder = VGG16(self.width, pooled=False, norm=norm, precision=precision, name="backbone")
        features = encoder(x)
        x, _ = max_pool_with_switches(features[16])
        x = Dense(self.head_width, self.window, norm, precision, name="head")(x)
        x = layer(self.width * WIDTHS[-1], self.window, padding=0, name="deconv_fc6")(x)
        for stage in range(5, 0, -1):
            copied = features[2 ** (stage - 1)]
            x = self._upsample(x, copied, f"up{stage}")
            if self.shortcuts:
                x += copied
            count, before = CONVOLUTIONS[stage - 1], WIDTHS[max(stage - 2, 0)]
            for i in range(1, count + 1):
                factor = before if i == count else WIDTHS[stage - 1]
                x = layer(self.width * factor, name=f"deconv{stage}_{i}")(x)
        x = Conv(self.num_classes, 1, precision=precision, name="classifier")(x)
        return x[:, :height, :width].astype(jnp.float32)

    def _upsample(self, x: Float[Array, "B h w C"], copied: Array, name: str) -> Array:
        """Twice the size, that of `copied`: what was pooled there on the way down."""
        match self.upsampling:
            case "switches":
                _, switches = max_pool_with_switches(copied)
                return max_unpool(x, switches, (copied.shape[1], copied.shape[2]))
            case "nearest":
                return upsample_nearest(x, 2)
            case "nails":
                return bed_of_nails(x, 2)
            case "transposed":
                return ConvTranspose(x.shape[-1], precision=self.precision, name=name)(x)
        raise ValueError(
            f"upsampling is {self.upsampling!r}, expected switches, nearest, nails or transposed"
        )


class Dense(nn.Module):
    """fc6 and fc7 as convolutions, each with norm and ReLU. They keep VGG16's biases."""

    width: int
    window: int
    norm: Norm
    precision: Precision

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h2 w2 F"]:
        for i, size in ((6, self.window), (7, 1)):
            x = Conv(self.width, size, padding=0, precision=self.precision, name=f"fc{i}")(x)
            x = nn.relu(x if self.norm is None else self.norm(name=f"norm{i}")(x))
        return x


class DeconvNorm(nn.Module):
    """Transposed convolution of stride 1, norm, ReLU."""

    features: int
    kernel_size: int = 3
    padding: int = 1
    norm: Norm = None
    precision: Precision = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 F"]:
        conv = ConvTranspose(
            self.features,
            self.kernel_size,
            stride=1,
            padding=self.padding,
            use_bias=self.norm is None,
            precision=self.precision,
            name="conv",
        )
        x = conv(x)
        return nn.relu(x if self.norm is None else self.norm(name="norm")(x))


def build(
    num_classes: int,
    *,
    losses: tuple[str, ...] = ("cross_entropy",),
    class_weights: tuple[float, ...] | None = None,
    crf_rnn: bool | dict[str, Any] | None = None,
    **network: Any,
) -> Model:
    """DeconvNet as a `Model`; network: fields of `DeconvNet`. See
    `nn.semantic.segmentation_model`."""
    net = DeconvNet(num_classes, **network)
    return segmentation_model(net, losses, class_weights, crf_rnn=crf_rnn)
