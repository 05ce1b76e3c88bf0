"""From a network that gives logits to a semantic segmentation `Model`."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Float

from jaxseg.nn.crf_rnn import with_crf_rnn
from jaxseg.nn.init import make_init
from jaxseg.ops.losses import segmentation_losses
from jaxseg.types import Array, Batch, Mean, Model, Variables


def segmentation_model(
    network: nn.Module,
    losses: Sequence[str] = ("cross_entropy",),
    class_weights: Sequence[float] | None = None,
    auxiliary_weight: float = 1.0,
    loss_stride: int = 1,
    crf_rnn: bool | Mapping[str, Any] | None = None,
) -> Model:
    """The `Model` of a network that maps [B H W C] to logits [B H W K], for any H and W.

    A network with auxiliary classifiers gives {"out": logits, other names: logits}.
    losses: names from `ops.losses.segmentation_losses`, added up; class_weights: [K];
    auxiliary_weight: of the losses of the auxiliary logits, beside 1 for "out"; loss_stride: losses
    are those of every so many pixels in each direction, from the first; crf_rnn: True, or fields of
    `nn.crf_rnn.CRFRNN`, for that layer behind the logits "out".
    `predict` gives probabilities [B H W K] float32 and segmentation [B H W] int32.
    """
    network = with_crf_rnn(network, crf_rnn)
    apply: Any = network.apply

    def loss(variables: Variables, batch: Batch, key: Array) -> tuple[dict[str, Mean], Variables]:
        rngs = {"dropout": key}
        outputs, state = apply(
            variables, batch["image"], train=True, rngs=rngs, mutable=["batch_stats"]
        )
        outputs, batch = _named(outputs), _subsampled(batch, loss_stride)
        measured = {}
        for output, logits in outputs.items():
            logits = logits[:, ::loss_stride, ::loss_stride]
            weight, prefix = (1, "") if output == "out" else (auxiliary_weight, f"{output}_")
            for kind, mean in segmentation_losses(logits, batch, losses, class_weights).items():
                measured[prefix + kind] = Mean(weight * mean.total, mean.weight)
        return measured, state

    def predict(variables: Variables, image: Float[Array, "B H W C"]) -> dict[str, Array]:
        probabilities = jax.nn.softmax(_named(apply(variables, image))["out"])
        return {"probabilities": probabilities, "segmentation": probabilities.argmax(-1)}

    return Model(make_init(network, 32), loss, predict)


def _named(outputs: Array | dict[str, Array]) -> dict[str, Array]:
    return outputs if isinstance(outputs, dict) else {"out": outputs}


def _subsampled(batch: Batch, stride: int) -> Batch:
    maps = {key: batch[key] for key in ("segmentation", "pixel_weights") if key in batch}
    return batch | {key: value[:, ::stride, ::stride] for key, value in maps.items()}
