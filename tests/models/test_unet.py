import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import random_variables

from jaxseg.models import unet
from jaxseg.types import IGNORE, Precision

RNG = np.random.default_rng(0)
IMAGE = jnp.asarray(RNG.standard_normal((2, 20, 28, 3)), jnp.float32)
BATCH = {
    "image": IMAGE,
    "segmentation": jnp.asarray(RNG.integers(0, 3, (2, 20, 28))),
    "valid": jnp.ones(2, bool),
}
SMALL = dict(width=4, depth=2)


@pytest.mark.parametrize(
    ("size", "depth", "padding", "expected"),
    [
        (388, 4, "valid", (572, 388)),  # figure 1
        (1, 4, "valid", (188, 4)),
        (389, 4, "valid", (588, 404)),
        (180, 4, "same", (192, 192)),
        (64, 4, "same", (64, 64)),
    ],
)
def test_tile_sizes(size, depth, padding, expected):
    assert unet.tile_sizes(size, depth, padding) == expected


def test_parameters_are_those_of_figure_1():
    c = [64, 128, 256, 512, 1024]
    down = sum(9 * i * o + o + 9 * o * o + o for i, o in zip([1, *c[:-1]], c, strict=True))
    up = sum(
        4 * i * o + o + 9 * i * o + o + 9 * o * o + o
        for i, o in zip(c[:0:-1], c[-2::-1], strict=True)
    )
    batch = {"image": jnp.zeros((1, 1, 1, 1))}
    shapes = jax.eval_shape(unet.build(2).init, jax.random.key(0), batch)
    total = sum(x.size for x in jax.tree.leaves(shapes["params"]))
    assert total == down + up + 64 * 2 + 2 == 31_030_658


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("upsampling", ["transposed", "bilinear"])
def test_any_size_and_jit_equals_eager(padding, upsampling):
    model = unet.build(3, padding=padding, upsampling=upsampling, **SMALL)
    variables = model.init(jax.random.key(0), BATCH)
    eager = model.predict(variables, IMAGE[:, :17, :23])
    compiled = jax.jit(model.predict)(variables, IMAGE[:, :17, :23])
    assert eager["probabilities"].shape == (2, 17, 23, 3)
    np.testing.assert_allclose(eager["probabilities"].sum(-1), np.ones((2, 17, 23)), atol=1e-5)
    np.testing.assert_allclose(compiled["probabilities"], eager["probabilities"], atol=1e-5)


def test_valid_convolutions_see_the_mirrored_picture():
    """A picture already continued by mirroring gives the same in its middle."""
    model = unet.build(3, padding="valid", dropout=0.0, **SMALL)
    variables = model.init(jax.random.key(0), BATCH)
    predict = jax.jit(model.predict)
    whole = predict(variables, IMAGE)["probabilities"]
    pad = 20  # what an output pixel can see, and a multiple of the pooling grid
    mirrored = jnp.pad(IMAGE, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect")
    inner = predict(variables, mirrored)["probabilities"][:, pad:-pad, pad:-pad]
    np.testing.assert_allclose(inner, whole, atol=1e-5)


def test_gradients_are_finite_even_without_labels():
    model = unet.build(3, losses=("cross_entropy", "dice", "lovasz"), **SMALL)
    params = random_variables(model, BATCH)["params"]
    nothing = {**BATCH, "segmentation": jnp.full((2, 20, 28), IGNORE)}

    @jax.jit
    @jax.grad
    def gradients(params, batch):
        losses, _ = model.loss({"params": params}, batch, jax.random.key(1))
        return sum(mean.value() for mean in losses.values())

    some, none = gradients(params, BATCH), gradients(params, nothing)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves((some, none)))
    assert all((np.asarray(g) == 0).all() for g in jax.tree.leaves(none))
    assert optax.tree.norm(some) > 0


def test_overfits_one_batch():
    model = unet.build(3, padding="same", norm="batch", dropout=0.0, **SMALL)
    variables = model.init(jax.random.key(0), BATCH)
    stripes = jnp.broadcast_to(jnp.arange(28) // 10, (2, 20, 28))
    batch = {**BATCH, "segmentation": stripes}
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, state, opt_state):
        def total(params):
            losses, new = model.loss({"params": params, **state}, batch, jax.random.key(1))
            return losses["cross_entropy"].value(), new

        (loss, state), grads = jax.value_and_grad(total, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), state, opt_state, loss

    params, state = variables["params"], {"batch_stats": variables["batch_stats"]}
    opt_state = optimizer.init(params)
    for _ in range(60):
        params, state, opt_state, loss = step(params, state, opt_state)
    assert loss < 0.1
    predicted = model.predict({"params": params, **state}, IMAGE)["segmentation"]
    assert (predicted == stripes).mean() > 0.95


def test_module_works_alone_under_vmap_and_remat():
    plain, thrifty = (unet.UNet(3, remat=r, dropout=0.0, **SMALL) for r in (False, True))
    variables = random_variables(plain, IMAGE)
    one_by_one = jax.jit(jax.vmap(lambda x: plain.apply(variables, x[None])[0]))(IMAGE)
    np.testing.assert_allclose(one_by_one, jax.jit(plain.apply)(variables, IMAGE), atol=1e-5)

    def norm(network, params):
        return (network.apply({"params": params}, IMAGE) ** 2).sum()

    gradient = jax.jit(jax.grad(norm, argnums=1), static_argnums=0)
    grads = [gradient(n, variables["params"]) for n in (plain, thrifty)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3), *grads)


def test_bfloat16_is_near_float32():
    half = unet.build(3, precision=Precision(compute=jnp.bfloat16), **SMALL)
    full = unet.build(3, **SMALL)
    variables = random_variables(full, BATCH)
    a, b = (jax.jit(m.predict)(variables, IMAGE)["probabilities"] for m in (half, full))
    assert a.dtype == jnp.float32
    np.testing.assert_allclose(a, b, atol=0.05)
