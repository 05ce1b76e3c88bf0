import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import slow_but
from networks import random_variables

from jaxseg.models import fcn

SMALL = dict(width=2, head_width=8)


def positive(variables):
    """Kernels that are the same in all directions, so that a mirrored picture must give a mirrored
    result if, and only if, all maps are aligned."""

    def fill(path, x):
        name = jax.tree_util.keystr(path)
        if "up" in name:
            return fcn.bilinear_init(jax.random.key(0), x.shape)
        if x.ndim == 1:
            return jnp.zeros_like(x)
        if x.ndim == 4:
            return jnp.broadcast_to(jnp.arange(1.0, x.shape[3] + 1) / x[..., 0].size, x.shape)
        return x

    return jax.tree_util.tree_map_with_path(fill, variables)


# At these sizes the grids of the backbones lie symmetrically in the picture: 58 + 2·99 = 8·32;
# 91 + 200 = 11 + 4·70 and 71 = 2·(2·(2·8 + 1) + 1) + 1; 75 + 200 = 7 + 2·134 and 135 = …
SIZES = {"vgg16": 58, "alexnet": 91, "googlenet": 75}


@pytest.mark.parametrize("stride", slow_but(1, [8, 16, 32]))
@pytest.mark.parametrize("backbone", SIZES)
def test_maps_are_aligned(backbone, stride):
    size = SIZES[backbone]
    image = jnp.asarray(np.random.default_rng(0).random((1, size, size, 3)), jnp.float32)
    network = fcn.FCN(2, backbone, stride, **SMALL)
    variables = positive(random_variables(network, image))
    apply = jax.jit(network.apply)
    scores = apply(variables, image)
    mirrored = apply(variables, image[:, ::-1, ::-1])[:, ::-1, ::-1]
    assert scores.shape == (1, size, size, 2)
    assert np.ptp(scores) > 1e-3
    np.testing.assert_allclose(mirrored, scores, rtol=1e-4)


@pytest.mark.parametrize("stride", [32, 8])
def test_scores_start_at_zero_for_any_size(stride):
    model = fcn.build(3, stride=stride, **SMALL)
    image = jnp.ones((1, 33, 47, 3))
    variables = model.init(jax.random.key(0), {"image": image})
    found = jax.jit(model.predict)(variables, image)
    np.testing.assert_allclose(found["probabilities"], np.full((1, 33, 47, 3), 1 / 3), atol=1e-6)


def test_learns_from_the_first_step():
    model = fcn.build(3, dropout=0.0, **SMALL)
    image = jnp.asarray(np.random.default_rng(0).random((1, 32, 32, 3)), jnp.float32)
    batch = {"image": image, "segmentation": jnp.ones((1, 32, 32), int), "valid": jnp.ones(1, bool)}
    variables = model.init(jax.random.key(0), batch)

    @jax.jit
    def total(params):
        return model.loss({"params": params}, batch, jax.random.key(1))[0]["cross_entropy"].value()

    params = variables["params"]
    grads = jax.grad(total)(params)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    lower = jax.tree.map(lambda p, g: p - 0.01 * g, params, grads)
    assert total(lower) < total(params)


def test_upsampling_is_linear_interpolation():
    ramp = jnp.arange(5.0).reshape(1, 5, 1, 1) * jnp.ones((1, 5, 5, 2))
    up = fcn.upsample_bilinear(ramp, 8, 16)
    assert up.shape == (1, 48, 48, 2)
    inside = up[0, 8:40, 24, 0]  # between the first and the last row's centres
    np.testing.assert_allclose(inside, (np.arange(8, 40) - 7.5) / 8, atol=1e-5)


def test_doubling_starts_bilinear():
    kernel = fcn.bilinear_init(jax.random.key(0), (4, 4, 2, 2))
    assert kernel[1, 1, 0, 0] == 0.5625
    assert (kernel[:, :, 0, 1] == 0).all()


def test_unknown_stride_is_refused():
    with pytest.raises(ValueError, match="expected 32, 16 or 8"):
        fcn.FCN(2, stride=4).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
