"""A network's first variables, as a `Model`'s `init`."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.types import Array, Batch, Variables


def make_init(network: nn.Module, side: int | None) -> Callable[[Array, Batch], Variables]:
    """`init(key, batch) -> variables` of a network of pictures [B H W C]. Where its parameters
    depend on the channels alone, it sees a single picture of side × side pixels; where they depend
    on the size, too, as dense layers do, side is None and the picture has the batch's."""
    # Compiled, the network itself drops out and the parameters alone are made; optimising what runs
    # but once would take longer than it saves.
    compiled = jax.jit(network.init, compiler_options={"xla_backend_optimization_level": 0})

    def init(key: Array, batch: Batch) -> Variables:
        *size, channels = batch["image"].shape[1:]
        image = jnp.zeros((1, *(size if side is None else (side, side)), channels))
        within = isinstance(key, jax.core.Tracer)  # of the caller's jit, eval_shape …
        return dict((network.init if within else compiled)(key, image))

    return init
