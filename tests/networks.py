"""Networks of random parameters, made without compiling what initialises them; and `compiled_once`
for what runs but once, or few times."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

compiled_once = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def picture(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


def random_variables(network: nn.Module, image: Any, seed: int = 0) -> dict[str, Any]:
    """Variables of which no value is 0 or 1: kernels of He's scale, norms near the identity."""
    rng = np.random.default_rng(seed)

    def draw(path, x):
        n = rng.standard_normal(x.shape, np.float32)
        match path[-1].key:
            case "kernel":
                n *= np.sqrt(2 / np.prod(x.shape[:3]))
            case "scale" | "var":
                n = 1 + 0.1 * np.abs(n)
            case _:
                n *= 0.1
        return jnp.asarray(n)

    empty = jax.eval_shape(network.init, jax.random.key(0), image)
    return dict(jax.tree.map_with_path(draw, empty))
