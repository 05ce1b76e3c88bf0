"""RetinaNet is torchvision's: every stage, detections, losses, gradients; the paper's counts."""

from functools import partial

import detectors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
from detectors import batch_with

from jaxseg.models import fcos, retinanet
from jaxseg.models.retinanet import RetinaNet, Settings
from jaxseg.ops.truth import Truth

VARIANTS = {
    "retinanet_resnet50_fpn": (dict(norm="frozen", norm_epsilon=0.0), {}),
    "retinanet_resnet50_fpn_v2": (retinanet.V2, dict(box_loss="giou")),
}
FIRST, V2 = VARIANTS
FEW = dict(candidates_per_level=300, detections=60)


def prepared(reference, name, **settings):
    options, own = VARIANTS[name]
    return RetinaNet(91, **options), Settings(**own | settings)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_published_detections(fixtures, name):
    reference = published.read(fixtures, f"det/{name}")
    network, settings = prepared(reference, name, **FEW)
    batch = detectors.batch_of(reference)
    variables, _ = published.weights(reference, network, batch["image"][:1])
    assert published.error(batch["image"], reference, "image") < 1e-5

    def stages(network, image):
        maps = network.extract(image)
        told = retinanet.predictions(network, settings, image, batch["image_size"])
        return maps, network.look(maps), told

    run = jax.jit(nn.apply(stages, network))
    maps, outputs, told = jax.device_get(run(variables, batch["image"]))
    anchors = retinanet.anchors_of(batch["image"], maps, settings)
    assert published.error(np.concatenate(anchors), reference, "anchors") == 0
    for level, x in zip(detectors.PYRAMID, maps, strict=True):
        assert published.error(x, reference, f"fpn_{level}") < 1e-4
    stages = {"cls_logits": outputs.logits, "bbox_regression": outputs.deltas}
    for stage, levels in stages.items():
        assert published.error(np.concatenate(levels, 1), reference, stage) < 1e-4
    detectors.check_detections(reference, told, batch["image_size"])


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_published_detections_by_default_settings(fixtures, name):
    """A photograph, as `predict` sees it, on torchvision's canvas."""
    reference = published.read(fixtures, f"det_default/{name}")
    network, settings = prepared(reference, name)
    detectors.check_default(reference, network, retinanet.predictions, settings)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "statistics"), [(FIRST, "train"), (V2, "train"), (V2, "train_bn_eval")]
)
def test_published_training(fixtures, name, statistics):
    reference = published.read(fixtures, f"det/{name}")
    network, settings = prepared(reference, name, **FEW)
    names = {"class": "classification", "box": "bbox_regression"}
    detectors.check_training(reference, network, retinanet.losses, settings, statistics, names)


# ---- the paper's


def test_class_loss_at_the_start_is_that_of_the_prior():
    """Without objects, of 4 classes at each of the anchors (section 3.3): 0.75 p² (-log(1 - p))."""
    network, maps = RetinaNet(4, features=8, convolutions=1), [jnp.ones((1, 5, 7, 8))]
    look = partial(network.init_with_output, method="look")
    (logits, deltas, _), _ = jax.jit(look)(jax.random.key(0), maps)
    (logits,), (deltas,) = logits, deltas
    nothing = Truth(*(jnp.zeros((1, *shape), kind) for shape, kind in NOTHING))
    measure = partial(retinanet.picture_losses, settings=Settings())
    found = measure(logits[0], deltas[0], nothing, jnp.ones((9 * 5 * 7, 4)))
    expected = 4 * 9 * 5 * 7 * 0.75 * 0.01**2 * -np.log(0.99)
    np.testing.assert_allclose(found["class"], expected, rtol=0.05)
    assert found["box"] == 0


NOTHING = ((4,), jnp.float32), ((), jnp.int32), ((), bool), ((), bool)


@pytest.mark.parametrize(("size", "count"), [((608, 1024), 116_712), ((800, 1344), 201_600)])
def test_more_than_100_thousand_anchors(size, count):
    """Section 4: of pictures of 600 pixels, and more of 800; four convolutions in both heads."""
    network, image = RetinaNet(81), jnp.zeros((1, *size, 3))

    def run(image):
        outputs, variables = network.init_with_output(jax.random.key(0), image)
        return outputs, variables["params"]

    outputs, params = jax.eval_shape(run, image)
    assert sum(x.shape[1] for x in outputs.deltas) == count
    assert {x.shape[2] for x in outputs.logits} == {81}
    assert params["class_head"]["logits"]["kernel"].shape == (3, 3, 256, 9 * 81)
    assert set(params["box_head"]) == {"conv1", "conv2", "conv3", "conv4", "deltas"}


ANCHORS = jnp.array([[0.0, 0, 10, 10], [0, 0, 10, 22], [50, 50, 60, 60], [80, 80, 90, 90]])


@pytest.mark.parametrize("box_loss", ["l1", "giou"])
def test_losses_by_hand(box_loss):
    """An anchor on the object, one of IoU 10 / 22 that is ignored, one of the background, one in a
    crowd. All probabilities are 1/2."""
    truth = Truth(
        boxes=jnp.array([[0.0, 0, 10, 10], [75, 75, 99, 99], [0, 0, 0, 0]]),
        labels=jnp.array([2, 1, 0]),
        mask=jnp.array([True, False, False]),
        crowd=jnp.array([False, True, False]),
    )
    deltas = jnp.array([[0.5, 0, 0, 0], [9, 9, 9, 9], [9, 9, 9, 9], [9, 9, 9, 9]])

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def losses(logits):
        settings = Settings(box_loss=box_loss)
        found = retinanet.picture_losses(logits, deltas, truth, ANCHORS, settings)
        return found["class"], found

    (_, found), gradient = losses(jnp.zeros((4, 3)))
    expected = (0.25 + 5 * 0.75) * 0.5**2 * np.log(2)  # yes to class 2 once, five times no
    np.testing.assert_allclose(found["class"], expected, rtol=1e-6)
    # Half of the box is beside the object: IoU 1/3, and the hull is the union.
    np.testing.assert_allclose(found["box"], {"l1": 0.5, "giou": 2 / 3}[box_loss], rtol=1e-6)
    assert np.sign(gradient).tolist() == [[1, 1, -1], [0, 0, 0], [1, 1, 1], [0, 0, 0]]


def test_other_backbones_and_norms():
    options = dict(backbone="mobilenet_v3_large", width=16, features=8, norm="batch")
    model = retinanet.build(4, neck_norm="batch", head_norm="group", p6_from="C5", **options)
    batch = batch_with([[10, 10, 40, 50]])
    variables = jax.eval_shape(model.init, jax.random.key(0), batch)
    losses, after = jax.eval_shape(model.loss, variables, batch, jax.random.key(0))
    assert set(losses) == {"class", "box"}
    assert after.keys() == {"batch_stats"}
    assert variables["params"]["fpn"]["p6"]["kernel"].shape == (3, 3, 960, 8)
    assert "norm" in variables["params"]["fpn"]["lateral1"]


@pytest.mark.parametrize("module", [retinanet, fcos])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(backbone="resnet51"), "backbone is 'resnet51', expected one of resnet18"),
        (dict(settings=dict(detection=2)), "settings is 'detection', expected one of"),
    ],
)
def test_bad_options(module, options, message):
    with pytest.raises(ValueError, match=message):
        module.build(4, **options)


def test_bad_box_loss():
    with pytest.raises(ValueError, match=r"settings.box_loss is 'ciou', expected one of l1, giou"):
        retinanet.build(4, settings=dict(box_loss="ciou"))
