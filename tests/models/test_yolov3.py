"""YOLOv3: its decoding, assignment and losses beside loops over all anchors; its anchors."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from detectors import batch_with
from networks import compiled_once, random_variables

from jaxseg.models import yolov3
from jaxseg.models.yolov3 import (
    ANCHORS,
    Settings,
    YOLOv3,
    assign,
    decode,
    kmeans_anchors,
    picture_losses,
)
from jaxseg.ops.truth import Truth

SMALL = ((4, 6), (8, 8), (12, 20), (20, 12), (30, 30), (40, 60))  # anchors of two scales
STRIDES = 32, 16


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# ---- the network


@pytest.mark.parametrize(("tiny", "numbers"), [(False, 62_001_757), (True, 8_858_734)])
def test_networks_are_the_published_ones(tiny, numbers):
    """Of 80 classes: as many numbers as yolov3.weights (248,007,048 bytes) and yolov3-tiny.weights
    (35,434,956) have after their 20 bytes of header."""
    assert {False: 248_007_048, True: 35_434_956}[tiny] == 20 + 4 * numbers
    network = YOLOv3(81, tiny)
    image = jax.ShapeDtypeStruct((1, 416, 320, 3), jnp.float32)
    outputs, variables = jax.eval_shape(network.init_with_output, jax.random.key(0), image)
    assert sum(x.size for x in jax.tree.leaves(variables)) == numbers
    expected = [(1, 416 // stride, 320 // stride, 3, 85) for stride in (32, 16, 8)]
    assert [x.shape for x in outputs] == expected[: 3 - tiny]


@pytest.mark.parametrize("tiny", [False, True])
def test_canvases_that_are_no_multiples_of_32(tiny):
    model = yolov3.build(3, tiny=tiny, width=2)
    image = np.zeros((1, 72, 104, 3), np.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), {"image": image})
    network = YOLOv3(3, tiny, 2)
    outputs = jax.eval_shape(network.apply, variables, image)
    assert [x.shape[1:3] for x in outputs] == [(3, 4), (5, 7), (9, 13)][: 3 - tiny]


def test_decoding_by_hand():
    """Row 1, column 0 of the finer map: σ(0) is half a cell, e^{log 2} twice the anchor."""
    settings = Settings(anchors=SMALL)
    outputs = [np.zeros((1, 1, 3, 6), np.float32), np.zeros((2, 2, 3, 6), np.float32)]
    outputs[1][1, 0, 2, :4] = [np.log(3), 0, np.log(2), 0]  # σ(log 3) = 3/4
    outputs[1][0, 1, 0, :4] = [0, 0, 1000, -1000]
    found = np.asarray(decode(outputs, settings, STRIDES))
    assert found.shape == (3 + 12, 4)
    centre, half = np.array([16, 16]), np.array([[20, 12], [30, 30], [40, 60]]) / 2
    np.testing.assert_allclose(found[:3], np.hstack([centre - half, centre + half]), rtol=1e-6)
    np.testing.assert_allclose(found[3 + 8], [12 - 12, 24 - 10, 12 + 12, 24 + 10], atol=1e-4)
    np.testing.assert_allclose(found[3 + 3], [24 - 125, 8, 24 + 125, 8], atol=1e-4)  # 62.5 times


# ---- losses


def objects_of(*objects, crowd=()):
    boxes = np.asarray([box for box, _ in objects], np.float32)
    crowd = np.isin(np.arange(len(boxes)), crowd)
    labels = np.asarray([label for _, label in objects], np.int32)
    return Truth(*(jnp.asarray(x) for x in (boxes, labels, ~crowd, crowd)))


@partial(jax.jit, static_argnums=1)
def assigned(truth, settings):
    return assign(truth, settings, [(2, 2), (4, 4)], STRIDES)


def test_assignment_by_hand():
    settings = Settings(anchors=SMALL)
    truth = objects_of(
        ([10.0, 40, 38, 68], 1),  # 28×28, most like 30×30: the coarse map's second; centre (24, 54)
        ([32.0, 32, 40, 40], 2),  # 8×8: the fine map's second; centre (36, 36)
        ([33.0, 33, 40, 40], 1),  # the same place: it comes too late
        ([0.0, 0, 9, 9], 1),  # no object
        ([60.0, 60, 64, 66], 2),  # 4×6, centre (62, 63)
    )
    truth = truth._replace(mask=truth.mask.at[3].set(False))
    found = jax.device_get(assigned(truth, settings))
    places = {0: (1 * 2 + 0) * 3 + 1, 5 + 1: 12 + (2 * 4 + 2) * 3 + 1, 5 + 4: 12 + 15 * 3 + 0}
    assert np.flatnonzero(found.mask).tolist() == [*places]
    for row, place in places.items():
        assert found.place[row] == place
    log = np.log(28 / 30)
    np.testing.assert_allclose(found.box[0], [24 / 32, 54 / 32 - 1, log, log], rtol=1e-5)
    np.testing.assert_allclose(found.box[6], [36 / 16 - 2, 36 / 16 - 2, 0, 0], atol=1e-6)


def loops(outputs, truth, settings, size):
    """The losses, anchor after anchor."""
    boxes, labels, real, crowd = (np.asarray(x) for x in truth)
    anchors = np.array(SMALL, float)
    masks = [(3, 4, 5), (0, 1, 2)]
    claimed = {}
    for m in np.flatnonzero(real):
        x0, y0, x1, y1 = boxes[m].astype(float)
        both = np.minimum(anchors, [x1 - x0, y1 - y0]).prod(1)
        best = (both / (anchors.prod(1) + (x1 - x0) * (y1 - y0) - both)).argmax()
        scale = 0 if best in masks[0] else 1
        cell = int((y0 + y1) / 2 // STRIDES[scale]), int((x0 + x1) / 2 // STRIDES[scale])
        claimed.setdefault((scale, *cell, masks[scale].index(best)), m)
    found = dict.fromkeys(("centre", "size", "object", "no_object", "class"), 0.0)
    for scale, x in enumerate(outputs):
        for row, column, slot in np.ndindex(x.shape[:3]):
            t, anchor = x[row, column, slot].astype(float), anchors[masks[scale][slot]]
            p = sigmoid(t)
            centre = (np.array([column, row]) + p[:2]) * STRIDES[scale]
            side = np.exp(t[2:4]) * anchor
            box = np.append(centre - side / 2, centre + side / 2)
            if (scale, row, column, slot) in claimed:
                m = claimed[scale, row, column, slot]
                middle, sides = (boxes[m, :2] + boxes[m, 2:]) / 2, boxes[m, 2:] - boxes[m, :2]
                weight = 2 - sides.prod() / np.prod(size)
                target = middle / STRIDES[scale] - [column, row]
                entropy = -target * np.log(p[:2]) - (1 - target) * np.log(1 - p[:2])
                found["centre"] += weight * entropy.sum()
                found["size"] += weight * ((t[2:4] - np.log(sides / anchor)) ** 2).sum() / 2
                found["object"] -= np.log(p[4])
                wanted = np.arange(1, len(t) - 4) == labels[m]
                found["class"] -= np.log(np.where(wanted, p[5:], 1 - p[5:])).sum()
                continue
            ignored = False
            for m, other in enumerate(boxes):
                both = (np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])).clip(0)
                both, area = both.prod(), side.prod()
                union = area + (other[2:] - other[:2]).prod() - both
                ignored |= bool(real[m] and both / union > settings.ignore_iou)
                ignored |= bool(crowd[m] and both / area > 0.7)
            found["no_object"] -= 0 if ignored else np.log(1 - p[4])
    return found


@cache
def compiled(ignore_iou):
    settings = Settings(anchors=SMALL, ignore_iou=ignore_iou)
    return jax.jit(
        partial(picture_losses, settings=settings, size=(64, 64), strides=STRIDES)
    ), settings


@pytest.mark.parametrize("ignore_iou", [0.5, 0.2])
@pytest.mark.parametrize("seed", [0, 1])
def test_losses_beside_loops(seed, ignore_iou):
    rng = np.random.default_rng(seed)
    outputs = [rng.normal(size=(n, n, 3, 4 + 4)).astype(np.float32) for n in (2, 4)]
    start, side = rng.uniform(0, 40, (6, 2)), rng.uniform(2, 30, (6, 2))
    boxes = np.minimum(np.hstack([start, start + side]), 64)
    boxes[1] = boxes[0] + 0.25  # for the same anchor
    truth = objects_of(*((box, m % 3 + 1) for m, box in enumerate(boxes)), crowd=(5,))
    measure, settings = compiled(ignore_iou)
    found, expected = measure(outputs, truth), loops(outputs, truth, settings, (64, 64))
    assert expected["centre"] > 0
    assert {*found} == {*expected}
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, err_msg=name)


def test_gradients_are_the_prediction_less_the_truth():
    """Section 2.1: of tx, ty, tw, th, times 2 less the object's share of the canvas."""
    measure, _ = compiled(0.5)
    rng = np.random.default_rng(0)
    outputs = [rng.normal(size=(n, n, 3, 6)).astype(np.float32) for n in (2, 4)]
    truth = objects_of(([10.0, 40, 38, 68], 1))  # see above
    gradient = jax.grad(lambda x: sum(measure(x, truth).values()))(outputs)
    t, weight, log = outputs[0][1, 0, 1], 2 - 28**2 / 64**2, np.log(28 / 30)
    expected = weight * np.array(
        [sigmoid(t[0]) - 0.75, sigmoid(t[1]) - 0.6875, t[2] - log, t[3] - log]
    )
    np.testing.assert_allclose(gradient[0][1, 0, 1, :4], expected, rtol=1e-4)
    np.testing.assert_allclose(gradient[0][1, 0, 1, 4:], sigmoid(t[4:]) - 1, rtol=1e-4)
    assert np.count_nonzero(gradient[0][..., :4]) == 4
    assert not gradient[1][..., :4].any()


def test_an_anchor_of_several_scales_and_one_of_none():
    """yolov3-tiny's older .cfg has the masks (3, 4, 5) and (1, 2, 3)."""
    settings = Settings(anchors=SMALL, masks=((3, 4, 5), (1, 2, 3)))
    truth = objects_of(([10.0, 10, 30, 22], 1), ([40.0, 40, 44, 46], 1))  # anchors 3 and 0
    found = jax.device_get(assigned(truth, settings))
    assert found.mask.tolist() == [True, False, True, False]
    assert found.place[found.mask].tolist() == [0, 12 + (1 * 4 + 1) * 3 + 2]


# ---- a small one


@cache
def tiny():
    options = dict(tiny=True, width=2, norm="none")
    model = yolov3.build(4, settings={"anchors": SMALL, "detections": 10}, **options)
    return model, random_variables(YOLOv3(4, **options), jnp.asarray(batch_with([])["image"]))


def test_predictions_by_hand():
    """Where only one anchor sees anything: see the decoding above."""
    model, variables = tiny()
    variables = jax.tree.map(np.zeros_like, jax.device_get(variables))
    for name, bias in (("head32", [-20.0] * 24), ("head16", [-20.0] * 24)):
        bias = np.array(bias, np.float32).reshape(3, 8)
        bias[:, :4] = 0
        if name == "head32":
            bias[1, 4:] = [np.log(4), np.log(3), -20, 0]  # 0.8, and of the classes 3/4 and 1/2
        variables["params"][name]["predict"]["bias"] = bias.ravel()
    image = batch_with([], rows=1)["image"]
    predict = compiled_once(model.predict)
    found = jax.device_get(predict(variables, image, jnp.array([[64, 90]])))
    centres = [(x, y) for y in (16, 48) for x in (16, 48, 80)]
    expected = [[x - 15, y - 15, min(x + 15, 90), y + 15] for x, y in centres]
    assert found["detection_mask"].all()
    np.testing.assert_allclose(found["scores"][0], [0.6] * 6 + [0.4] * 4, rtol=1e-5)
    assert found["labels"][0].tolist() == [1] * 6 + [3] * 4
    np.testing.assert_allclose(found["boxes"][0, :6], expected, atol=1e-4)


@pytest.mark.slow
def test_it_learns_a_picture():
    model = yolov3.build(4, settings={"anchors": SMALL}, tiny=True, width=2, norm="group")
    batch = batch_with([[10, 10, 40, 50], [60, 5, 70, 15]], rows=1)
    variables = model.init(jax.random.key(0), batch)
    optimizer = optax.adam(1e-2)

    def step(state, _):
        params, moments = state

        def total(params):
            losses, _ = model.loss({"params": params}, batch, jax.random.key(0))
            return sum(mean.value() for mean in losses.values())

        loss, gradients = jax.value_and_grad(total)(params)
        updates, moments = optimizer.update(gradients, moments)
        return (optax.apply_updates(params, updates), moments), loss

    state = variables["params"], optimizer.init(variables["params"])
    (params, _), _ = jax.jit(partial(jax.lax.scan, step, length=150))(state, None)
    found = jax.device_get(model.predict({"params": params}, batch["image"]))
    order = np.argsort(found["labels"][0, :2])
    assert found["labels"][0, order].tolist() == [1, 2]
    np.testing.assert_allclose(found["boxes"][0, order], batch["boxes"][0, :2], atol=3)
    assert (found["scores"][0, :2] > 0.7).all()
    assert found["scores"][0, 2] < 0.3


# ---- anchors


def test_kmeans_by_hand():
    boxes = np.array([[100, 54], [10, 10], [100, 50], [10, 12]], np.float32)
    for seed in range(3):
        found = kmeans_anchors(boxes, 2, seed=seed)
        np.testing.assert_allclose(found, [[10, 11], [100, 52]])
    np.testing.assert_allclose(kmeans_anchors(boxes, 1), [[55, 31.5]])
    np.testing.assert_allclose(kmeans_anchors(boxes, 4), [[10, 10], [10, 12], [100, 50], [100, 54]])


def test_kmeans_measures_by_iou():
    """IoU is as much for small boxes as for large ones: 10 to 20 is as far as 100 to 200, where
    Euclid would put the small ones together."""
    sides = np.array([10, 11, 20, 22, 100, 110, 200, 220], np.float32)
    boxes = np.stack([sides, sides], axis=1)
    found = kmeans_anchors(boxes, 4)
    np.testing.assert_allclose(found[:, 0], [10.5, 21, 105, 210])
    rng = np.random.default_rng(0)
    boxes = np.exp(rng.normal(3, 1, (200, 2))).astype(np.float32)

    def mean_iou(anchors):
        both = np.minimum(boxes[:, None], anchors[None]).prod(-1)
        return (both / (boxes.prod(-1)[:, None] + anchors.prod(-1)[None] - both)).max(1).mean()

    reached = [mean_iou(kmeans_anchors(boxes, k)) for k in (1, 3, 9)]
    assert reached == sorted(reached)
    assert reached[2] > 0.05 + mean_iou(np.array(ANCHORS, np.float32))


@pytest.mark.parametrize("boxes", [[[1, 1], [2, 2], [1, 1]], [[1, 1], [2, 0], [3, 1]]])
def test_kmeans_of_too_few_sizes(boxes):
    with pytest.raises(ValueError, match="at least 3 different sizes, all positive"):
        kmeans_anchors(np.array(boxes, np.float32), 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"settings": {"ignore": 0.7}}, "settings is 'ignore', expected one of anchors, masks, "),
        (
            {"settings": {"anchors": ANCHORS[:4]}},
            "anchors has 4, expected a multiple of 3",
        ),
        ({"tiny": True, "settings": {"anchors": ()}}, "anchors has 0, expected a multiple of 2"),
        ({"settings": {"masks": ((0,), (1,))}}, r"masks is .* expected 3, equally long, of 0 … 8"),
        ({"settings": {"masks": ((0,), (1,), (9,))}}, "expected 3, equally long, of 0 … 8"),
        ({"settings": {"masks": ((0,), (1,), (2, 3))}}, "expected 3, equally long, of 0 … 8"),
        ({"settings": {"masks": (0, 1, 2)}}, "expected 3, equally long, of 0 … 8"),
        ({"settings": {"masks": ((0, 1), (2, 3), 4)}}, "expected 3, equally long, of 0 … 8"),
        ({"settings": {"masks": ((0.5,), (1,), (2,))}}, "expected 3, equally long, of 0 … 8"),
        ({"settings": {"anchors": [(0, 10)] * 9}}, "anchors is .* expected widths and heights"),
        ({"settings": {"anchors": [10, 14, 23]}}, "anchors is .* expected widths and heights"),
    ],
)
def test_settings_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        yolov3.build(3, **options)
