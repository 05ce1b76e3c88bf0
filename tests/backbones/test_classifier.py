"""Classifiers see one window, or slide over a larger picture."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import picture, random_variables

from jaxseg.backbones.alexnet import AlexNet
from jaxseg.backbones.classifier import Classifier
from jaxseg.backbones.vgg import VGG16
from jaxseg.nn.head import Head

HEADS = {
    "dense": partial(Head, hidden={"fc6": 8, "fc7": 8}, window=3),
    "pooled": partial(Head, hidden={}, window=3, pool=True),
    "pooled and dense": partial(Head, hidden={"hidden": 8}, window=3, pool=True),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_sliding_head_gives_the_scores_of_every_window(name):
    head = HEADS[name](4)
    features = picture(2, 5, 6, 7)
    variables = random_variables(head, features[:, :3, :3])
    slid = HEADS[name](4, sliding=True).apply(variables, features)
    assert slid.shape == (2, 3, 4, 4)
    apply = jax.jit(head.apply)
    for i in range(3):
        for j in range(4):
            scores = apply(variables, features[:, i : i + 3, j : j + 3])
            np.testing.assert_allclose(slid[:, i, j], scores, atol=1e-5)


@pytest.mark.parametrize("name", ["alexnet", "vgg16", "resnet18", "mobilenet_v3_large"])
def test_maps_of_scores(name):
    image = jax.ShapeDtypeStruct((1, 256, 288, 3), jnp.float32)
    crop = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    whole, sliding = Classifier(name), Classifier(name, sliding=True)
    scores, variables = jax.eval_shape(whole.init_with_output, jax.random.key(0), crop)
    assert scores.shape == (1, 1000)
    # 256/32 − 7 + 1 and 288/32 − 7 + 1; AlexNet has 7 and 8 features less 6
    assert jax.eval_shape(sliding.apply, variables, image).shape == (1, 2, 3, 1000)
    assert jax.eval_shape(whole.apply, variables, image).shape == (1, 1000)


# The first place of the last features sees pixels up to 128, and 121; others 32 more each. All
# paddings and kernels: 11, 4·(3 − 1), 8·(5 − 1) … begin 66 pixels before the picture, and 90.
@pytest.mark.parametrize(("backbone", "places"), [(AlexNet, 3), (VGG16, 4)])
def test_places_that_see_no_border_agree(backbone, places):
    backbone = backbone(4)
    image = picture(1, 256, 288, 3)
    variables, apply = random_variables(backbone, image), jax.jit(backbone.apply)
    crop, whole = (apply(variables, x)[32] for x in (image[:, :224, :224], image))
    np.testing.assert_allclose(
        crop[:, :places, :places], whole[:, :places, :places], rtol=1e-4, atol=1e-5
    )
    beyond = np.abs(crop - whole[:, : crop.shape[1], : crop.shape[2]])[:, places:, places:]
    assert beyond.max() > 1e-3  # the crop's border


@pytest.mark.parametrize("name", ["alexnet", "resnet18"])
def test_training(name):
    """AlexNet drops values, ResNet has statistics."""
    classifier = Classifier(name, 3, options={"width": 1})
    image = picture(2, 64, 64, 3)
    variables = random_variables(classifier, image)

    @jax.jit
    def train(variables, key):
        rngs, mutable = {"dropout": key}, ["batch_stats"]
        return classifier.apply(variables, image, train=True, rngs=rngs, mutable=mutable)

    (a, state), (b, _) = (train(variables, jax.random.key(seed)) for seed in (1, 2))
    assert (np.abs(a - b).max() > 1e-3) == (name == "alexnet")
    if name == "resnet18":
        before, after = variables["batch_stats"], state["batch_stats"]
        moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), before, after)
        assert min(jax.tree.leaves(moved)) > 0
