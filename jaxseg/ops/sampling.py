"""Training on a few anchors, or proposals, of which some show objects (Ren et al. 2015, section
3.1.3; Girshick 2015, "Fast R-CNN", section 2.3)."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Int, Key, UInt32

from jaxseg.types import Array


def sample_balanced(
    key: Key[Array, ""] | UInt32[Array, "2"] | None,
    positive: Bool[Array, "A"],
    negative: Bool[Array, "A"],
    num_samples: int,
    positive_fraction: float,
) -> tuple[Int[Array, "P"], Bool[Array, "P"]]:
    """(indices, mask) of P = `num_samples`: first positives, as many as there are up to the
    fraction, then negatives for the rest.

    positive, negative: what may be drawn; what is neither is not. Each is drawn without
    replacement, all with the same chance; key None takes the first ones instead, to compare
    with other implementations. Where there are not enough, the mask is False and the index 0.
    """
    num_positive = jnp.minimum(positive.sum(), int(num_samples * positive_fraction))
    num_negative = jnp.minimum(negative.sum(), num_samples - num_positive)
    luck = jnp.zeros(positive.shape) if key is None else jax.random.uniform(key, positive.shape)

    def draw(candidates: Array, first: int | Array) -> Array:
        """Candidates, luckiest first, from slot `first` on."""
        most = min(num_samples, len(candidates))
        _, indices = lax.top_k(jnp.where(candidates, luck, -1), most)  # of equals, the first
        return jnp.roll(jnp.pad(indices, (0, num_samples - most)), first)

    slots = jnp.arange(num_samples)
    indices = jnp.where(slots < num_positive, draw(positive, 0), draw(negative, num_positive))
    mask = slots < num_positive + num_negative
    return jnp.where(mask, indices, 0), mask
