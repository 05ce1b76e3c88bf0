"""The feature pyramid (Lin et al. 2017, "Feature Pyramid Networks for Object Detection")."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxseg.nn.conv import Conv, ConvNorm
from jaxseg.nn.norm import Norm
from jaxseg.types import FLOAT32, Array, Precision


class FPN(nn.Module):
    """Maps of a backbone [B h w C], finest first -> as many maps [B h w F] (section 3 and figure
    3): each is a 1×1 convolution of its own level plus the coarser result, enlarged to the nearest
    pixel; a 3×3 convolution follows. No activations, as in the paper.

    p6_from: two maps more, P6 and P7, each a 3×3 convolution of stride 2 of the one before, P6 of
    the last of the backbone's maps, "C5" (Lin et al. 2017, "Focal Loss", section 4), or of the
    pyramid's, "P5" (Tian et al. 2019, section 3.2).
    """

    features: int = 256
    p6_from: Literal["C5", "P5"] | None = None
    norm: Norm = None
    precision: Precision = FLOAT32

    @nn.compact
    def __call__(self, maps: Sequence[Float[Array, "B _ _ _"]]) -> list[Float[Array, "B _ _ F"]]:
        layer = partial(
            ConvNorm, self.features, norm=self.norm, activation=None, precision=self.precision
        )
        merged, coarser = [], None
        for level, features in reversed(list(enumerate(maps, start=1))):
            x = layer(kernel_size=1, name=f"lateral{level}")(features)
            if coarser is not None:
                x += enlarge_nearest(coarser, (x.shape[1], x.shape[2]))
            merged.append(x)
            coarser = x
        pyramid = [
            layer(kernel_size=3, name=f"output{level}")(x)
            for level, x in enumerate(reversed(merged), start=1)
        ]
        if self.p6_from is None:
            return pyramid
        halve = partial(Conv, self.features, 3, 2, precision=self.precision)
        p6 = halve(name="p6")(maps[-1] if self.p6_from == "C5" else pyramid[-1])
        return [*pyramid, p6, halve(name="p7")(nn.relu(p6))]


def enlarge_nearest(x: Float[Array, "B h w C"], size: tuple[int, int]) -> Float[Array, "B H W C"]:
    """The nearest pixel of x at each of a map of `size`, rounded down."""
    for axis, (old, new) in enumerate(zip(x.shape[1:3], size, strict=True), start=1):
        if new % old == 0:
            x = jnp.repeat(x, new // old, axis)
        else:
            x = jnp.take(x, np.arange(new) * old // new, axis)
    return x
