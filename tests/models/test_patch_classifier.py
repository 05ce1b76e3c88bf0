import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import picture, random_variables

from jaxseg.models import patch_classifier
from jaxseg.models.patch_classifier import PatchClassifier, sample_pixels
from jaxseg.types import IGNORE

SMALL = dict(window=65, width=3, head_width=5)
NETWORK = PatchClassifier(4, **SMALL)


def variables():
    return random_variables(NETWORK, jnp.zeros((1, 65, 65, 3)))


def test_layers_of_the_paper():
    """Cireşan et al. 2012, table 1: maps of 92, 46, 42, 21, 18, 9, 6 and 3 pixels, 48 of each."""
    shape = jax.ShapeDtypeStruct((1, 95, 95, 1), jnp.float32)
    logits, made = jax.eval_shape(PatchClassifier(2).init_with_output, jax.random.key(0), shape)
    assert logits.shape == (1, 1, 1, 2)
    counts = {name: sum(x.size for x in p.values()) for name, p in made["params"].items()}
    assert counts == {
        "conv1": 48 * (4 * 4 + 1),
        "conv2": 48 * (5 * 5 * 48 + 1),
        "conv3": 48 * (4 * 4 * 48 + 1),
        "conv4": 48 * (4 * 4 * 48 + 1),
        "dense": 200 * (3 * 3 * 48 + 1),
        "classifier": 2 * 201,
    }


@pytest.mark.parametrize("window", [95, 65])
def test_dense_scores_are_those_of_each_window(window):
    network = PatchClassifier(4, window=window, width=3, head_width=5)
    image = picture(2, 9, 11, 3)
    params = random_variables(network, jnp.zeros((1, window, window, 3)))
    dense = jax.jit(patch_classifier.predict_dense, static_argnums=0)(network, params, image)
    patchwise = patch_classifier.predict_patchwise(network, params, image, at_once=50)
    assert dense["probabilities"].shape == (2, 9, 11, 4)
    assert np.ptp(dense["probabilities"], axis=(1, 2)).max() > 0.01
    np.testing.assert_allclose(dense["probabilities"], patchwise["probabilities"], atol=1e-5)
    np.testing.assert_array_equal(dense["segmentation"], patchwise["segmentation"])


def test_strided_scores_are_every_eighth_of_the_dense_ones():
    image = picture(1, 20, 33, 3)
    dense, strided = (
        jax.jit(PREDICT, static_argnums=0)(NETWORK, variables(), image)["probabilities"]
        for PREDICT in (patch_classifier.predict_dense, patch_classifier.predict_strided)
    )
    assert strided.shape == (1, 20, 33, 4)
    np.testing.assert_allclose(strided[:, ::8, ::8], dense[:, ::8, ::8], atol=1e-5)
    assert np.abs(strided - dense).max() > 1e-3


def test_the_window_lies_around_the_pixel():
    """A change of one pixel reaches the pixels up to 32 away, and none beyond."""
    image = picture(1, 3, 90, 3)
    positive = jax.tree.map(jnp.abs, variables())  # so that no maximum hides a change

    @jax.jit
    def scores(image):
        padded = patch_classifier.continued(image, 65)
        return NETWORK.apply(positive, padded, dense=True)

    a, b = scores(image), scores(image.at[:, :, 45].add(100.0))
    (changed,) = np.nonzero(np.abs(a - b).max((0, 1, 3)))
    np.testing.assert_array_equal(changed, np.arange(13, 78))


def test_sampling():
    """Of 600 pixels one is of class 2, 99 of class 1, 400 of class 0, and 100 are not labelled."""
    labels = np.full(600, IGNORE)
    labels[100:500], labels[500:599], labels[599] = 0, 1, 2
    labels = jnp.asarray(np.random.default_rng(0).permutation(labels).reshape(20, 30))

    def shares(balanced):
        pixels = sample_pixels(jax.random.key(0), labels, 30_000, balanced)
        counts = np.bincount(labels.reshape(-1)[pixels], minlength=256)
        assert counts[IGNORE] == 0
        within = np.bincount(pixels, minlength=600)[labels.reshape(-1) == 0]
        assert within.min() > 0.3 * within.mean()
        return counts[:3] / 30_000

    np.testing.assert_allclose(shares(True), np.full(3, 1 / 3), atol=0.01)
    np.testing.assert_allclose(shares(False), np.array([0.8, 0.198, 0.002]), atol=0.01)


def batch(labels):
    image = picture(*labels.shape, 3)
    return {"image": image, "segmentation": labels, "valid": jnp.ones(len(labels), bool)}


def test_loss_is_that_of_the_sampled_pixels():
    """With one labelled pixel an image it is known which ones they are."""
    model = patch_classifier.build(4, samples=3, **SMALL)
    labels = jnp.full((2, 7, 9), IGNORE).at[0, 2, 8].set(3).at[1, 6, 0].set(1)
    examples = batch(labels)
    losses, state = jax.jit(model.loss)(variables(), examples, jax.random.key(0))
    probabilities = jax.jit(model.predict)(variables(), examples["image"])["probabilities"]
    expected = -np.log([probabilities[0, 2, 8, 3], probabilities[1, 6, 0, 1]])
    assert state == {}
    assert losses["cross_entropy"].weight == 6
    np.testing.assert_allclose(losses["cross_entropy"].value(), expected.mean(), rtol=1e-4)


def test_training_lowers_the_loss_and_needs_no_labels():
    model = patch_classifier.build(3, samples=8, **SMALL)
    examples = batch(jnp.asarray(np.random.default_rng(0).integers(0, 3, (2, 8, 8))))
    examples["pixel_weights"] = 2 * jnp.ones((2, 8, 8))
    start = model.init(jax.random.key(0), examples)

    @jax.jit
    def step(params, examples):
        def total(params):
            losses, _ = model.loss({"params": params}, examples, jax.random.key(1))
            return losses["cross_entropy"].value()

        value, gradients = jax.value_and_grad(total)(params)
        return value, jax.tree.map(lambda p, g: p - 0.01 * g, params, gradients)

    first, params = step(start["params"], examples)
    assert step(params, examples)[0] < first
    nothing, params = step(params, examples | {"segmentation": jnp.full((2, 8, 8), IGNORE)})
    assert nothing == 0
    assert all(np.isfinite(p).all() for p in jax.tree.leaves(params))


def test_unknown_settings_are_refused():
    with pytest.raises(ValueError, match="window is 64, expected one of 95, 65"):
        patch_classifier.build(2, window=64)
    with pytest.raises(ValueError, match="prediction is 'fast', expected one of dense, strided"):
        patch_classifier.build(2, prediction="fast")
