"""SSD300 and SSDLite320 are torchvision's: every stage, detections, losses, gradients; default
boxes, matching and mining by hand; a small one learns."""

from functools import cache, partial

import detectors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import published
import pytest
from detectors import PHOTOS, batch_with, check_detections
from networks import compiled_once
from PIL import Image

from jaxseg.models import ssd
from jaxseg.models.ssd import Extra, Settings
from jaxseg.ops.anchors import default_boxes
from jaxseg.ops.boxes import iou
from jaxseg.ops.conv import resize_bilinear
from jaxseg.ops.truth import Truth
from jaxseg.types import MEAN, PADDING, STD

# ---- torchvision's


PUBLISHED = {"ssd300_vgg16": "ssd300", "ssdlite320_mobilenet_v3_large": "ssdlite320"}
FEW = dict(detections=60, candidates=100)


def batch_of(folder, side, photos):
    """Photographs stretched to a square, and their objects."""
    targets, count = np.load(folder / "targets.npz"), len(photos)
    batch = {
        "image": np.zeros((count, side, side, 3), np.float32),
        "valid": np.ones(count, bool),
        "boxes": np.zeros((count, 8, 4), np.float32),
        "labels": np.zeros((count, 8), np.int32),
        "object_mask": np.zeros((count, 8), bool),
    }
    for i, photo in enumerate(photos):
        with Image.open(folder / f"{photo}.png") as image:
            pixels = (np.asarray(image.convert("RGB"), np.float32) / 255 - MEAN) / STD
        height, width = pixels.shape[:2]
        batch["image"][i] = resize_bilinear(jnp.asarray(pixels[None]), (side, side))[0]
        boxes = targets[f"{photo}/boxes"]
        ratio = np.float32([side, side] * 2) / np.float32([width, height] * 2)
        batch["boxes"][i, : len(boxes)] = boxes * ratio
        batch["labels"][i, : len(boxes)] = targets[f"{photo}/labels"]
        batch["object_mask"][i, : len(boxes)] = True
    return batch


def prepared(fixtures, name, folder="det", settings=FEW, photos=PHOTOS):
    reference = published.read(fixtures, f"{folder}/{name}")
    network, settings = ssd.network_of(91, PUBLISHED[name], settings)
    batch = batch_of(reference.folder, int(PUBLISHED[name][-3:]), photos)
    variables, _ = published.weights(reference, network, batch["image"][:1])
    return reference, network, settings, batch, variables


FIRST = "ssd300_vgg16"
ALL = [n if n == FIRST else pytest.param(n, marks=pytest.mark.slow) for n in PUBLISHED]


@pytest.mark.parametrize("name", ALL)
def test_published_detections(fixtures, name):
    reference, network, settings, batch, variables = prepared(fixtures, name)

    def stages(network, image):
        prepared, _ = network.prepare(image)
        maps = network.extract(prepared)
        told = ssd.predictions(network, settings, image, None)
        return prepared, maps, *network.predict(maps), told

    run = compiled_once(nn.apply(stages, network))
    image, maps, logits, deltas, told = jax.device_get(run(variables, batch["image"]))
    assert published.error(image, reference, "image") < 1e-5
    for level, x in enumerate(maps):
        assert published.error(x, reference, f"fpn_{level}") < 1e-4, level
    boxes = ssd.boxes_of(image, maps, settings)
    assert published.error(boxes, reference, "anchors") < 1e-6
    assert published.error(logits, reference, "cls_logits") < 1e-4
    assert published.error(deltas, reference, "bbox_regression") < 1e-4
    check_detections(reference, told, [image.shape[1:3]] * 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_detections_by_default_settings(fixtures, name):
    reference, network, settings, batch, variables = prepared(
        fixtures, name, "det_default", {}, PHOTOS[:1]
    )
    predict = compiled_once(nn.apply(partial(ssd.predictions, settings=settings), network))
    found = predict(variables, image=batch["image"], image_size=None)
    check_detections(reference, jax.device_get(found), [batch["image"].shape[1:3]])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "statistics"),
    [
        (FIRST, "train"),
        ("ssdlite320_mobilenet_v3_large", "train"),
        ("ssdlite320_mobilenet_v3_large", "train_bn_eval"),
    ],
)
def test_published_training(fixtures, name, statistics):
    reference, network, settings, batch, _ = prepared(fixtures, name)
    names = {"class": "classification", "box": "bbox_regression"}
    given = reference, network, ssd.losses, settings, statistics, names, batch
    if (name, statistics) == ("ssdlite320_mobilenet_v3_large", "train"):
        # Gradients are ill-conditioned, and the last map's means a little: they are of two values.
        _, after = detectors.train(*given)
        detectors.check_statistics(reference, after, 1e-3)
    else:
        gradients, _ = detectors.train(*given)
        published.check_gradients(reference, statistics, gradients, 2e-4)


# ---- default boxes


@cache
def maps_of(variant, side):
    network, settings = ssd.network_of(21, variant, {})
    image = np.zeros((1, side, side, 3), np.float32)
    run = partial(network.init_with_output, method="extract")
    shapes, _ = jax.eval_shape(run, jax.random.key(0), image)
    return image, [np.zeros((*x.shape[:3], 1)) for x in shapes], settings


@pytest.mark.parametrize(
    ("variant", "side", "sizes", "count"),
    [
        ("ssd300", 300, (38, 19, 10, 5, 3, 1), 8732),
        ("ssd512", 512, (64, 32, 16, 8, 4, 2, 1), 24_564),
        ("ssdlite320", 320, (20, 10, 5, 3, 2, 1), 3234),
    ],
)
def test_default_boxes_are_as_many_as_published(variant, side, sizes, count):
    image, maps, settings = maps_of(variant, side)
    assert [x.shape[1:3] for x in maps] == [(n, n) for n in sizes]
    assert ssd.boxes_of(image, maps, settings).shape == (count, 4)


def test_default_boxes_by_hand():
    # Two maps of an image of 100×200. At the first one, of 1×2 places: squares of 0.2, of
    # √(0.2 · 0.45) = 0.3, boxes of 0.2·√4 × 0.2/√4 and turned.
    first, second = default_boxes([[4], []], [0.2, 0.45, 0.8], [(1, 2), (1, 1)], (100, 200))
    centred = np.array([[20, 10], [30, 15], [40, 5], [10, 20]])  # half width, half height
    middle = np.array([[50, 50]]), np.array([[150, 50]])
    expected = [np.hstack([place - centred, place + centred]) for place in middle]
    np.testing.assert_allclose(first, np.concatenate(expected), rtol=1e-6)
    np.testing.assert_allclose(second[0], [55, 27.5, 145, 72.5], rtol=1e-6)
    np.testing.assert_allclose(second[1], [40, 20, 160, 80], rtol=1e-6)  # √(0.45 · 0.8) = 0.6
    # Steps instead of equal parts; what is larger than the image is as large as the image.
    (boxes,) = default_boxes([[9]], [0.5, 1.0], [(2, 1)], (100, 100), steps=[30])
    np.testing.assert_allclose(boxes[0], [-10, -10, 40, 40], rtol=1e-6)
    np.testing.assert_allclose(boxes[2], [15 - 50, 15 - 25 / 3, 65, 15 + 25 / 3], rtol=1e-6)
    np.testing.assert_allclose(boxes[4], [-10, 20, 40, 70], rtol=1e-6)


def test_ssd300s_default_boxes_by_hand():
    image, maps, settings = maps_of("ssd300", 300)
    boxes = np.asarray(ssd.boxes_of(image, maps, settings))
    np.testing.assert_allclose(boxes[0], [4 - 10.5, 4 - 10.5, 14.5, 14.5], rtol=1e-6)  # 0.07
    last = boxes[-4:]
    sides = last[:, 2:] - last[:, :2]
    np.testing.assert_allclose((last[:, 2:] + last[:, :2]) / 2, 150, rtol=1e-6)
    # 0.87, √(0.87 · 1.05) = 0.956, 0.87·√2 cut to 1.
    np.testing.assert_allclose(sides[0], 261, rtol=1e-6)
    np.testing.assert_allclose(sides[1], 300 * np.sqrt(0.87 * 1.05), rtol=1e-6)
    np.testing.assert_allclose(sides[2], [300, 261 / np.sqrt(2)], rtol=1e-6)
    np.testing.assert_allclose(sides[3], [261 / np.sqrt(2), 300], rtol=1e-6)


# ---- matching and mining


BOXES = np.array(
    [[0, 0, 10, 10], [0, 0, 10, 20], [20, 0, 30, 10], [22, 0, 32, 10], [60, 60, 80, 80]], np.float32
)


assign = jax.jit(ssd.assign_boxes, static_argnums=2)


def truth(boxes, mask=None, crowd=None):
    boxes = jnp.asarray(boxes, jnp.float32).reshape(-1, 4)
    count = len(boxes)
    mask = jnp.ones(count, bool) if mask is None else jnp.array(mask)
    return Truth(boxes, jnp.arange(1, 1 + count), mask, crowd)


def test_matching_by_hand():
    # Of the first object default box 0 has IoU 1, and 1 has 0.5; of the second, 2 has 40 / 160
    # and 3 has 60 / 140, which is best; nothing is near the third but 4, with 25 / 400.
    objects = truth([[0, 0, 10, 10], [26, 0, 36, 10], [60, 60, 65, 65]])
    found = assign(BOXES, objects)
    assert found.labels.tolist() == [1, 1, 0, 2, 3]
    assert found.positive.tolist() == [True, True, False, True, True]
    assert found.negative.tolist() == [False, False, True, False, False]
    assert found.deltas[0].tolist() == [0, 0, 0, 0]
    # 0, -5 from a centre, in 10ths of 10 and 20; half the height: log ½, in 5ths
    np.testing.assert_allclose(found.deltas[1], [0, -2.5, 0, 5 * np.log(0.5)], rtol=1e-6)
    np.testing.assert_allclose(found.deltas[3], [4, 0, 0, 0], rtol=1e-6)
    # With a threshold above 0.5 box 1 is background.
    assert assign(BOXES, objects, 0.6).labels.tolist() == [1, 0, 0, 2, 3]


def test_the_best_box_goes_to_the_last_object_that_claims_it():
    objects = [[21, 0, 31, 10], [21, 0, 31, 11], [60, 60, 62, 62]]
    # Both overlap 2 and 3 equally, and 2 is first; box 3, at more than the threshold, keeps the
    # object that it overlaps most.
    assert assign(BOXES, truth(objects)).labels.tolist() == [0, 0, 2, 1, 3]
    # Padding claims nothing.
    masked = assign(BOXES, truth(objects, mask=[True, False, False]))
    assert masked.labels.tolist() == [0, 0, 1, 1, 0]
    none = assign(BOXES, truth(objects, mask=[False] * 3))
    assert none.labels.tolist() == [0] * 5
    assert none.negative.all()


def test_boxes_in_crowds_are_neither():
    crowd = truth([[0, 0, 40, 10]], mask=[False], crowd=jnp.array([True]))
    found = assign(BOXES, crowd)
    assert not found.positive.any()
    assert found.negative.tolist() == [False, True, False, False, True]  # of 1, only half is in it


def test_mining_by_hand():
    losses = jnp.array([0.5, 3.0, 2.0, 2.0, 9.0, 1.0])
    candidates = jnp.array([True, True, True, True, False, True])
    mine = jax.jit(ssd.hardest)

    def hardest(number):
        return np.flatnonzero(mine(losses, candidates, jnp.array(number))).tolist()

    assert hardest(0) == []
    assert hardest(1) == [1]
    assert hardest(2) == [1, 2]  # of equal ones, the first
    assert hardest(4) == [1, 2, 3, 5]
    assert hardest(9) == [0, 1, 2, 3, 5]  # all there are


def test_losses_by_hand():
    positive = np.array([[True, True] + [False] * 6] * 2) & np.array([[True], [False]])
    targets = ssd.Targets(
        labels=positive.astype(np.int32),
        deltas=np.zeros((2, 8, 4), np.float32),
        positive=positive,
        negative=~positive,
    )
    logits = np.zeros((2, 8, 2), np.float32)
    logits[:, :, 1] = [1, 5, 4, 3, 2, 0, 0, 0]
    deltas = np.zeros((2, 8, 4), np.float32)
    deltas[0, 1] = [0.5, -3, 0, 0]
    deltas[0, 2] = 7
    found = jax.jit(ssd.box_losses, static_argnums=3)(logits, deltas, targets, 3)
    # The second picture has no object, and so no negative ones; all six of the first are hard.
    assert found["class"].weight == found["box"].weight == 2
    entropy = np.log1p(np.exp([-1, -5, 4, 3, 2, 0, 0, 0]))
    np.testing.assert_allclose(found["class"].total, entropy.sum(), rtol=1e-6)
    np.testing.assert_allclose(found["box"].total, 0.5**2 / 2 + 3 - 0.5, rtol=1e-6)
    one = jax.jit(ssd.box_losses, static_argnums=3)(logits, deltas, targets, 1)  # the two hardest
    np.testing.assert_allclose(one["class"].total, entropy[:4].sum(), rtol=1e-6)


# ---- detections


def test_detections_by_hand():
    boxes = jnp.asarray(BOXES)
    scores = np.array(  # of the background, and of two classes
        [[0.1, 0.6, 0.3], [0.91, 0.09, 0.0], [0.1, 0.1, 0.8], [0.3, 0.0, 0.7], [0.96, 0.0, 0.04]]
    )
    logits = jnp.asarray(np.log(scores + 1e-9), jnp.float32)

    def detect(**options):
        settings = Settings(detections=8)._replace(**options)
        decide = jax.jit(partial(ssd.detect, boxes=boxes, settings=settings))
        found = decide(logits, jnp.zeros((5, 4)), jnp.array([70, 100]))
        rows = zip(found.scores, found.labels, found.boxes[:, 0], found.mask, strict=True)
        return [(round(float(s), 3), int(c), int(x)) for s, c, x, there in rows if there], found

    # Box 3 overlaps 2 with 80 / 120, box 1 box 0 with 0.5.
    expected = [(0.8, 2, 20), (0.6, 1, 0), (0.3, 2, 0), (0.1, 1, 20), (0.04, 2, 60)]
    found, raw = detect()
    assert found == expected
    assert raw.boxes[4].tolist() == [60, 60, 80, 70]  # clipped
    found, _ = detect(min_score=0.05, detection_iou=0.7)
    overlapping = [(0.7, 2, 22)], [(0.09, 1, 0)]
    assert found == expected[:1] + overlapping[0] + expected[1:4] + overlapping[1]
    assert detect(candidates=1)[0] == expected[:2]  # of each class


# ---- a small one


SMALL = dict(width=8, extras=((128,), (128,)))
SMALL_SETTINGS = dict(
    aspect_ratios=((2,), (2,), (2,), (2,)),
    scales=(0.1, 0.25, 0.5, 0.75, 1.0),
    steps=None,
    detections=10,
)


def test_l2_norm_of_nothing_has_a_finite_gradient():
    layer = ssd.L2Norm()
    x = jnp.array([[[[0.0, 0.0], [3.0, 4.0]]]])

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def squared(x):
        y = layer.apply({"params": {"scale": jnp.array([20.0, 10.0])}}, jax.nn.relu(x))
        return (y**2).sum(), y

    (_, y), gradient = squared(x)
    np.testing.assert_allclose(y[0, 0], [[0, 0], [12, 8]], rtol=1e-6)
    # Of (20 x / |x|)² + (10 y / |x|)²; where nothing is, nothing changes.
    np.testing.assert_allclose(gradient[0, 0, 0], [0, 0], atol=0)
    np.testing.assert_allclose(
        gradient[0, 0, 1], [600 * 3 * 16 / 625, -600 * 4 * 9 / 625], rtol=1e-5
    )


@pytest.mark.slow
def test_it_learns_two_objects():
    model = ssd.build(4, settings=SMALL_SETTINGS, **SMALL)
    batch = batch_with([[10, 10, 40, 50], [50, 5, 90, 30]])
    optimizer = optax.adam(3e-3)
    params = model.init(jax.random.key(0), batch)["params"]
    state = optimizer.init(params)

    @compiled_once
    @partial(jax.value_and_grad, has_aux=True)
    def step(params, batch):
        losses, _ = model.loss({"params": params}, batch, jax.random.key(1))
        return sum(mean.value() for mean in losses.values()), losses

    @compiled_once
    def move(params, state, gradients):
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state

    for _ in range(60):
        (_, losses), gradients = step(params, batch)
        params, state = move(params, state, gradients)
    assert losses["class"].value() < 0.1
    found = jax.jit(model.predict)({"params": params}, batch["image"], batch["image_size"])
    assert (np.asarray(found["scores"])[:, :2] > 0.5).all()
    for row in range(2):
        order = np.argsort(found["labels"][row][:2])
        assert np.asarray(found["labels"][row])[order].tolist() == [1, 2]
        overlap = iou(np.asarray(found["boxes"][row])[order], batch["boxes"][row, :2])
        assert (np.asarray(overlap) > 0.7).all()


@cache
def prepared_by(variant):
    network, _ = ssd.network_of(4, variant, {})
    return jax.jit(lambda image: network.apply({}, image, method="prepare"))


def test_colours_are_those_of_the_weights():
    levels = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3)).astype(np.float32)
    image, inside = prepared_by("ssd300")((levels / 255 - MEAN) / STD)
    assert inside.all()
    expected = levels - 255 * np.array([0.48235, 0.45882, 0.40784], np.float32)
    np.testing.assert_allclose(image, expected, atol=1e-3)
    image, _ = prepared_by("ssdlite320")((levels / 255 - MEAN) / STD)
    np.testing.assert_allclose(image, levels / 127.5 - 1, atol=1e-5)


@pytest.mark.parametrize("padding", [0, (PADDING / 255 - MEAN) / STD])
def test_padding_is_nothing_to_the_network(padding):
    colours = np.random.default_rng(0).normal(size=(1, 4, 4, 3)).astype(np.float32)
    bare, _ = prepared_by("ssd300")(colours)
    colours[:, :, 3:] = padding
    padded, inside = prepared_by("ssd300")(colours)
    np.testing.assert_array_equal(padded[:, :, :3], bare[:, :, :3])
    np.testing.assert_array_equal(padded[:, :, 3:], 0)
    assert not inside[:, :, 3:].any()


@pytest.mark.parametrize(
    ("options", "size"),
    [
        (dict(variant="resnet", norm="frozen"), (120, 90)),
        pytest.param(dict(width=8, norm="batch"), (300, 400), marks=pytest.mark.slow),
        pytest.param(dict(variant="ssd512", width=8), (448, 640), marks=pytest.mark.slow),
        pytest.param(
            dict(variant="ssdlite320", backbone="mobilenet_v3_large"),
            (96, 128),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_any_canvas(options, size):
    steps = {} if options.get("variant") in ("ssdlite320", "resnet") else {"steps": None}
    model = ssd.build(4, settings=steps, **options)
    batch = {**batch_with([[10, 10, 40, 50]]), "image": np.zeros((2, *size, 3), np.float32)}
    variables = jax.eval_shape(model.init, jax.random.key(0), batch)
    losses, _ = jax.eval_shape(model.loss, variables, batch, jax.random.key(0))
    assert set(losses) == {"class", "box"}
    found = jax.eval_shape(model.predict, variables, batch["image"])
    most = 300 if options.get("variant") == "ssdlite320" else 200
    assert {name: value.shape for name, value in found.items()} == {
        "boxes": (2, most, 4),
        "scores": (2, most),
        "labels": (2, most),
        "detection_mask": (2, most),
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(variant="ssd500"), "variant is 'ssd500', expected one of ssd300, ssd512, ssdlite"),
        (dict(backbone="resnet51"), "backbone is 'resnet51', expected one of resnet18"),
        (dict(settings=dict(min_scroe=0.1)), "settings is 'min_scroe', expected one of aspect"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        ssd.build(4, **options)


def test_bad_shapes():
    batch = {"image": np.zeros((1, 128, 192, 3), np.float32)}
    with pytest.raises(ValueError, match="128×192 is too small for extra 3, Extra"):
        jax.eval_shape(ssd.build(4).init, jax.random.key(0), batch)
    wrong = ssd.build(4, width=8, extras=(Extra(64),))
    with pytest.raises(ValueError, match="1 extras give 3 maps, expected aspect_ratios of as many"):
        jax.eval_shape(wrong.init, jax.random.key(0), batch)
    with pytest.raises(ValueError, match="expected 1 aspect_ratios and 2 scales, not 1 and 3"):
        default_boxes([[2]], [0.1, 0.2, 0.3], [(1, 1)], (8, 8))
    with pytest.raises(ValueError, match="1 maps: expected 1 steps"):
        default_boxes([[2]], [0.1, 0.2], [(1, 1)], (8, 8), steps=[8, 16])
