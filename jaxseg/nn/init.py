"""A network's first variables, as a `Model`'s `init`."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.types import Array, Batch, Variables


def make_init(network: nn.Module, side: int) -> Callable[[Array, Batch], Variables]:
    """`init(key, batch) -> variables` of a network of pictures [B H W C]. Its parameters depend on
    the channels alone, so it sees a single picture of side × side pixels."""
    # Compiled, the network itself drops out and the parameters alone are made; optimising what runs
    # but once would take longer than it saves.
    compiled = jax.jit(network.init, compiler_options={"xla_backend_optimization_level": 0})

    def init(key: Array, batch: Batch) -> Variables:
        image = jnp.zeros((1, side, side, batch["image"].shape[-1]))
        within = isinstance(key, jax.core.Tracer)  # of the caller's jit, eval_shape …
        return dict((network.init if within else compiled)(key, image))

    return init
