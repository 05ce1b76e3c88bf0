"""The dense CRF of a picture: against exact marginals, in batches, in tiles, on padding."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.crf import dense
from jaxseg.crf.dense import behind, dense_crf, from_batch, over_tiles
from jaxseg.types import MEAN, STD

SIGMAS = dict(spatial_sigma=1.5, bilateral_sigma=4.0, colour_sigma=60.0)
QUICK = dict(**SIGMAS, bilateral_weight=2.0, iterations=3)
EXACT = dict(**QUICK, backend="exact")


def example(*shape, labels=3):
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((*shape, labels)).astype(np.float32)
    return logits, rng.integers(0, 256, (*shape, 3), dtype=np.uint8)


def smooth_example():
    """A picture as pictures are: many pixels to a vertex of the lattice."""
    logits, image = example(12, 10)
    y, x = np.indices(image.shape[:2], np.float32)
    slope = np.stack([10 * y, 12 * x, 100 + 40 * (y > 5)], axis=-1)
    return logits, (slope + image / 16).astype(np.uint8)


def marginals(*args, **options):
    return np.asarray(jax.nn.softmax(dense_crf(*args, **options)))


@pytest.mark.parametrize("normalization", ["none", "symmetric", "before", "after"])
def test_exact_marginals(fixtures, normalization):
    tiny = np.load(fixtures / "crf" / "exact_tiny.npz")
    options = dict(spatial_sigma=1.5, bilateral_sigma=6.0, colour_sigma=20.0, iterations=5)
    w1, w2 = tiny[f"w_{normalization}"]
    options |= dict(backend="exact", normalization=normalization)
    options |= dict(spatial_weight=w1, bilateral_weight=w2)
    found = marginals(tiny["logits"].astype(np.float32), tiny["image"], **options)
    expected = tiny[f"Q_{normalization}_potts_self_5"]
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_weights_a_label_and_a_matrix_are_the_same_model():
    logits, image = example(7, 6)
    weights = np.array([1.0, 2.0, 3.0], np.float32)
    a = marginals(logits, image, **EXACT | dict(bilateral_weight=weights))
    potts = -np.eye(3, dtype=np.float32)
    b = marginals(logits, image, **EXACT | dict(bilateral_weight=weights), compatibility=potts)
    c = marginals(logits, image, **EXACT | dict(bilateral_weight=weights), compatibility=1 + potts)
    np.testing.assert_allclose(a, b, atol=1e-6)
    np.testing.assert_allclose(a, c, atol=1e-6)  # all labels of a pixel cost as much more
    one = marginals(logits, image, **EXACT)
    assert np.abs(a - one).max() > 0.01


def test_the_lattice_agrees_with_the_exact_filter():
    logits, image = smooth_example()
    found, exact = (marginals(logits, image, **options) for options in (QUICK, EXACT))
    assert np.abs(found - exact).sum(-1).mean() / 2 < 0.02  # total variation
    assert (found.argmax(-1) == exact.argmax(-1)).mean() > 0.95


@pytest.mark.slow
def test_a_lattice_without_room_is_made_again():
    logits, image = example(12, 10)
    noisy = QUICK | dict(colour_sigma=1.0)
    assert np.isnan(dense_crf(logits, image, **noisy, room=1.0)).all()
    enough = dense_crf(logits, image, **noisy, room=6.0)
    with pytest.warns(UserWarning, match="more than 1.0 vertices a pixel"):
        again = dense_crf(logits, image, **noisy)
    np.testing.assert_allclose(again, enough, atol=1e-6)
    traced = jax.jit(partial(dense_crf, **noisy))(logits, image)
    np.testing.assert_allclose(traced, enough, atol=1e-6)


def test_a_batch_is_its_pictures_in_any_dtype():
    logits, image = example(2, 7, 6)
    both = marginals(logits, image, **EXACT)
    np.testing.assert_allclose(both[1], marginals(logits[1], image[1], **EXACT), atol=1e-6)
    half = dense_crf(jnp.asarray(logits, jnp.bfloat16), image, **EXACT)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(jax.nn.softmax(half.astype(jnp.float32)), both, atol=0.03)


def test_gradients_are_those_of_differences():
    logits, image = example(4, 5)
    direction = np.random.default_rng(1).standard_normal(logits.shape).astype(np.float32)

    def loss(logits, weight, sigma, backend):
        options = EXACT | dict(bilateral_weight=weight, bilateral_sigma=sigma, backend=backend)
        return (direction * dense_crf(logits, image, **options)).sum()

    gradients = jax.grad(loss, argnums=(0, 1, 2))(logits, 2.0, 4.0, "exact")
    step = 1e-2
    shifts = [(step * direction, 0, 0), (0, step, 0), (0, 0, step)]
    for gradient, shift in zip(gradients, shifts, strict=True):
        up = loss(logits + shift[0], 2.0 + shift[1], 4.0 + shift[2], "exact")
        down = loss(logits - shift[0], 2.0 - shift[1], 4.0 - shift[2], "exact")
        moved = sum(np.asarray(s) for s in shift)
        np.testing.assert_allclose((gradient * moved).sum(), (up - down) / 2, rtol=2e-2)
    with pytest.raises(TypeError, match="nystrom or exact"):
        jax.grad(loss, argnums=2)(logits, 2.0, 4.0, "permutohedral")


def test_padding_is_not_heard():
    logits, image = example(9, 11)
    inside = np.zeros((9, 11), bool)
    inside[1:7, 2:10] = True
    whole = marginals(logits, image, **EXACT, inside=inside)[1:7, 2:10]
    alone = marginals(logits[1:7, 2:10], image[1:7, 2:10], **EXACT)
    np.testing.assert_allclose(whole, alone, atol=1e-5)


def test_padding_hardly_changes_the_lattice():
    logits, image = smooth_example()
    inside = np.ones(image.shape[:2], bool)
    inside[:, 7:] = False
    whole, other = (
        marginals(logits, np.where(inside[..., None], image, colour), **QUICK, inside=inside)
        for colour in (image, np.uint8(120))
    )
    assert np.abs(whole - other)[:, :7].max() < 0.05


def test_pictures_and_their_padding_come_back_from_a_batch():
    image = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    padding = np.round(255 * MEAN).astype(np.uint8)
    canvas = np.tile(padding, (2, 8, 9, 1))
    canvas[0, 1:7, 3:8] = image
    normalized = ((canvas / 255 - MEAN) / STD).astype(np.float32)
    colours, inside = from_batch(normalized)
    np.testing.assert_array_equal(colours, canvas)
    expected = np.zeros((8, 9), bool)
    expected[1:7, 3:8] = True
    np.testing.assert_array_equal(inside[0], expected)
    assert inside[1].all()  # a picture of that colour


def test_tiles_cover_a_picture_once_with_their_context():
    place = np.arange(23 * 31, dtype=np.float32).reshape(23, 31, 1)

    def mean_of_five(x):
        """Right where two pixels to each side are seen; at the border of the window, −1."""
        rows = sum(x[i : len(x) - 4 + i] for i in range(5)) / 5
        mean = sum(rows[:, i : x.shape[1] - 4 + i] for i in range(5)) / 5
        return jnp.pad(mean, ((2, 2), (2, 2), (0, 0)), constant_values=-1)

    for tile in (9, 10, 16, 31):
        found = over_tiles(mean_of_five, (place,), tile, margin=2)
        np.testing.assert_array_equal(found, mean_of_five(place))


def test_tiles_hardly_change_the_crf():
    logits, image = example(40, 30)
    whole = marginals(logits, image, **EXACT)
    tiled = marginals(logits, image, **EXACT, tile=36)
    np.testing.assert_allclose(tiled, whole, atol=0.02)


@pytest.mark.parametrize("size", [(1, 1), (12, 10)])
def test_one_pixel_and_one_colour(size):
    logits, image = example(*size)
    found = dense_crf(logits, np.zeros_like(image), **QUICK)
    assert found.shape == logits.shape
    assert np.isfinite(found).all()


def test_predictions_are_refined_as_pictures_alone():
    logits, image = example(1, 8, 9)
    normalized = ((image / 255 - MEAN) / STD).astype(np.float32)

    def predict(variables, image):
        return {"probabilities": jax.nn.softmax(variables)}

    found = jax.jit(behind(predict, **EXACT))(logits, normalized)
    np.testing.assert_allclose(found["probabilities"], marginals(logits, image, **EXACT), atol=1e-5)
    np.testing.assert_array_equal(found["segmentation"], found["probabilities"].argmax(-1))


def test_what_cannot_be_is_named():
    logits, image = example(4, 5)
    bad = logits.copy()
    bad[1, 2, 0] = np.nan
    for arguments, options, message in [
        ((logits, image[1:]), {}, r"image is \(3, 5, 3\), expected \(4, 5, 3\)"),
        ((logits[None, None], image), {}, r"expected \[H W K\] or \[B H W K\]"),
        ((bad, image), {}, "some are NaN or infinite"),
        ((logits, image - 128.0), {}, "image has colours -.* to 127, expected 0 to 255"),
        ((logits, image / 255), {}, "image has colours 0.* to .*, expected 0 to 255"),
        ((logits, image), dict(colour_sigma=0), "colour_sigma is 0, expected finite numbers above"),
        ((logits, image), dict(spatial_sigma=-1.0), "spatial_sigma is -1.0"),
        ((logits, image), dict(bilateral_sigma=np.inf), "bilateral_sigma is inf"),
        ((logits, image), dict(spatial_weight=np.ones(4)), "spatial_weight is of shape"),
        ((logits, image), dict(compatibility=np.eye(4)), r"expected \(3, 3\)"),
        ((logits, image), dict(iterations=-1), "iterations, tile are -1"),
        ((logits, image), dict(backend="fft"), "backend is 'fft'"),
        ((logits, image), dict(inside=np.ones((5, 4), bool)), "inside is"),
    ]:
        with pytest.raises(ValueError, match=message):
            dense_crf(*arguments, **options)
    assert dense.TILE > 2 * dense.MARGIN
