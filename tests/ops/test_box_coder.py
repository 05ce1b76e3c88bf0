import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest

from jaxseg.ops.box_coder import (
    decode_boxes,
    decode_distances,
    encode_boxes,
    encode_distances,
)

WEIGHTS = {"boxcoder_1": (1.0, 1.0, 1.0, 1.0), "boxcoder_10": (10.0, 10.0, 5.0, 5.0)}


def array(*boxes):
    return jnp.asarray(boxes, jnp.float32)


def test_offsets_by_hand():
    # From a 10×20 box around (5, 10) to a 20×10 box around (15, 20).
    reference, box = array([0, 0, 10, 20]), array([5, 15, 25, 25])
    offsets = array([1, 0.5, np.log(2), -np.log(2)])
    np.testing.assert_allclose(encode_boxes(box, reference), offsets, rtol=1e-6)
    np.testing.assert_allclose(decode_boxes(offsets, reference), box, rtol=1e-6)
    weighted = encode_boxes(box, reference, (10.0, 10.0, 5.0, 5.0))
    np.testing.assert_allclose(weighted, offsets * array([10, 10, 5, 5]), rtol=1e-6)


@pytest.mark.parametrize("name", WEIGHTS)
def test_both_ways_are_torchvisions(fixtures, name):
    arrays = published.read(fixtures, "ops/boxes").arrays
    gt, proposals, encoded, code, decoded = (
        arrays[f"{name}/{key}"] for key in ["gt", "proposals", "encoded", "code", "decoded"]
    )
    found = encode_boxes(gt, proposals, WEIGHTS[name])
    np.testing.assert_allclose(found, encoded, rtol=1e-5, atol=1e-5)
    code, decoded = code.reshape(len(code), -1, 4), decoded.reshape(len(code), -1, 4)
    found = decode_boxes(code, proposals[:, None], WEIGHTS[name])  # codes up to 200: the clamp
    np.testing.assert_allclose(found, decoded, rtol=1e-5, atol=1e-3)


def test_decoding_undoes_encoding():
    corner, size = np.random.default_rng(0).uniform(1, 50, (2, 2, 8, 2)).astype(np.float32)
    boxes, references = np.concatenate([corner, corner + size], -1)
    offsets = jax.jit(encode_boxes)(boxes, references)
    np.testing.assert_allclose(jax.jit(decode_boxes)(offsets, references), boxes, atol=1e-4)
    each = jax.vmap(encode_boxes)(boxes, references)
    np.testing.assert_allclose(each, offsets, rtol=1e-5, atol=1e-6)


def test_no_offset_is_too_large_and_no_box_too_thin():
    def total(offsets, boxes, reference):
        decoded = decode_boxes(offsets, reference)
        return decoded.sum() + encode_boxes(boxes, reference).sum(), decoded

    inputs = array([0, 0, 1e4, 1e4]), array([3, 3, 3, 3]), array([1, 1, 2, 2])
    gradients, decoded = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(*inputs)
    np.testing.assert_allclose(decoded[0, 2:] - decoded[0, :2], 1000 / 16, rtol=1e-6)
    assert all(np.isfinite(g).all() for g in gradients)
    padding = jnp.zeros((1, 4))
    assert jnp.isfinite(encode_boxes(padding, padding)).all()


def test_distances_by_hand():
    """From (5, 10), the middle of a box of 10×20 pixels, to the sides of another."""
    reference, box = array([0, 0, 10, 20]), array([3, -10, 15, 20])
    distances = array([0.2, 1, 1, 0.5])
    np.testing.assert_allclose(encode_distances(box, reference), distances, rtol=1e-6)
    np.testing.assert_allclose(decode_distances(distances, reference), box, rtol=1e-6)


def test_distances_are_torchvisions(fixtures):
    arrays = published.read(fixtures, "ops/boxes").arrays
    gt, anchors, encoded, code, decoded = (
        arrays[f"boxlinearcoder/{key}"] for key in ["gt", "anchors", "encoded", "code", "decoded"]
    )
    np.testing.assert_allclose(encode_distances(gt, anchors), encoded, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(decode_distances(code, anchors), decoded, rtol=1e-5, atol=1e-4)
