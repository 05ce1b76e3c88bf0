"""Resampling, transposed convolution, pooling and norms are torch's, and so are their gradients."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest

from jaxseg.nn.norm import make_norm
from jaxseg.ops import conv, unpool


@pytest.fixture(scope="module")
def dense(fixtures):
    return published.read(fixtures, "ops/dense")


def cases(reference, prefix, **settings):
    """{case: what is known of it} of a kind, where it has these settings."""
    found = {
        case: about
        for case, about in reference.meta["cases"].items()
        if case.startswith(prefix) and settings.items() <= about.items()
    }
    assert found
    return found


def ours(array):
    """[B C H W] -> [B H W C]"""
    return jnp.asarray(array.transpose(0, 2, 3, 1))


def cotangent(seed, y):
    b, h, w, c = y.shape
    draw = np.random.Generator(np.random.PCG64(seed)).standard_normal((b, c, h, w))
    return ours(draw.astype(np.float32))


def check(case, found, expected, atol=2e-5):
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=atol, err_msg=case)


def check_with_gradients(case, function: Callable, inputs, about, expected):
    """expected: of the result, then of the gradients of the inputs, None where it is not known."""

    @jax.jit
    def run(inputs, seen):
        y, gradient = jax.vjp(function, *inputs)
        return y, gradient(seen)

    seen = cotangent(about["ct_seed"], expected[0])
    y, gradients = run(inputs, seen)
    check(case, y, expected[0])
    for gradient, value in zip(gradients, expected[1:], strict=True):
        if value is not None:
            check(case, gradient, value, 1e-4)


@pytest.mark.parametrize("align_corners", [False, True])
def test_bilinear_resampling(dense, align_corners):
    x = ours(dense.arrays["interp_inputs/input"])
    for case, about in cases(dense, "bilinear", align_corners=align_corners).items():
        resize = partial(
            conv.resize_bilinear, size=tuple(about["size"]), align_corners=align_corners
        )
        expected = [ours(dense.arrays[f"{case}/{name}"]) for name in ("y", "grad")]
        check_with_gradients(case, resize, [x], about, expected)


def test_nearest_upsampling_by_a_whole_factor(dense):
    x = ours(dense.arrays["interp_inputs/input"])
    size = [2 * n for n in x.shape[1:3]]
    for case in cases(dense, "nearest", size=size):
        check(case, unpool.upsample_nearest(x, 2), ours(dense.arrays[f"{case}/y"]), 0)


def test_transposed_convolution(dense):
    for case, about in cases(dense, "convT", dilation=1, groups=1).items():
        x, bias, y, gx = (dense.arrays[f"{case}/{name}"] for name in ("x", "b", "y", "gx"))
        kernels = [dense.arrays.get(f"{case}/{name}") for name in ("w", "gw")]
        kernel, gw = (k if k is None else jnp.asarray(k.transpose(2, 3, 0, 1)) for k in kernels)
        geometry = {name: about[name] for name in ("stride", "padding", "output_padding")}
        convolve = partial(conv.conv_transpose2d, **geometry)
        expected = [ours(y) - bias.reshape(1, 1, 1, -1), ours(gx), gw]
        check_with_gradients(case, convolve, [ours(x), kernel], about, expected)


def test_max_pooling_with_many_equal_values(dense):
    x = ours(dense.arrays["pool_inputs/input"])
    for case, about in cases(dense, "maxpool").items():
        geometry = (about["kernel"], about["stride"], about["padding"])
        ceil_mode = dict(ceil_mode=about["ceil_mode"])

        def pool(x, geometry=geometry, ceil_mode=ceil_mode):
            return unpool.max_pool_with_switches(x, *geometry, **ceil_mode)

        expected, gradient = (ours(dense.arrays[f"{case}/{name}"]) for name in ("y", "grad"))
        pooled, switches = jax.jit(pool)(x)
        plain = jax.jit(lambda x, g=geometry, c=ceil_mode: conv.max_pool2d(x, *g, **c))(x)
        np.testing.assert_array_equal(plain, expected, case)
        np.testing.assert_array_equal(switches, ours(dense.arrays[f"{case}/idx"]), case)
        check_with_gradients(
            case, lambda x, pool=pool: pool(x)[0], [x], about, [expected, gradient]
        )
        if f"{case}/unpool" in dense.arrays:
            unpooled = unpool.max_unpool(pooled, switches, x.shape[1:3], *geometry)
            check(case, unpooled, ours(dense.arrays[f"{case}/unpool"]), 0)


def test_adaptive_mean(dense):
    x = ours(dense.arrays["pool_inputs/input"])
    square = {
        c: a["size"] for c, a in cases(dense, "adaptive_avg").items() if len({*a["size"]}) == 1
    }
    assert square
    for case, (size, _) in square.items():
        check(case, conv.adaptive_avg_pool2d(x, size), ours(dense.arrays[f"{case}/y"]))


def test_batch_norm_in_training(dense):
    x, about = ours(dense.arrays["pool_inputs/input"]), dense.meta["cases"]["batchnorm_train"]
    settings = dict(momentum=1 - about["momentum"], epsilon=about["eps"])
    norm = make_norm("batch", train=True, **settings)()
    variables = norm.init(jax.random.key(0), x)
    (y, after), gradient = jax.vjp(lambda x: norm.apply(variables, x, mutable="batch_stats"), x)
    expected = {n: dense.arrays[f"batchnorm_train/{n}"] for n in ("y", "ct", "grad")}
    check("y", y, ours(expected["y"]))
    nothing = jax.tree.map(jnp.zeros_like, after)
    check("grad", gradient((ours(expected["ct"]), nothing))[0], ours(expected["grad"]))
    for name in ("mean", "var"):
        statistic = dense.arrays[f"batchnorm_train/running_{name}"]
        check(name, after["batch_stats"][name], statistic)


def test_group_norm(dense):
    about = dense.meta["cases"]["groupnorm32"]
    arrays = {n: dense.arrays[f"groupnorm32/{n}"] for n in ("x", "y", "w", "b", "gx", "gw", "gb")}
    norm = make_norm("group", train=True, epsilon=about["eps"])()
    x = ours(arrays["x"])
    params = {"group": {"scale": jnp.asarray(arrays["w"]), "bias": jnp.asarray(arrays["b"])}}
    y, gradient = jax.vjp(lambda params, x: norm.apply({"params": params}, x), params, x)
    check("y", y, ours(arrays["y"]))
    dparams, dx = gradient(cotangent(about["ct_seed"], y))
    check("gx", dx, ours(arrays["gx"]), 1e-4)
    check("gw", dparams["group"]["scale"], arrays["gw"], 1e-4)
    check("gb", dparams["group"]["bias"], arrays["gb"], 1e-4)
