import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import picture, random_variables

from jaxseg.models import hourglass
from jaxseg.types import FLOAT32, IGNORE

SMALL = dict(num_stacks=2, width=8, depth=2)
IMAGE = picture(1, 37, 50, 3)
NETWORK = hourglass.HourglassSegmenter(3, **SMALL)
VARIABLES = random_variables(NETWORK, IMAGE)


def test_layers_are_those_of_the_paper():
    """Eight stacks, 256 features, 16 joints."""

    def residual(inputs, outputs):
        half = outputs // 2
        convolutions = inputs * half + 9 * half * half + half * outputs + 2 * half + outputs
        shortcut = 0 if inputs == outputs else inputs * outputs + outputs
        return convolutions + shortcut + 2 * (inputs + half + half)

    f, k = 256, 16
    stem = 7 * 7 * 3 * 64 + 2 * 64 + residual(64, 128) + residual(128, 128) + residual(128, f)
    # Four sizes with a module beside, down and up, and one at the bottom.
    stack = 13 * residual(f, f) + f * f + 2 * f + f * k + k
    back = f * f + f + k * f + f
    network = hourglass.StackedHourglass(k)
    image = jnp.zeros((1, 256, 256, 3))
    scores, variables = jax.eval_shape(network.init_with_output, jax.random.key(0), image)
    total = sum(x.size for x in jax.tree.leaves(variables["params"]))
    assert total == stem + 8 * stack + 7 * back == 23_715_776
    assert [s.shape for s in scores] == [(1, 64, 64, 16)] * 8


@pytest.mark.parametrize(("height", "width"), [(37, 50), (1, 1), (64, 3)])
def test_any_size(height, width):
    """Scores at a fourth of the size, rounded up; logits where the scores are, 4 pixels each."""
    image = picture(1, height, width, 3)
    logits = jax.jit(NETWORK.apply)(VARIABLES, image)
    inner = {name: x["hourglasses"] for name, x in VARIABLES.items()}
    scores = jax.jit(hourglass.StackedHourglass(3, **SMALL).apply)(inner, image)
    assert logits.keys() == {"out", "stack1"}
    for name, s in zip(("stack1", "out"), scores, strict=True):
        h, w = -(-height // 4), -(-width // 4)
        assert s.shape == (1, h, w, 3)
        whole = jax.image.resize(s, (1, 4 * h, 4 * w, 3), "bilinear")
        np.testing.assert_allclose(logits[name], whole[:, :height, :width], rtol=1e-4, atol=1e-4)


def test_a_stack_sees_the_scores_before_it():
    params = dict(VARIABLES["params"]["hourglasses"])
    inner = {name: x["hourglasses"] for name, x in VARIABLES.items()}
    network = hourglass.StackedHourglass(3, **SMALL)

    @jax.jit
    def run(params):
        return network.apply({**inner, "params": params}, IMAGE)

    first, second = run(params)
    params["stack1_scores_back"] = jax.tree.map(jnp.zeros_like, params["stack1_scores_back"])
    same, other = run(params)
    np.testing.assert_allclose(same, first, atol=1e-5)
    assert np.abs(other - second).max() > 0.01


def test_an_hourglass_sees_far():
    """Its bottom lies `depth` poolings down: a pixel reaches farther than by the 3×3 kernels."""

    def reach(depth):
        network = hourglass.Hourglass(32, depth, None, FLOAT32)
        x = picture(1, 64, 1, 32)
        variables = random_variables(network, x)
        grad = jax.jit(jax.grad(lambda x: network.apply(variables, x)[0, 32].sum()))(x)
        rows = np.flatnonzero(np.abs(grad).sum((0, 2, 3)))
        return rows.max() - rows.min() + 1

    # A module reaches a pixel of its size to each side: down, bottom and up at half the size see 7
    # pixels, which are 14 of the whole size.
    assert reach(0) == 3
    assert reach(1) == 14
    assert reach(3) > 50


def test_learns_by_a_loss_after_each_stack_and_ignores():
    model = hourglass.build(3, **SMALL)
    labels = jnp.asarray(np.indices((37, 50))[1][None] // 17, jnp.int32)
    batch = {"image": IMAGE, "segmentation": labels, "valid": jnp.ones(1, bool)}

    @jax.jit
    def gradient(params, labels):
        def total(params):
            rest = {"params": params, "batch_stats": VARIABLES["batch_stats"]}
            given = batch | {"segmentation": labels}
            losses, _ = model.loss(rest, given, jax.random.key(1))
            losses = {name: loss.value() for name, loss in losses.items()}
            return sum(losses.values()), losses

        return jax.value_and_grad(total, has_aux=True)(params)

    params, optimizer = VARIABLES["params"], optax.adam(0.01)
    (nothing, _), grads = gradient(params, jnp.full_like(labels, IGNORE))
    assert nothing == 0
    assert all(not np.any(g) for g in jax.tree.leaves(grads))
    state = optimizer.init(params)

    @jax.jit
    def move(params, state, grads):
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state

    (_, first), _ = gradient(params, labels)
    assert first.keys() == {"stack1_cross_entropy", "cross_entropy"}
    for _ in range(30):
        _, grads = gradient(params, labels)
        params, state = move(params, state, grads)
    (_, last), grads = gradient(params, labels)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert all(last[name] < first[name] / 3 for name in first), (first, last)


def test_predictions_are_those_of_the_last():
    logits = jax.jit(NETWORK.apply)(VARIABLES, IMAGE)["out"]
    found = jax.jit(hourglass.build(3, **SMALL).predict)(VARIABLES, IMAGE)
    np.testing.assert_array_equal(found["segmentation"], logits.argmax(-1))
    eager = NETWORK.apply(VARIABLES, IMAGE)["out"]
    np.testing.assert_allclose(eager, logits, rtol=1e-4, atol=1e-4)
