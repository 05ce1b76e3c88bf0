"""Atrous spatial pyramid pooling: several fields of view of the same features, side by side."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from jaxseg.nn.conv import ConvNorm
from jaxseg.nn.norm import Norm
from jaxseg.types import FLOAT32, Array, Precision


class ASPP(nn.Module):
    """[B h w C] -> [B h w F]: a 1×1 convolution, a 3×3 one of each rate, and the mean of the whole
    image, concatenated and projected (Chen et al. 2017, section 3.3 and figure 5).

    A 3×3 kernel of rate r reaches over 2r + 1 positions. layer: makes these convolutions,
    `ConvNorm` or `SeparableConvNorm` (Chen et al. 2018, "Encoder-Decoder …", section 3.1).
    """

    features: int = 256
    rates: tuple[int, ...] = (6, 12, 18)
    layer: Callable[..., nn.Module] = ConvNorm
    dropout: float = 0.0  # after the projection
    norm: Norm = None
    precision: Precision = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"], *, train: bool = False) -> Array:
        shared = dict(norm=self.norm, precision=self.precision)
        pointwise = partial(ConvNorm, self.features, 1, **shared)
        atrous = partial(self.layer, self.features, 3, **shared)
        branches = [pointwise(name="branch1")(x)]
        for i, rate in enumerate(self.rates, start=2):
            branches.append(atrous(dilation=rate, name=f"branch{i}")(x))
        mean = pointwise(name="pooling")(x.mean((1, 2), keepdims=True))
        branches.append(jnp.broadcast_to(mean, branches[0].shape))
        x = pointwise(name="project")(jnp.concatenate(branches, axis=-1))
        return nn.Dropout(self.dropout, deterministic=not train)(x)
