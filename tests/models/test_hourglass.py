import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.models import hourglass
from jaxseg.types import IGNORE

SMALL = dict(num_stacks=2, width=8, depth=2)
IMAGE = jnp.asarray(np.random.default_rng(0).random((1, 37, 50, 3)), jnp.float32)
LABELS = jnp.asarray(np.random.default_rng(1).integers(0, 3, (1, 37, 50)), jnp.int32)
BATCH = {"image": IMAGE, "segmentation": LABELS, "valid": jnp.ones(1, bool)}


def test_scores_at_stride_four_for_any_size():
    network = hourglass.StackedHourglass(5, **SMALL)
    scores, _ = jax.jit(network.init_with_output)(jax.random.key(0), IMAGE)
    assert [s.shape for s in scores] == [(1, 10, 13, 5)] * 2


def test_a_loss_after_each_hourglass():
    model = hourglass.build(3, **SMALL)
    variables = model.init(jax.random.key(0), BATCH)

    @jax.jit
    def total(params, labels):
        rest = {"params": params, "batch_stats": variables["batch_stats"]}
        losses, _ = model.loss(rest, BATCH | {"segmentation": labels}, jax.random.key(1))
        assert losses.keys() == {"cross_entropy", "stack1_cross_entropy"}
        return sum(loss.value() for loss in losses.values())

    gradient = jax.jit(jax.value_and_grad(total))
    params = variables["params"]
    first, _ = gradient(params, LABELS)
    for _ in range(5):
        params = jax.tree.map(lambda p, g: p - 0.01 * g, params, gradient(params, LABELS)[1])
    assert total(params, LABELS) < first
    nothing, grads = gradient(params, jnp.full_like(LABELS, IGNORE))
    assert nothing == 0
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_an_hourglass_sees_far():
    """Its bottom lies two poolings down: a pixel reaches much farther than by the 3×3 kernels."""

    def reach(depth):
        network = hourglass.Hourglass(4, depth, None, hourglass.FLOAT32)
        x = jnp.asarray(np.random.default_rng(2).random((1, 64, 64, 4)), jnp.float32)
        variables = network.init(jax.random.key(0), x)
        grad = jax.grad(lambda x: network.apply(variables, x)[0, 32, 32].sum())(x)
        rows = np.flatnonzero(np.abs(grad).sum((0, 2, 3)))
        return rows.max() - rows.min() + 1

    assert reach(1) < 20 < 40 < reach(3)


def test_predictions_are_those_of_the_last():
    model = hourglass.build(3, **SMALL)
    variables = model.init(jax.random.key(0), BATCH)
    network = hourglass.HourglassSegmenter(3, **SMALL)
    logits = jax.jit(network.apply)(variables, IMAGE)["out"]
    found = jax.jit(model.predict)(variables, IMAGE)["segmentation"]
    np.testing.assert_array_equal(found, logits.argmax(-1))
