"""The norms of a network, by name.

A network makes its norm once and hands it to its blocks, which know nothing of training or devices:

    norm = make_norm(self.norm, train=train, axis_name=self.axis_name, precision=self.precision)
    ConvNorm(64, norm=norm)
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from jaxseg.types import FLOAT32, Array, Precision

NormKind = Literal["none", "batch", "frozen", "group"]
Norm = Callable[..., nn.Module] | None  # a constructor, or no norm at all


def make_norm(
    kind: NormKind,
    *,
    train: bool,
    axis_name: str | None = None,
    precision: Precision = FLOAT32,
    momentum: float = 0.9,
    epsilon: float = 1e-5,
) -> Norm:
    """A constructor of norms.

        none    no norm: convolutions keep their biases
        batch   Ioffe & Szegedy 2015. In training the statistics are those of the whole batch: under
                `jit` of the global one, under `pmap` across `axis_name`
        frozen  batch norm as a constant: neither its statistics nor its scale and bias are trained
        group   Wu & He 2018, 32 groups: for batches too small for statistics

    momentum: of the running statistics, old · momentum + new · (1 − momentum).
    A backbone published with another epsilon or momentum says so to what it was given, as in
    `partial(norm, epsilon=1e-3)`.
    Raises ValueError for another kind.
    """
    match kind:
        case "none":
            return None
        case "batch" | "frozen":
            return partial(
                BatchNorm,
                running=kind == "frozen" or not train,
                frozen=kind == "frozen",
                momentum=momentum,
                epsilon=epsilon,
                axis_name=axis_name,
                precision=precision,
            )
        case "group":
            return partial(GroupNorm, epsilon=epsilon, precision=precision)
    raise ValueError(f"norm is {kind!r}, expected none, batch, frozen or group")


def with_options(norm: Norm, **fixed: Any) -> Norm:
    """The norm with those of these options that are not None, whatever a backbone says."""
    fixed = {name: value for name, value in fixed.items() if value is not None}
    return norm and (lambda **options: norm(**options | fixed))


class BatchNorm(nn.Module):
    """[B … C] -> the same, each channel with mean 0 and variance 1, times scale, plus bias.

    Running variances are unbiased ones, as published weights have them. Statistics are float32.
    """

    running: bool  # normalise by the running statistics
    frozen: bool = False
    momentum: float = 0.9
    epsilon: float = 1e-5
    axis_name: str | None = None
    mask: Array | None = None  # [B] bool, the examples that the statistics are of; None: all
    precision: Precision = FLOAT32
    scale_init: Callable = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Float[Array, "*B C"]) -> Float[Array, "*B C"]:
        channels, params = (x.shape[-1],), self.precision.params
        scale = self.param("scale", self.scale_init, channels, params)
        bias = self.param("bias", nn.initializers.zeros, channels, params)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        if self.frozen:
            scale, bias = lax.stop_gradient((scale, bias))
        if self.running:
            mean, var = running_mean.value, running_var.value
        else:
            mean, var, count = self._statistics(x)
            if not self.is_initializing():
                unbiased = var * (count / jnp.maximum(count - 1, 1))
                kept = jnp.where(count > 0, self.momentum, 1)
                for old, new in ((running_mean, mean), (running_var, unbiased)):
                    old.value = kept * old.value + (1 - kept) * new
        # One multiplication and one addition a value.
        factor = scale * lax.rsqrt(var + self.epsilon)
        shape = (1,) * (x.ndim - 1) + channels
        y = x * factor.reshape(shape) + (bias - mean * factor).reshape(shape)
        return y.astype(self.precision.compute)

    def _statistics(self, x: Array) -> tuple[Array, Array, Array]:
        """Mean [C] and variance [C] over all axes but the last, and how many values they are of; of
        none, 0 and 1."""
        x = x.astype(jnp.float32)
        weights = jnp.ones(len(x)) if self.mask is None else self.mask.astype(jnp.float32)
        weights = weights.reshape((-1,) + (1,) * (x.ndim - 1))

        def sum_of(x: Array) -> Array:
            total = x.sum(range(x.ndim - 1))
            return total if self.axis_name is None else lax.psum(total, self.axis_name)

        count = sum_of(weights) * (x[0].size // x.shape[-1])

        def mean_of(x: Array) -> Array:
            x = x if self.mask is None else x * weights
            return sum_of(x) / jnp.maximum(count, 1)

        mean = mean_of(x)
        # In two passes: of close values, the mean square less the squared mean is mere rounding.
        var = mean_of(jnp.square(x - mean.reshape((1,) * (x.ndim - 1) + mean.shape)))
        return mean, jnp.where(count > 0, var, 1), count


class GroupNorm(nn.Module):
    """Wu & He 2018 over 32 groups of channels, or the largest number that divides C and 32."""

    momentum: float = 0.9  # nothing to it: for whoever sets that of any norm
    mask: Array | None = None  # nor is this
    epsilon: float = 1e-5
    precision: Precision = FLOAT32
    scale_init: Callable = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Float[Array, "*B C"]) -> Float[Array, "*B C"]:
        params, compute = self.precision
        norm = nn.GroupNorm(
            math.gcd(32, x.shape[-1]),
            epsilon=self.epsilon,
            use_fast_variance=False,  # as in `BatchNorm`
            scale_init=self.scale_init,
            dtype=compute,
            param_dtype=params,
            name="group",
        )
        return norm(x)
