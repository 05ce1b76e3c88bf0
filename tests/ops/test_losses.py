"""Losses against hand-worked values, float64 formulas and finite differences."""

from functools import partial
from itertools import chain, combinations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import published
import pytest

from jaxseg.ops import losses as eager
from jaxseg.ops.losses import median_frequency_weights
from jaxseg.types import IGNORE

KINDS = ("cross_entropy", "hard_cross_entropy", "focal", "dice", "lovasz")
WEIGHTS = np.array([1.0, 0.5, 4.0], np.float32)

# Compiled as a whole, as models use them; one test compares with op by op.
OPTIONS = ("kinds", "gamma", "keep_fraction", "threshold")
label_weights = jax.jit(eager.label_weights)
softmax_cross_entropy = jax.jit(eager.softmax_cross_entropy)
softmax_focal = jax.jit(eager.softmax_focal, static_argnames="gamma")
dice = jax.jit(eager.dice)
lovasz_softmax = jax.jit(eager.lovasz_softmax)
hardest_pixels = jax.jit(eager.hardest_pixels, static_argnames=OPTIONS[2:])
segmentation_losses = jax.jit(eager.segmentation_losses, static_argnames=OPTIONS)


def example(batch=4, height=5, width=6, classes=3, seed=0):
    """Random logits, and labels of which a fifth is ignored."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (batch, height, width, classes)).astype(np.float32)
    labels = random.integers(0, classes, (batch, height, width)).astype(np.int32)
    labels[random.random(labels.shape) < 0.2] = IGNORE
    return logits, labels


def mean(logits, batch, kind, gamma=2.0):
    return segmentation_losses(logits, batch, (kind,), WEIGHTS, gamma=gamma)[kind]


def total(logits, labels, kind, gamma=2.0):
    return mean(logits, {"segmentation": labels}, kind, gamma).value()


value_and_gradient = jax.jit(jax.value_and_grad(total), static_argnames=("kind", "gamma"))


def log_softmax(logits):
    """In float64, by the definition."""
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def pixels_of(probabilities):
    """Logits [1 1 N K] that have these probabilities."""
    return np.log(np.asarray(probabilities, np.float32))[None, None]


# ---- cross-entropy and focal loss


def test_cross_entropy_by_hand():
    logits = pixels_of([[0.5, 0.25, 0.25], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]])
    labels = np.array([[[0, 2, IGNORE]]])
    expected = [[[np.log(2), np.log(10), 0]]]
    np.testing.assert_allclose(softmax_cross_entropy(logits, labels), expected, rtol=1e-6)
    weighted = softmax_cross_entropy(logits, labels, WEIGHTS)
    np.testing.assert_allclose(weighted, [[[np.log(2), 4 * np.log(10), 0]]], rtol=1e-6)


def test_focal_by_hand():
    logits = pixels_of([[0.5, 0.25, 0.25], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]])
    labels = np.array([[[0, 2, IGNORE]]])
    expected = [[[0.5**2 * np.log(2), 4 * 0.9**2 * np.log(10), 0]]]
    losses = softmax_focal(logits, labels, class_weights=WEIGHTS, gamma=2.0)
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_focal_is_its_formula(gamma):
    logits, labels = example()
    log_p = np.take_along_axis(log_softmax(logits), (labels % IGNORE)[..., None], -1)[..., 0]
    losses = softmax_focal(logits, labels, gamma=gamma)
    expected = np.where(labels == IGNORE, 0, -((1 - np.exp(log_p)) ** gamma) * log_p)
    np.testing.assert_allclose(losses, expected, rtol=2e-5, atol=1e-7)


def test_focal_without_gamma_is_cross_entropy():
    logits, labels = example()
    np.testing.assert_array_equal(
        softmax_focal(logits, labels, class_weights=WEIGHTS, gamma=0.0),
        softmax_cross_entropy(logits, labels, WEIGHTS),
    )
    _, gradient_of_focal = value_and_gradient(logits, labels, "focal", 0.0)
    _, gradient = value_and_gradient(logits, labels, "cross_entropy")
    np.testing.assert_allclose(gradient_of_focal, gradient, atol=1e-7)


def test_focal_falls_with_gamma():
    logits, labels = example()
    values = [softmax_focal(logits, labels, gamma=gamma).sum() for gamma in (0.0, 1.0, 2.0, 4.0)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.9 * values[0]


def test_extreme_logits_have_exact_losses():
    logits = np.array([[[[1e4, -1e4, 0], [1e4, -1e4, 0]]]], np.float32)
    labels = np.array([[[0, 1]]])
    np.testing.assert_array_equal(softmax_cross_entropy(logits, labels), [[[0, 2e4]]])
    np.testing.assert_array_equal(softmax_focal(logits, labels, gamma=2.0), [[[0, 2e4]]])
    gradient = jax.jit(jax.grad(lambda x: softmax_cross_entropy(x, labels).sum()))(logits)
    np.testing.assert_array_equal(gradient, [[[[0, 0, 0], [1, -1, 0]]]])


def test_a_label_that_is_no_class_is_nan():
    logits = np.zeros((1, 1, 3, 3), np.float32)
    labels = np.array([[[0, 3, -1]]])
    for loss in (softmax_cross_entropy, softmax_focal):
        np.testing.assert_array_equal(np.isnan(loss(logits, labels)), labels != 0)
    for kind in KINDS:
        assert np.isnan(total(logits, labels, kind)), kind


def test_label_weights():
    labels = np.array([0, 2, IGNORE, 1])
    np.testing.assert_array_equal(label_weights(labels), [1, 1, 0, 1])
    np.testing.assert_array_equal(label_weights(labels, WEIGHTS), [1, 4, 0, 0.5])


# ---- focal loss of yes or no


@partial(jax.jit, static_argnames=("gamma", "alpha"))
def sigmoid_focal(logits, targets, gamma=2.0, alpha=0.25):
    def loss(logits, targets):
        return eager.sigmoid_focal(logits, targets, gamma, alpha)

    pull = jax.value_and_grad(loss)
    losses, gradients = jax.vmap(pull)(logits.ravel(), targets.ravel())
    return losses.reshape(logits.shape), gradients.reshape(logits.shape)


@pytest.mark.parametrize("case", ["a0.25_g2.0", "a-1_g2.0", "a0.25_g0.0", "a0.5_g1.5"])
def test_sigmoid_focal_is_torchvisions(fixtures, case):
    reference = published.read(fixtures, "ops/losses")
    x, t, y, gradient = (reference.arrays[f"focal_{case}/{k}"] for k in ("x", "t", "y", "grad"))
    about = reference.meta["cases"][f"focal_{case}"]
    alpha = None if about["alpha"] < 0 else about["alpha"]
    losses, found = sigmoid_focal(x, t > 0.5, about["gamma"], alpha)
    np.testing.assert_allclose(losses, y, rtol=2e-5, atol=1e-6)
    seen = np.random.Generator(np.random.PCG64(99)).standard_normal(y.shape)
    np.testing.assert_allclose(found * seen, gradient, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("target", [False, True])
def test_sigmoid_focal_without_gamma_is_cross_entropy(target):
    logits = jnp.linspace(-30.0, 30, 61)
    losses, gradients = sigmoid_focal(logits, jnp.full(61, target), 0.0, None)
    entropy = optax.sigmoid_binary_cross_entropy(logits, float(target))
    np.testing.assert_allclose(losses, entropy, rtol=1e-6)
    wrong = 1 - 2 * int(target)  # the sign of a wrong logit
    np.testing.assert_allclose(gradients, wrong * jax.nn.sigmoid(wrong * logits), rtol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("target", [False, True])
def test_sigmoid_focal_of_extreme_logits(gamma, target):
    """Where all is wrong it is the cross-entropy, of slope 1; where all is right, 0 and flat."""
    wrong = 1 - 2 * int(target)  # the sign of a wrong logit
    logits = jnp.array([100.0, 3e4, -100.0, -3e4]) * wrong
    losses, gradients = sigmoid_focal(logits, jnp.full(4, target), gamma, 0.25)
    alpha = 0.25 if target else 0.75
    np.testing.assert_allclose(losses, [100 * alpha, 3e4 * alpha, 0, 0], rtol=1e-6, atol=1e-30)
    expected = np.array([alpha, alpha, 0, 0]) * wrong
    np.testing.assert_allclose(gradients, expected, rtol=1e-5, atol=1e-30)


def test_sigmoid_focal_by_hand():
    """An easy no, of p = 0.1, costs 0.1² of its cross-entropy, a hard one 0.9² (section 3.2)."""
    losses, _ = sigmoid_focal(jnp.log(jnp.array([1 / 9, 9.0])), jnp.array([False, False]))
    expected = [0.75 * 0.01 * -np.log(0.9), 0.75 * 0.81 * -np.log(0.1)]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


# ---- Dice


def test_dice_of_perfect_and_of_disjoint_predictions():
    labels = np.array([[[0, 0, 1, 1]], [[0, 0, 0, 1]]])
    right = 1e4 * np.eye(3, dtype=np.float32)[labels]
    wrong = 1e4 * np.eye(3, dtype=np.float32)[1 - labels]
    present = [[True, True, False]] * 2
    for logits, expected in ((right, [[0, 0, 0]] * 2), (wrong, [[1, 1, 0]] * 2)):
        losses, mask = dice(logits, labels)
        np.testing.assert_array_equal(losses, expected)
        np.testing.assert_array_equal(mask, present)


def test_dice_by_hand():
    # Class 0: p = (¾, ½), g = (1, 0): D = 2·¾ / (9/16 + 1/4 + 1) = 24/29.
    # Class 1: p = (¼, ½), g = (0, 1): D = 2·½ / (1/16 + 1/4 + 1) = 16/21. The ignored pixel: none.
    logits = pixels_of([[0.75, 0.25], [0.5, 0.5], [0.9, 0.1]])
    losses, _ = dice(logits, np.array([[[0, 1, IGNORE]]]))
    np.testing.assert_allclose(losses, [[5 / 29, 5 / 21]], rtol=1e-6)


def test_dice_averages_over_present_classes_and_labelled_images():
    logits = pixels_of([[0.75, 0.25], [0.5, 0.5], [0.9, 0.1]]).repeat(3, axis=0)
    labels = np.array([[[0, 1, IGNORE]], [[IGNORE] * 3], [[0, 0, 0]]])
    absent = 1 - 2 * (0.75 + 0.5 + 0.9) / (0.75**2 + 0.5**2 + 0.9**2 + 3)
    mean = segmentation_losses(logits, {"segmentation": labels}, ("dice",))["dice"]
    assert mean.weight == 2
    np.testing.assert_allclose(mean.total, (5 / 29 + 5 / 21) / 2 + absent, rtol=1e-6)


# ---- Lovász-Softmax


def lovasz_by_definition(errors, foreground):
    """Eq. 8 and 9: a sum over prefixes of the sorted pixels, each a set whose loss is counted."""
    total, wrong, before = 0.0, set(), 0.0
    truth = set(np.flatnonzero(foreground))
    for pixel in np.argsort(-errors, kind="stable"):
        wrong.add(pixel)
        loss = len(wrong) / len(truth | wrong)  # eq. 4: |M| / |{y = c} ∪ M|
        total, before = total + errors[pixel] * (loss - before), loss
    return total


def test_lovasz_is_its_definition():
    logits, labels = example(classes=4)
    expected = []
    for p, y in zip(np.exp(log_softmax(logits)), labels, strict=True):
        p, y = p[y != IGNORE], y[y != IGNORE]  # here ignored pixels are really cut out
        of_classes = [
            lovasz_by_definition(np.where(y == c, 1 - p[:, c], p[:, c]), y == c)
            for c in np.unique(y)
        ]
        expected.append(np.mean(of_classes))
    np.testing.assert_allclose(lovasz_softmax(logits, labels), expected, rtol=1e-5)


def test_lovasz_of_hard_predictions_is_the_jaccard_loss():
    labels = np.array([[[0, 0, 0, 1, 1, IGNORE]]])
    predicted = np.array([[[0, 0, 1, 1, 1, 0]]])  # IU 2/3 and 2/3
    logits = 1e4 * np.eye(3, dtype=np.float32)[predicted]
    np.testing.assert_allclose(lovasz_softmax(logits, labels), [1 / 3], rtol=1e-6)
    right = 1e4 * np.eye(3, dtype=np.float32)[labels % IGNORE]
    np.testing.assert_array_equal(lovasz_softmax(right, labels), [0])


def test_lovasz_extension_agrees_with_the_jaccard_loss_on_every_set():
    truth = np.array([0, 0, 1, 1, 1])
    for wrong in chain.from_iterable(combinations(range(5), n) for n in range(6)):
        predicted = truth.copy()
        predicted[list(wrong)] ^= 1
        jaccard = [
            ((truth == c) & (predicted == c)).sum() / ((truth == c) | (predicted == c)).sum()
            for c in (0, 1)
        ]
        logits = 1e4 * np.eye(2, dtype=np.float32)[predicted][None, None]
        value = lovasz_softmax(logits, truth[None, None])[0]
        np.testing.assert_allclose(value, 1 - np.mean(jaccard), atol=1e-6)


def test_ignored_pixels_change_nothing():
    logits, labels = example()
    other = logits + 50 * (labels == IGNORE)[..., None] * np.array([1, -1, 0.5], np.float32)
    for kind in KINDS:
        value, gradient = value_and_gradient(logits, labels, kind)
        assert value == value_and_gradient(other, labels, kind)[0], kind
        assert not gradient[labels == IGNORE].any(), kind
        assert gradient[labels != IGNORE].any(), kind


# ---- hard pixels


def test_hardest_pixels_by_hand():
    losses = np.array([[[5.0, 1, 9], [3, 8, 2]]], np.float32)
    labels = np.array([[[0, 0, IGNORE], [0, 0, 0]]])

    def kept(**options):
        return hardest_pixels(losses, labels, **options).astype(int).tolist()

    # Five pixels count; 0.4 · 5 = 2 of them, 0.5 · 5 rounded up is 3.
    assert kept(keep_fraction=0.4) == [[[1, 0, 0], [0, 1, 0]]]
    assert kept(keep_fraction=0.5) == [[[1, 0, 0], [1, 1, 0]]]
    assert kept(keep_fraction=0.2, threshold=2.0) == [[[1, 0, 0], [1, 1, 1]]]
    assert kept(keep_fraction=0.4, threshold=6.0) == [[[1, 0, 0], [0, 1, 0]]]
    assert kept(keep_fraction=0.0, threshold=6.0) == [[[0, 0, 0], [0, 1, 0]]]
    assert kept(keep_fraction=0.0) == [[[0, 0, 0], [0, 0, 0]]]
    assert kept(keep_fraction=1.0) == [[[1, 1, 0], [1, 1, 1]]]


def test_hardest_pixels_are_chosen_in_each_image_and_keep_ties():
    losses = np.array([[[1.0, 2, 3, 4]], [[10, 20, 20, 40]], [[7, 7, 7, 7]]], np.float32)
    labels = np.zeros((3, 1, 4), int)
    labels[2] = IGNORE
    kept = hardest_pixels(losses, labels, keep_fraction=0.5)
    assert kept.astype(int).tolist() == [[[0, 0, 1, 1]], [[0, 1, 1, 1]], [[0, 0, 0, 0]]]


def test_hard_cross_entropy_with_everything_kept_is_cross_entropy():
    logits, labels = example()
    means = segmentation_losses(
        logits,
        {"segmentation": labels},
        ("cross_entropy", "hard_cross_entropy"),
        class_weights=WEIGHTS,
        keep_fraction=1.0,
    )
    np.testing.assert_allclose(means["hard_cross_entropy"], means["cross_entropy"], rtol=1e-6)


def test_hard_cross_entropy_by_hand():
    logits = pixels_of([[0.5, 0.25, 0.25], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]])
    batch = {"segmentation": np.array([[[0, 2, 1]]])}
    mean = segmentation_losses(
        logits, batch, ("hard_cross_entropy",), WEIGHTS, keep_fraction=2 / 3
    )["hard_cross_entropy"]
    np.testing.assert_allclose(mean, (4.5 * np.log(10), 4.5), rtol=1e-6)


# ---- Means


def test_weighted_mean_is_that_of_pytorch():
    # Σ w l / Σ w = (1·log 2 + 4·log 10) / (1 + 4), the ignored pixel in neither sum.
    logits = pixels_of([[0.5, 0.25, 0.25], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]])
    batch = {"segmentation": np.array([[[0, 2, IGNORE]]])}
    for kind, options in (("cross_entropy", {}), ("focal", {"gamma": 0.0})):
        mean = eager.segmentation_losses(logits, batch, (kind,), (1.0, 0.5, 4.0), **options)[kind]
        np.testing.assert_allclose(mean.weight, 5)
        np.testing.assert_allclose(mean.value(), (np.log(2) + 4 * np.log(10)) / 5, rtol=1e-6)


def test_pixel_weights_multiply_losses_and_not_the_weight():
    logits = pixels_of([[0.5, 0.5], [0.25, 0.75], [0.5, 0.5]])
    batch = {
        "segmentation": np.array([[[0, 0, IGNORE]]]),
        "pixel_weights": np.array([[[1, 11, 5]]], np.float32),
    }
    mean = segmentation_losses(logits, batch)["cross_entropy"]
    np.testing.assert_allclose(mean, (np.log(2) + 11 * np.log(4), 2), rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_add_up_and_filling_rows_count_nothing(kind):
    logits, labels = example()
    labels[1] = IGNORE
    batch = {
        "segmentation": labels,
        "valid": np.array([True, True, True, False]),
        "pixel_weights": np.random.default_rng(1).uniform(1, 5, labels.shape).astype(np.float32),
    }

    def part(logits, rows=slice(None)):
        return mean(logits[rows], {name: value[rows] for name, value in batch.items()}, kind)

    first, second, whole = part(logits, slice(0, 2)), part(logits, slice(2, 4)), part(logits)
    np.testing.assert_allclose(whole.total, first.total + second.total, rtol=1e-5)
    np.testing.assert_allclose(whole.weight, first.weight + second.weight, rtol=1e-6)
    assert first.weight > 0
    assert second.weight > 0
    other = np.where(batch["valid"][:, None, None, None], logits, 3 - logits)
    np.testing.assert_array_equal(part(other), whole)


def test_unknown_kind_names_the_choices():
    logits, labels = example(batch=1)
    with pytest.raises(ValueError, match=r"tversky.*cross_entropy.*lovasz"):
        segmentation_losses(logits, {"segmentation": labels}, ("dice", "tversky"))


# ---- transformations


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_finite_differences(kind):
    logits, labels = example()
    _, gradient = value_and_gradient(logits, labels, kind)
    # Half along the gradient, which shows its length, and half anywhere, which shows its direction.
    for random in np.random.default_rng(1).normal(size=(4, *logits.shape)).astype(np.float32):
        step = 0.05 * (gradient / np.linalg.norm(gradient) + random / np.linalg.norm(random))
        difference = total(logits + step, labels, kind) - total(logits - step, labels, kind)
        np.testing.assert_allclose(difference, 2 * (gradient * step).sum(), rtol=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_jit_and_vmap_equal_eager(kind):
    logits, labels = example()

    def f(logits, labels):
        batch = {"segmentation": labels}
        return eager.segmentation_losses(logits, batch, (kind,), WEIGHTS)[kind].value()

    np.testing.assert_allclose(total(logits, labels, kind), f(logits, labels), rtol=1e-5)
    pairs = np.stack([logits, 1 - logits]), np.stack([labels, labels[::-1]])
    one_by_one = [total(*pair, kind) for pair in zip(*pairs, strict=True)]
    both = jax.jit(jax.vmap(partial(total, kind=kind)))(*pairs)
    np.testing.assert_allclose(both, one_by_one, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_all_ignored_is_zero_with_zero_gradient(kind):
    logits, labels = example()
    value, gradient = value_and_gradient(logits, np.full_like(labels, IGNORE), kind)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize(
    ("kind", "gamma"), [(kind, 2.0) for kind in KINDS] + [("focal", 0.0), ("focal", 0.5)]
)
def test_extreme_logits_have_finite_gradients(kind, gamma):
    logits, labels = example()
    logits = np.sign(logits) * np.float32(1e4)  # ties among the largest, too
    value, gradient = value_and_gradient(logits, labels, kind, gamma)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_logits_are_cast_first(kind):
    logits, labels = example()
    halves = jnp.asarray(logits, jnp.bfloat16)
    value = total(halves, labels, kind)
    assert value.dtype == jnp.float32
    assert value == total(halves.astype(jnp.float32), labels, kind)


def test_functions_take_any_number_of_batch_dimensions():
    logits, labels = example()
    single, nested = (logits[0], labels[0]), (logits[None], labels[None])
    for f in (softmax_focal, lovasz_softmax):
        whole = f(logits, labels)
        np.testing.assert_allclose(f(*single), whole[0], rtol=1e-6)
        np.testing.assert_allclose(f(*nested), whole[None], rtol=1e-6)
    for single_result, result in zip(dice(*single), dice(logits, labels), strict=True):
        np.testing.assert_allclose(single_result, result[0], rtol=1e-6)


# ---- class weights


def test_median_frequency_weights_by_hand():
    # Frequencies 60/100, 30/100, –, 10/50: the median of 0.6, 0.3, 0.2 is 0.3.
    counts = np.array([[60, 100], [30, 100], [0, 0], [10, 50]])
    weights = median_frequency_weights(counts)
    np.testing.assert_allclose(weights, [0.5, 1, 0, 1.5], rtol=1e-6)
    assert weights.dtype == np.float32
    np.testing.assert_array_equal(median_frequency_weights(np.zeros((2, 2), int)), [0, 0])


def test_median_frequency_weights_of_large_counts():
    # Beyond 2^24, and of an even number of classes: the median is the mean of the middle two.
    counts = np.array([[3 * 2**40, 2**42], [2**40, 2**42]])
    np.testing.assert_allclose(median_frequency_weights(counts), [2 / 3, 2], rtol=1e-6)
