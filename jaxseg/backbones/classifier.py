"""The published classification networks, each a backbone with its head.

Classifier("resnet50")               scores [B 1000] of whole pictures
Classifier("vgg16", sliding=True)    scores [B h w 1000], a position every 32 pixels
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
from flax.core import FrozenDict
from jaxtyping import Float

from jaxseg.backbones.alexnet import AlexNet
from jaxseg.backbones.googlenet import GoogLeNet
from jaxseg.backbones.mobilenet import MobileNetV3Large
from jaxseg.backbones.resnet import BLOCKS, ResNet
from jaxseg.backbones.vgg import VGG16
from jaxseg.nn.head import Head
from jaxseg.nn.norm import NormKind, make_norm
from jaxseg.types import FLOAT32, Array, Precision


class Parts(NamedTuple):
    """A backbone with the head and the norm that it was published with."""

    backbone: Callable[..., nn.Module]
    head: Callable[..., Head]
    norm: NormKind


_dense = partial(Head, hidden={"fc6": 4096, "fc7": 4096})
_pooled = partial(Head, hidden={}, pool=True)
PARTS = {
    "alexnet": Parts(AlexNet, partial(_dense, window=6), "none"),
    "vgg16": Parts(VGG16, _dense, "none"),
    "vgg16_bn": Parts(VGG16, _dense, "batch"),
    "googlenet": Parts(GoogLeNet, partial(_pooled, dropout=0.2), "batch"),
    **{
        f"resnet{depth}": Parts(partial(ResNet, depth), partial(_pooled, dropout=0.0), "batch")
        for depth in BLOCKS
    },
    "mobilenet_v3_large": Parts(
        MobileNetV3Large,
        partial(_pooled, hidden={"hidden": 1280}, activation=nn.hard_swish, dropout=0.2),
        "batch",
    ),
}


class Classifier(nn.Module):
    """[B H W C] -> scores [B K], or, sliding, [B h w K], a position every 32 pixels."""

    network: str  # a name in PARTS
    num_classes: int = 1000
    sliding: bool = False
    options: Mapping[str, Any] = FrozenDict()  # fields of the backbone
    axis_name: str | None = None
    precision: Precision = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool = False) -> Array:
        backbone, head, kind = PARTS[self.network]
        norm = make_norm(kind, train=train, axis_name=self.axis_name, precision=self.precision)
        shared = dict(precision=self.precision)
        features = backbone(norm=norm, name="backbone", **self.options, **shared)(x)
        head = head(self.num_classes, sliding=self.sliding, name="head", **shared)
        return head(features[32], train=train)
