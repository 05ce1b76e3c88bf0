"""RoI-Align and RoI-Pool are torchvision's, their gradients too; levels are the FPN paper's."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest

from jaxseg.ops.roi import multiscale_roi_align, pyramid_levels, roi_align, roi_pool


@pytest.fixture(scope="module")
def reference(fixtures):
    return published.read(fixtures, "ops/roi")


def cases(reference, prefix):
    return {c: about for c, about in reference.meta["cases"].items() if c.startswith(prefix)}


def ours(array):
    """[B C H W] -> [B H W C]"""
    return jnp.asarray(array.transpose(0, 2, 3, 1))


def cotangent(about, y):
    r, n, m, c = y.shape
    draw = np.random.Generator(np.random.PCG64(about["ct_seed"])).standard_normal((r, c, n, m))
    return ours(draw.astype(np.float32))


def check_on_images(reference, case, function):
    """All RoIs on both images, of which those of the other image have no cotangent."""
    about, arrays = reference.meta["cases"][case], reference.arrays
    images, rois = ours(arrays["inputs/input"]), arrays["inputs/rois"]
    boxes = jnp.asarray(rois[:, 1:] / np.float32(about["scale"]))
    own = jnp.asarray(rois[:, 0, None] == np.arange(2).reshape(1, 2))
    expected = ours(arrays[f"{case}/y"])

    @jax.jit
    def run(images, seen):
        def pool(images):
            pooled = jax.vmap(function, in_axes=(0, None), out_axes=1)(images, boxes)
            return jnp.where(own[:, :, None, None, None], pooled, 0).sum(axis=1)

        y, gradient = jax.vjp(pool, images)
        return y, *gradient(seen)

    y, gradient = run(images, cotangent(about, expected))
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5, err_msg=case)
    np.testing.assert_allclose(gradient, ours(arrays[f"{case}/grad"]), atol=1e-4, err_msg=case)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [-1, 0, 1, 2])
def test_roi_align(reference, ratio, aligned):
    for case, about in cases(reference, "roi_align").items():
        if (about["sampling_ratio"], about["aligned"]) == (ratio, aligned):
            options = dict(scale=about["scale"], sampling_ratio=ratio, aligned=aligned)
            align = partial(roi_align, size=tuple(about["size"]), **options)
            check_on_images(reference, case, align)


def test_roi_pool(reference):
    for case, about in cases(reference, "roi_pool").items():
        pool = partial(roi_pool, size=tuple(about["size"]), scale=about["scale"])
        check_on_images(reference, case, pool)


@pytest.mark.parametrize("together", [False, True])
def test_feature_pyramid(reference, together, monkeypatch):
    """By either of the ways that the platform chooses between."""
    if together:
        choice = lambda *arguments, default, cpu: default(*arguments)  # noqa: E731
        monkeypatch.setattr(jax.lax, "platform_dependent", choice)
    about = reference.meta["cases"]["multiscale"]
    arrays = {k.split("/")[1]: v for k, v in reference.arrays.items() if k.startswith("multis")}
    strides = [round(1 / scale) for scale in about["scales"]]
    boxes = jnp.stack([arrays["boxes0"], arrays["boxes1"]])
    levels = jax.vmap(partial(pyramid_levels, strides=strides))(boxes)
    np.testing.assert_array_equal(levels.reshape(-1), arrays["levels"])

    def pool(maps):
        align = partial(multiscale_roi_align, size=(7, 7), strides=strides)
        return jax.vmap(align)(maps, boxes).reshape(32, 7, 7, 3)

    maps = [ours(arrays[f"feat{i}"]) for i in range(4)]
    seen = cotangent(about, ours(arrays["y"]))
    y, (gradients,) = jax.jit(lambda m: (pool(m), jax.vjp(pool, m)[1](seen)))(maps)
    np.testing.assert_allclose(y, ours(arrays["y"]), rtol=1e-5, atol=1e-5)
    for i, gradient in enumerate(gradients):
        np.testing.assert_allclose(gradient, ours(arrays[f"grad{i}"]), atol=1e-4)


def test_levels(reference):
    arrays = reference.arrays
    levels = pyramid_levels(jnp.asarray(arrays["level_mapper/boxes"]), [4, 8, 16, 32])
    np.testing.assert_array_equal(levels, arrays["level_mapper/levels"])


def test_levels_on_borders():
    sides = [0.0, 111.9, 112.0, 223.9, 224.0, 448.0, 5000.0]
    boxes = jnp.asarray([[1, 1, 1 + side, 1 + side] for side in sides])
    np.testing.assert_array_equal(pyramid_levels(boxes, [4, 8, 16, 32]), [0, 0, 1, 1, 2, 3, 3])
    np.testing.assert_array_equal(pyramid_levels(boxes, [32, 32]), 0)


RAMP = jnp.arange(8.0)[:, None, None] * 10 + jnp.arange(8.0)[None, :, None]  # value 10 y + x


@pytest.mark.parametrize("ratio", [0, 3])
def test_roi_align_of_a_ramp_is_the_ramp_at_the_centres_of_the_bins(ratio):
    align = partial(roi_align, boxes=jnp.asarray([[1.0, 1, 5, 5]]), size=(2, 2))
    align = jax.jit(partial(align, sampling_ratio=ratio), static_argnames="aligned")
    centres = np.array([[22, 24], [42, 44]], np.float32)
    np.testing.assert_allclose(align(RAMP, aligned=False)[0, :, :, 0], centres, rtol=1e-6)
    np.testing.assert_allclose(align(RAMP, aligned=True)[0, :, :, 0], centres - 5.5, rtol=1e-6)


def test_adaptive_points_are_as_many_as_asked_for_by_number():
    """Bins of more than 2 and up to 3 pixels have 3 points, wherever the box lies."""
    key = jax.random.key(0)
    features = jax.random.normal(key, (9, 11, 2))
    starts = jnp.asarray([[-40, -3], [-3, 1.3], [2.2, 4.7], [-500, 6.6], [7.7, 900]])
    boxes = jnp.concatenate([starts, starts + jnp.asarray([[8.9, 6.2]])], axis=1)
    for aligned in (False, True):
        align = partial(roi_align, size=(3, 3), aligned=aligned)
        adaptive, counted = (
            jax.jit(partial(align, sampling_ratio=ratio))(features, boxes) for ratio in (0, 3)
        )
        np.testing.assert_allclose(adaptive, counted, atol=1e-6)


@pytest.mark.parametrize("ratio", [0, 2])
def test_pyramid_takes_each_box_from_its_level(ratio):
    maps = [jnp.full((32, 32, 2), 1.0), jnp.full((16, 16, 2), 2.0)]
    boxes = jnp.asarray([[1.0, 1, 20, 20], [0, 0, 250, 250]])
    align = partial(multiscale_roi_align, size=(2, 2), strides=[8, 16], sampling_ratio=ratio)
    pooled = jax.jit(align)(maps, boxes)
    np.testing.assert_allclose(pooled[0], 1, rtol=1e-6)
    np.testing.assert_allclose(pooled[1], 2, rtol=1e-6)


@pytest.mark.parametrize("bins", [3, 5, 6, 7, 14])
def test_borders_of_pooled_bins_are_rounded_as_float32_divides(bins):
    """21 pixels in 7 bins are 3 each; 21 times a seventh, rounded, reaches into a fourth."""
    lengths = np.arange(1, 200)
    boxes = jnp.asarray([[0, 0, 0, length - 1] for length in lengths], jnp.float32)
    pixels = jnp.arange(256.0)[:, None, None]
    pool = jax.jit(roi_pool, static_argnums=2)
    edges = np.arange(bins + 1, dtype=np.float32) * (
        lengths[:, None].astype(np.float32) / np.float32(bins)
    )
    last = pool(pixels, boxes, (bins, 1))[:, :, 0, 0]
    np.testing.assert_array_equal(last, np.ceil(edges[:, 1:]) - 1)
    first = -pool(-pixels, boxes, (bins, 1))[:, :, 0, 0]
    np.testing.assert_array_equal(first, np.floor(edges[:, :-1]))
    of_constants = jax.jit(lambda pixels: roi_pool(pixels, boxes, (bins, 1)))(-pixels)
    np.testing.assert_array_equal(-of_constants[:, :, 0, 0], first)
    np.testing.assert_array_equal(-roi_pool(-pixels, boxes, (bins, 1))[:, :, 0, 0], first)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [0, 1, 3])
def test_points_on_the_border_count_as_float32_rounds_them(ratio, aligned):
    """Of a map of ones a bin is the share of its points from -1 to the map's end."""
    height, bins, f = 25, 14, np.float32
    tops = np.random.default_rng(0).integers(-12, 20, 300)
    bottoms = tops + np.random.default_rng(1).integers(1, 20, 300)
    for scale in (2.0, 0.3):
        expected = []
        for top, bottom in zip(tops, bottoms, strict=True):
            start, end = (f(y) * f(scale) - f(0.5 * aligned) for y in (top, bottom))
            length = end - start if aligned else max(end - start, f(1))
            bin_size = length / f(bins)
            count = ratio or max(int(np.ceil(bin_size)), 1)
            points = (np.arange(count, dtype=f) + f(0.5)) * bin_size / f(count)
            place = start + np.arange(bins, dtype=f)[:, None] * bin_size + points
            expected.append(((place >= -1) & (place <= height)).mean(1))
        boxes = jnp.asarray([[2, t, 5, b] for t, b in zip(tops, bottoms, strict=True)], jnp.float32)
        align = partial(roi_align, scale=scale, sampling_ratio=ratio, aligned=aligned)
        found = jax.jit(partial(align, size=(bins, 1)))(jnp.ones((height, 30, 1)), boxes)
        np.testing.assert_allclose(found[:, :, 0, 0], expected, atol=1e-5)


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("aligned", [False, True])
def test_a_picture_that_fills_part_of_the_map(ratio, aligned):
    rng = np.random.default_rng(0)
    picture = jnp.asarray(rng.normal(size=(9, 13, 2)), jnp.float32)
    canvas = jnp.full((16, 32, 2), 7.0).at[:9, :13].set(picture)
    corners = rng.uniform(-4, 14, (20, 2))
    boxes = jnp.asarray(np.concatenate([corners, corners + rng.uniform(1, 9, (20, 2))], 1), "f4")
    align = partial(roi_align, size=(3, 5), sampling_ratio=ratio, aligned=aligned)
    found = jax.jit(align)(canvas, boxes, extent=jnp.array([9, 13]))
    np.testing.assert_allclose(found, align(picture, boxes), atol=1e-5)


def test_roi_pool_by_hand():
    boxes = jnp.asarray([[2.0, 1, 4, 3], [9, 9, 9, 9], [6.5, 0, 6.5, 0]])
    pooled = jax.jit(partial(roi_pool, size=(2, 2)))(RAMP, boxes)
    # columns 2 … 4 in bins of 1.5 pixels: 2 … 3 and 3 … 4; rows alike
    np.testing.assert_array_equal(pooled[0, :, :, 0], [[23, 24], [33, 34]])
    np.testing.assert_array_equal(pooled[1], 0)
    np.testing.assert_array_equal(pooled[2, :, :, 0], 7)  # 6.5 is rounded to 7


def test_numpy_features():
    features, boxes = np.ones((4, 4, 1), np.float32), np.array([[0, 0, 3, 3]], np.float32)
    for pool in (roi_align, roi_pool):
        np.testing.assert_allclose(pool(features, boxes, (2, 2)), 1)


def test_roi_pool_sends_the_gradient_to_the_first_maximum():
    image = jnp.zeros((4, 4, 1)).at[1, 2].set(1.0).at[2, 1].set(1.0)
    pool = partial(roi_pool, boxes=jnp.asarray([[0.0, 0, 3, 3]]), size=(1, 1))
    gradient = jax.grad(lambda x: pool(x).sum())(image)
    np.testing.assert_array_equal(gradient[:, :, 0], np.eye(1, 16, 6).reshape(4, 4))


@pytest.mark.parametrize("ratio", [0, 2])
def test_gradient_is_the_adjoint(ratio):
    """RoI-Align is linear: ⟨align(x), g⟩ = ⟨x, gradient of g⟩; eager equals compiled."""
    keys = jax.random.split(jax.random.key(1), 3)
    x = jax.random.normal(keys[0], (7, 9, 3))
    boxes = jax.random.uniform(keys[1], (6, 4), minval=-3, maxval=12)  # some inside out
    align = partial(roi_align, size=(3, 2), sampling_ratio=ratio, aligned=True)
    g = jax.random.normal(keys[2], (6, 3, 2, 3))

    @jax.jit
    def run(x, boxes, g):
        y, gradient = jax.vjp(align, x, boxes)
        return y, *gradient(g)

    y, of_features, of_boxes = run(x, boxes, g)
    np.testing.assert_allclose((y * g).sum(), (x * of_features).sum(), rtol=1e-4)
    np.testing.assert_array_equal(of_boxes, 0)
    np.testing.assert_allclose(align(x, boxes), y, atol=1e-5)


def test_a_stride_for_each_map():
    with pytest.raises(ValueError, match="2 maps"):
        multiscale_roi_align([RAMP, RAMP], jnp.zeros((1, 4)), (2, 2), strides=[4, 8, 16])


def test_half_precision_features_are_summed_in_float32():
    features = jnp.full((8, 8, 1), 1.0, jnp.bfloat16)
    pooled = roi_align(features, jnp.asarray([[1.0, 1, 6, 6]]), (2, 2))
    assert pooled.dtype == jnp.bfloat16
    np.testing.assert_array_equal(pooled.astype(jnp.float32), 1)
