"""FCOS is torchvision's: every stage, detections, losses, gradients; and its places by hand."""

from functools import partial

import detectors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest

from jaxseg.models import fcos
from jaxseg.models.fcos import Settings, network_of
from jaxseg.ops.truth import Truth

NAME = "fcos_resnet50_fpn"


@pytest.mark.slow
def test_published_detections(fixtures):
    reference = published.read(fixtures, f"det/{NAME}")
    network, settings = network_of(91), Settings(candidates_per_level=300, detections=60)
    batch = detectors.batch_of(reference)
    variables, _ = published.weights(reference, network, batch["image"][:1])

    def stages(network, image):
        maps = network.extract(image)
        told = fcos.predictions(network, settings, image, batch["image_size"])
        return maps, network.look(maps), told

    run = jax.jit(nn.apply(stages, network))
    maps, outputs, told = jax.device_get(run(variables, batch["image"]))
    places = fcos.places_of(batch["image"], maps, settings)
    assert published.error(np.concatenate(places), reference, "anchors") == 0
    for level, x in zip(detectors.PYRAMID, maps, strict=True):
        assert published.error(x, reference, f"fpn_{level}") < 1e-4
    logits, distances, centreness = (np.concatenate(levels, 1) for levels in outputs)
    assert published.error(logits, reference, "cls_logits") < 1e-4
    assert published.error(np.maximum(distances, 0), reference, "bbox_regression") < 1e-4
    assert published.error(centreness[..., None], reference, "bbox_ctrness") < 1e-4
    detectors.check_detections(reference, told, batch["image_size"])


@pytest.mark.slow
def test_published_detections_by_default_settings(fixtures):
    reference = published.read(fixtures, f"det_default/{NAME}")
    detectors.check_default(reference, network_of(91), fcos.predictions, Settings())


@pytest.mark.slow
def test_published_training(fixtures):
    reference = published.read(fixtures, f"det/{NAME}")
    names = {"class": "classification", "box": "bbox_regression", "centreness": "bbox_ctrness"}
    detectors.check_training(reference, network_of(91), fcos.losses, Settings(), "train", names)


# ---- by hand


def squares(stride, size):
    """The places of a row of this many pixels."""
    middle = np.stack([np.arange(0.0, size, stride), np.zeros(size // stride)], 1)
    return jnp.asarray(np.concatenate([middle - stride / 2, middle + stride / 2], 1), jnp.float32)


def truth_with(*boxes):
    """These objects, and a row of padding that lies on the first one."""
    rows = np.arange(len(boxes) + 1, dtype=np.int32)
    boxes = np.array([*boxes, boxes[0]], np.float32)
    return Truth(boxes, rows + 1, rows < len(boxes) - 1)


def test_places_by_hand():
    """Two levels, of places 8 and 16 apart, in a row of 64 pixels at height 0."""
    places = squares(8, 64), squares(16, 64)

    match = jax.jit(partial(fcos.match_places, places), static_argnames="radius")

    def matches(*boxes, radius=1.5):
        return match(truth_with(*boxes), radius=radius).tolist()

    nothing = [-1] * 8, [-1] * 4
    # Sides up to 64 pixels away are the finest level's. Its middle, 24, has places up to 12 away.
    assert matches([4, -20, 44, 20]) == [-1, -1, 0, 0, 0, -1, -1, -1, *nothing[1]]
    # The places of the coarser level are for sides further than that, its middle for 24 pixels.
    assert matches([-40, -80, 104, 80]) == [*nothing[0], -1, 0, 0, 0]
    # Without the sampling of centres, all places inside; none on the border.
    inside = [-1, 0, 0, 0, 0, -1, -1, -1]
    assert matches([0, -20, 40, 20], radius=99.0) == [*inside, *nothing[1]]
    # The smaller of two objects, which comes second, then first.
    both = [4, -20, 44, 20], [20, -20, 44, 20]
    assert matches(*both, radius=99.0)[:8] == [-1, 0, 0, 1, 1, 1, -1, -1]
    assert matches(*both[::-1], radius=99.0)[:8] == [-1, 1, 1, 0, 0, 0, -1, -1]


def test_centreness_by_hand():
    distances = jnp.array([[1.0, 1, 1, 1], [1, 2, 3, 2], [1, 1, 4, 9], [0, 1, 1, 1]])
    np.testing.assert_allclose(fcos.centreness_of(distances), [1, 3**-0.5, 1 / 6, 0], rtol=1e-6)


def test_losses_by_hand():
    """One level of one positive place, beside one that is free; all probabilities are 1/2."""
    places = [jnp.array([[-4.0, -4, 4, 4], [28, -4, 36, 4]])]
    truth = truth_with([-4, -4, 12, 4])
    distances = jnp.array([[-1, 0.5, 0.5, 0.5], [9, 9, 9, 9]])  # half of the box right of the place
    run = jax.jit(partial(fcos.picture_losses, places=places, settings=Settings()))
    found, positive = run(jnp.zeros((2, 3)), distances, jnp.zeros(2), truth)
    assert positive == 1
    np.testing.assert_allclose(found["class"], (0.25 + 5 * 0.75) * 0.5**2 * np.log(2), rtol=1e-6)
    # 4×8 of its 16×8 pixels, and nothing else; and sides 4 and 12 away.
    np.testing.assert_allclose(found["box"], 1 - 1 / 4, rtol=1e-6)
    entropy = np.log(2)  # of any target, where the probability is 1/2
    np.testing.assert_allclose(found["centreness"], entropy, rtol=1e-6)
