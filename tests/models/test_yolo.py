"""YOLO v1: its five terms by hand, its decoding, and losses of whatever a picture may hold."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from detectors import batch_with
from networks import compiled_once, random_variables

from jaxseg.backbones.darknet import FAST_YOLO, YOLO, Chain, darknet_pool
from jaxseg.models import yolo
from jaxseg.models.yolo import Cells, Settings, YOLOv1, decode, picture_losses
from jaxseg.ops.truth import Truth

# ---- the terms of the loss, on a canvas of 128×128 with 2×2 cells, two boxes and two classes


def cells_of(boxes=(), confidence=(), classes=()):
    """All 0 but for {(row, column, box): value}."""
    values = np.zeros((2, 2, 2, 4)), np.zeros((2, 2, 2)), np.zeros((2, 2, 2))
    for array, given in zip(values, (boxes, confidence, classes), strict=True):
        for place, value in dict(given).items():
            array[place] = value
    return Cells(*(jnp.asarray(x, jnp.float32) for x in values))


def truth_of(*objects, crowd=False):
    """Of (box, label); three rows."""
    boxes, labels, real = np.zeros((3, 4), np.float32), np.zeros(3, np.int32), np.arange(3)
    for row, (box, label) in enumerate(objects):
        boxes[row], labels[row] = box, label
    real = real < len(objects)
    return Truth(*(jnp.asarray(x) for x in (boxes, labels, real & (not crowd), real & crowd)))


@partial(jax.jit, static_argnames="settings")
def compiled(cells, truth, settings):
    return picture_losses(cells, truth, settings=settings, size=(128, 128), stride=64)


def terms(cells, truth, **settings):
    each = compiled(cells, truth, Settings(**settings))
    return {name: float(value) for name, value in each.items()}


# Its centre is (48, 48), three quarters through the first cell in both directions; it is half of
# the canvas wide and a quarter of it high.
OBJECT = [16.0, 32.0, 80.0, 64.0]
# The first box reaches from (16, 32) to (48, 64), the left half of the object; the second lies
# above it.
BOXES = {(0, 0, 0): [0.5, 0.75, 0.5, 0.5], (0, 0, 1): [0.75, 0.25, 0.5, 0.5]}


def test_decoding():
    found = decode(cells_of(BOXES | {(1, 0, 1): [0.5, 0.25, 1, -0.5]}), (128, 128), 64)
    assert found[0].tolist() == [[16, 32, 48, 64], [32, 0, 64, 32]]
    assert found[2, 1].tolist() == [-32, 64, 96, 96]  # row 1, column 0


def test_five_terms():
    cells = cells_of(
        BOXES,
        {(0, 0, 0): 0.9, (0, 0, 1): 0.3, (0, 1, 0): 0.2, (1, 1, 1): -0.1},
        {(0, 0): [0.6, 0.3], (1, 1): [0.5, 0.5]},
    )
    found = terms(cells, truth_of((OBJECT, 2)))
    assert found["centre"] == pytest.approx(5 * (0.5 - 0.75) ** 2)
    assert found["size"] == pytest.approx(5 * ((0.5 - 0.5**0.5) ** 2 + (0.5 - 0.25**0.5) ** 2))
    assert found["object"] == pytest.approx((0.9 - 0.5) ** 2)  # it covers half of the object
    assert found["no_object"] == pytest.approx(0.5 * (0.3**2 + 0.2**2 + 0.1**2))
    assert found["class"] == pytest.approx(0.6**2 + (1 - 0.3) ** 2)
    halved = terms(cells, truth_of((OBJECT, 2)), coordinate_weight=2.5, no_object_weight=0.25)
    for name, value in found.items():
        factor = 1 if name in ("object", "class") else 0.5
        assert halved[name] == pytest.approx(factor * value)


def test_a_perfect_prediction_costs_nothing():
    perfect = [0.75, 0.75, 0.5**0.5, 0.5]
    cells = cells_of({(0, 0, 1): perfect}, {(0, 0, 1): 1}, {(0, 0): [1, 0]})
    assert sum(terms(cells, truth_of((OBJECT, 1))).values()) == pytest.approx(0, abs=1e-9)


def test_the_box_with_the_highest_iou_is_responsible_else_the_nearest():
    confidence = {(0, 0, 0): 0.0, (0, 0, 1): 1.0}
    swapped = {(0, 0, 0): BOXES[0, 0, 1], (0, 0, 1): BOXES[0, 0, 0]}
    found = terms(cells_of(swapped, confidence), truth_of((OBJECT, 1)))
    assert found["object"] == pytest.approx(0.25)
    assert found["no_object"] == 0
    # Two points: the one in the object's centre has no IoU with it, but is nearest.
    points = {(0, 0, 0): [0, 0, 0, 0], (0, 0, 1): [0.75, 0.75, 0, 0]}
    found = terms(cells_of(points, confidence), truth_of((OBJECT, 1)))
    assert found["centre"] == 0
    assert found["size"] == pytest.approx(5 * (0.5 + 0.25))
    assert found["object"] == 1  # its confidence is to be 0, its IoU


def test_the_target_of_the_confidence_has_no_gradient():
    """IoU says what the confidence is to be; it does not move boxes."""

    def loss(boxes):
        cells = cells_of({}, {(0, 0, 0): 0.9})._replace(boxes=boxes)
        return compiled(cells, truth_of((OBJECT, 1)), Settings())["object"]

    value, gradient = jax.value_and_grad(loss)(cells_of(BOXES).boxes)
    assert value == pytest.approx(0.16)
    assert not gradient.any()


def test_objects_of_one_cell_and_of_several():
    cells = cells_of({}, {}, {(0, 0): [1, 0], (1, 1): [0, 1]})
    other, far = [20.0, 20.0, 40.0, 40.0], [64.0, 64.0, 128.0, 128.0]
    first = terms(cells, truth_of((OBJECT, 1)))
    assert terms(cells, truth_of((OBJECT, 1), (other, 2))) == first
    assert terms(cells, truth_of((other, 2), (OBJECT, 1)))["class"] == 2
    both = terms(cells, truth_of((OBJECT, 1), (other, 2), (far, 2)))
    assert both["class"] == 0
    assert both["size"] == pytest.approx(first["size"] + 5 * (0.5 + 0.5))
    on_the_border = [100.0, 100.0, 156.0, 156.0]  # centre at (128, 128)
    assert terms(cells, truth_of((on_the_border, 1)))["class"] == pytest.approx(2)


def test_crowds_are_no_background():
    cells = cells_of(BOXES, {(0, 0, 0): 0.5, (0, 0, 1): 0.3, (1, 1, 0): 0.2})
    crowd = truth_of(([0.0, 0.0, 50.0, 128.0], 1), crowd=True)
    # The first box is inside, the second has 18 of its 32 columns, of points nothing is known.
    assert terms(cells, crowd) == {
        "centre": 0,
        "size": 0,
        "object": 0,
        "no_object": pytest.approx(0.5 * (0.3**2 + 0.2**2)),
        "class": 0,
    }


# ---- the network


def count_of(network, side):
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    cells, variables = jax.eval_shape(network.init_with_output, jax.random.key(0), image)
    return cells, sum(x.size for x in jax.tree.leaves(variables["params"]))


def test_networks_are_the_published_ones():
    """Figure 3: 24 convolutions (nine of the fast one), 7×7 cells, then 4096 and 7×7×30."""
    image = jax.ShapeDtypeStruct((1, 448, 448, 3), jnp.float32)
    for layers, width, convolutions, sizes in (
        (YOLO, 64, 24, {2: (224, 64), 4: (112, 192), 8: (56, 512), 16: (28, 1024), 32: (14, 1024)}),
        (FAST_YOLO, 16, 9, {1: (448, 16), 2: (224, 32), 4: (112, 64), 32: (14, 512)}),
    ):
        network = Chain(layers, width)
        features, variables = jax.eval_shape(network.init_with_output, jax.random.key(0), image)
        assert len(variables["params"]) == convolutions
        for stride, (side, channels) in {**sizes, 64: (7, 1024)}.items():
            assert features[stride].shape == (1, side, side, channels)
        name = {24: "yolo", 9: "fast_yolo"}[convolutions]
        cells, count = count_of(YOLOv1(21, name), 448)
        assert [x.shape for x in cells] == [(1, 7, 7, 2, 4), (1, 7, 7, 2), (1, 7, 7, 20)]
        trunk = sum(x.size for x in jax.tree.leaves(variables["params"]))
        assert count == trunk + (7 * 7 * 1024 + 1) * 4096 + (4096 + 1) * 7 * 7 * 30


def test_poolings_as_darknet_has_them():
    x = jnp.asarray(np.random.default_rng(0).permutation(15).reshape(1, 3, 5, 1), jnp.float32)
    for stride in (1, 2):
        expected = [
            [x[0, y : y + 2, z : z + 2].max() for z in range(0, 5, stride)]
            for y in range(0, 3, stride)
        ]
        np.testing.assert_array_equal(darknet_pool(x, stride)[0, :, :, 0], expected)


@pytest.mark.parametrize(
    ("backbone", "stride", "grid"),
    [("yolo", 64, (4, 5)), ("yolo", 32, (8, 10)), ("fast_yolo", 16, (15, 20))],
)
def test_grids_of_any_canvas(backbone, stride, grid):
    model = yolo.build(3, backbone=backbone, width=2, dense=(), stride=stride, boxes=3)
    batch = {"image": np.zeros((1, 64, 64, 3), np.float32)}
    variables = jax.eval_shape(model.init, jax.random.key(0), batch)
    network = YOLOv1(3, backbone, 2, stride, 3, ())
    cells = jax.eval_shape(network.apply, variables, jnp.zeros((1, 240, 320, 3)))
    assert cells.boxes.shape == (1, *grid, 3, 4)
    assert cells.classes.shape == (1, *grid, 2)


# ---- a small one

TINY = dict(backbone="fast_yolo", width=2, stride=32, dense=(16,))


@cache
def tiny():
    model = yolo.build(4, settings={"detections": 10}, **TINY)
    return model, random_variables(YOLOv1(4, **TINY), jnp.asarray(batch_with([])["image"]))


def test_dropout_depends_on_the_key():
    model, variables = tiny()
    total = jax.jit(lambda key: model.loss(variables, batch_with([[10, 10, 40, 50]]), key)[0])
    first, again, other = (total(jax.random.key(seed))["class"].total for seed in (1, 1, 2))
    assert first == again != other


def test_predictions_by_hand():
    """Where all cells say the same: one box as large as a quarter of the canvas, and one too
    small to be seen."""
    model = yolo.build(3, **TINY | {"dense": ()}, settings={"detections": 8, "detection_iou": 0.3})
    image = batch_with([], rows=1)["image"]
    empty = jax.eval_shape(model.init, jax.random.key(0), {"image": image})
    variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), empty)
    variables["params"]["predict"]["bias"] = np.array(
        [0.5, 0.5, 0.5, 0.5, 0.8, 0.5, 0.5, 0, 0, 1, 1.5, -0.5], np.float32
    )
    predict = compiled_once(model.predict)
    found = jax.device_get(predict(variables, image, jnp.array([[64, 80]])))
    # Each is 24×16 around a centre; those of neighbours do not meet.
    expected = [[4, 8, 28, 24], [36, 8, 60, 24], [68, 8, 80, 24]]
    expected += [[x0, y0 + 32, x1, y1 + 32] for x0, y0, x1, y1 in expected]
    assert sorted(found["boxes"][0, :6].tolist()) == sorted(expected)
    assert found["detection_mask"].tolist() == [[True] * 6 + [False] * 2]
    np.testing.assert_allclose(found["scores"][0], [0.8] * 6 + [0] * 2)
    assert found["labels"].tolist() == [[1] * 6 + [0] * 2]


@pytest.mark.slow
def test_it_learns_a_picture():
    model = yolo.build(4, backbone="fast_yolo", width=4, stride=16, norm="group", dense=())
    batch = batch_with([[10, 10, 40, 50], [50, 5, 90, 30]], rows=1)
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(state, _):
        params, moments = state

        def total(params):
            losses, _ = model.loss({"params": params}, batch, jax.random.key(0))
            return sum(mean.value() for mean in losses.values())

        loss, gradients = jax.value_and_grad(total)(params)
        updates, moments = optimizer.update(gradients, moments)
        return (optax.apply_updates(params, updates), moments), loss

    params = model.init(jax.random.key(0), batch)["params"]
    (params, _), found = jax.jit(partial(jax.lax.scan, step, length=150))(
        (params, optimizer.init(params))
    )
    assert found[-1] < 0.02 * found[0]
    found = jax.device_get(model.predict({"params": params}, batch["image"]))
    order = np.argsort(found["labels"][0, :2])
    assert found["labels"][0, order].tolist() == [1, 2]
    np.testing.assert_allclose(found["boxes"][0, order], batch["boxes"][0, :2], atol=3)
    assert (found["scores"][0, :2] > 0.7).all()


def test_dense_layers_fit_one_canvas():
    model, variables = tiny()
    shapes = jax.tree.map(jnp.shape, variables["params"])
    assert shapes["fc1"]["kernel"] == (1, 1, 2 * 3 * 128, 16)
    assert shapes["predict"]["kernel"] == (1, 1, 16, 2 * 3 * (5 * 2 + 3))
    with pytest.raises(Exception, match=r"\(1, 1, 768, 16\)"):
        jax.eval_shape(model.predict, variables, jnp.zeros((1, 128, 96, 3)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "vgg16"}, "backbone is 'vgg16', expected one of yolo, fast_yolo"),
        ({"stride": 48}, "stride is 48, expected 8, 16, 32 or 64"),
        ({"settings": {"lambda": 1.0}}, "settings is 'lambda', expected one of coordinate"),
    ],
)
def test_unknown_options(options, message):
    with pytest.raises(ValueError, match=message):
        yolo.build(3, **options)


def test_batch_norms_are_darknets():
    network = YOLOv1(3, **TINY | {"norm": "batch", "dense": (), "training": True})
    image = jnp.asarray(batch_with([])["image"])
    variables = random_variables(network, image)
    _, after = jax.jit(partial(network.apply, mutable=["batch_stats"]))(variables, image)
    before, after = (
        x["batch_stats"]["backbone"]["conv1"]["norm"]["mean"] for x in (variables, after)
    )
    kernel = variables["params"]["backbone"]["conv1"]["conv"]["kernel"]
    convolved = jax.lax.conv_general_dilated(
        image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    expected = 0.99 * before + 0.01 * convolved.mean((0, 1, 2))
    np.testing.assert_allclose(after, expected, rtol=1e-4, atol=1e-6)
