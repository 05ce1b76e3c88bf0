import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
from networks import picture, random_variables

from jaxseg.models import lraspp

NAME = "seg/lraspp_mobilenet_v3_large"


def test_stages_and_logits_are_the_published_ones(fixtures):
    reference = published.read(fixtures, NAME)
    image = published.pictures(reference)
    network = lraspp.LRASPP(21)
    variables, _ = published.weights(reference, network, image)

    @jax.jit
    def apply(variables, image):
        return network.apply(
            variables,
            image,
            capture_intermediates=lambda module, _: module.name in ("backbone", "head"),
            mutable=["intermediates"],
        )

    logits, captured = apply(variables, image)
    (features,), (head,) = (
        captured["intermediates"][part]["__call__"] for part in ("backbone", "head")
    )
    found = {
        "backbone.low": features[8],
        "backbone.high": features[32],
        "classifier": head,
        "out": logits,
    }
    errors = {stage: published.error(x, reference, stage) for stage, x in found.items()}
    assert max(errors.values()) < 1e-4, errors
    same = logits.argmax(-1) == reference.arrays["out_argmax"]
    assert same.mean() > 0.9999


@pytest.mark.slow
@pytest.mark.parametrize("batch_statistics", [True, False])
def test_training_is_the_published_one(fixtures, batch_statistics):
    reference = published.read(fixtures, NAME)
    published.check_training(reference, lraspp.LRASPP(21), batch_statistics=batch_statistics)


@pytest.mark.parametrize("output_stride", [16, 32])
def test_sizes(output_stride):
    network = lraspp.LRASPP(3, width=2, head_width=4, output_stride=output_stride)
    image = picture(2, 37, 50, 3)
    logits = jax.eval_shape(network.apply, random_variables(network, image), image)
    assert logits.shape == (2, 37, 50, 3)
    assert logits.dtype == jnp.float32


def test_head_by_hand():
    """One class, one channel: relu(2·h)·sigmoid(3·mean h) resized, times 5, + 7·low + 11."""
    high, low = jnp.asarray([[1.0, -1.0], [3.0, 5.0]]).reshape(1, 2, 2, 1), jnp.ones((1, 4, 4, 1))
    one = jnp.ones((1, 1, 1, 1))
    params = {
        "conv": {"conv": {"kernel": 2 * one, "bias": jnp.zeros(1)}},
        "scale": {"kernel": 3 * one},
        "high_classifier": {"kernel": 5 * one, "bias": jnp.zeros(1)},
        "low_classifier": {"kernel": 7 * one, "bias": 11 * jnp.ones(1)},
    }
    found = lraspp.Head(1, 1, None, lraspp.FLOAT32).apply({"params": params}, low, high)
    # mean 2; corners of the resized map are those of the coarse one
    gate = 1 / (1 + np.exp(-6.0))
    corners = 5 * gate * np.array([[2.0, 0.0], [6.0, 10.0]]) + 18
    np.testing.assert_allclose(found[0, ::3, ::3, 0], corners, rtol=1e-5)


def test_model():
    model = lraspp.build(3, width=2, head_width=4)
    image = picture(1, 32, 48, 3)
    batch = {"image": image, "segmentation": jnp.ones((1, 32, 48), int), "valid": jnp.ones(1, bool)}
    variables = random_variables(lraspp.LRASPP(3, width=2, head_width=4), image)
    assert set(variables["params"]) == {"backbone", "head"}
    found = jax.eval_shape(model.predict, variables, image)
    assert found["probabilities"].shape == (1, 32, 48, 3)
    losses, state = jax.eval_shape(model.loss, variables, batch, jax.random.key(1))
    assert set(losses) == {"cross_entropy"}
    assert jax.tree.structure(state["batch_stats"]) == jax.tree.structure(variables["batch_stats"])
