"""Classifiers on top of a backbone, written as convolutions so that they can slide.

Dense layers over 7×7 features are 7×7 convolutions, dense layers over one vector are 1×1 ones, and
the mean of all features is the mean of a window (Sermanet et al. 2014, "OverFeat", section 3.5;
Long et al. 2015, section 3.1). At the size of training both views are the same numbers; on a larger
picture the sliding one gives a map of scores, a position every 32 pixels.
"""

from collections.abc import Callable, Mapping
from functools import partial

import flax.linen as nn
from jaxtyping import Float

from jaxseg.nn.conv import Conv, ConvNorm, he_normal
from jaxseg.nn.norm import Norm
from jaxseg.ops.conv import adaptive_avg_pool2d, avg_pool2d
from jaxseg.types import FLOAT32, Array, Precision


class Head(nn.Module):
    """Features [B h w C] -> scores [B K], or, sliding, [B h−window+1 w−window+1 K].

    window: size of the features in training. pool: take their mean first (GoogLeNet, ResNet); else
    the first dense layer sees them all (AlexNet, VGG). hidden: the dense layers before the
    classifier, {name: width}, each followed by the activation and dropout.
    dilation: of the first layer's window, sliding over features that are denser than in training,
    or to see more of them (Chen et al. 2015, section 3.1). padding: of that layer; None keeps h w.
    """

    num_classes: int
    hidden: Mapping[str, int]
    window: int = 7
    pool: bool = False
    sliding: bool = False
    dilation: int = 1
    padding: int | None = 0
    activation: Callable[[Array], Array] = nn.relu
    dropout: float = 0.5
    classifier_init: Callable = he_normal
    precision: Precision = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"], *, train: bool = False) -> Array:
        def drop(x: Array) -> Array:
            return nn.Dropout(self.dropout, deterministic=not train)(x)

        if not self.sliding:
            x = adaptive_avg_pool2d(x, 1 if self.pool else self.window)
        elif self.pool:
            x = avg_pool2d(x, self.window, 1)
        layer = partial(Conv, precision=self.precision)
        kernel = 1 if self.pool else self.window
        look = partial(layer, padding=self.padding, dilation=self.dilation, kernel_size=kernel)
        for name, width in self.hidden.items():
            x = drop(self.activation(look(width, name=name)(x)))
            look = partial(layer, kernel_size=1)
        if not self.hidden:
            x = drop(x)
        x = look(self.num_classes, kernel_init=self.classifier_init, name="classifier")(x)
        return x if self.sliding else x[:, 0, 0]


class FCNHead(nn.Module):
    """Features [B h w C] -> scores [B h w K]: a 3×3 convolution to `width` channels, dropout, and a
    classifier; width None: the classifier alone."""

    num_classes: int
    width: int | None
    dropout: float
    norm: Norm
    precision: Precision
    classifier_init: Callable = he_normal

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"], *, train: bool = False) -> Array:
        precision = self.precision
        if self.width is not None:
            x = ConvNorm(self.width, norm=self.norm, precision=precision, name="conv")(x)
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        layer = partial(Conv, kernel_init=self.classifier_init, precision=precision)
        return layer(self.num_classes, 1, name="classifier")(x)
