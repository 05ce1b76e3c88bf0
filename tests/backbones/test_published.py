"""The published classifiers: features at every stage, and scores, are torchvision's."""

import json

import jax
import numpy as np
import published
import pytest

from jaxseg.backbones.classifier import PARTS, Classifier
from jaxseg.ops.conv import max_pool2d

SLOW = ("resnet101", "vgg16", "vgg16_bn")
# Where a stage is found: the backbone's features of a stride, or what a module gives.
OPTIONS = {"googlenet": {"transform_input": True}}
RESNET = {"layer1": 4, "layer2": 8, "layer3": 16, "layer4": 32}
STAGES = {
    "alexnet": {"features": 32, "classifier.1": "fc6", "classifier.4": "fc7"},
    "googlenet": {"inception3a": "inception3a", "inception4e": 16, "inception5b": 32},
    "mobilenet_v3_large": {
        "features.0": "stem",
        "features.4": "block4",
        "features.6": 8,
        "features.16": 32,
    },
    "resnet18": RESNET,
    "resnet50": RESNET,
    "resnet101": RESNET,
    "vgg16": {"features.4": 2, "features.16": 8, "features": 32, "classifier.3": "fc7"},
    "vgg16_bn": {"features.6": 2, "features.23": 8, "features": 32},
}


def test_the_recipe_still_gives_the_same_numbers(fixtures):
    folder = fixtures / "torchvision"
    make = published.recipe(folder).make
    for name, golden in json.loads((folder / "golden.json").read_text()).items():
        model, key = name.split(":")
        values = make(key, golden["shape"], model)
        assert values.dtype == golden["dtype"]
        np.testing.assert_array_equal(values.reshape(-1)[:4], golden["first"])
        np.testing.assert_allclose(values.sum(dtype=np.float64), golden["sum"], rtol=1e-9)


def marked(name):
    slow = name.removeprefix("cls/") in SLOW
    return pytest.param(name, marks=[pytest.mark.slow] * slow)


@pytest.mark.parametrize("name", [marked(name) for name in published.names("cls/*")])
def test_stages_and_scores(fixtures, name):
    reference = published.read(fixtures, name)
    model = reference.meta["model"]
    image = published.pictures(reference)
    network, stages = Classifier(model, options=OPTIONS.get(model, {})), STAGES[model]
    variables, _ = published.weights(reference, network, image)

    def wanted(module, _):
        return module.name == "backbone" or module.name in stages.values()

    @jax.jit
    def apply(variables, image):
        return network.apply(
            variables, image, capture_intermediates=wanted, mutable=["intermediates"]
        )

    scores, captured = apply(variables, image)
    found = {}
    for path, array in jax.tree.leaves_with_path(captured["intermediates"]):
        keys = [step.key for step in path if isinstance(step, jax.tree_util.DictKey)]
        name = keys[-2] if keys[-1] == "__call__" else keys[-1]
        found[name] = array[:, 0, 0] if array.shape[1:3] == (1, 1) else array
    arrays = {stage: found[where] for stage, where in stages.items()}
    if "resnet" in model:
        arrays["maxpool"] = max_pool2d(found[2], 3, 2, 1)
    if model == "googlenet":
        arrays["maxpool1"] = max_pool2d(found[2], 3, 2, ceil_mode=True)
    arrays["logits"] = scores
    assert set(arrays) == set(reference.arrays)
    errors = {stage: published.error(array, reference, stage) for stage, array in arrays.items()}
    assert max(errors.values()) < 1e-4, errors

    head = PARTS[model].head(1000, sliding=True)
    slid = head.apply({"params": variables["params"]["head"]}, found[32])
    assert slid.shape == (2, 1, 1, 1000)
    np.testing.assert_allclose(slid[:, 0, 0], scores, atol=1e-5 * np.abs(scores).max())
