from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest

from jaxseg.ops.boxes import pairwise_iou
from jaxseg.ops.nms import TILE, batched_nms, nms, soft_nms


@pytest.fixture(scope="module")
def reference(fixtures):
    return published.read(fixtures, "ops/boxes")


def array(*boxes):
    return jnp.asarray(boxes, jnp.float32)


def crowd(n, seed=0, extent=100):
    """Boxes that overlap much, and scores of which many are equal."""
    rng = np.random.default_rng(seed)
    corner, size = rng.uniform(0, extent, (n, 2)), rng.uniform(5, 30, (n, 2))
    boxes = np.concatenate([corner, corner + size], 1).astype(np.float32)
    return boxes, rng.integers(0, 50, n).astype(np.float32) / 50


def chosen(result):
    indices, kept = result
    count = int(kept.sum())
    assert kept[:count].all()
    assert not indices[count:].any()
    return indices[:count].tolist()


def one_by_one(boxes, scores, threshold, classes=None):
    """What greedy suppression means."""
    classes = np.zeros(len(boxes)) if classes is None else classes
    overlap = (np.asarray(pairwise_iou(boxes, boxes)) > threshold) & (classes[:, None] == classes)
    kept = []
    for i in np.argsort(-scores, kind="stable").tolist():
        if not overlap[kept, i].any():
            kept.append(i)
    return kept


def test_suppression_by_hand():
    # IoUs: first and second 0.6, second and third 0.6, first and third 1/3.
    boxes = array([0, 0, 8, 1], [2, 0, 10, 1], [4, 0, 12, 1], [50, 0, 51, 1])
    scores = jnp.asarray([0.9, 0.8, 0.7, 0.95])
    assert chosen(nms(boxes, scores, 0.5)) == [3, 0, 2]  # the second is gone, and harms no more
    assert chosen(nms(boxes, scores, 0.3)) == [3, 0]
    assert chosen(nms(boxes, scores, 0.61)) == [3, 0, 1, 2]
    assert chosen(nms(boxes, scores, 0.5, max_outputs=2)) == [3, 0]
    assert chosen(nms(boxes, scores, 0.5, max_outputs=9)) == [3, 0, 2]
    assert chosen(nms(boxes, scores, 0.5, mask=jnp.array([False, True, True, True]))) == [3, 1]
    assert chosen(nms(boxes, scores, 0.5, mask=jnp.zeros(4, bool))) == []
    classes = jnp.array([1, 2, 2, 1])
    assert chosen(batched_nms(boxes, scores, classes, 0.5)) == [3, 0, 1]
    assert chosen(batched_nms(boxes, scores, classes, 0.5, max_outputs=9)) == [3, 0, 1]
    assert chosen(batched_nms(boxes, scores, classes, 0.5, max_outputs=2)) == [3, 0]


def test_thresholds_that_float32_rounds():
    # torchvision compares in double: an IoU of 3/10 in float32 is more than 0.3, one of 7/10 is
    # less than 0.7.
    for tenths, suppressed in ((3, True), (7, False)):
        boxes = array([0, 0, 10, 1], [0, 0, tenths, 1])
        kept = chosen(nms(boxes, jnp.array([1.0, 0.5]), tenths / 10))
        assert kept == ([0] if suppressed else [0, 1])


def test_indices_are_torchvisions(reference):
    names = [
        name
        for name in reference.meta["cases"]
        if name.startswith(("nms_", "batched_nms_")) and name != "batched_nms_empty"
    ]
    assert len(names) > 20
    for name in names:
        boxes, scores, keep = (reference.arrays[f"{name}/{x}"] for x in ("boxes", "scores", "keep"))
        classes = reference.arrays.get(f"{name}/idxs", np.zeros(len(boxes))).astype(np.int32)
        mask = np.ones(len(boxes), bool)
        # Padding to few sizes, which changes nothing, saves compiling.
        n = len(boxes)
        rest = (0, next((size for size in (64, 1024, 2560) if size >= n), n) - n)
        boxes = np.pad(boxes, (rest, (0, 0)), constant_values=7)
        scores, classes, mask = (np.pad(x, rest) for x in (scores, classes, mask))
        threshold = reference.meta["cases"][name]["thr"]
        found = chosen(batched_nms(boxes, scores, classes, threshold, mask=mask))
        expected = keep.tolist()
        if name.startswith("batched_nms_tied"):  # torchvision's order is that of an unstable sort
            found, expected = sorted(found), sorted(expected)
        assert found == expected, name


@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_several_tiles_give_what_one_by_one_gives(threshold):
    boxes, scores = crowd(2 * TILE + 100)
    classes = np.random.default_rng(1).integers(0, 3, len(boxes)).astype(np.int32)
    expected = one_by_one(boxes, scores, threshold)
    assert chosen(nms(boxes, scores, threshold)) == expected
    assert (
        chosen(jax.jit(nms, static_argnums=(2, 3))(boxes, scores, threshold, 20)) == expected[:20]
    )
    assert chosen(batched_nms(boxes, scores, classes, threshold)) == one_by_one(
        boxes, scores, threshold, classes
    )


@pytest.mark.parametrize("count", [2, 40, 1000])
def test_class_after_class_gives_what_one_by_one_gives(count):
    boxes, scores = crowd(1000)
    rng = np.random.default_rng(2)
    classes, mask = rng.integers(-count, count, 1000), rng.uniform(size=1000) < 0.8
    classes[:3] = np.iinfo(np.int32).max
    places = np.flatnonzero(mask)
    expected = places[one_by_one(boxes[mask], scores[mask], 0.2, classes[mask])].tolist()
    whole = jax.jit(batched_nms, static_argnums=(3, 4))
    assert chosen(whole(boxes, scores, classes, 0.2, None, mask)) == expected
    assert chosen(whole(boxes, scores, classes, 0.2, 1500, mask)) == expected
    assert chosen(whole(boxes, scores, classes, 0.2, 50, mask)) == expected[:50]


def test_more_kept_than_a_tile_and_fewer_outputs_than_kept():
    boxes, scores = crowd(3 * TILE, extent=5000)
    expected = one_by_one(boxes, scores, 0.1)
    assert len(expected) > 2 * TILE
    assert chosen(nms(boxes, scores, 0.1)) == expected
    limit = TILE + 7
    assert chosen(nms(boxes, scores, 0.1, limit)) == expected[:limit]


def test_vmap_is_one_after_the_other():
    images = [crowd(40, seed) for seed in range(3)]
    boxes, scores = (jnp.stack([image[i] for image in images]) for i in range(2))
    mask = jnp.arange(40)[None] < jnp.array([40, 0, 7])[:, None]
    together = jax.vmap(lambda b, s, m: nms(b, s, 0.3, 10, m))(boxes, scores, mask)
    for i, each in enumerate(zip(*together, strict=True)):
        assert chosen(each) == chosen(nms(boxes[i], scores[i], 0.3, 10, mask[i]))
    classes = jnp.arange(120).reshape(3, 40) % 4
    together = jax.vmap(lambda b, s, c: batched_nms(b, s, c, 0.3))(boxes, scores, classes)
    for i, each in enumerate(zip(*together, strict=True)):
        assert chosen(each) == chosen(batched_nms(boxes[i], scores[i], classes[i], 0.3))


def test_no_boxes():
    nothing = jnp.zeros((0, 4)), jnp.zeros(0)
    assert chosen(nms(*nothing, 0.5)) == []
    assert [x.shape for x in nms(*nothing, 0.5, 3)] == [(3,), (3,)]
    assert [x.shape for x in soft_nms(*nothing, max_outputs=3)] == [(3,), (3,), (3,)]


def test_the_choice_may_stand_in_a_loss():
    boxes, scores = crowd(30)

    def best(boxes, scores):
        indices, kept = nms(boxes, scores, 0.3, 5)
        return (scores[indices] * kept).sum() + (boxes[indices] ** 2).sum()

    indices, kept = nms(boxes, scores, 0.3, 5)
    _, gradient = jax.grad(best, argnums=(0, 1))(jnp.asarray(boxes), jnp.asarray(scores))
    assert kept.all()
    assert jnp.flatnonzero(gradient).tolist() == sorted(indices.tolist())


def test_soft_suppression_by_hand():
    # As above: the first takes 0.6 of the second away, and is then beaten by the third.
    boxes = array([0, 0, 8, 1], [2, 0, 10, 1], [4, 0, 12, 1])
    scores = jnp.asarray([0.9, 0.8, 0.7])
    linear = partial(soft_nms, sigma=None, iou_threshold=0.5)
    indices, kept, new = linear(boxes, scores)
    assert indices.tolist() == [0, 2, 1]
    assert kept.all()
    np.testing.assert_allclose(new, [0.9, 0.7, 0.8 * 0.4 * 0.4], rtol=1e-5)
    indices, kept, new = soft_nms(boxes, scores)
    assert indices.tolist() == [0, 2, 1]
    third, second = np.exp(-(1 / 9) / 0.5), np.exp(-2 * 0.36 / 0.5)
    np.testing.assert_allclose(new, [0.9, 0.7 * third, 0.8 * second], rtol=1e-5)
    indices, kept, new = linear(boxes, scores, min_score=0.2)
    assert kept.tolist() == [True, True, False]
    assert (indices[2], new[2]) == (0, 0)
    alone = linear(boxes, scores, classes=jnp.array([0, 1, 2]), mask=jnp.array([True, True, False]))
    assert alone[0].tolist() == [0, 1, 0]
    np.testing.assert_allclose(alone[2], [0.9, 0.8, 0])


def test_soft_nms_of_a_hard_decay_is_nms():
    # As sigma falls to 0, any overlap leaves nothing of a score.
    boxes, scores = crowd(60)
    scores = scores + np.arange(60, dtype=np.float32) * 1e-4 + 0.1
    indices, kept, _ = jax.jit(partial(soft_nms, sigma=1e-12))(boxes, scores)
    assert chosen((indices, kept)) == one_by_one(boxes, scores, 0.0)


def test_soft_nms_has_gradients_and_vmaps():
    boxes, scores = (jnp.asarray(x) for x in crowd(12))
    boxes = boxes.at[3:5].set(0)  # no area
    gradients = jax.grad(lambda b, s: soft_nms(b, s)[2].sum(), argnums=(0, 1))(boxes, scores)
    assert all(np.isfinite(g).all() and np.abs(g).sum() > 0 for g in gradients)
    both = jax.vmap(soft_nms)(jnp.stack([boxes, boxes]), jnp.stack([scores, scores]))
    for together, alone in zip(both, soft_nms(boxes, scores), strict=True):
        np.testing.assert_allclose(together[1], alone, rtol=1e-5)
