import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from networks import picture, random_variables

from jaxseg.backbones.classifier import Classifier
from jaxseg.models import deconvnet
from jaxseg.types import IGNORE

SMALL = dict(width=2, head_width=4, window=1)
IMAGE = picture(1, 40, 33, 3)


def shapes(network, size):
    variables = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))
    return {path: x.shape for path, x in flatten_dict(variables, sep="/").items()}


def test_layers_are_those_of_table_1():
    found = shapes(deconvnet.DeconvNet(21), 32)

    def kernels(name):
        layers = [(s, i) for s in (1, 2, 3, 4, 5) for i in range(1, (2, 2, 3, 3, 3)[s - 1] + 1)]
        return {(s, i): found[f"params/{name.format(s=s, i=i)}/conv/kernel"] for s, i in layers}

    # The way up is the way down, seen in a mirror, but for the first layer's colours.
    down, up = kernels("backbone/stage{s}_conv{i}"), kernels("deconv{s}_{i}")
    for (stage, i), (_, _, inputs, outputs) in down.items():
        mirror = up[stage, max(i for s, i in down if s == stage) + 1 - i]
        assert mirror == (3, 3, outputs, 64 if inputs == 3 else inputs)
    assert found["params/deconv_fc6/conv/kernel"] == (7, 7, 4096, 512)
    assert found["params/classifier/kernel"] == (1, 1, 64, 21)

    # In all about 252 millions, as the paper says: with norms of 2 values a channel, fc6 and fc7
    # with biases, too.
    kernels = [*down.values(), *up.values(), (7, 7, 4096, 512)]
    convolutions = sum(np.prod(s) for s in kernels) + 64 * 21 + 21
    dense = 7 * 7 * 512 * 4096 + 4096 * 4096 + 2 * 4096
    channels = sum(s[3] for s in kernels) + 2 * 4096
    total = sum(np.prod(s) for path, s in found.items() if path.startswith("params/"))
    assert total == convolutions + dense + 2 * channels == 251_797_141


def test_takes_all_of_vgg16_but_its_classifier():
    vgg = shapes(Classifier("vgg16_bn"), 224)
    ours = shapes(deconvnet.DeconvNet(21), 224)
    assert {path for path in vgg if ours.get(path) != vgg[path]} == {
        "params/head/classifier/kernel",
        "params/head/classifier/bias",
    }


@pytest.mark.parametrize("upsampling", ["switches", "nearest", "nails", "transposed"])
def test_any_size_and_every_upsampling(upsampling):
    network = deconvnet.DeconvNet(3, upsampling=upsampling, **SMALL)
    variables = random_variables(network, IMAGE)
    logits = jax.jit(network.apply)(variables, IMAGE)
    assert logits.shape == (1, 40, 33, 3)
    assert np.isfinite(logits).all()
    assert ("up1" in variables["params"]) == (upsampling == "transposed")


@pytest.mark.parametrize("shortcuts", [False, True])
def test_what_the_transposed_convolutions_see(shortcuts):
    """Values only where the maxima of the same stage were, or with shortcuts its features, too."""
    network = deconvnet.DeconvNet(3, shortcuts=shortcuts, **SMALL)
    variables = random_variables(network, IMAGE)

    @jax.jit
    def look(variables):
        seen = {}

        def watch(layer, args, kwargs, context):
            result = layer(*args, **kwargs)
            seen[str(context.module.name)] = args[0], result
            return result

        with nn.intercept_methods(watch):
            network.apply(variables, IMAGE)
        return seen

    seen = jax.device_get(look(variables))
    layers = {1: "deconv1_1", 2: "deconv2_1", 4: "deconv3_1", 8: "deconv4_1", 16: "deconv5_1"}
    before = {1: "deconv2_2", 2: "deconv3_3", 4: "deconv4_3", 8: "deconv5_3", 16: "deconv_fc6"}
    for stride, features in seen["backbone"][1].items():
        b, h, w, c = features.shape
        unpooled = seen[layers[stride]][0] - (features if shortcuts else 0)
        windows = features.reshape(b, h // 2, 2, w // 2, 2, c).max((2, 4), keepdims=True)
        chosen = (features.reshape(b, h // 2, 2, w // 2, 2, c) == windows).reshape(features.shape)
        assert not unpooled[~chosen].any()
        pooled = unpooled.reshape(b, h // 2, 2, w // 2, 2, c).sum((2, 4))
        np.testing.assert_allclose(pooled, seen[before[stride]][1], atol=1e-6)


def test_learns_and_ignores():
    model = deconvnet.build(3, shortcuts=True, **SMALL)
    labels = jnp.asarray(np.indices((40, 33))[1][None] // 11, jnp.int32)
    batch = {"image": IMAGE, "segmentation": labels, "valid": jnp.ones(1, bool)}
    variables = random_variables(deconvnet.DeconvNet(3, shortcuts=True, **SMALL), IMAGE)

    @jax.jit
    def total(params, labels):
        rest = {"params": params, "batch_stats": variables["batch_stats"]}
        losses, _ = model.loss(rest, batch | {"segmentation": labels}, jax.random.key(1))
        return losses["cross_entropy"].value()

    gradient = jax.jit(jax.value_and_grad(total))
    params, optimizer = variables["params"], optax.adam(0.02)
    nothing, grads = gradient(params, jnp.full_like(labels, IGNORE))
    assert nothing == 0
    assert all(not np.any(g) for g in jax.tree.leaves(grads))
    state = optimizer.init(params)

    @jax.jit
    def move(params, state, grads):
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state

    first, _ = gradient(params, labels)
    for _ in range(60):
        params, state = move(params, state, gradient(params, labels)[1])
    last, grads = gradient(params, labels)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert last < first / 3
