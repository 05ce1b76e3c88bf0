"""Detectors of one stage: at every place of a pyramid, what is there and where its box is.

    maps       L of [B h w C], finest first
    logits     [A K]  of each anchor, and each class, by itself: its sigmoid is the probability
    offsets    [A n]  from the anchor to the box (`ops.box_coder`)
    anchors    [A 4]  xyxy in pixels of the image, constants

`detect` is of one picture; `vmap` it for several.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from jaxseg.nn.conv import Conv
from jaxseg.nn.detections import Detections, strongest, thin
from jaxseg.nn.norm import Norm
from jaxseg.ops.boxes import Size, clip_boxes
from jaxseg.types import FLOAT32, Array, Precision


class DenseHead(nn.Module):
    """A map [B h w C] -> {name: [B h w n]}: 3×3 convolutions to C channels, with norm and ReLU, and
    one more for each of the `outputs`, {name: n} (Lin et al. 2017, "Focal Loss", section 4)."""

    outputs: Mapping[str, int]
    convolutions: int = 4
    bias: float = 0.0  # of the outputs, at first
    norm: Norm = None
    norm_and_bias: bool = False  # convolutions keep their biases before a norm
    precision: Precision = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> dict[str, Float[Array, "B h w _"]]:
        layer = partial(Conv, kernel_init=nn.initializers.normal(0.01), precision=self.precision)
        use_bias = self.norm is None or self.norm_and_bias
        for i in range(1, self.convolutions + 1):
            x = layer(x.shape[-1], 3, use_bias=use_bias, name=f"conv{i}")(x)
            x = nn.relu(x if self.norm is None else self.norm(name=f"norm{i}")(x))
        bias = nn.initializers.constant(self.bias)
        return {
            name: layer(width, 3, bias_init=bias, name=name)(x).astype(jnp.float32)
            for name, width in self.outputs.items()
        }


def detect(
    scores: Sequence[Float[Array, "_ K"]],
    offsets: Sequence[Float[Array, "_ n"]],
    image_size: Size,
    *,
    anchors: Sequence[Float[Array, "_ 4"]],
    decode: Callable[[Array, Array], Array],
    most_per_level: int,
    min_score: float,
    iou_threshold: float,
    most: int,
) -> Detections:
    """The best of a picture: of each level the highest scores, whatever their classes are, and of
    all these what is left after non-maximum suppression within each class (section 4.1). Class 0,
    the background, is never detected.
    decode: (offsets [N n], anchors [N 4]) -> boxes [N 4]."""
    found = []
    for chances, moves, places in zip(scores, offsets, anchors, strict=True):
        best, rows, labels = strongest(chances[:, 1:], most_per_level)
        found.append((decode(moves[rows], places[rows]), best, labels + 1))
    boxes, best, labels = (jnp.concatenate(parts) for parts in zip(*found, strict=True))
    boxes = clip_boxes(boxes, image_size)
    return thin(boxes, best, labels, best > min_score, iou_threshold, most)
