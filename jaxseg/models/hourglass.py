"""Stacked hourglasses (Newell, Yang & Deng 2016, "Stacked Hourglass Networks for Human Pose
Estimation"), here for segmentation: scores of classes in the place of heatmaps of joints.

An hourglass pools to a few pixels and comes back by nearest-neighbour upsampling, adding at every
size what a residual module made of the features on the way down (figure 3). Two 1×1 convolutions
give its scores (section 3.1). Several stand in a row; the scores of each are learned, and go, with
its features, into the next (figure 4).

    h w     H/4 W/4, rounded up: features and scores lie at stride 4
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from jaxseg.nn.conv import Conv, ConvNorm
from jaxseg.nn.norm import Norm, NormKind, make_norm
from jaxseg.nn.semantic import segmentation_model
from jaxseg.ops.conv import max_pool2d, resize_bilinear
from jaxseg.ops.unpool import upsample_nearest
from jaxseg.types import FLOAT32, Array, Model, Precision


class StackedHourglass(nn.Module):
    """[B H W C] -> a list of scores [B h w K], one after each hourglass."""

    num_outputs: int
    num_stacks: int = 8
    width: int = 256
    depth: int = 4  # poolings of an hourglass
    norm: NormKind = "batch"
    axis_name: str | None = None
    precision: Precision = FLOAT32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], *, train: bool = False
    ) -> list[Float[Array, "B h w K"]]:
        precision = self.precision
        norm = make_norm(self.norm, train=train, axis_name=self.axis_name, precision=precision)
        residual = partial(Residual, norm=norm, precision=precision)
        pointwise = partial(Conv, kernel_size=1, precision=precision)

        quarter, half = self.width // 4, self.width // 2
        x = ConvNorm(quarter, 7, 2, norm=norm, precision=precision, name="stem_conv")(x)
        x = residual(half, name="stem_residual1")(x)
        x = max_pool2d(x, ceil_mode=True)
        x = residual(half, name="stem_residual2")(x)
        x = residual(self.width, name="stem_residual3")(x)
        scores = []
        for i in range(1, self.num_stacks + 1):
            name = f"stack{i}"
            y = Hourglass(self.width, self.depth, norm, precision, name=f"{name}_hourglass")(x)
            y = ConvNorm(self.width, 1, norm=norm, precision=precision, name=f"{name}_conv")(y)
            scores.append(pointwise(self.num_outputs, name=f"{name}_scores")(y))
            if i < self.num_stacks:
                x += pointwise(self.width, name=f"{name}_features_back")(y)
                x += pointwise(self.width, name=f"{name}_scores_back")(scores[-1])
        return scores


class Hourglass(nn.Module):
    """[B h w F] -> the same, seen at `depth` sizes beside its own."""

    width: int
    depth: int
    norm: Norm
    precision: Precision

    @nn.compact
    def __call__(self, x: Float[Array, "B h w F"]) -> Float[Array, "B h w F"]:
        residual = partial(Residual, self.width, norm=self.norm, precision=self.precision)
        copied = []
        for level in range(self.depth):
            copied.append(residual(name=f"copy{level}")(x))
            x = residual(name=f"down{level}")(max_pool2d(x, ceil_mode=True))
        x = residual(name="bottom")(x)
        for level in reversed(range(self.depth)):
            x = upsample_nearest(residual(name=f"up{level}")(x), 2)
            # Odd sizes were pooled to the half rounded up.
            x = copied[level] + x[:, : copied[level].shape[1], : copied[level].shape[2]]
        return x


class Residual(nn.Module):
    """Norm, ReLU and convolution three times, 1×1, 3×3, 1×1, beside a shortcut (He et al. 2016,
    "Identity Mappings in Deep Residual Networks"; figure 4 left)."""

    features: int
    norm: Norm
    precision: Precision

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w F"]:
        conv = partial(Conv, precision=self.precision)
        half, y = self.features // 2, x
        layers = ((half, 1), (half, 3), (self.features, 1))
        for i, (features, size) in enumerate(layers, start=1):
            if self.norm is not None:
                y = self.norm(name=f"norm{i}")(y)
            y = conv(features, size, name=f"conv{i}")(nn.relu(y))
        if x.shape[-1] != self.features:
            x = conv(self.features, 1, name="shortcut")(x)
        return x + y


class HourglassSegmenter(nn.Module):
    """[B H W C] -> {"out": logits [B H W K] of the last hourglass, "stack1": of the first, …}."""

    num_classes: int
    num_stacks: int = 8
    width: int = 256
    depth: int = 4
    norm: NormKind = "batch"
    axis_name: str | None = None
    precision: Precision = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool = False) -> dict[str, Array]:
        network = StackedHourglass(
            self.num_classes,
            self.num_stacks,
            self.width,
            self.depth,
            self.norm,
            self.axis_name,
            self.precision,
            name="hourglasses",
        )
        height, width = x.shape[1:3]

        def enlarge(scores: Array) -> Array:
            size = 4 * scores.shape[1], 4 * scores.shape[2]
            return resize_bilinear(scores.astype(jnp.float32), size)[:, :height, :width]

        names = [*(f"stack{i}" for i in range(1, self.num_stacks)), "out"]
        scores = network(x, train=train)
        return {name: enlarge(s) for name, s in zip(names, scores, strict=True)}


def build(
    num_classes: int,
    *,
    losses: tuple[str, ...] = ("cross_entropy",),
    class_weights: tuple[float, ...] | None = None,
    crf_rnn: bool | dict[str, Any] | None = None,
    auxiliary_weight: float = 1.0,
    **network: Any,
) -> Model:
    """Stacked hourglasses as a `Model`, with a loss after each; network: fields of
    `HourglassSegmenter`. See `nn.semantic.segmentation_model`."""
    net = HourglassSegmenter(num_classes, **network)
    return segmentation_model(net, losses, class_weights, auxiliary_weight, crf_rnn=crf_rnn)
