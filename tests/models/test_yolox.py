"""YOLOX: its published sizes, SimOTA and its losses by hand, and a small one that learns."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from detectors import batch_with, no_objects

from jaxseg.models import yolox
from jaxseg.models.yolox import PRIOR, SIZES, YOLOX, Settings
from jaxseg.ops.matching import BACKGROUND
from jaxseg.ops.truth import Truth

# Table 3 and 4 of the paper, 80 classes.
MILLIONS = {"nano": 0.91, "tiny": 5.06, "s": 9.0, "m": 25.3, "l": 54.2, "x": 99.1}


@pytest.mark.parametrize(
    "size",
    [s if s in ("nano", "s") else pytest.param(s, marks=pytest.mark.slow) for s in MILLIONS],
)
def test_parameters_of_the_published_sizes(size):
    network = YOLOX(81, **SIZES[size])
    variables = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    count = sum(x.size for x in jax.tree.leaves(variables["params"]))
    digits = 2 if size in ("nano", "tiny") else 1
    assert round(count / 1e6, digits) == MILLIONS[size]
    if size == "s":
        assert round(count / 1e6, 2) == 8.97  # in the authors' later table


# ---- parts by hand


def test_focus_puts_neighbours_into_channels():
    image = jnp.arange(6.0).reshape(1, 2, 3, 1)  # 0 1 2 / 3 4 5
    found = yolox.focus(image)
    assert found[0, 0].tolist() == [[0, 3, 1, 4], [2, 5, 0, 0]]


def test_pools_reach_two_four_and_six_pixels():
    """A single bright pixel, seen by 1, 5×5, 9×9 and 13×13 pixels."""
    seen = []

    def conv(features, kernel_size, name):
        def look(x):
            seen.append(x)
            return x[..., :1]

        return look

    image = jnp.zeros((1, 15, 15, 2)).at[0, 7, 7, 0].set(1)
    yolox.SPP(4, conv).apply({}, image)
    assert seen[1].sum((0, 1, 2)).tolist() == [1, 25, 81, 169]


def test_bottlenecks_go_round_half_of_the_features():
    """Every convolution adds 1, so each bottleneck adds 2, and what goes past them has 1."""
    added = []

    def conv(features, kernel_size, name):
        def look(x):
            added.append((name, features, x.shape[-1], float(x.max())))
            return jnp.full((*x.shape[:-1], features), x.max() + 1)

        return look

    yolox.CSPLayer(8, 2, True, yolox.Layers(conv, conv)).apply({}, jnp.zeros((1, 2, 2, 6)))
    assert added == [
        ("main", 4, 6, 0),
        ("past", 4, 6, 0),
        ("block1_conv1", 4, 4, 1),
        ("block1_conv2", 4, 4, 2),
        ("block2_conv1", 4, 4, 4),  # 3, and 1 that went round
        ("block2_conv2", 4, 4, 5),
        ("merge", 8, 8, 10),
    ]
    added.clear()
    yolox.CSPLayer(8, 2, False, yolox.Layers(conv, conv)).apply({}, jnp.zeros((1, 2, 2, 6)))
    assert [value for *_, value in added] == [0, 0, 1, 2, 3, 4, 5]


def test_boxes_by_hand():
    """Places of a map of 2×3 pixels of stride 8 and one of stride 16."""
    places = yolox.places_of([(2, 3), (1, 1)], (8, 16))
    assert places.corner.tolist() == [[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1], [0, 0]]
    assert places.centre()[5].tolist() == [20, 12]
    offsets = jnp.zeros((7, 4)).at[5].set(jnp.array([0.5, -0.25, np.log(2), np.log(0.5)]))
    boxes = yolox.decode(offsets, places)
    # The centre is (2.5, 0.75) · 8 = (20, 6), the sides are 16 and 4.
    np.testing.assert_allclose(boxes[5], [12, 4, 28, 8], rtol=1e-6)
    np.testing.assert_allclose(boxes[6], [-8, -8, 8, 8])
    np.testing.assert_allclose(yolox.encode(boxes, places), offsets, atol=1e-6)
    far = yolox.decode(jnp.full((7, 4), 1e4), places)
    assert np.isfinite(np.asarray(far)).all()


# ---- SimOTA


def truth_with(boxes, labels, **more):
    boxes = jnp.asarray(boxes, jnp.float32).reshape(-1, 4)
    return Truth(boxes, jnp.asarray(labels), **{"mask": jnp.ones(len(boxes), bool), **more})


ROW = yolox.places_of([(1, 6)], (8,))  # centres at x = 4, 12, 20, 28, 36, 44, y = 4
# Two objects of 24×8 pixels, in places 0, 1, 2 and 2, 3, 4.
TWO = truth_with([[0, 0, 24, 8], [16, 0, 40, 8]], [1, 2])
BOXES = jnp.array(
    [
        [0, 0, 12, 8],  # IoU with the objects: 1/2, 0
        [0, 0, 18, 8],  # 3/4, 2/40
        [4, 0, 36, 8],  # 5/9, 5/9
        [16, 0, 40, 8],  # 1/5, 1
        [28, 0, 40, 8],  # 0, 1/2
        [0, 0, 24, 8],  # 1, 1/5, but it lies in neither
    ],
    jnp.float32,
)
CLOSE = Settings(centre_radius=1.5)
SURE = jnp.full(6, 10.0)


@pytest.mark.parametrize(
    ("wins", "expected"), [(1, [-1, 0, 1, 1, -1, -1]), (0, [-1, 0, 0, 1, -1, -1])]
)
def test_assignment_by_hand(wins, expected):
    """The IoUs of the first object sum up to 1/2 + 3/4 + 5/9 + 1/5 = 2.0, those of the second to
    2.1: each takes two places. Place 2 is among the cheapest of both, and goes to the one whose
    class it rather has."""
    lean = jnp.where(jnp.arange(2) == wins, 0.1, -0.1)
    logits = jnp.zeros((6, 2)).at[2].set(lean)
    matches = yolox.assign(BOXES, SURE, logits, TWO, ROW, CLOSE)
    assert BACKGROUND == -1
    assert matches.tolist() == expected
    swapped = TWO._replace(boxes=TWO.boxes[::-1], labels=TWO.labels[::-1])
    matches = yolox.assign(BOXES, SURE, logits, swapped, ROW, CLOSE)
    assert matches.tolist() == [m if m < 0 else 1 - m for m in expected]


def test_a_contested_place_may_go_to_a_third_object():
    """Two objects take place 2, with an IoU of 1/2. The third, with one of 3/5, takes place 1,
    which fits it exactly; but it costs place 2 least, and so has that, too."""
    three = truth_with([[8, 0, 40, 8], [8, 0, 40, 8], [8, 0, 24, 8]], [1, 2, 1])
    far = jnp.tile(jnp.array([200.0, 200, 210, 210]), (6, 1))
    boxes = far.at[1].set(jnp.array([8.0, 0, 24, 8])).at[2].set(jnp.array([12.0, 0, 28, 8]))
    matches = yolox.assign(boxes, SURE, jnp.zeros((6, 2)), three, ROW, CLOSE)
    assert matches.tolist() == [-1, 2, 2, -1, -1, -1]


def test_places_outside_cost_too_much():
    """A box that fits the object exactly, but from a place inside of the other alone, is the last
    to be taken; and from one inside of neither, never."""
    boxes = BOXES.at[4].set(jnp.array([0.0, 0, 24, 8]))
    matches = yolox.assign(boxes, SURE, jnp.zeros((6, 2)), TWO, ROW, CLOSE)
    assert matches[1] == 0
    assert matches[4] != 0
    # The IoUs sum up to 3.0: without the prior it would be the first.
    cheap = CLOSE._replace(outside_cost=0.0)
    matches = yolox.assign(boxes, SURE, jnp.zeros((6, 2)), TWO, ROW, cheap)
    assert matches[4] == 0
    assert matches[5] == BACKGROUND


def test_every_object_takes_a_place():
    """Nothing overlaps it; one place, the nearest of which the class is likeliest, is taken."""
    far = jnp.tile(jnp.array([200.0, 200, 210, 210]), (6, 1))
    logits = jnp.zeros((6, 2)).at[4, 1].set(1.0).at[1, 1].set(2.0)
    one = jax.tree.map(lambda x: x[1:] if x is not None else None, TWO)
    matches = yolox.assign(far, SURE, logits, one, ROW, CLOSE)
    assert matches.tolist() == [-1, -1, -1, -1, 0, -1]
    nobody = one._replace(mask=jnp.array([False]))
    assert (yolox.assign(far, SURE, logits, nobody, ROW, CLOSE) == BACKGROUND).all()
    beyond = one._replace(boxes=jnp.array([[500.0, 500, 520, 520]]))
    assert (yolox.assign(far, SURE, logits, beyond, ROW, CLOSE) == BACKGROUND).all()


def test_class_cost_is_cross_entropy():
    objectness, logits = jnp.array([0.3, -2.0, 1.0]), jnp.array([[1.0, -1], [0, 3], [-4, 0.5]])
    p = np.sqrt(jax.nn.sigmoid(logits) * jax.nn.sigmoid(objectness)[:, None])
    cost = yolox.class_cost(objectness, logits, jnp.array([2, 1, 0]))
    for m, label in enumerate((2, 1)):
        t = np.eye(2)[label - 1][None]
        expected = -(t * np.log(p) + (1 - t) * np.log(1 - p)).sum(1)
        np.testing.assert_allclose(cost[m], expected, rtol=1e-5)
    extreme = yolox.class_cost(jnp.full(3, 1e4), 1e4 * logits, jnp.array([1]))
    assert np.isfinite(np.asarray(extreme)).all()


# ---- losses


def test_losses_by_hand():
    """One place, whose box is (-4, -4, 4, 4): an IoU of 16 / (64 + 64 - 16) = 1 / 7."""
    places = yolox.places_of([(1, 1)], (8,))
    truth = truth_with([[0, 0, 8, 8]], [2])
    outputs = jnp.array([[0.0, 0, 0, 0, 2.0, 1.0, -1.0]])
    measure = partial(yolox.picture_losses, places=places)
    found, positive = measure(outputs, truth, settings=Settings(l1=True))
    assert positive == 1
    assert found["box"] == pytest.approx(5 * (1 - 1 / 49), rel=1e-5)
    assert found["objectness"] == pytest.approx(np.log(1 + np.exp(-2)), rel=1e-5)
    # Class 1: not at all; class 2: by a seventh, as the box is right.
    wrong = np.log(1 + np.exp(1))
    soft = np.log(1 + np.exp(1)) / 7 + np.log(1 + np.exp(-1)) * 6 / 7
    assert found["class"] == pytest.approx(wrong + soft, rel=1e-4)
    assert found["l1"] == pytest.approx(0.5 + 0.5)
    assert "l1" not in measure(outputs, truth, settings=Settings())[0]

    nobody = truth._replace(mask=jnp.array([False]))
    found, positive = measure(outputs, nobody, settings=Settings(l1=True))
    assert positive == found["box"] == found["class"] == found["l1"] == 0
    assert found["objectness"] == pytest.approx(np.log(1 + np.exp(2)), rel=1e-5)
    crowd = nobody._replace(boxes=jnp.array([[-9.0, -9, 9, 9]]), crowd=jnp.array([True]))
    assert measure(outputs, crowd, settings=Settings())[0]["objectness"] == 0


@pytest.mark.parametrize("kind", ["spread", "one place", "wild outputs"])
def test_gradients_with_many_objects(kind):
    """Sixty of them at 21 places, of which each can be of one object alone."""
    places = yolox.places_of([(4, 4), (2, 2), (1, 1)])
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 24, (60, 2)) if kind == "spread" else np.full((60, 2), 7.0)
    boxes = np.concatenate([corner, corner + rng.uniform(1, 8, (60, 2))], axis=1)
    truth = truth_with(boxes, rng.integers(1, 4, 60))
    outputs = rng.normal(size=(21, 8)) * (1e3 if kind == "wild outputs" else 1)

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def step(outputs):
        found, positive = yolox.picture_losses(
            outputs, truth, places=places, settings=Settings(l1=True)
        )
        return sum(found.values()), positive

    (loss, positive), gradient = step(jnp.asarray(outputs, jnp.float32))
    assert np.isfinite(loss)
    assert np.isfinite(np.asarray(gradient)).all()
    assert 0 < positive <= 21


# ---- a small one


SMALL = dict(width=0.125, norm="group", depthwise=True)


def test_what_is_rare_is_unlikely_at_first():
    def biases(key):
        params = YOLOX(4, **SMALL).init(key, no_objects()["image"])["params"]
        heads = [params[f"head{stride}"] for stride in yolox.STRIDES]
        return [
            {name: layer["bias"] for name, layer in head.items() if "bias" in layer}
            for head in heads
        ]

    for head in jax.jit(biases)(jax.random.key(0)):
        assert head["box"].tolist() == [0] * 4
        for name, count in (("objectness", 1), ("class", 3)):
            np.testing.assert_allclose(jax.nn.sigmoid(head[name]), [PRIOR] * count, rtol=1e-5)


def test_pictures_of_any_size():
    """Strides round up: 70×90 pixels are 35×45, 18×23, 9×12, 5×6, 3×3."""
    look = partial(YOLOX(4, **SMALL).init_with_output, jax.random.key(0))
    maps, _ = jax.eval_shape(look, jnp.zeros((1, 70, 90, 3)))
    assert [x.shape for x in maps] == [(1, 9, 12, 8), (1, 5, 6, 8), (1, 3, 3, 8)]


@pytest.mark.slow
def test_a_few_steps_learn():
    """Two pictures, with the same object."""
    model, batch = (
        yolox.build(4, size="nano", width=0.125, norm="group"),
        batch_with([[10, 10, 40, 50]]),
    )
    params, optimizer = model.init(jax.random.key(0), batch)["params"], optax.adam(1e-2)

    @jax.jit
    def step(params, moments):
        def total(params):
            losses, _ = model.loss({"params": params}, batch, jax.random.key(1))
            return sum(mean.value() for mean in losses.values())

        loss, gradients = jax.value_and_grad(total)(params)
        updates, moments = optimizer.update(gradients, moments)
        return optax.apply_updates(params, updates), moments, loss

    moments, found = optimizer.init(params), []
    for _ in range(21):
        params, moments, loss = step(params, moments)
        found.append(loss)
    assert found[-1] < 0.5 * found[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(size="xl"), "size is 'xl', expected one of nano, tiny, s, m, l, x"),
        (dict(settings=dict(min_scores=1)), "settings is 'min_scores', expected one of centre"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        yolox.build(4, **options)
