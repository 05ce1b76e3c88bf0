"""DeepLab, by versions, each with its paper's own details unless told otherwise:

    v1          Chen et al. 2015, "Semantic Image Segmentation with Deep Convolutional Nets and
                Fully Connected CRFs": VGG16 with holes, and one large field of view (LargeFOV)
    v2          Chen et al. 2018, "DeepLab: Semantic Image Segmentation with Deep Convolutional
                Nets, Atrous Convolution, and Fully Connected CRFs": several fields of view, and
                several sizes of the picture
    v3          Chen et al. 2017, "Rethinking Atrous Convolution for Semantic Image Segmentation":
                ASPP with batch norm and the mean of the image
    v3-cascade  the same paper's other network: ever larger rates, one after another
    v3+         Chen et al. 2018, "Encoder-Decoder with Atrous Separable Convolution for Semantic
                Image Segmentation": a decoder that joins features of stride 4

A backbone ends at its output stride s, 8 or 16, and its later convolutions are atrous, so that they
see what they saw at stride 32. With an output stride of 32 the same parameters make the strided
network, to compare with. Rates are given for one output stride, and are scaled for another.

The CRF of v1 and v2 is not part of the network: it takes the picture and the probabilities that
`predict` gives.

    s      the output stride
    grid   places of features in the picture. Kernels are odd, so features of stride s lie upon its
           pixels 0, s, 2s …: those of 321 = 40·8 + 1 pixels reach from the first to the last
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from jaxseg.backbones.mobilenet import FIRST_MAPS, MobileNetV3Large
from jaxseg.backbones.resnet import BLOCKS, ResNet
from jaxseg.backbones.vgg import VGG16
from jaxseg.backbones.xception import Xception
from jaxseg.nn.aspp import ASPP
from jaxseg.nn.conv import Conv, ConvNorm, SeparableConvNorm
from jaxseg.nn.head import FCNHead, Head
from jaxseg.nn.norm import Norm, NormKind, make_norm
from jaxseg.nn.semantic import segmentation_model
from jaxseg.ops.conv import resize_bilinear
from jaxseg.types import FLOAT32, Array, Model, Precision

BACKBONES = {
    "vgg16": partial(VGG16, pool_window=3),
    **{f"resnet{depth}": partial(ResNet, depth) for depth in BLOCKS},
    "mobilenet_v3_large": partial(MobileNetV3Large, maps=FIRST_MAPS),
    "xception65": Xception,
}

# How scores come to the size of the picture.
#   grid     The picture is first continued by zeros, the mean colour, to n·s + 1 pixels; so all
#            features lie where they belong. The papers' crops have such sizes.
#   corners  The first and the last scores are put upon the first and the last pixel.
#   edges    Scores are cells which together cover the picture.
Alignment = Literal["grid", "corners", "edges"]
Outputs = Array | dict[str, Array]

small_normal = nn.initializers.normal(0.01)  # of the last layer


class DeepLab(nn.Module):
    """Versions 1 and 2: [B H W C] -> logits [B H W K], the sum of a sliding classifier for each
    rate (v2, figure 7). A classifier on VGG16 keeps its dense layers, as `fc6` and `fc7`; one on
    another backbone is a single 3×3 convolution. (The released LargeFOV has a 3×3 average pooling
    before fc6 besides, of which the paper does not speak.)

    scales: of the picture, seen side by side. The logits are their maximum, {"out": the maximum,
    "scale0.5": those of one scale …} (v2, section 4.1).
    """

    num_classes: int
    backbone: str = "vgg16"
    output_stride: int = 8
    rates: tuple[int, ...] = (12,)  # at output stride 8
    scales: tuple[float, ...] = ()
    width: int | None = None  # of the backbone's first layer; None: as published
    head_width: int = 1024  # of fc6 and fc7
    dropout: float = 0.5  # after each of them
    norm: NormKind = "none"
    axis_name: str | None = None
    precision: Precision = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool = False) -> Outputs:
        precision = self.precision
        norm = make_norm(self.norm, train=train, axis_name=self.axis_name, precision=precision)
        backbone = make_backbone(self.backbone, self.width, self.output_stride, norm, precision)
        dense = ("fc6", "fc7") if self.backbone == "vgg16" else ()
        head = partial(
            Head,
            self.num_classes,
            hidden={name: self.head_width for name in dense},
            window=3,
            sliding=True,
            padding=None,
            dropout=self.dropout if dense else 0.0,
            classifier_init=small_normal,
            precision=precision,
        )
        rates = scaled_rates(self.rates, 8, self.output_stride)
        heads = [head(dilation=r, name=f"branch{i}") for i, r in enumerate(rates, start=1)]

        def logits(x: Array) -> Array:
            size = (x.shape[1], x.shape[2])
            x = continue_to_grid(x, self.output_stride)
            features = backbone(x)[32]
            scores = reduce(jnp.add, [head(features, train=train) for head in heads])
            return resize(scores.astype(jnp.float32), x, "grid", size)

        def scaled_logits(scale: float) -> Array:
            height, width = (round(scale * (n - 1)) + 1 for n in x.shape[1:3])
            scores = logits(resize_bilinear(x, (height, width), align_corners=True))
            return resize(scores, x, "grid")

        if not self.scales:
            return logits(x)
        outputs = {f"scale{scale}": scaled_logits(scale) for scale in self.scales}
        return {"out": reduce(jnp.maximum, outputs.values()), **outputs}


class DeepLabV3(nn.Module):
    """[B H W C] -> logits [B H W K], or with an auxiliary head {"out": logits, "aux": logits}."""

    num_classes: int
    backbone: str = "resnet101"
    output_stride: int = 16
    multi_grid: tuple[int, ...] | None = (1, 2, 4)  # of a ResNet
    cascade: int = 0  # stages after a ResNet's fourth, in place of ASPP
    rates: tuple[int, ...] = (6, 12, 18)  # at output stride 16
    width: int | None = None  # of the backbone's first layer; None: as published
    head_width: int = 256
    head_conv: bool = False  # one more 3×3 convolution before the classifier
    auxiliary: int | None = None  # stride of the features that an auxiliary head sees
    dropout: float = 0.1  # after ASPP
    auxiliary_dropout: float = 0.1
    alignment: Alignment = "grid"
    norm: NormKind = "batch"
    axis_name: str | None = None
    precision: Precision = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool = False) -> Outputs:
        precision, size = self.precision, (x.shape[1], x.shape[2])
        if self.alignment == "grid":
            x = continue_to_grid(x, self.output_stride)
        norm = make_norm(self.norm, train=train, axis_name=self.axis_name, precision=precision)
        backbone = make_backbone(
            self.backbone,
            self.width,
            self.output_stride,
            norm,
            precision,
            multi_grid=self.multi_grid,
            cascade=self.cascade,
        )

        def classify(y: Array, width: int | None, dropout: float, name: str) -> Array:
            shared = dict(norm=norm, precision=precision, classifier_init=small_normal)
            head = FCNHead(self.num_classes, width, dropout, **shared, name=name)
            scores = head(y, train=train).astype(jnp.float32)
            return resize(scores, x, self.alignment, size)

        features = backbone(x)
        y = features[max(features)]
        if not self.cascade:
            rates = scaled_rates(self.rates, 16, self.output_stride)
            shared = dict(dropout=self.dropout, norm=norm, precision=precision)
            y = ASPP(self.head_width, rates, **shared, name="aspp")(y, train=train)
        out = classify(y, self.head_width if self.head_conv else None, 0.0, "head")
        if self.auxiliary is None:
            return out
        if self.auxiliary not in features:
            raise ValueError(f"auxiliary is {self.auxiliary}, expected one of {[*features]}")
        y = features[self.auxiliary]
        aux = classify(y, y.shape[-1] // 4, self.auxiliary_dropout, "aux_head")
        return {"out": out, "aux": aux}


class DeepLabV3Plus(nn.Module):
    """[B H W C] -> logits [B H W K]: ASPP of the encoder's last features, upsampled to stride 4,
    joined with its features of that stride, and convolved (v3+, section 3.1 and figure 2)."""

    num_classes: int
    backbone: str = "xception65"
    output_stride: int = 16
    multi_grid: tuple[int, ...] | None = None  # of a ResNet
    rates: tuple[int, ...] = (6, 12, 18)  # at output stride 16
    separable: bool = True  # separable 3×3 convolutions in ASPP and decoder
    norm_between: bool = True  # norm and ReLU after their depthwise part, too
    width: int | None = None  # of the backbone's first layer; None: as published
    head_width: int = 256
    low_level_width: int = 48  # to which the features of stride 4 are reduced
    refine: bool = False  # a 3×3 convolution between ASPP and upsampling
    fuse: int = 2  # 3×3 convolutions after joining
    dropout: float = 0.1  # after ASPP
    alignment: Alignment = "grid"
    norm: NormKind = "batch"
    axis_name: str | None = None
    precision: Precision = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool = False) -> Array:
        precision, size = self.precision, (x.shape[1], x.shape[2])
        if self.alignment == "grid":
            x = continue_to_grid(x, self.output_stride)
        norm = make_norm(self.norm, train=train, axis_name=self.axis_name, precision=precision)
        backbone = make_backbone(
            self.backbone,
            self.width,
            self.output_stride,
            norm,
            precision,
            multi_grid=self.multi_grid,
        )
        layer = ConvNorm
        if self.separable:
            layer = partial(SeparableConvNorm, norm_between=self.norm_between)
        shared = dict(norm=norm, precision=precision)
        conv = partial(layer, self.head_width, 3, **shared)
        rates = scaled_rates(self.rates, 16, self.output_stride)
        aspp = ASPP(self.head_width, rates, layer, self.dropout, **shared, name="aspp")

        features = backbone(x)
        y = aspp(features[32], train=train)
        if self.refine:
            y = conv(name="refine")(y)
        low = ConvNorm(self.low_level_width, 1, **shared, name="low_level")(features[4])
        y = jnp.concatenate([resize(y, low, self.alignment), low], axis=-1)
        for i in range(1, self.fuse + 1):
            y = conv(name="fuse" if i == 1 else f"fuse{i}")(y)
        init = dict(kernel_init=small_normal, precision=precision)
        scores = Conv(self.num_classes, 1, **init, name="classifier")(y)
        return resize(scores.astype(jnp.float32), x, self.alignment, size)


def make_backbone(
    name: str,
    width: int | None,
    output_stride: int,
    norm: Norm,
    precision: Precision,
    **options: Any,
) -> nn.Module:
    """The backbone, [B H W C] -> {stride: features}. options: fields that some of them have alone.
    Raises ValueError for another name, and for an option that this backbone does not know."""
    if name not in BACKBONES:
        raise ValueError(f"backbone is {name!r}, expected one of {', '.join(BACKBONES)}")
    options = {key: value for key, value in options.items() if value}
    if options and not name.startswith("resnet"):
        raise ValueError(f"{', '.join(options)}: of a ResNet, not of {name}; None or 0 without")
    if width is not None:
        options |= dict(width=width)
    geometry = dict(output_stride=output_stride, norm=norm, precision=precision)
    return BACKBONES[name](**geometry, **options, name="backbone")


def scaled_rates(rates: tuple[int, ...], stride: int, output_stride: int) -> tuple[int, ...]:
    """Rates, given for one output stride, that see the same of the picture at another."""
    return tuple(max(1, round(rate * stride / output_stride)) for rate in rates)


def continue_to_grid(x: Float[Array, "B H W C"], stride: int) -> Array:
    """Pictures continued by zeros, to the right and downwards, to n·stride + 1 pixels."""
    bottom, right = (-(n - 1) % stride for n in x.shape[1:3])
    return jnp.pad(x, ((0, 0), (0, bottom), (0, right), (0, 0)))


def resize(
    x: Float[Array, "B h w C"],
    like: Float[Array, "B H W D"],
    alignment: Alignment,
    size: tuple[int, int] | None = None,
) -> Array:
    """Maps interpolated to the size of `like`; of these the first `size` pixels."""
    height, width = like.shape[1:3]
    x = resize_bilinear(x, (height, width), align_corners=alignment != "edges")
    return x if size is None else x[:, : size[0], : size[1]]


class Version(NamedTuple):
    network: Callable[..., nn.Module]
    fields: dict[str, Any]
    # of `nn.semantic.segmentation_model`: v1 and v2 learn from the labels of every 8th pixel
    learning: dict[str, Any]


VERSIONS = {
    "v1": Version(DeepLab, {}, dict(loss_stride=8)),
    "v2": Version(
        DeepLab,
        dict(backbone="resnet101", rates=(6, 12, 18, 24), scales=(1.0, 0.75, 0.5), norm="batch"),
        dict(loss_stride=8, auxiliary_weight=1.0),
    ),
    "v3": Version(DeepLabV3, {}, dict(auxiliary_weight=0.5)),
    "v3-cascade": Version(
        DeepLabV3, dict(cascade=3, multi_grid=(1, 2, 1)), dict(auxiliary_weight=0.5)
    ),
    "v3+": Version(DeepLabV3Plus, {}, {}),
}

# The networks of which others have published weights, as options of `build`: torchvision's on a
# ResNet, its one on MobileNetV3-Large, and that of segmentation_models_pytorch.
TORCHVISION = dict(
    version="v3",
    output_stride=8,
    multi_grid=None,
    head_conv=True,
    auxiliary=16,
    dropout=0.5,
    alignment="edges",
)
TORCHVISION_MOBILENET = TORCHVISION | dict(
    backbone="mobilenet_v3_large", output_stride=16, rates=(12, 24, 36), auxiliary=8
)
SMP = dict(
    version="v3+",
    backbone="resnet50",
    multi_grid=(1, 1, 1),
    rates=(12, 24, 36),
    norm_between=False,
    refine=True,
    fuse=1,
    dropout=0.5,
    alignment="corners",
)


def build(
    num_classes: int,
    *,
    version: str = "v3+",
    losses: tuple[str, ...] = ("cross_entropy",),
    class_weights: tuple[float, ...] | None = None,
    crf_rnn: bool | dict[str, Any] | None = None,
    auxiliary_weight: float | None = None,
    **network: Any,
) -> Model:
    """DeepLab as a `Model`; network: fields of `DeepLab`, `DeepLabV3` or `DeepLabV3Plus`. See
    `nn.semantic.segmentation_model`. Raises ValueError for an unknown version."""
    if version not in VERSIONS:
        raise ValueError(f"version is {version!r}, expected one of {', '.join(VERSIONS)}")
    kind, fields, learning = VERSIONS[version]
    if auxiliary_weight is not None:
        learning = learning | dict[str, Any](auxiliary_weight=auxiliary_weight)
    net = kind(num_classes, **(fields | network))
    return segmentation_model(net, losses, class_weights, crf_rnn=crf_rnn, **learning)
