"""From a network that gives logits to a semantic segmentation `Model`."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxseg.ops.losses import segmentation_losses
from jaxseg.types import Array, Batch, Mean, Model, Variables


def segmentation_model(
    network: nn.Module,
    losses: Sequence[str] = ("cross_entropy",),
    class_weights: Sequence[float] | None = None,
) -> Model:
    """The `Model` of a network that maps [B H W C] to logits [B H W K], for any H and W.

    losses: names from `ops.losses.segmentation_losses`, added up; class_weights: [K].
    `predict` gives probabilities [B H W K] float32 and segmentation [B H W] int32.
    """
    apply: Any = network.apply

    def init(key: Array, batch: Batch) -> Variables:
        # Parameters depend on the channels alone.
        return dict(network.init(key, jnp.zeros((1, 32, 32, batch["image"].shape[-1]))))

    def loss(variables: Variables, batch: Batch, key: Array) -> tuple[dict[str, Mean], Variables]:
        rngs = {"dropout": key}
        logits, state = apply(
            variables, batch["image"], train=True, rngs=rngs, mutable=["batch_stats"]
        )
        return segmentation_losses(logits, batch, losses, class_weights), state

    def predict(variables: Variables, image: Float[Array, "B H W C"]) -> dict[str, Array]:
        probabilities = jax.nn.softmax(apply(variables, image))
        return {"probabilities": probabilities, "segmentation": probabilities.argmax(-1)}

    return Model(init, loss, predict)
