from functools import partial

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
    ("size", "stride", "padding", "output_padding"),
    [
        (2, 2, 0, 0),
        (4, 2, 1, 0),
        (3, 2, 0, 0),
        (5, 3, 2, 0),
        (3, 2, 1, 1),
        (5, 3, 2, 2),
        (2, 4, 0, 3),
        (7, 1, 0, 0),
        (7, 1, 3, 0),
        (3, 1, 1, 0),
    ],
)
def test_transposed_convolution_is_the_adjoint(size, stride, padding, output_padding):
    kernel = random(size, size, 3, 4)
    y = random(2, 5, 6, 3, seed=1)

    def up(y, kernel):
        geometry = dict(stride=stride, padding=padding, output_padding=output_padding)
        return conv.conv_transpose2d(y, kernel, **geometry)

    def down(x, kernel):
        return conv.conv2d(x, kernel.transpose(0, 1, 3, 2), stride=stride, padding=padding)

    rows = (5 - 1) * stride - 2 * padding + size + output_padding
    shape = jax.eval_shape(up, y, kernel).shape
    assert shape == (2, rows, rows + stride, 4)
    x = random(*shape, seed=2)

    @jax.jit
    def results(x, y, kernel):
        upward, gradient = jax.vjp(up, y, kernel)
        downward, of_kernel = jax.vjp(lambda kernel: down(x, kernel), kernel)
        return upward, gradient(x), (downward, of_kernel(y)[0])

    upward, gradients, expected = results(x, y, kernel)
    np.testing.assert_allclose((upward * x).sum(), (expected[0] * y).sum(), rtol=1e-3)
    for found, value in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-3)


def test_transposed_convolution_by_hand():
    x = jnp.array([1.0, 10.0]).reshape(1, 1, 2, 1)
    kernel = jnp.array([1.0, 2.0, 3.0]).reshape(1, 3, 1, 1)

    def row(**geometry):
        return conv.conv_transpose2d(x, kernel, **geometry).ravel().tolist()

    assert row(stride=1) == [1, 12, 23, 30]  # 1 2 3 and 10 20 30 begin a pixel apart
    assert row(stride=2) == [1, 2, 13, 20, 30]
    assert row(stride=2, padding=0, output_padding=1) == [1, 2, 13, 20, 30, 0] + [0] * 6
    with pytest.raises(ValueError, match="output_padding is 2, expected less than 2"):
        row(stride=2, output_padding=2)


def plane(rows):
    return jnp.asarray(rows, jnp.float32)[None, :, :, None]


def flat(x):
    return x[0, ..., 0].tolist()


def assert_the_same_with_gradients(ours, reference, x, kernel):
    def results(convolve):
        def run(x, kernel):
            y, gradient = jax.vjp(convolve, x, kernel)
            return y, *gradient(jnp.sin(y))

        return jax.jit(run)(x, kernel)

    for found, expected in zip(results(ours), results(reference), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def general(x, kernel, padding, dilation=1, stride=1, groups=1):
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


@pytest.mark.parametrize(
    ("size", "height", "width", "padding"),
    [(7, 8, 9, 0), (7, 5, 8, 1), (7, 2, 4, 3), (3, 2, 2, 1), (3, 1, 4, 1), (3, 1, 1, 3)],
)
def test_maps_smaller_than_the_kernel_are_convolved_alike(size, height, width, padding):
    """They go by a way of their own."""
    x, kernel = random(2, height, width, 3), random(size, size, 3, 4, seed=1)
    ours = partial(conv.conv2d, padding=padding)
    assert_the_same_with_gradients(ours, partial(general, padding=padding), x, kernel)


@pytest.mark.parametrize(("inputs", "outputs"), [(32, 64), (64, 32)])
@pytest.mark.parametrize(("dilation", "padding"), [(1, 0), (1, 1), (1, 3), (2, 2)])
def test_gradients_on_large_maps_of_many_channels(inputs, outputs, dilation, padding):
    """On CPU that of the weights is taken row by row."""
    x, kernel = random(1, 21, 13, inputs), random(3, 3, inputs, outputs, seed=1)
    geometry = dict(padding=padding, dilation=dilation)
    ours, reference = partial(conv.conv2d, **geometry), partial(general, **geometry)
    assert_the_same_with_gradients(ours, reference, x, kernel)


@pytest.mark.parametrize(
    ("shape", "stride", "padding", "dilation"),
    [
        ((7, 7, 3, 32), 2, 3, 1),
        ((3, 3, 32, 64), 2, 1, 1),
        ((3, 3, 64, 16), 2, 1, 1),
        ((3, 3, 32, 32), 3, 0, 2),
    ],
)
@pytest.mark.parametrize("height", [46, 45, 9])
def test_gradients_of_strided_convolutions(shape, stride, padding, dilation, height):
    """Row by row, with rows that only fill up the last block, and image by image."""
    x, kernel = random(2, height, 13, shape[2]), random(*shape, seed=1)
    geometry = dict(stride=stride, padding=padding, dilation=dilation)
    ours, reference = partial(conv.conv2d, **geometry), partial(general, **geometry)
    assert_the_same_with_gradients(ours, reference, x, kernel)


@pytest.mark.parametrize(
    ("size", "dilation", "padding"), [(3, 2, 2), (3, 5, 5), (3, 9, 9), (3, 4, 11), (2, 3, 0)]
)
def test_taps_that_see_margin_alone(size, dilation, padding):
    """Of 9 rows and 7 columns: taps that meet some of them, and taps that meet none."""
    x, kernel = random(2, 9, 7, 3), random(size, size, 3, 4, seed=1)
    geometry = dict(padding=padding, dilation=dilation)
    ours, reference = partial(conv.conv2d, **geometry), partial(general, **geometry)
    assert_the_same_with_gradients(ours, reference, x, kernel)


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("stride", [2, 3])
def test_strided_convolution_of_a_small_map(stride, padding):
    x, kernel = random(1, 4, 5, 2), random(3, 3, 2, 3, seed=1)
    every = conv.conv2d(x, kernel, padding=padding)
    few = conv.conv2d(x, kernel, padding=padding, stride=stride)
    np.testing.assert_allclose(few, every[:, ::stride, ::stride], atol=1e-5)


def test_a_window_must_fit():
    x = jnp.zeros((1, 2, 9, 1))
    for use in (
        lambda: conv.conv2d(x, jnp.zeros((3, 3, 1, 1))),
        lambda: conv.max_pool2d(x, 3, 2),
        lambda: conv.avg_pool2d(x, 3, 1),
    ):
        with pytest.raises(ValueError, match="window of 3 pixels does not fit into a map of 2"):
            use()


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_convolution_is_the_grouped_one(stride, dilation):
    x, kernel = random(2, 8, 7, 5), random(3, 3, 1, 5, seed=1)
    geometry = dict(stride=stride, padding=dilation, dilation=dilation)
    ours = partial(conv.depthwise_conv2d, **geometry)
    assert_the_same_with_gradients(ours, partial(general, groups=5, **geometry), x, kernel)


@pytest.mark.parametrize(
    ("height", "size", "stride"),
    [
        (45, 5, 1),
        (45, 5, 2),
        (90, 3, 2),
        (90, 3, 1),
        (6, 3, 1),
        (9, 2, 3),
        (6, 1, 2),
        (45, 3, 3),
        (12, 11, 1),
    ],
)
def test_depthwise_convolution_of_several_blocks_of_rows(height, size, stride):
    """45 rows in blocks of 23 (of 45 // 2), 90 in blocks of 23 (of 90 // 4), 6 of two pictures."""
    x, kernel = random(4, height, 7, 3), random(size, size, 1, 3, seed=1)
    geometry = dict(stride=stride, padding=size // 2)
    ours = partial(conv.depthwise_conv2d, **geometry)
    assert_the_same_with_gradients(ours, partial(general, groups=3, **geometry), x, kernel)


def test_max_pool_leaves_out_or_keeps_the_last_window():
    x = plane([[0, 1, 2], [3, 4, 5], [6, 7, 8]])
    assert flat(conv.max_pool2d(x)) == [[4]]
    assert flat(conv.max_pool2d(x, ceil_mode=True)) == [[4, 5], [7, 8]]
    assert flat(conv.max_pool2d(x, 3, 1)) == [[8]]
    # A 3×3 window every 2 pixels, begun one pixel outside: columns −1 0 1 and 1 2 3.
    assert flat(conv.max_pool2d(-x, 3, 2, 1)) == [[0, -1], [-3, -4]]
    # One more would begin at 3, outside, even though not all of the margin is used.
    assert flat(conv.max_pool2d(-x, 3, 2, 1, ceil_mode=True)) == [[0, -1], [-3, -4]]
    wide = jnp.arange(6.0).reshape(1, 1, 6, 1)
    assert conv.max_pool2d(wide, 1, 4).ravel().tolist() == [0, 4]
    assert conv.max_pool2d(jnp.tile(wide, (1, 3, 1, 1)), 3, 2).ravel().tolist() == [2, 4]
    ceiled = conv.max_pool2d(jnp.tile(wide, (1, 3, 1, 1)), 3, 2, ceil_mode=True)
    assert ceiled.ravel().tolist() == [2, 4, 5]


def test_max_pool_gradient_goes_to_the_maximum():
    x = plane([[1, 5], [2, 3]])
    grad = jax.grad(lambda x: conv.max_pool2d(x).sum())(x)
    assert flat(grad) == [[0, 1], [0, 0]]
    shared = jax.grad(lambda x: conv.max_pool2d(x).sum())(plane([[5, 5], [2, 3]]))
    assert flat(shared) == [[0.5, 0.5], [0, 0]]


def test_means_by_hand():
    x = plane([[1, 2, 6], [3, 4, 0], [5, 7, 9]])
    assert flat(conv.avg_pool2d(x, 2, 2)) == [[2.5]]
    assert flat(conv.avg_pool2d(x, 2, 1)) == [[2.5, 3.0], [4.75, 5.0]]
    # Rows 0–1 and 1–2, columns likewise: windows of ⌈3/2⌉ that share the middle.
    assert flat(conv.adaptive_avg_pool2d(x, 2)) == [[2.5, 3.0], [4.75, 5.0]]
    np.testing.assert_allclose(flat(conv.adaptive_avg_pool2d(x, 1)), [[37 / 9]], rtol=1e-6)
    # A map smaller than the grid is seen more than once.
    four = conv.adaptive_avg_pool2d(plane([[1, 3], [5, 7]]), 4)
    assert flat(four) == [[1, 1, 3, 3], [1, 1, 3, 3], [5, 5, 7, 7], [5, 5, 7, 7]]


@pytest.mark.parametrize(
    ("stride", "size", "ramp"),
    [
        (2, None, [1 / 4, 3 / 4, 3 / 4, 1 / 4]),
        (2, 4, [1 / 4, 3 / 4, 3 / 4, 1 / 4]),
        (2, 3, [1 / 2, 1, 1 / 2]),
        (3, None, [1 / 3, 2 / 3, 1, 2 / 3, 1 / 3]),
        (3, 6, [1 / 6, 3 / 6, 5 / 6, 5 / 6, 3 / 6, 1 / 6]),
    ],
)
def test_bilinear_kernel(stride, size, ramp):
    kernel = conv.bilinear_kernel(stride, size)
    np.testing.assert_allclose(kernel, np.outer(ramp, ramp), rtol=1e-6)
    # Constant maps stay constant but for the border.
    x = jnp.ones((1, 6, 6, 1))
    up = conv.conv_transpose2d(x, jnp.asarray(kernel)[..., None, None], stride=stride)
    inner = up[0, 2 * stride : -2 * stride, 2 * stride : -2 * stride, 0]
    np.testing.assert_allclose(inner, np.ones_like(inner), rtol=1e-6)


def test_mirror_pad_repeats_for_wide_margins():
    x = jnp.arange(3.0).reshape(1, 1, 3, 1)
    padded = conv.mirror_pad(x, (0, 3), (0, 4)).ravel()
    assert padded.tolist() == [1, 2, 1, 0, 1, 2, 1, 0, 1, 2]


def test_resize_bilinear_has_pixel_centres_at_half():
    x = jnp.array([0.0, 4.0]).reshape(1, 1, 2, 1)
    assert conv.resize_bilinear(x, (1, 4)).ravel().tolist() == [0.0, 1.0, 3.0, 4.0]


def test_resize_bilinear_with_aligned_corners():
    x = jnp.array([[0.0, 3.0, 9.0], [6.0, 9.0, 15.0]]).reshape(1, 2, 3, 1)
    resized = conv.resize_bilinear(x, (3, 5), align_corners=True)
    expected = [[0, 1.5, 3, 6, 9], [3, 4.5, 6, 9, 12], [6, 7.5, 9, 12, 15]]
    np.testing.assert_allclose(flat(resized), expected)
    for size in [(2, 3), (1, 1)]:  # the same size, and the corner alone
        resized = conv.resize_bilinear(x, size, align_corners=True)
        np.testing.assert_allclose(resized, x[:, : size[0], : size[1]])
    for align_corners in (False, True):
        half = conv.resize_bilinear(x.astype(jnp.bfloat16), (4, 6), align_corners=align_corners)
        assert half.dtype == jnp.bfloat16
