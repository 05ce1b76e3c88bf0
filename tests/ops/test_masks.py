"""Cutting masks out and putting them back, as torchvision does it, and without its half pixels."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import published

from jaxseg.ops.masks import crop_masks, paste_masks


def test_targets_are_as_published(fixtures):
    arrays = published.read(fixtures, "ops/roi").arrays
    masks, boxes, matched, expected = (
        arrays[f"project_masks_on_boxes/{name}"] for name in ("masks", "boxes", "idx", "y")
    )
    matched = jnp.asarray(matched, jnp.int32)
    targets = jax.jit(crop_masks)(masks.astype(bool), jnp.asarray(boxes), matched)
    np.testing.assert_allclose(targets, expected, atol=1e-5)


def test_a_mask_that_fills_its_box():
    mask = jnp.zeros((1, 20, 20), bool).at[:, 4:12, 6:18].set(True)
    inside = jnp.asarray([[6.0, 4, 17, 11], [0, 13, 5, 19]])
    targets = jax.jit(partial(crop_masks, size=7))(mask, inside, jnp.zeros(2, jnp.int32))
    np.testing.assert_allclose(targets[0], 1, rtol=1e-6)
    np.testing.assert_array_equal(targets[1], 0)


def test_an_object_at_the_end_of_a_picture_that_is_padded():
    mask = jnp.zeros((1, 32, 32), bool).at[0, :20, :20].set(True)
    box, first = jnp.asarray([[10.0, 10, 20, 20]]), jnp.zeros(1, jnp.int32)
    np.testing.assert_allclose(crop_masks(mask, box, first, extent=jnp.array([20, 20])), 1)
    assert crop_masks(mask, box, first)[0, -1, 0] < 0.2  # it ends there


def test_packed_masks_are_the_same():
    masks = np.random.default_rng(0).random((2, 9, 13)) < 0.5
    boxes, matched = jnp.asarray([[1.0, 2, 12, 8], [-3, 0, 20, 9]]), jnp.asarray([1, 0])
    packed = np.packbits(masks, axis=-1)
    targets = crop_masks(packed, boxes, matched, 5, packed_width=13)
    np.testing.assert_array_equal(targets, crop_masks(masks, boxes, matched, 5))


def torch_paste(mask, box, size):
    """One mask, after torchvision's steps, pixel by pixel."""
    mask = np.pad(mask, 1)
    m = len(mask)
    x, y, half_w, half_h = (
        (box[2] + box[0]) / 2,
        (box[3] + box[1]) / 2,
        (box[2] - box[0]) / 2 * m / (m - 2),
        (box[3] - box[1]) / 2 * m / (m - 2),
    )
    left, top, right, bottom = (int(v) for v in (x - half_w, y - half_h, x + half_w, y + half_h))
    width, height = max(right - left + 1, 1), max(bottom - top + 1, 1)
    image = np.zeros(size, np.float32)
    for v in range(max(top, 0), min(bottom + 1, size[0])):
        for u in range(max(left, 0), min(right + 1, size[1])):
            py, px = (
                max((i + 0.5) * m / n - 0.5, 0.0) for i, n in ((v - top, height), (u - left, width))
            )
            y0, x0 = int(py), int(px)
            y1, x1 = min(y0 + 1, m - 1), min(x0 + 1, m - 1)
            upper = mask[y0, x0] + (px - x0) * (mask[y0, x1] - mask[y0, x0])
            lower = mask[y1, x0] + (px - x0) * (mask[y1, x1] - mask[y1, x0])
            image[v, u] = upper + (py - y0) * (lower - upper)
    return image


def test_pasting():
    """Also beyond the image's borders, enlarged and made smaller, and boxes without area."""
    boxes = [[3.2, 4.1, 15.7, 20.3], [-6, -3.5, 9, 11], [20, 15, 60, 50], [5, 6, 7.5, 8]]
    boxes = np.asarray([*boxes, [8, 8, 8, 8], [-30, -30, -20, -20]], np.float32)
    masks = np.random.default_rng(0).uniform(size=(6, 5, 5)).astype(np.float32)
    pasted = jax.jit(partial(paste_masks, size=(24, 30)))(masks, boxes)
    for mask, box, image in zip(masks, boxes, pasted, strict=True):
        np.testing.assert_allclose(image, torch_paste(mask, box, (24, 30)), atol=1e-5)
    assert (np.asarray(pasted).max(axis=(1, 2)) > 0).tolist() == [True] * 5 + [False]
    larger = paste_masks(jnp.asarray(masks), jnp.asarray(boxes), (40, 40))
    np.testing.assert_allclose(larger[:, :24, :30], pasted, atol=1e-6)


def test_cutting_out_undoes_pasting():
    smooth = jnp.linspace(0, 1, 14)[:, None] * jnp.linspace(0, 1, 14)[None, :]
    box = jnp.asarray([[10.0, 12, 66, 96]])

    @jax.jit
    def there_and_back(mask):
        image = paste_masks(mask[None], box, (110, 80))
        return crop_masks(image, box, jnp.zeros(1, jnp.int32), 14)[0]

    found = there_and_back(smooth)
    np.testing.assert_allclose(found[2:-2, 2:-2], smooth[2:-2, 2:-2], atol=0.03)


def test_aligned_masks_come_back_as_they_were():
    """Of boxes of whole pixels, cut into as many cells: each is the mean over its pixel."""
    rng = np.random.default_rng(0)
    image = np.zeros((1, 20, 24), bool)
    image[0, 5:12, 9:16] = rng.random((7, 7)) < 0.5
    box = jnp.asarray([[9.0, 5, 16, 12]])
    cut = crop_masks(image, box, jnp.zeros(1, jnp.int32), 7, aligned=True)
    np.testing.assert_allclose(cut[0], image[0, 5:12, 9:16], atol=1e-6)
    np.testing.assert_allclose(paste_masks(cut, box, (20, 24), aligned=True), image, atol=1e-6)
    # Unaligned, the cells lie half a pixel off: each is the mean of four pixels.
    unaligned = crop_masks(image, box, jnp.zeros(1, jnp.int32), 7)[0]
    corners = [image[0, 5 + i : 12 + i, 9 + j : 16 + j] for i in (0, 1) for j in (0, 1)]
    np.testing.assert_allclose(unaligned, np.mean(corners, 0), atol=1e-6)


def test_aligned_pasting_by_hand():
    """A cell a side 2 pixels long: the pixels' centres lie a quarter of a cell before and after the
    cells' centres. Nothing is beyond a box without area."""
    mask = jnp.asarray([[[0.0, 1.0], [0.0, 1.0]]])
    boxes = jnp.asarray([[2.0, 1, 6, 5]])
    pasted = paste_masks(mask, boxes, (8, 9), aligned=True)[0]
    # x = 2.5 … 5.5 are -0.25, 0.25, 0.75, 1.25 of the mask, and 6.5 is 1.75: a fourth is left.
    along = [0, 0, 0, 0.25, 0.75, 0.75, 0.25, 0, 0]
    np.testing.assert_allclose(pasted[2], along, atol=1e-6)
    np.testing.assert_allclose(pasted[:, 4] / 0.75, [0.25, 0.75, 1, 1, 0.75, 0.25, 0, 0], atol=1e-6)
    nothing = paste_masks(mask, jnp.asarray([[3.0, 3, 3, 3]]), (8, 9), aligned=True)
    np.testing.assert_array_equal(nothing, 0)
