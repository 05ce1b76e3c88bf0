"""The CRF-RNN layer: against exact marginals and gradients, and behind networks."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxseg.models import fcn, unet
from jaxseg.nn.crf_rnn import CRFRNN, Refined, with_crf_rnn
from jaxseg.train.optim import path_multipliers
from jaxseg.types import MEAN, STD, Precision

TINY = dict(spatial_sigma=1.5, bilateral_sigma=6.0, colour_sigma=20.0, backend="exact")
LAYER = dict(bilateral_sigma=4.0, colour_sigma=60.0, spatial_sigma=1.0, backend="exact")


def normalize(image):
    return ((image / 255 - MEAN) / STD).astype(np.float32)


def batch(count=2, size=(8, 9), labels=3):
    rng = np.random.default_rng(0)
    image = normalize(rng.integers(0, 256, (count, *size, 3)))
    return {"image": image, "segmentation": rng.integers(0, labels, (count, *size), np.int32)}


class Twice(nn.Module):
    """A network with an auxiliary output."""

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        return {"out": nn.Dense(3, name="a")(x), "aux": nn.Dense(3, name="b")(x)}


@pytest.fixture
def published(fixtures):
    tiny = np.load(fixtures / "crf" / "exact_tiny.npz")
    w1, w2 = tiny["w_after"].tolist()
    layer = CRFRNN(spatial_weight=w1, bilateral_weight=w2, **TINY)
    inputs = tiny["logits"][None].astype(np.float32), normalize(tiny["image"])[None]
    return layer, layer.init(jax.random.key(0), *inputs), inputs, tiny


@pytest.mark.parametrize(("train", "iterations"), [(True, 5), (False, 10)])
def test_it_starts_as_mean_field_in_potts_model(published, train, iterations):
    layer, variables, inputs, tiny = published
    found = jax.nn.softmax(layer.apply(variables, *inputs, train=train)[0])
    expected = tiny[f"Q_after_potts_self_{iterations}"]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_gradients_of_all_parameters(published, fixtures):
    layer, variables, inputs, _ = published
    grads = np.load(fixtures / "crf" / "exact_tiny_grads.npz")

    def loss(params, logits):
        refined = layer.apply({"params": params}, logits, inputs[1], train=True)
        return (grads["R"].astype(np.float32) * jax.nn.softmax(refined[0])).sum()

    params, logits = jax.grad(loss, argnums=(0, 1))(variables["params"], inputs[0])
    for name, found in {
        "logits": logits[0],
        "mu": params["compatibility"],
        "w1": params["spatial_weight"].sum(),
        "w2": params["bilateral_weight"].sum(),
    }.items():
        expected = grads[f"d_{name}_lin_after_potts_5"]
        np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())


def test_names_of_the_network_stay():
    for build in (partial(unet.build, width=2, depth=1, padding="same"),):
        inputs = jax.random.key(0), batch()
        plain, refined = (flatten_dict(build(3, crf_rnn=c).init(*inputs)) for c in (None, True))
        added = {path: x.shape for path, x in refined.items() if path not in plain}
        assert plain.keys() < refined.keys()
        assert added == {
            ("params", "crf", "spatial_weight"): (3,),
            ("params", "crf", "bilateral_weight"): (3,),
            ("params", "crf", "compatibility"): (3, 3),
        }
    params = build(3, crf_rnn=True).init(*inputs)["params"]
    factors = flatten_dict(path_multipliers(params, {"^crf/": 100.0}))
    assert {path[0] for path, factor in factors.items() if factor == 100} == {"crf"}


def test_of_several_outputs_one_is_refined():
    image = batch()["image"]
    network = with_crf_rnn(Twice(), LAYER)
    variables = network.init(jax.random.key(0), image)
    plain = {"params": {name: variables["params"][name] for name in ("a", "b")}}
    before, after = Twice().apply(plain, image), network.apply(variables, image)
    np.testing.assert_array_equal(before["aux"], after["aux"])
    assert np.abs(before["out"] - after["out"]).max() > 1
    crf = {"params": variables["params"]["crf"]}
    alone = CRFRNN(**LAYER).apply(crf, before["out"], image)
    np.testing.assert_allclose(after["out"], alone, atol=1e-5)
    assert with_crf_rnn(network, None) is with_crf_rnn(network, False) is network


@pytest.mark.slow
def test_the_lattice_in_a_bfloat16_network_and_remat():
    examples = batch(1)
    layer = LAYER | dict(backend="permutohedral", iterations=(2, 3))
    build = partial(unet.build, 3, width=2, depth=1, padding="same", crf_rnn=layer)
    model = build(precision=Precision(compute=jnp.bfloat16))
    variables = model.init(jax.random.key(0), examples)

    def loss(params):
        losses, _ = model.loss({**variables, "params": params}, examples, jax.random.key(1))
        return losses["cross_entropy"].value()

    plain, again = (jax.jit(jax.grad(f))(variables["params"]) for f in (loss, jax.checkpoint(loss)))
    for gradient, other in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        assert np.isfinite(gradient).all()
        np.testing.assert_allclose(gradient, other, rtol=0.05, atol=1e-3)
    assert all(np.abs(x).max() > 0 for x in plain["crf"].values())
    assert all(x.dtype == jnp.float32 for x in plain["crf"].values())


def test_jit_and_pmap_are_the_eager_layer():
    image = batch(8, (4, 5))["image"]
    logits = np.random.default_rng(1).standard_normal((8, 4, 5, 3)).astype(np.float32)
    layer = CRFRNN(**LAYER)
    variables = layer.init(jax.random.key(0), logits, image)
    eager = layer.apply(variables, logits, image)
    np.testing.assert_allclose(jax.jit(layer.apply)(variables, logits, image), eager, atol=1e-5)
    mapped = jax.pmap(partial(layer.apply, variables))(logits[:, None], image[:, None])
    np.testing.assert_allclose(mapped[:, 0], eager, atol=1e-5)


def test_fcn_8s_takes_the_layer():
    model = fcn.build(
        3, width=2, head_width=4, norm="batch", crf_rnn=LAYER | {"iterations": (1, 1)}
    )
    variables = model.init(jax.random.key(0), batch(1))
    out = jax.eval_shape(model.predict, variables, np.zeros((1, 16, 16, 3), np.float32))
    assert out["probabilities"].shape == (1, 16, 16, 3)
    assert isinstance(with_crf_rnn(Twice(), {}), Refined)
