import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxseg.ops import conv


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def test_conv2d_dilated_by_hand():
    x = jnp.arange(7.0).reshape(1, 1, 7, 1)
    kernel = jnp.array([1.0, 10.0, 100.0]).reshape(1, 3, 1, 1)
    y = conv.conv2d(x, kernel, dilation=2)
    assert y.ravel().tolist() == [420.0, 531.0, 642.0]  # x[i] + 10 x[i+2] + 100 x[i+4]


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_pointwise_convolution_is_the_general_one(stride):
    x, kernel = random(2, 7, 5, 3), random(1, 1, 3, 4, seed=1)
    general = lax.conv_general_dilated(
        x, kernel, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(conv.conv2d(x, kernel, stride=stride), general, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "stride", "padding"), [(2, 2, 0), (4, 2, 1), (3, 2, 0), (5, 3, 2)]
)
def test_transposed_convolution_is_the_adjoint(size, stride, padding):
    kernel = random(size, size, 3, 4)
    y = random(2, 5, 6, 3, seed=1)
    up = conv.conv_transpose2d(y, kernel, stride=stride, padding=padding)
    rows = (5 - 1) * stride - 2 * padding + size
    assert up.shape == (2, rows, rows + stride, 4)
    x = random(*up.shape, seed=2)
    down = conv.conv2d(x, kernel.transpose(0, 1, 3, 2), stride=stride, padding=padding)
    np.testing.assert_allclose((up * x).sum(), (down * y).sum(), rtol=1e-4)


def test_max_pool_of_odd_sizes():
    x = jnp.arange(9.0).reshape(1, 3, 3, 1)
    assert conv.max_pool2x2(x)[0, ..., 0].tolist() == [[4.0, 5.0], [7.0, 8.0]]


def test_max_pool_gradient_goes_to_the_maximum():
    x = jnp.array([[1.0, 5.0], [2.0, 3.0]]).reshape(1, 2, 2, 1)
    grad = jax.grad(lambda x: conv.max_pool2x2(x).sum())(x)
    assert grad[0, ..., 0].tolist() == [[0.0, 1.0], [0.0, 0.0]]


def test_bilinear_kernel_of_stride_two():
    ramp = np.array([0.25, 0.75, 0.75, 0.25])
    np.testing.assert_array_equal(conv.bilinear_kernel(2), np.outer(ramp, ramp))


def test_mirror_pad_repeats_for_wide_margins():
    x = jnp.arange(3.0).reshape(1, 1, 3, 1)
    padded = conv.mirror_pad(x, (0, 3), (0, 4)).ravel()
    assert padded.tolist() == [1, 2, 1, 0, 1, 2, 1, 0, 1, 2]


def test_resize_bilinear_has_pixel_centres_at_half():
    x = jnp.array([0.0, 4.0]).reshape(1, 1, 2, 1)
    assert conv.resize_bilinear(x, (1, 4)).ravel().tolist() == [0.0, 1.0, 3.0, 4.0]
