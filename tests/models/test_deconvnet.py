import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.models import deconvnet
from jaxseg.types import IGNORE

SMALL = dict(width=2, head_width=4, window=1)
IMAGE = jnp.asarray(np.random.default_rng(0).random((1, 40, 33, 3)), jnp.float32)


def test_the_published_parameter_count():
    network = deconvnet.DeconvNet(21)
    image = jnp.zeros((1, 224, 224, 3))
    variables = jax.eval_shape(network.init, jax.random.key(0), image)
    # Both halves' convolutions (14,710,464 and 12,756,480, VGG16's without its first and mirrored
    # widths), fc6 and fc7 with biases, the transposed fc6, norms, classifier: about 252M, as published.
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == 251_797_141


@pytest.mark.parametrize("upsampling", ["switches", "nearest", "nails", "transposed"])
def test_any_size_and_every_upsampling(upsampling):
    network = deconvnet.DeconvNet(3, upsampling=upsampling, shortcuts=True, **SMALL)
    logits, variables = jax.jit(network.init_with_output)(jax.random.key(0), IMAGE)
    assert logits.shape == (1, 40, 33, 3)
    assert ("up1" in variables["params"]) == (upsampling == "transposed")


def test_values_go_back_to_where_the_maxima_were():
    network = deconvnet.DeconvNet(2, **SMALL)
    features = jnp.asarray(np.random.default_rng(2).random((1, 4, 6, 2)), jnp.float32)
    values = jnp.ones((1, 2, 3, 2))
    up = network.apply({}, values, features, "up1", method="_upsample")
    windows = features.reshape(1, 2, 2, 3, 2, 2).max((2, 4))
    np.testing.assert_array_equal(up > 0, features == windows.repeat(2, 1).repeat(2, 2))


def test_learns_and_ignores():
    model = deconvnet.build(3, **SMALL)
    labels = jnp.asarray(np.random.default_rng(1).integers(0, 3, (1, 40, 33)), jnp.int32)
    batch = {"image": IMAGE, "segmentation": labels, "valid": jnp.ones(1, bool)}
    variables = model.init(jax.random.key(0), batch)

    @jax.jit
    def total(params, labels):
        rest = {"params": params, "batch_stats": variables["batch_stats"]}
        losses, _ = model.loss(rest, batch | {"segmentation": labels}, jax.random.key(1))
        return losses["cross_entropy"].value()

    gradient = jax.jit(jax.value_and_grad(total))
    params = variables["params"]
    first, grads = gradient(params, labels)
    for _ in range(5):
        params = jax.tree.map(lambda p, g: p - 0.02 * g, params, gradient(params, labels)[1])
    assert total(params, labels) < first
    nothing, grads = gradient(params, jnp.full_like(labels, IGNORE))
    assert nothing == 0
    assert all((g == 0).all() for g in jax.tree.leaves(grads))
