"""CRF-RNN: the dense CRF as a layer that is trained with the network before it (Zheng et al. 2015,
"Conditional Random Fields as Recurrent Neural Networks").

`CRFRNN` is the layer, `Refined` a network with the layer behind it:

    config.model.update(name="fcn", crf_rnn=True)      # or dict(bilateral_sigma=80.0, …)
    config.init_from = RUN                             # of the same model without it
    config.optim.multipliers["^crf/"] = 100.0

Names of the network's parameters stay as they are; those of the layer are `crf/…`.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from jaxseg.crf.dense import dense_crf, from_batch
from jaxseg.types import Array


class CRFRNN(nn.Module):
    """Logits [B H W K] and the normalised pictures [B H W 3] -> logits [B H W K], float32.

    An iteration of mean field is a stack of layers (section 4), the iterations share their
    parameters: weights of the spatial and the bilateral filter, w [K] each, and compatibilities
    μ [K K], here as costs. They start as in the published network, at Potts' model: w at 3 and 5,
    μ at −1 for a label beside itself and 0 elsewhere. So do the bandwidths, and messages are
    normalised where they arrive. Its learning rates were 10⁴ (w) and 10³ (μ) times those before it,
    with losses summed over pixels: see `optim.multipliers`.

    The lattice has room for any picture (see `dense_crf`); pixels of padding are left out.
    """

    iterations: tuple[int, int] = (5, 10)  # in training, and in prediction
    bilateral_sigma: float | int = 160.0  # θ_α, in pixels
    colour_sigma: float | int = 3.0  # θ_β, in levels of 255
    spatial_sigma: float | int = 3.0  # θ_γ, in pixels
    spatial_weight: float | int = 3.0  # at the start
    bilateral_weight: float | int = 5.0
    normalization: str = "after"
    backend: str = "permutohedral"
    room: float | int = 6.0

    @nn.compact
    def __call__(
        self,
        logits: Float[Array, "B H W K"],
        image: Float[Array, "B H W 3"],
        *,
        train: bool = False,
    ) -> Float[Array, "B H W K"]:
        labels, constant = logits.shape[-1], nn.initializers.constant

        def weight(name: str, start: float | int) -> Array:
            return self.param(name, constant(start), (labels,), jnp.float32)

        colours, inside = from_batch(image.astype(jnp.float32))
        return dense_crf(
            logits.astype(jnp.float32),
            colours,
            spatial_weight=weight("spatial_weight", self.spatial_weight),
            bilateral_weight=weight("bilateral_weight", self.bilateral_weight),
            compatibility=self.param("compatibility", potts, (labels, labels), jnp.float32),
            spatial_sigma=self.spatial_sigma,
            bilateral_sigma=self.bilateral_sigma,
            colour_sigma=self.colour_sigma,
            iterations=self.iterations[0 if train else 1],
            normalization=self.normalization,
            backend=self.backend,
            room=self.room,
            inside=inside,
        )


class Refined(nn.Module):
    """A network, [B H W C] -> logits or {"out": logits, …}, with a layer behind its logits."""

    network: nn.Module
    crf: CRFRNN

    def setup(self):
        nn.share_scope(self, self.network)

    def __call__(self, x: Float[Array, "B H W 3"], *, train: bool = False) -> Any:
        network: Any = self.network
        outputs = network(x, train=train)
        if not isinstance(outputs, dict):
            return self.crf(outputs, x, train=train)
        return {**outputs, "out": self.crf(outputs["out"], x, train=train)}


def with_crf_rnn(network: nn.Module, options: bool | Mapping[str, Any] | None) -> nn.Module:
    """The network, or for True or fields of `CRFRNN` the network with that layer behind it."""
    if options is None or options is False:
        return network
    return Refined(network, CRFRNN(**({} if options is True else options)))


def potts(key: Array, shape: tuple[int, int], dtype: Any) -> Array:
    """A label beside itself costs −1, which is Potts' model but for a constant."""
    del key
    return -jnp.eye(*shape, dtype=dtype)
