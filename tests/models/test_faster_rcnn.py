"""Faster, Mask and Keypoint R-CNN are torchvision's: every stage, detections, losses, gradients."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
from detectors import PHOTOS, batch_of, batch_with, check_training, picture
from PIL import Image

from jaxseg.data.transforms import picture_on_canvas
from jaxseg.models import faster_rcnn, keypoint_rcnn, mask_rcnn
from jaxseg.models.faster_rcnn import FasterRCNN, Settings
from jaxseg.nn.rpn import sample_targets
from jaxseg.ops.masks import paste_masks
from jaxseg.ops.truth import Truth

V1 = dict(norm="frozen", norm_epsilon=0.0)
VARIANTS = {
    "fasterrcnn_resnet50_fpn": ((), V1),
    "fasterrcnn_resnet50_fpn_v2": ((), faster_rcnn.V2),
    "maskrcnn_resnet50_fpn": ((mask_rcnn.mask_head(91),), V1),
    "maskrcnn_resnet50_fpn_v2": ((mask_rcnn.mask_head(91),), faster_rcnn.V2),
    "keypointrcnn_resnet50_fpn": ((keypoint_rcnn.keypoint_head(17),), V1),
}
SETTINGS = Settings(
    proposals_per_level=(500, 500),
    proposals=(200, 200),
    detections=40,
    region_samples=64,
    sampling="first",
)


def network_of(name):
    heads, options = VARIANTS[name]
    num_classes = 2 if name.startswith("keypoint") else 91
    return FasterRCNN(num_classes, heads=heads, **options)


FIRST = "maskrcnn_resnet50_fpn"  # the others are slow tests
ALL = [name if name == FIRST else pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS]


def prepared(fixtures, name):
    reference = published.read(fixtures, f"det/{name}")
    network, batch = network_of(name), batch_of(reference)
    if name.startswith("keypoint"):
        batch["labels"] = np.minimum(batch["labels"], 1)
    variables, _ = published.weights(reference, network, batch["image"][:1])
    return reference, network, batch, variables


@pytest.mark.parametrize("name", ALL)
def test_published_detections(fixtures, name):
    reference, network, batch, variables = prepared(fixtures, name)
    assert published.error(batch["image"], reference, "image") < 1e-5

    def stages(network, image):
        maps = network.extract(image)
        told = faster_rcnn.predictions(network, SETTINGS, image, None)
        return maps, *network.propose(maps), told

    run = jax.jit(nn.apply(stages, network))
    maps, objectness, deltas, told = jax.device_get(run(variables, batch["image"]))
    anchors = faster_rcnn.anchors_of(batch["image"], maps, SETTINGS)
    assert published.error(np.concatenate(anchors), reference, "anchors") == 0
    for level, (x, some, move) in enumerate(zip(maps, objectness, deltas, strict=True)):
        place = x.shape[:3]
        each = {
            f"fpn_{level if level < 4 else 'pool'}": x,
            f"rpn_objectness_{level}": some.reshape(*place, -1),
            f"rpn_deltas_{level}": move.reshape(*place, -1),
        }
        for stage, found in each.items():
            assert published.error(found, reference, stage) < 1e-4, stage
    for i in range(len(PHOTOS)):
        expected = {
            key: reference.arrays[f"{key}_{i}"] for key in ("pre_boxes", "labels", "scores")
        }
        assert told["detection_mask"][i].all()
        np.testing.assert_allclose(told["boxes"][i], expected["pre_boxes"], atol=5e-3)
        np.testing.assert_allclose(told["scores"][i], expected["scores"], atol=2e-5)
        np.testing.assert_array_equal(told["labels"][i], expected["labels"])
        # Proposals whose scores differ by rounding change places.
        assert told["proposal_mask"][i].all()
        np.testing.assert_allclose(
            told["proposal_scores"][i], reference.arrays[f"proposal_scores_{i}"], atol=1e-5
        )
        distance = np.abs(told["proposals"][i][:, None] - reference.arrays[f"proposals_{i}"]).max(2)
        assert distance.min(0).max() < 5e-3
        assert distance.min(1).max() < 5e-3
    if "masks" in told:
        probabilities = told["masks"].reshape(-1, *told["masks"].shape[2:])
        assert published.error(probabilities, reference, "mask_probs") < 1e-4
        check_pasted(reference, told["masks"])
    if "keypoints" in told:
        for i, photo in enumerate(PHOTOS):
            original = picture(reference.folder, photo)[1]
            ratio = (original / batch["image_size"][i])[::-1]
            places, expected = told["keypoints"][i], reference.arrays[f"keypoints_{i}"]
            np.testing.assert_allclose(places[..., :2] * ratio, expected[..., :2], atol=2e-2)
            scores = reference.arrays[f"keypoints_scores_{i}"]
            np.testing.assert_allclose(told["keypoint_scores"][i], scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("aligned", [False, True])
def test_regions_are_pooled_where_they_lie(aligned):
    """On a map whose value is the x of its pixels' centres, a region of 8 by 8 pixels in two bins
    has 2 and 6 pixels more than its left side. Unaligned they are read half a pixel of the map, 2
    of the picture, further to the right."""
    image, corner = np.zeros((1, 64, 64, 3), np.float32), 20.0
    maps = [
        np.tile(stride * (np.arange(64 // stride) + 0.5), (1, 64 // stride, 1))[..., None]
        for stride in (4, 8, 16, 32, 64)
    ]
    boxes = np.array([[[corner, 16, corner + 8, 24]]], np.float32)
    network = FasterRCNN(2, aligned=aligned)
    pooled = network.apply({}, [x.astype(np.float32) for x in maps], image, boxes, 2, method="pool")
    expected = np.array([22.0, 26.0]) + (0 if aligned else 2)
    np.testing.assert_allclose(pooled[0, :, :, 0], np.tile(expected, (2, 1)), atol=1e-4)


def check_pasted(reference, masks):
    """Masks in the picture, more than half, are torchvision's but for rounding."""
    paste = jax.jit(paste_masks, static_argnums=2)
    for i, photo in enumerate(PHOTOS):
        size = tuple(picture(reference.folder, photo)[1].tolist())
        pasted = paste(masks[i], reference.arrays[f"boxes_{i}"], size)
        expected = np.unpackbits(reference.arrays[f"masks_{i}_bits"], axis=-1)[..., : size[1]] > 0
        assert ((np.asarray(pasted) > 0.5) != expected).mean() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", published.names("det_default/*rcnn*"))
def test_published_detections_by_default_settings(fixtures, name):
    """A photograph, as `predict` sees it. The canvas is torchvision's: with more padding, what is
    near the right and lower border changes, as convolutions see further into it."""
    reference = published.read(fixtures, name)
    network = network_of(name.removeprefix("det_default/"))
    with Image.open(reference.folder / "chelsea.png") as photo:
        photo = np.asarray(photo.convert("RGB"))
    image, size = picture_on_canvas(photo, (800, 1216), (800, 1333))
    variables, _ = published.weights(reference, network, image[None])
    predict = jax.jit(nn.apply(faster_rcnn.predictions, network), static_argnums=1)
    found = jax.device_get(predict(variables, Settings(), image[None], None))
    ratio = np.tile(np.array(photo.shape[1::-1]) / size[::-1], 2)
    np.testing.assert_allclose(found["boxes"][0] * ratio, reference.arrays["boxes_0"], atol=1e-2)
    np.testing.assert_allclose(found["scores"][0], reference.arrays["scores_0"], atol=1e-4)
    np.testing.assert_array_equal(found["labels"][0], reference.arrays["labels_0"])
    if "keypoints_0" in reference.arrays:
        places = found["keypoints"][0][..., :2] * ratio[:2]
        np.testing.assert_allclose(places, reference.arrays["keypoints_0"][..., :2], atol=5e-2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "statistics"),
    [
        (name, statistics)
        for name in VARIANTS
        for statistics in ("train", "train_bn_eval")[: 1 + name.endswith("v2")]
    ],
)
def test_published_training(fixtures, name, statistics):
    reference, network, batch, _ = prepared(fixtures, name)
    names = {"class": "loss_classifier", "objectness": "loss_objectness"}
    names |= {"rpn_box": "loss_rpn_box_reg", "box": "loss_box_reg"}
    names |= {"mask": "loss_mask", "keypoint": "loss_keypoint"}
    losses = partial(faster_rcnn.losses, key=jax.random.key(0))
    check_training(reference, network, losses, SETTINGS, statistics, names, batch)


# ---- a small one


TINY = dict(
    backbone="resnet18", width=8, features=8, box_dense=(16,), norm="group", neck_norm="group"
)
FEW = dict(
    anchor_sizes=((8,), (16,), (32,), (64,), (128,)),
    rpn_samples=16,
    region_samples=16,
    proposals_per_level=(50, 50),
    proposals=(20, 20),
    detections=10,
)


def test_crowds_are_no_background():
    """Nothing in a crowd is sampled, and nothing else changes."""
    truth = Truth(
        boxes=jnp.array([[0.0, 0.0, 50.0, 50.0]]),
        labels=jnp.array([1]),
        mask=jnp.array([False]),
        crowd=jnp.array([True]),
    )
    anchors = jnp.array([[5.0, 5, 20, 20], [60, 60, 80, 80], [40, 40, 60, 60]])
    targets = sample_targets(anchors, truth, None, num_samples=4)
    assert np.asarray(targets.anchors)[np.asarray(targets.mask)].tolist() == [1, 2]
    assert not targets.positive.any()


@pytest.mark.parametrize(
    ("options", "levels"),
    [
        (dict(backbone="resnet18", pyramid=False), 1),
        (dict(backbone="resnet50", pyramid=False, pooling="max"), 1),
        (dict(backbone="vgg16", pyramid=False, pooling="max", box_dropout=0.5), 1),
        (dict(backbone="vgg16"), 4),
        (dict(backbone="mobilenet_v3_large"), 3),
    ],
)
def test_backbones_and_single_maps(options, levels):
    settings = FEW | {"anchor_sizes": ((8, 16, 32),) * levels}
    model = faster_rcnn.build(4, settings=settings, **TINY | {"norm": "batch"} | options)
    batch = batch_with([[10, 10, 40, 50]])
    variables = jax.eval_shape(model.init, jax.random.key(0), batch)
    losses, _ = jax.eval_shape(model.loss, variables, batch, jax.random.key(0))
    assert set(losses) == {"objectness", "rpn_box", "class", "box"}
    found = jax.eval_shape(model.predict, variables, batch["image"])
    assert found["boxes"].shape == (2, 10, 4)
    stage = "stage4_block1" in variables["params"]["backbone"]
    assert stage == options["backbone"].startswith("resnet")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(backbone="resnet51"), "backbone is 'resnet51', expected one of resnet18"),
        (dict(pooling="max"), "pooling is 'max', expected one of align"),
        (dict(pyramid=False, pooling="max", aligned=True), "aligned is True, expected one"),
        (dict(settings=dict(rpn_samplse=2)), "settings is 'rpn_samplse', expected one of anchor"),
        (dict(settings=dict(sampling="all")), "settings.sampling is 'all', expected one of random"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        faster_rcnn.build(4, **options)
