"""Faster, Mask and Keypoint R-CNN are torchvision's: every stage, detections, losses, gradients."""

from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import published
import pytest
from PIL import Image

from jaxseg.data.transforms import picture_on_canvas
from jaxseg.models import faster_rcnn, keypoint_rcnn, mask_rcnn
from jaxseg.models.faster_rcnn import FasterRCNN, Settings
from jaxseg.nn.rpn import sample_targets
from jaxseg.ops.conv import resize_bilinear
from jaxseg.ops.masks import paste_masks
from jaxseg.ops.truth import Truth
from jaxseg.train.mesh import make_parallel
from jaxseg.train.step import init_state, make_step
from jaxseg.types import MEAN, STD
from jaxseg.weights.convert import to_torchvision

V1 = dict(norm="frozen", norm_epsilon=0.0)
VARIANTS = {
    "fasterrcnn_resnet50_fpn": ((), V1),
    "fasterrcnn_resnet50_fpn_v2": ((), faster_rcnn.V2),
    "maskrcnn_resnet50_fpn": ((mask_rcnn.mask_head(91),), V1),
    "maskrcnn_resnet50_fpn_v2": ((mask_rcnn.mask_head(91),), faster_rcnn.V2),
    "keypointrcnn_resnet50_fpn": ((keypoint_rcnn.keypoint_head(17),), V1),
}
PHOTOS = ("chelsea", "astronaut")
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


def picture(folder, photo):
    """A photograph as torchvision resizes it, and its size before."""
    with Image.open(folder / f"{photo}.png") as image:
        pixels = (np.asarray(image.convert("RGB"), np.float32) / 255 - MEAN) / STD
    height, width = pixels.shape[:2]
    scale = min(320 / min(height, width), 448 / max(height, width))
    size = int(height * scale), int(width * scale)
    return np.asarray(resize_bilinear(jnp.asarray(pixels[None]), size))[0], (height, width)


def batch_of(reference, name):
    image = np.zeros((2, 384, 448, 3), np.float32)
    sizes = np.zeros((2, 2), np.int32)
    rows = {key: [] for key in ("boxes", "labels", "object_mask", "masks", "keypoints")}
    targets = np.load(reference.folder / "targets.npz")
    for i, photo in enumerate(PHOTOS):
        pixels, original = picture(reference.folder, photo)
        height, width = sizes[i] = pixels.shape[:2]
        image[i, :height, :width] = pixels
        ratio = np.array([width / original[1], height / original[0]], np.float32)
        boxes = targets[f"{photo}/boxes"] * np.tile(ratio, 2)
        masks = np.unpackbits(targets[f"{photo}/masks"], axis=-1)[..., : original[1]]
        y, x = (np.arange(n) * m // n for n, m in zip((height, width), original, strict=True))
        keypoints = targets[f"{photo}/keypoints"] * np.append(ratio, 1).astype(np.float32)
        labels = targets[f"{photo}/labels"].astype(np.int32)
        count = len(boxes)
        placed = np.zeros((count, 384, 448), bool)
        placed[:, :height, :width] = masks[:, y][:, :, x]
        for key, value in dict(
            boxes=boxes,
            labels=np.ones_like(labels) if name.startswith("keypoint") else labels,
            object_mask=np.ones(count, bool),
            masks=np.packbits(placed, axis=-1),
            keypoints=keypoints,
        ).items():
            padding = [(0, 8 - count)] + [(0, 0)] * (value.ndim - 1)
            rows[key].append(np.pad(value, padding))
    objects = {key: np.stack(value) for key, value in rows.items()}
    return {"image": image, "image_size": sizes, "valid": np.ones(2, bool), **objects}


DETECTED = "pre_boxes", "scores", "labels"
FIRST = "maskrcnn_resnet50_fpn"  # the others are slow tests
ALL = [name if name == FIRST else pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS]


def prepared(fixtures, name):
    reference = published.read(fixtures, f"det/{name}")
    network, batch = network_of(name), batch_of(reference, name)
    variables, family = published.weights(reference, network, batch["image"][:1])
    return reference, network, batch, variables, family


@pytest.mark.parametrize("name", ALL)
def test_published_detections(fixtures, name):
    reference, network, batch, variables, _ = prepared(fixtures, name)
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
            original = np.array(picture(reference.folder, photo)[1])
            ratio = (original / batch["image_size"][i])[::-1]
            places, expected = told["keypoints"][i], reference.arrays[f"keypoints_{i}"]
            np.testing.assert_allclose(places[..., :2] * ratio, expected[..., :2], atol=2e-2)
            scores = reference.arrays[f"keypoints_scores_{i}"]
            np.testing.assert_allclose(told["keypoint_scores"][i], scores, rtol=1e-4, atol=1e-4)


def check_pasted(reference, masks):
    """Masks in the picture, more than half, are torchvision's but for rounding."""
    paste = jax.jit(paste_masks, static_argnums=2)
    for i, photo in enumerate(PHOTOS):
        size = picture(reference.folder, photo)[1]
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


@pytest.mark.parametrize(
    ("name", "statistics"),
    [
        (FIRST, "train"),
        *(
            pytest.param(name, statistics, marks=pytest.mark.slow)
            for name in sorted(set(VARIANTS) - {FIRST})
            for statistics in ("train", "train_bn_eval")[: 1 + name.endswith("v2")]
        ),
    ],
)
def test_published_training(fixtures, name, statistics):
    reference, network, batch, variables, family = prepared(fixtures, name)
    network = network.clone(training=statistics == "train")
    measure = nn.apply(faster_rcnn.losses, network, mutable=["batch_stats"])

    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # it runs but once
    @partial(jax.value_and_grad, has_aux=True)
    def step(params, rest, batch):
        variables = {"params": params, **rest}
        losses, after = measure(variables, SETTINGS, batch, jax.random.key(0))
        means = {name: mean.value() for name, mean in losses.items()}
        return sum(means.values()), (means, after)

    params = variables.pop("params")
    (_, (losses, after)), gradients = jax.device_get(step(params, variables, batch))
    names = dict(
        objectness="objectness",
        rpn_box="rpn_box_reg",
        box="box_reg",
        mask="mask",
        keypoint="keypoint",
    ) | {"class": "classifier"}
    expected = reference.meta[f"{statistics}_losses_f64"]
    assert {f"loss_{names[name]}" for name in losses} == set(expected)
    for name, loss in losses.items():
        exact = expected[f"loss_{names[name]}"]
        own = abs(reference.meta[f"{statistics}_losses"][f"loss_{names[name]}"] - exact)
        # As for gradients: where torch's float32 is further from float64, 5 times as far.
        np.testing.assert_allclose(loss, exact, rtol=0, atol=max(1e-5 * exact, 5 * own))
    gradients = to_torchvision({"params": gradients}, family)
    published.check_gradients(reference, statistics, gradients, 2e-4)
    if statistics == "train":
        after = to_torchvision({"params": params, **after}, family)
        for name in (name for name in reference.arrays if name.startswith("after/")):
            assert published.error(after[name.removeprefix("after/")], reference, name) < 1e-4


# ---- a small one


HEADS = mask_rcnn.mask_head(4, 8, 1), keypoint_rcnn.keypoint_head(3, 8, 1)
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


@cache
def tiny():
    model = faster_rcnn.build(4, heads=HEADS, settings=FEW, **TINY)
    variables = model.init(jax.random.key(0), empty_batch())
    return model, variables


def empty_batch(rows=2):
    rng = np.random.default_rng(0)
    return {
        "image": rng.normal(size=(rows, 64, 96, 3)).astype(np.float32),
        "image_size": np.tile(np.array([64, 96], np.int32), (rows, 1)),
        "valid": np.ones(rows, bool),
        "boxes": np.zeros((rows, 3, 4), np.float32),
        "labels": np.zeros((rows, 3), np.int32),
        "object_mask": np.zeros((rows, 3), bool),
        "crowd": np.zeros((rows, 3), bool),
        "masks": np.zeros((rows, 3, 64, 12), np.uint8),
        "keypoints": np.zeros((rows, 3, 3, 3), np.float32),
    }


def batch_with(boxes, crowd=False, rows=2):
    batch = empty_batch(rows)
    count, boxes = len(boxes), np.reshape(boxes, (-1, 4))
    batch["boxes"][:, :count] = boxes
    batch["labels"][:, :count] = np.arange(count) % 3 + 1
    batch["object_mask"][:, :count] = True
    batch["crowd"][:, :count] = crowd
    for m, (x0, y0, x1, y1) in enumerate(boxes.astype(int)):
        mask = np.zeros((64, 96), bool)
        mask[y0:y1, x0:x1] = True
        batch["masks"][:, m] = np.packbits(mask, axis=-1)
        batch["keypoints"][:, m] = [[(x0 + x1) / 2, (y0 + y1) / 2, 2], [x0, y0, 1], [0, 0, 0]]
    return batch


@cache
def tiny_step():
    model, variables = tiny()

    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    @partial(jax.value_and_grad, has_aux=True)
    def step(params, batch):
        losses, _ = model.loss({"params": params}, batch, jax.random.key(1))
        return sum(mean.value() for mean in losses.values()), losses

    return step, variables["params"]


OBJECTS = {
    "none": [],
    "one": [[10, 10, 40, 50]],
    "one pixel": [[10, 10, 11, 11]],
    "no area": [[10, 10, 10, 30]],
    "duplicates": [[10, 10, 40, 50]] * 3,
    "at the border": [[0, 0, 96, 64], [90, 60, 96, 64]],
}


@pytest.mark.parametrize("crowd", [False, True])
@pytest.mark.parametrize("objects", OBJECTS)
def test_losses_and_gradients_are_finite(objects, crowd):
    step, params = tiny_step()
    (loss, losses), gradients = step(params, batch_with(OBJECTS[objects], crowd))
    assert set(losses) == {"objectness", "rpn_box", "class", "box", "mask", "keypoint"}
    assert np.isfinite(loss)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    learned = bool(OBJECTS[objects]) and not crowd and objects != "no area"
    assert (losses["mask"].weight > 0) == learned
    assert (losses["rpn_box"].total > 0) == learned


def test_number_of_objects_does_not_recompile():
    step, params = tiny_step()
    for objects in OBJECTS.values():
        step(params, batch_with(objects))
    assert step._cache_size() == 1


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


def test_padding_changes_nothing():
    """A picture alone, and with padding of either kind to its right and below."""
    model, variables = tiny()
    image = empty_batch(1)["image"]
    predict = jax.jit(model.predict)
    found = predict(variables, image, jnp.array([[64, 64]]))
    for padding in (0, (np.round(255 * MEAN) / 255 - MEAN) / STD):
        padded = image.copy()
        padded[:, :, 64:] = padding
        seen = predict(variables, padded)
        assert (np.asarray(seen["boxes"])[..., 2] <= 64).all()
        zeroed = predict(variables, padded, jnp.array([[64, 64]]))
        for name, value in seen.items():
            np.testing.assert_array_equal(value, zeroed[name], err_msg=name)
    assert found["boxes"].shape == (1, 10, 4)


def test_predictions_are_described_by_types():
    model, variables = tiny()
    found = jax.eval_shape(model.predict, variables, empty_batch()["image"])
    assert {name: value.shape for name, value in found.items()} == {
        "boxes": (2, 10, 4),
        "scores": (2, 10),
        "labels": (2, 10),
        "detection_mask": (2, 10),
        "proposals": (2, 20, 4),
        "proposal_scores": (2, 20),
        "proposal_mask": (2, 20),
        "masks": (2, 10, 28, 28),
        "keypoints": (2, 10, 3, 3),
        "keypoint_scores": (2, 10, 3),
    }


@pytest.mark.slow
def test_eight_devices_are_one():
    """Under pmap, the losses and gradients of one device. (Under jit over a mesh, too, but there
    every device does the work of all: loops over rows are not cut.)"""
    model, variables = tiny()
    model = faster_rcnn.build(4, heads=HEADS, settings=FEW | {"sampling": "first"}, **TINY)
    batch = batch_with([[10, 10, 40, 50], [50, 5, 90, 30]], rows=8)
    batch["boxes"] += np.arange(8, dtype=np.float32).reshape(-1, 1, 1)
    before = [variables["params"]]
    for devices in (1, 8):
        parallel = make_parallel("pmap", jax.devices()[:devices])
        step = make_step(model, optax.sgd(1.0), seed=0, axis_name=parallel.axis_name)
        state = init_state(jax.tree.map(np.asarray, variables), optax.sgd(1.0), ema=False)
        moved, _ = parallel.compile(step)(parallel.put_state(state), parallel.put_batch(batch))
        before.append(parallel.fetch(moved.params))
    for start, one, eight in zip(*map(jax.tree.leaves, before), strict=True):
        step = np.abs(one - start).max()
        np.testing.assert_allclose(eight, one, atol=1e-6 + 1e-3 * step)


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
        (dict(settings=dict(rpn_samplse=2)), "settings is 'rpn_samplse', expected one of anchor"),
        (dict(settings=dict(sampling="all")), "settings.sampling is 'all', expected one of random"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        faster_rcnn.build(4, **options)
