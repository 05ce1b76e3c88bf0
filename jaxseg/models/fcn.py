"""Fully convolutional networks (Long, Shelhamer & Darrell 2015, "Fully Convolutional Networks for
Semantic Segmentation"): FCN-32s, FCN-16s and FCN-8s on AlexNet, VGG16 and GoogLeNet, and the
dilated ResNets that go by the same name today.

`FCN`: the classifier slides (nn/head.py), its scores are upsampled, and the finer variants add
scores of the features at stride 16, and 8 (figure 3). The details are those of the published
networks: 100 pixels of padding in the first convolution, crops that align the maps, scoring layers
that start at zero, learned 2× upsampling that starts bilinear, a last one that is fixed bilinear.

`DilatedFCN`: a ResNet of output stride 8, a 3×3 convolution and a classifier, resized; and the same
again on the stage before as an auxiliary classifier (as torchvision has it).

    s       the stride of the finest scores: 32, 16 or 8
    h w     size of the coarsest scores, about H/32 W/32
    place   where a map's first value lies, in pixels of the image, 0 at the first pixel's centre
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxseg.backbones.alexnet import AlexNet
from jaxseg.backbones.googlenet import GoogLeNet
from jaxseg.backbones.resnet import ResNet
from jaxseg.backbones.vgg import VGG16
from jaxseg.nn.conv import Conv, ConvTranspose
from jaxseg.nn.head import FCNHead, Head
from jaxseg.nn.norm import NormKind, make_norm
from jaxseg.nn.semantic import segmentation_model
from jaxseg.ops.conv import bilinear_kernel, resize_bilinear
from jaxseg.types import FLOAT32, Array, Model, Precision

PADDING = 100


class Anatomy(NamedTuple):
    """What an FCN must know of the classifier that it makes of a backbone."""

    backbone: Callable[..., nn.Module]
    moves: tuple[tuple[int, int], ...]  # (kernel size, stride) of the layers that shift the grid
    hidden: tuple[str, ...]  # dense layers before the classifier
    window: int = 1  # size of the first one's features


ANATOMY = {
    "alexnet": Anatomy(
        partial(AlexNet, ceil_mode=True), ((11, 4), (3, 2), (3, 2), (3, 2)), ("fc6", "fc7"), 6
    ),
    "vgg16": Anatomy(partial(VGG16, ceil_mode=True), ((3, 1), *[(2, 2)] * 5), ("fc6", "fc7"), 7),
    # "discarding the final average pooling layer" (section 4.1)
    "googlenet": Anatomy(GoogLeNet, ((7, 2), (3, 2), (3, 2), (3, 2), (2, 2)), ()),
}
RESNETS = {"resnet50": 50, "resnet101": 101}


class FCN(nn.Module):
    """[B H W C] -> logits [B H W K]."""

    num_classes: int
    backbone: str = "vgg16"  # or "alexnet", "googlenet"
    stride: int = 8  # 32, 16 or 8
    width: int = 64  # of the backbone's first stage
    head_width: int = 4096  # of the convolutionised dense layers
    padding: int = PADDING  # of the first convolution
    head_padding: int = 0  # of the first dense layer; with 3 of VGG16's, `padding` 1 will do
    dropout: float = 0.5
    norm: NormKind = "none"
    axis_name: str | None = None
    precision: Precision = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool = False) -> Array:
        if self.stride not in (32, 16, 8):
            raise ValueError(f"stride is {self.stride}, expected 32, 16 or 8")
        height, width = x.shape[1:3]
        anatomy, places = ANATOMY[self.backbone], feature_places(self.backbone, self.padding)
        backbone = anatomy.backbone(
            self.width,
            first_padding=self.padding,
            norm=make_norm(
                self.norm, train=train, axis_name=self.axis_name, precision=self.precision
            ),
            precision=self.precision,
            name="backbone",
        )
        features = backbone(x)
        head = Head(
            self.num_classes,
            {name: self.head_width for name in anatomy.hidden},
            anatomy.window,
            sliding=True,
            padding=self.head_padding,
            dropout=self.dropout,
            classifier_init=nn.initializers.zeros,
            precision=self.precision,
            name="head",
        )
        scores = head(features[32], train=train)
        place = places[32] + 32 * ((anatomy.window - 1) / 2 - self.head_padding)
        for stride in (16, 8):
            if stride >= self.stride:
                size = kernel_size(place, places[stride], stride, 2)
                scores = self._double(scores, size, f"up{stride}")
                place -= stride * (size - 1) / 2
                finer = self._score(features[stride], f"score{stride}")
                scores, finer = overlap(scores, finer, round((places[stride] - place) / stride))
                scores += finer
                place = max(place, places[stride])
        size = kernel_size(place, 0.0, 1, self.stride)
        scores = upsample_bilinear(scores.astype(jnp.float32), self.stride, size)
        first = round((size - 1) / 2 - place)
        if first < 0 or first + height > scores.shape[1] or first + width > scores.shape[2]:
            raise ValueError(f"padding {self.padding}: the scores do not reach over the image")
        return scores[:, first : first + height, first : first + width]

    def _score(self, x: Array, name: str) -> Array:
        zeros = nn.initializers.zeros
        conv = Conv(self.num_classes, 1, kernel_init=zeros, precision=self.precision, name=name)
        return conv(x)

    def _double(self, scores: Array, kernel_size: int, name: str) -> Array:
        up = ConvTranspose(
            self.num_classes,
            kernel_size,
            use_bias=False,
            kernel_init=bilinear_init,
            precision=self.precision,
            name=name,
        )
        return up(scores)


class DilatedFCN(nn.Module):
    """[B H W C] -> {"out": logits [B H W K], "aux": logits [B H W K]}."""

    num_classes: int
    backbone: str = "resnet50"  # or "resnet101"
    width: int = 64
    output_stride: int = 8
    dropout: float = 0.1
    auxiliary: bool = True
    norm: NormKind = "batch"
    axis_name: str | None = None
    precision: Precision = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool = False) -> dict[str, Array]:
        precision, (height, width) = self.precision, x.shape[1:3]
        norm = make_norm(self.norm, train=train, axis_name=self.axis_name, precision=precision)
        backbone = ResNet(
            RESNETS[self.backbone],
            self.width,
            self.output_stride,
            norm=norm,
            precision=precision,
            name="backbone",
        )
        features = backbone(x)
        outputs = {"out": ("head", 32)} | ({"aux": ("aux_head", 16)} if self.auxiliary else {})

        def classify(name: str, stride: int) -> Array:
            y = features[stride]
            head = FCNHead(
                self.num_classes, y.shape[-1] // 4, self.dropout, norm, precision, name=name
            )
            scores = head(y, train=train)
            return resize_bilinear(scores.astype(jnp.float32), (height, width))

        return {output: classify(*source) for output, source in outputs.items()}


def feature_places(backbone: str, padding: int) -> dict[int, float]:
    """{stride: place} of a backbone's features, where its first convolution pads by `padding`."""
    places, place, stride = {}, -padding, 1
    for kernel, step in ANATOMY[backbone].moves:
        place += stride * (kernel - 1) / 2
        stride *= step
        places[stride] = place
    return places


def kernel_size(place: float, finer_place: float, finer_stride: int, factor: int) -> int:
    """The size of a bilinear kernel that upsamples by `factor` onto another map's grid: 2·factor
    puts new values half a step beside the old ones, 2·factor − 1 puts some upon them."""
    steps = (place - finer_place) / finer_stride
    return 2 * factor - 1 if steps == round(steps) else 2 * factor


def overlap(a: Array, b: Array, offset: int) -> tuple[Array, Array]:
    """The common parts of maps [B h w K] of the same stride, of which `b` begins `offset` after."""
    a, b = a[:, max(offset, 0) :, max(offset, 0) :], b[:, max(-offset, 0) :, max(-offset, 0) :]
    height, width = (min(m, n) for m, n in zip(a.shape[1:3], b.shape[1:3], strict=True))
    return a[:, :height, :width], b[:, :height, :width]


def upsample_bilinear(
    x: Float[Array, "B h w K"], stride: int, size: int
) -> Float[Array, "B H W K"]:
    """Transposed convolution of every channel with the bilinear kernel of `stride`, of `size`
    2·stride or 2·stride − 1: H = (h − 1)·stride + size. The kernel is separable, so it is a matrix
    for the rows and one for the columns."""

    def matrix(count: int) -> np.ndarray:
        places = np.arange((count - 1) * stride + size).reshape(-1, 1)
        centers = stride * np.arange(count).reshape(1, -1) + (size - 1) / 2
        return np.maximum(1 - np.abs(places - centers) / stride, 0).astype(np.float32)

    rows, columns = matrix(x.shape[1]), matrix(x.shape[2])
    return jnp.einsum("yh,bhwk,xw->byxk", rows, x, columns, optimize=True)


def bilinear_init(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """Kernel [k k K K], k = 2s or 2s − 1, that upsamples every channel by itself (section 3.3)."""
    del key
    size, _, channels, _ = shape
    diagonal = np.eye(channels, dtype=np.float32)
    kernel = bilinear_kernel((size + 1) // 2, size)
    return jnp.asarray(kernel[..., None, None] * diagonal, dtype)


def build(
    num_classes: int,
    *,
    backbone: str = "vgg16",
    losses: tuple[str, ...] = ("cross_entropy",),
    class_weights: tuple[float, ...] | None = None,
    crf_rnn: bool | dict[str, Any] | None = None,
    auxiliary_weight: float = 0.5,
    **network: Any,
) -> Model:
    """The FCN as a `Model`; network: fields of `FCN`, or for a ResNet of `DilatedFCN`. See
    `nn.semantic.segmentation_model`. Raises ValueError for an unknown backbone."""
    if backbone not in ANATOMY | RESNETS:
        known = ", ".join(ANATOMY | RESNETS)
        raise ValueError(f"backbone is {backbone!r}, expected one of {known}")
    kind = FCN if backbone in ANATOMY else DilatedFCN
    net = kind(num_classes, backbone, **network)
    return segmentation_model(net, losses, class_weights, auxiliary_weight, crf_rnn=crf_rnn)
