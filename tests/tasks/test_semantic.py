from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.models import unet
from jaxseg.tasks import semantic
from jaxseg.types import IGNORE, MEAN, STD

PALETTE = np.array([[0, 0, 0], [200, 0, 0]], np.uint8)
DATASET = SimpleNamespace(classes=("background", "thing"), palette=PALETTE)
TASK = semantic.make_task(DATASET, "val")
IMAGE = jnp.asarray(np.random.default_rng(0).standard_normal((2, 30, 44, 3)), jnp.float32)


def pixelwise(variables, image):
    """A "network" that sees one pixel at a time."""
    probabilities = jax.nn.softmax(image[..., :2] * variables["gain"])
    return {"probabilities": probabilities, "segmentation": probabilities.argmax(-1)}


def test_counts_by_hand():
    batch = {
        "segmentation": jnp.array([[[0, 1, IGNORE]], [[1, 1, 1]]]),
        "valid": jnp.array([True, False]),
    }
    counts = TASK.measure({"segmentation": jnp.array([[[0, 0, 1]], [[1, 1, 1]]])}, batch)
    assert counts.tolist() == [[1, 0], [1, 0]]
    both = TASK.add(counts, np.array([[0, 0], [0, 2]]))
    assert both.dtype == np.int64
    assert TASK.score(both)["pixel_accuracy"] == 0.75
    assert "thing" in TASK.report(both)
    assert TASK.figures(both)["confusion"].dtype == np.uint8


def test_counts_beyond_int32():
    huge = np.full((2, 2), 2**31 - 1, np.int32)
    assert TASK.add(huge, huge)[0, 0] == 2**32 - 2


def test_pictures_show_the_picture_without_its_padding():
    image = np.zeros((40, 60, 3), np.uint8)
    example = {
        "image": ((image / 255 - MEAN) / STD).astype(np.float32),
        "image_size": np.array([30, 50]),
        "segmentation": np.ones((40, 60), int),
    }
    prediction = {"segmentation": np.zeros((40, 60), int)}
    pictures = TASK.draw(example, prediction)
    assert list(pictures) == ["picture", "truth", "prediction", "errors"]
    assert {picture.shape for picture in pictures.values()} == {(180, 300, 3)}
    assert (pictures["picture"] == 0).all()
    assert (pictures["truth"][..., 0] > 0).all()
    assert (pictures["prediction"] == 0).all()  # black is not painted


@pytest.mark.parametrize(("window", "margin"), [(16, 0), (16, 4), (64, 8), (13, 3)])
def test_tiles_of_a_pixelwise_network_are_exact(window, margin):
    tiled = semantic.overlap_tiles(pixelwise, window, margin)
    found = jax.jit(tiled)({"gain": 2.0}, IMAGE)
    expected = pixelwise({"gain": 2.0}, IMAGE)
    np.testing.assert_allclose(found["probabilities"], expected["probabilities"], atol=1e-6)
    np.testing.assert_array_equal(found["segmentation"], expected["segmentation"])


def test_tiles_of_a_unet_are_the_whole_picture():
    """With the margin that its unpadded convolutions need (Ronneberger et al. 2015, figure 2)."""
    model = unet.build(2, width=4, depth=2, dropout=0.0)
    variables = model.init(jax.random.key(0), {"image": IMAGE})
    tiled = semantic.overlap_tiles(model.predict, window=56, margin=20)
    found = jax.jit(tiled)(variables, IMAGE)["probabilities"]
    expected = model.predict(variables, IMAGE)["probabilities"]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_window_must_be_wider_than_its_margins():
    with pytest.raises(ValueError, match="nothing inside a margin of 8"):
        semantic.overlap_tiles(pixelwise, 16, 8)


def test_averages_over_the_mirror_image():
    def left(variables, image):
        """Says 1 in the left half, whatever it sees."""
        half = jnp.arange(image.shape[2]) < image.shape[2] // 2
        p = jnp.broadcast_to(half[None, None, :, None], (*image.shape[:3], 2))
        return {"probabilities": p.astype(jnp.float32)}

    found = semantic.average_scales(left, flip=True)({}, IMAGE)["probabilities"]
    np.testing.assert_allclose(found, np.full((2, 30, 44, 2), 0.5))


def test_averages_over_scales():
    seen = []

    def constant(variables, image):
        seen.append(image.shape[1:3])
        level = jnp.float32(len(seen))
        return {"probabilities": jnp.full((*image.shape[:3], 2), level)}

    found = semantic.average_scales(constant, scales=(0.5, 1.0, 1.5))({}, IMAGE)
    assert seen == [(15, 22), (30, 44), (45, 66)]
    assert found["probabilities"].shape == (2, 30, 44, 2)
    np.testing.assert_allclose(found["probabilities"], 2.0, rtol=1e-6)
