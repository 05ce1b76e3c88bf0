"""Learned bilateral filters as layers: see `crf.learned`, which has the papers.

They take the lattices of a batch, which `lattices` makes and several layers can share. They compute
in float32, in a network of any precision.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from jaxseg.crf import learned
from jaxseg.crf.permutohedral import Lattice
from jaxseg.nn.conv import he_normal
from jaxseg.types import Array


def lattices(
    features: Float[Array, "B N d"], size: int = 1, capacity: int | None = None
) -> Lattice:
    """Those of B pictures, stacked; features in standard deviations. See `learned.build`."""
    return lax.map(lambda some: learned.build(some, size, capacity), features)


class BilateralConv(nn.Module):
    """Bilateral convolution [B N K] -> [B P F] (Kiefel et al. 2015): the lattices have P points, of
    which the first N hold the values; the result is the bias where none of these is in reach.

    At first it is the Gaussian filter, as a weighted mean, and a 1×1 convolution. If `depthwise`,
    every channel has its own filter, F = K, and it is the Gaussian filter alone. Sums are divided
    by those of the Gaussian weights, not by their own, which may become 0.
    size: of the lattices' neighbourhoods. ValueError if it is not, and for F ≠ K if depthwise.
    """

    features: int
    size: int = 1
    depthwise: bool = False
    use_bias: bool = True
    mixing_init: Callable = he_normal  # of the 1×1 convolution [K F]

    @nn.compact
    def __call__(self, x: Float[Array, "B N K"], lattices: Lattice) -> Float[Array, "B P F"]:
        points, channels = x.shape[1:]
        if self.depthwise and self.features != channels:
            raise ValueError(f"features is {self.features}, expected {channels}: it is depthwise")
        gaussian = learned.gaussian_weights(lattices.corners.shape[1] - 1, self.size)

        def init(key: Array) -> Array:
            if self.depthwise:
                return jnp.tile(gaussian, (1, channels))
            return gaussian[:, :, None] * self.mixing_init(key, (channels, self.features))[None]

        kernel = self.param("kernel", init)

        def filtered(one: tuple) -> Array:
            values, lattice = one
            # Where no value is in reach, both sums are 0.
            sums = jnp.maximum(learned.total(lattice, points), jnp.finfo(jnp.float32).tiny)
            return learned.apply(lattice, kernel, values) / sums

        y = lax.map(filtered, (x.astype(jnp.float32), lattices))
        if self.use_bias:
            y += self.param("bias", nn.initializers.zeros, (self.features,)).reshape(1, 1, -1)
        return y.astype(x.dtype)


class MeanFieldSteps(nn.Module):
    """Logits [B N K] -> logits [B N K] after mean-field steps with learned filters, a term for each
    of some lattices (Jampani et al. 2016, on dense CRFs).

    steps = 1 is MF-1; 2 MF-2; 2 and not `shared` loose MF-2. At first it is the Gaussian CRF with
    Potts' model and symmetric normalisation. Parameters of a term m, for step t if not shared:

        [stept_]termm_kernel          [n 1], or [n K] for a filter of each label
        [stept_]termm_compatibility   [K K], cost of label k here with label l there; or, with
                                      `potts`, [K], weight of each label

    weights: of Potts' model at first, one for each term. size: of the lattices' neighbourhoods.
    """

    weights: Sequence[float | int]
    steps: int = 1
    shared: bool = True
    size: int = 1
    filter_per_label: bool = False
    potts: bool = False

    @nn.compact
    def __call__(self, logits: Float[Array, "B N K"], lattices: Sequence[Lattice]) -> Array:
        labels = logits.shape[-1]

        def term(name: str, lattice: Lattice, weight: float | int) -> learned.Term:
            gaussian = learned.gaussian_weights(lattice.corners.shape[1] - 1, self.size)
            kernel = jnp.tile(gaussian, (1, labels if self.filter_per_label else 1))
            potts = (
                jnp.full(labels, weight, jnp.float32) if self.potts else -weight * jnp.eye(labels)
            )
            return learned.Term(
                self.param(f"{name}_kernel", lambda _: kernel),
                self.param(f"{name}_compatibility", lambda _: potts),
            )

        def terms(prefix: str) -> list[learned.Term]:
            pairs = zip(lattices, self.weights, strict=True)
            return [term(f"{prefix}term{m}", *pair) for m, pair in enumerate(pairs)]

        if self.shared:
            steps = [terms("")] * self.steps
        else:
            steps = [terms(f"step{t}_") for t in range(self.steps)]

        def infer(one: tuple) -> Array:
            unary, grids = one
            return learned.mean_field_steps(unary, grids, steps)

        return lax.map(infer, (logits.astype(jnp.float32), list(lattices))).astype(logits.dtype)
