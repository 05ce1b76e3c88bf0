"""A detector of one stage as a `Model`."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
from jaxtyping import Float, Int

from jaxseg.nn.init import make_init
from jaxseg.types import Array, Batch, Mean, Model, Variables


def model_of(
    network: nn.Module,
    settings: Any,
    losses: Callable[[Any, Any, Batch], dict[str, Mean]],
    predictions: Callable[[Any, Any, Array, Array | None], dict[str, Array]],
    side: int | None = 64,
) -> Model:
    """A network, which has a field `training`, with its losses and predictions, functions of it and
    the settings. side: see `make_init`."""

    def loss(variables: Variables, batch: Batch, key: Array) -> tuple[dict[str, Mean], Variables]:
        measure = nn.apply(losses, network.clone(training=True), mutable=["batch_stats"])
        return measure(variables, settings, batch, rngs={"dropout": key})

    def predict(
        variables: Variables,
        image: Float[Array, "B H W 3"],
        image_size: Int[Array, "B 2"] | None = None,
    ) -> dict[str, Array]:
        return nn.apply(predictions, network)(variables, settings, image, image_size)

    return Model(make_init(network, side), loss, predict)
