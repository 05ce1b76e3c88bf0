import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest

from jaxseg.ops import boxes as b

MEASURES = {"iou": b.iou, "giou": b.giou, "diou": b.diou, "ciou": b.ciou}
DEGENERATE = jnp.asarray(
    [[0, 0, 0, 0], [5, 5, 5, 9], [5, 5, 9, 5], [0, 0, 1, 1], [8, 8, 8, 8], [9, 9, 7, 7]],
    jnp.float32,
)


@pytest.fixture(scope="module")
def reference(fixtures):
    return published.read(fixtures, "ops/boxes")


def array(*boxes):
    return jnp.asarray(boxes, jnp.float32)


def random(n, seed=0):
    corner, size = np.random.default_rng(seed).uniform(1, 20, (2, n, 2))
    return jnp.asarray(np.concatenate([corner, corner + size], 1), jnp.float32)


def test_formats_by_hand():
    xyxy = array([1, 2, 5, 10])
    assert b.xyxy_to_xywh(xyxy).tolist() == [[1, 2, 4, 8]]
    assert b.xyxy_to_cxcywh(xyxy).tolist() == [[3, 6, 4, 8]]
    assert b.xywh_to_xyxy(array([1, 2, 4, 8])).tolist() == xyxy.tolist()
    assert b.cxcywh_to_xyxy(array([3, 6, 4, 8])).tolist() == xyxy.tolist()


def test_sizes_by_hand():
    boxes = array([1, 2, 5, 10], [-3, -1, 2, 30], [50, 50, 60, 60])
    assert b.area(boxes).tolist() == [32, 155, 100]
    assert b.large_mask(boxes, 5.0).tolist() == [False, True, True]
    inside = [[1, 2, 5, 10], [0, 0, 2, 20], [40, 20, 40, 20]]
    assert b.clip_boxes(boxes, (20, 40)).tolist() == inside
    assert b.clip_boxes(boxes, jnp.array([20, 40])).tolist() == inside
    assert b.clip_boxes(boxes[0], (20, 40)).tolist() == inside[0]
    assert b.scale_boxes(boxes[0], (10, 20), (20, 10)).tolist() == [0.5, 4, 2.5, 20]


def test_overlaps_by_hand():
    # 2×2 boxes that share one pixel: union 7, hull 9, centres √2 apart, the hull's diagonal √18.
    # Beside the second, a 2×4 box: the same centres' distance squared 1 + 4, hull 3×5.
    first, second, tall = array([0, 0, 2, 2]), array([1, 1, 3, 3]), array([1, 1, 3, 5])
    for name, expected in {"iou": 1 / 7, "giou": 1 / 7 - 2 / 9, "diou": 1 / 7 - 2 / 18}.items():
        np.testing.assert_allclose(MEASURES[name](first, second), [expected], rtol=1e-6)
    np.testing.assert_allclose(b.ciou(first, second), b.diou(first, second))
    v = 4 / np.pi**2 * (np.pi / 4 - np.arctan(1 / 2)) ** 2
    expected = 1 / 11 - 5 / 34 - v / (1 - 1 / 11 + v) * v
    np.testing.assert_allclose(b.ciou(first, tall), [expected], rtol=1e-6)


@pytest.mark.parametrize("name", MEASURES)
def test_pairwise_is_torchvisions(reference, name):
    arrays = reference.arrays
    found = b.pairwise(MEASURES[name], arrays["pairwise/a"], arrays["pairwise/b"])
    expected = arrays[f"pairwise/{name}"]
    known = ~np.isnan(expected)  # torchvision's 0 / 0
    assert known.sum() > 160
    np.testing.assert_allclose(found[known], expected[known], rtol=1e-5, atol=1e-6)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("name", ["giou", "diou", "ciou"])
def test_losses_and_gradients_are_torchvisions(reference, name):
    keys = ("a", "b", "y", "ct", "grad_a", "grad_b")
    case = {key: reference.arrays[f"{name}_loss/{key}"] for key in keys}
    loss, gradient = jax.vjp(lambda x, y: 1 - MEASURES[name](x, y), case["a"], case["b"])
    np.testing.assert_allclose(loss, case["y"], rtol=1e-5, atol=1e-6)
    for found, expected in zip(gradient(case["ct"]), (case["grad_a"], case["grad_b"]), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_clip_area_and_small_are_torchvisions(reference):
    arrays, cases = reference.arrays, reference.meta["cases"]
    clipped = b.clip_boxes(arrays["clip/boxes"], tuple(cases["clip"]["size"]))
    np.testing.assert_array_equal(clipped, arrays["clip/y"])
    np.testing.assert_allclose(b.area(arrays["pairwise/a"]), arrays["pairwise/area"], rtol=1e-6)
    small = [name for name in cases if name.startswith("remove_small")]
    assert small
    for name in small:
        large = b.large_mask(arrays[f"{name}/boxes"], cases[name]["min_size"])
        assert np.flatnonzero(large).tolist() == arrays[f"{name}/keep"].tolist()


def test_scaled_boxes_are_torchvisions(fixtures):
    losses = published.read(fixtures, "ops/losses")
    about = losses.meta["cases"]["resize_boxes"]
    case = {k.split("/")[1]: v for k, v in losses.arrays.items() if k.startswith("resize_boxes/")}
    found = b.scale_boxes(case["boxes"], tuple(about["src"]), tuple(about["dst"]))
    np.testing.assert_allclose(found, case["y"], rtol=1e-6)


@pytest.mark.parametrize("name", MEASURES)
def test_degenerate_boxes_are_finite_and_so_are_their_gradients(name):
    def total(boxes, others, **settings):
        return MEASURES[name](boxes[:, None], others[None], **settings).sum()

    for settings in ({}, {"eps": 0.0}):
        assert jnp.isfinite(total(DEGENERATE, DEGENERATE, **settings))
        for gradient in jax.grad(total, argnums=(0, 1))(DEGENERATE, DEGENERATE, **settings):
            assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", MEASURES)
def test_what_holds_for_all_boxes(name):
    measure, boxes, others = MEASURES[name], random(6), random(6, seed=1)
    np.testing.assert_allclose(measure(boxes, boxes), np.ones(6), rtol=1e-6)
    np.testing.assert_allclose(measure(boxes, others), measure(others, boxes), rtol=1e-5, atol=1e-7)
    assert (measure(boxes, others) <= b.iou(boxes, others) + 1e-6).all()
    matrix = b.pairwise(measure, boxes, others)
    np.testing.assert_allclose(jnp.diagonal(matrix), measure(boxes, others), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(jax.jit(measure)(boxes, others), measure(boxes, others), rtol=1e-5)
    np.testing.assert_allclose(
        jax.vmap(measure)(boxes, others), measure(boxes, others), rtol=1e-5, atol=1e-7
    )


def test_fractions_of_the_image_count_like_pixels():
    boxes, others = random(6), random(6, seed=1)
    np.testing.assert_allclose(
        b.pairwise_iou(boxes / 4096, others / 4096), b.pairwise_iou(boxes, others), rtol=1e-5
    )
