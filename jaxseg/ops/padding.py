"""What of a normalised image is the picture, and what the padding around it.

Pictures of different sizes share images of one size. Around them lies the colour of the mean,
rounded to whole levels, as `data.transforms` puts it there, or simply 0.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int

from jaxseg.types import MEAN, PADDING, STD, Array


def colours_of(image: Float[Array, "*B H W 3"]) -> Float[Array, "*B H W 3"]:
    """Whole levels 0 … 255, without a gradient."""
    mean, std = (x.reshape(*[1] * (image.ndim - 1), 3) for x in (MEAN, STD))
    return jnp.clip(jnp.round(255 * (lax.stop_gradient(image) * std + mean)), 0, 255)


def picture_mask(image: Float[Array, "*B H W 3"]) -> Bool[Array, "*B H W"]:
    """The box around all that has not the colour of padding; everything, where there is none."""
    padding = PADDING.reshape(*[1] * (image.ndim - 1), 3)
    seen = (colours_of(image) != padding).any(-1)

    def span(seen: Array) -> Array:
        """From the first to the last; all, where there is none."""
        last = seen.ndim - 1
        begun, left = (lax.cummax(seen.astype(jnp.int32), last, reverse=r) for r in (False, True))
        return (begun * left > 0) | ~seen.any(-1, keepdims=True)

    rows, columns = span(seen.any(-1)), span(seen.any(-2))
    return rows[..., :, None] & columns[..., None, :]


def without_padding(
    image: Float[Array, "*B H W 3"], *, multiple: int = 1
) -> tuple[Float[Array, "*B h w 3"], Bool[Array, "*B h w"]]:
    """The image with 0 outside of the picture, and where the picture is. multiple: more zeros below
    and on the right make h and w multiples of it."""
    inside = picture_mask(image)
    image = jnp.where(inside[..., None], image, 0)
    below, right = (-side % multiple for side in inside.shape[-2:])
    around = ((0, 0),) * (inside.ndim - 2) + ((0, below), (0, right))
    return jnp.pad(image, (*around, (0, 0))), jnp.pad(inside, around)


def picture_size(mask: Bool[Array, "*B H W"]) -> Int[Array, "*B 2"]:
    """(height, width) up to the last row and column of the picture."""

    def end(seen: Array) -> Array:
        return seen.shape[-1] - jnp.argmax(jnp.flip(seen, -1), axis=-1)

    return jnp.stack([end(mask.any(-1)), end(mask.any(-2))], axis=-1)
