"""Losses of semantic segmentation: per pixel, per class or per image, and never reduced further.

    logits         [*B H W K]  any float dtype, cast to float32; K classes
    labels         [*B H W]    integers, 0 … K-1 and IGNORE
    class_weights  [K]         float, what a pixel of each class counts; None is 1 for each
    p              [*B H W K]  softmax of the logits; p_y is that of the true class

IGNORE has loss 0 and gradient 0. A label that is neither a class nor IGNORE gives NaN: a void
label that nobody mapped to IGNORE should be heard, not averaged away. All functions work under
jit, grad and vmap, and their gradients are finite for logits of any finite size.

`segmentation_losses` is the one that reduces: it is what models call, and it returns `Mean`s.
`sigmoid_focal` is not of pixels: detectors ask it of every anchor and class.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Bool, Float, Integer

from jaxseg.types import IGNORE, Array, Batch, Mean


def label_weights(
    labels: Integer[Array, "*B"], class_weights: Float[Array, "K"] | None = None
) -> Float[Array, "*B"]:
    """What each label counts: its class's weight, and 0 at IGNORE.

    Σ label_weights · loss / Σ label_weights is the weighted mean, as PyTorch defines it.
    """
    counted = labels != IGNORE
    if class_weights is None:
        return counted.astype(jnp.float32)
    return jnp.where(counted, jnp.asarray(class_weights, jnp.float32)[labels * counted], 0)


def softmax_cross_entropy(
    logits: Float[Array, "*B H W K"],
    labels: Integer[Array, "*B H W"],
    class_weights: Float[Array, "K"] | None = None,
) -> Float[Array, "*B H W"]:
    """-w_y log p_y, in nats; w_y is 1 without class weights."""
    losses = optax.softmax_cross_entropy(_float32(logits), _targets(logits, labels))
    return losses if class_weights is None else losses * label_weights(labels, class_weights)


def softmax_focal(
    logits: Float[Array, "*B H W K"],
    labels: Integer[Array, "*B H W"],
    gamma: float = 2.0,
    class_weights: Float[Array, "K"] | None = None,
) -> Float[Array, "*B H W"]:
    """-w_y (1 - p_y)^γ log p_y: Lin et al. 2017, "Focal Loss for Dense Object Detection", eq. 5,
    with a softmax in place of the sigmoid.

    γ ≥ 0; with γ = 0 it is the cross-entropy, to the last bit.
    """
    others = jnp.where(
        _targets(logits, labels) == 1, -jnp.inf, jax.nn.log_softmax(_float32(logits))
    )
    # 1 - p_y as the sum of the other probabilities, and its power as exp(γ log ·): the slope of
    # log(1 - p_y) is bounded, whereas that of x^γ at x = 0 is infinite for γ < 1.
    modulation = jnp.exp(gamma * jax.nn.logsumexp(others, axis=-1))
    return modulation * softmax_cross_entropy(logits, labels, class_weights)


def sigmoid_focal(
    logits: Float[Array, "*B"],
    targets: Bool[Array, "*B"],
    gamma: float = 2.0,
    alpha: float | None = 0.25,
) -> Float[Array, "*B"]:
    """-α_t (1 - p_t)^γ log p_t of each yes or no: Lin et al. 2017, "Focal Loss for Dense Object
    Detection", eq. 5; p_t is the probability of the truth, α_t is α for yes and 1 - α for no, or
    1 for both without α.

    γ ≥ 0; with γ = 0 it is the cross-entropy. optax.losses.sigmoid_focal_loss gives the same, but
    takes seven times as long (4.5 million logits and their gradient on two CPU cores: 0.99 s for
    0.13 s), as its targets may be between 0 and 1.
    """
    truth = jnp.where(targets, 1, -1) * _float32(logits)
    # The power as exp(γ log ·): its slope is finite where 1 - p_t is 0, whatever γ is.
    losses = -jnp.exp(gamma * jax.nn.log_sigmoid(-truth)) * jax.nn.log_sigmoid(truth)
    return losses if alpha is None else jnp.where(targets, alpha, 1 - alpha) * losses


def dice(
    logits: Float[Array, "*B H W K"], labels: Integer[Array, "*B H W"]
) -> tuple[Float[Array, "*B K"], Bool[Array, "*B K"]]:
    """1 - D for each image and class, and which classes an image contains (the others have 0).

    D = 2 Σ p g / (Σ p² + Σ g²) over the pixels of an image, g being 1 where the label is the class:
    Milletari et al. 2016, "V-Net", section 3. The loss is 0 for a perfect prediction and 1 for no
    overlap.

    Only classes that the image contains count. For others D is 0 whatever is predicted, so they
    would add a constant; and without them no smoothing term is needed. What is wrongly predicted
    as an absent class is missing from a class that is present, and so is paid for there.
    """
    g = _targets(logits, labels)
    p = jax.nn.softmax(_float32(logits)) * (labels != IGNORE)[..., None]
    overlap, sizes = (x.sum(axis=(-3, -2)) for x in (p * g, p**2 + g**2))
    present = jnp.any(g != 0, axis=(-3, -2))
    return jnp.where(present, 1 - 2 * overlap / jnp.where(present, sizes, 1), 0), present


def lovasz_softmax(
    logits: Float[Array, "*B H W K"], labels: Integer[Array, "*B H W"]
) -> Float[Array, "*B"]:
    """Lovász-Softmax of each image, the mean over the classes that it contains; 0 if none.

    Berman et al. 2018, "The Lovász-Softmax loss", section 3.2: the error of a pixel for class c is
    m = 1 - p_c where c is the label and p_c elsewhere. The Lovász extension turns the Jaccard loss
    of a set of wrong pixels into a function of those errors, equal to it where errors are 0 or 1.
    It sorts once a class: half a second for 360 x 480 pixels and 12 classes on two CPU cores.
    """

    def image_loss(p: Float[Array, "N K"], labels: Integer[Array, "N"], g: Float[Array, "N K"]):
        errors = jnp.abs(g - p) * (labels != IGNORE)[:, None]
        foreground, background = g != 0, (g == 0) & (labels != IGNORE)[:, None]
        losses = jax.vmap(_lovasz_extension, in_axes=1)(errors, foreground, background)
        present = foreground.any(axis=0)
        return jnp.where(present, losses, 0).sum() / jnp.maximum(present.sum(), 1)

    p, g = jax.nn.softmax(_float32(logits)), _targets(logits, labels)
    *batch, height, width, classes = logits.shape
    losses = jax.vmap(image_loss)(
        p.reshape(-1, height * width, classes),
        labels.reshape(-1, height * width),
        g.reshape(-1, height * width, classes),
    )
    return losses.reshape(batch)


def hardest_pixels(
    losses: Float[Array, "*B H W"],
    labels: Integer[Array, "*B H W"],
    keep_fraction: float = 0.25,
    threshold: float = float("inf"),
) -> Bool[Array, "*B H W"]:
    """The pixels that online hard example mining keeps, chosen in each image by itself.

    Kept are the hardest ⌈keep_fraction · pixels that are not IGNORE⌉, and all whose loss is
    `threshold` or more (-log 0.7 ≈ 0.357 keeps those that give the truth a probability under 0.7).
    Pixels that tie with the last one kept are kept as well. keep_fraction = 0 leaves the threshold
    alone to choose.

    Shrivastava et al. 2016, "Training Region-based Object Detectors with Online Hard Example
    Mining", section 4; for pixels Wu et al. 2016, "High-performance Semantic Segmentation Using
    Very Deep Fully Convolutional Networks", section 2.2 ("online bootstrapping").
    """
    counted = labels != IGNORE
    losses = jnp.where(counted, jax.lax.stop_gradient(losses), -jnp.inf)
    number = jnp.ceil(keep_fraction * counted.sum(axis=(-2, -1), keepdims=True)).astype(jnp.int32)
    flat = losses.reshape(*losses.shape[:-2], 1, -1)
    descending = jnp.sort(flat, axis=-1, descending=True)
    cut = jnp.take_along_axis(descending, jnp.maximum(number - 1, 0), axis=-1)
    cut = jnp.where(number > 0, cut, jnp.inf)
    # Not `>=`: a loss that is NaN is to be kept, or nobody would hear of it.
    return counted & ~(losses < jnp.minimum(cut, threshold))


def segmentation_losses(
    logits: Float[Array, "B H W K"],
    batch: Batch,
    kinds: Sequence[str] = ("cross_entropy",),
    class_weights: Float[Array, "K"] | Sequence[float] | None = None,
    *,
    gamma: float = 2.0,
    keep_fraction: float = 0.25,
    threshold: float = float("inf"),
) -> dict[str, Mean]:
    """One `Mean` for each kind of loss; a model's loss is the sum of their values.

    Uses batch["segmentation"] and, where there are any, batch["valid"] and batch["pixel_weights"].
    Totals and weights are sums over pixels or over images, so those of parts of a batch add up to
    those of the whole.

        cross_entropy       per pixel, weighted by class
        hard_cross_entropy  the same over `hardest_pixels` (keep_fraction, threshold)
        focal               per pixel, weighted by class (gamma)
        dice, lovasz        per image: the mean over the classes in it; images without any
                            labelled pixel do not count. Class weights have no part in them.

    pixel_weights multiply the losses of pixels but not the Mean's weight, which stays the sum of
    class weights. So U-Net's map of borders (Ronneberger et al. 2015, eq. 1, a plain sum) makes
    images with many borders count more, and leaves the scale of ordinary pixels alone. That map may
    contain class weights itself (its w_c): give them there or here, not twice.

    Raises ValueError for an unknown kind.
    """
    labels = jnp.asarray(batch["segmentation"])
    if "valid" in batch:
        labels = jnp.where(batch["valid"][:, None, None], labels, IGNORE)
    worth = None if class_weights is None else jnp.asarray(class_weights, jnp.float32)
    weights = label_weights(labels, worth)
    # Hardness is that of the plain loss: a weight says what a class is worth, not how hard it is.
    plain = softmax_cross_entropy(logits, labels)

    def mean_of_pixels(losses: Array, weights: Array) -> Mean:
        return Mean((batch.get("pixel_weights", 1) * weights * losses).sum(), weights.sum())

    def mean_of_images(losses: Array) -> Mean:
        counted = jnp.any(labels != IGNORE, axis=(1, 2))
        return Mean((losses * counted).sum(), counted.sum().astype(jnp.float32))

    def hard_cross_entropy() -> Mean:
        kept = hardest_pixels(plain, labels, keep_fraction, threshold)
        return mean_of_pixels(plain, weights * kept)

    def mean_dice() -> Mean:
        losses, present = dice(logits, labels)
        return mean_of_images(losses.sum(-1) / jnp.maximum(present.sum(-1), 1))

    functions = {
        "cross_entropy": lambda: mean_of_pixels(plain, weights),
        "hard_cross_entropy": hard_cross_entropy,
        "focal": lambda: mean_of_pixels(softmax_focal(logits, labels, gamma), weights),
        "dice": mean_dice,
        "lovasz": lambda: mean_of_images(lovasz_softmax(logits, labels)),
    }
    if unknown := set(kinds) - set(functions):
        raise ValueError(f"unknown losses {sorted(unknown)}; choose from {', '.join(functions)}")
    return {kind: functions[kind]() for kind in kinds}


def median_frequency_weights(pixel_counts: Integer[np.ndarray, "K 2"]) -> Float[np.ndarray, "K"]:
    """Class weights that balance rare against frequent classes, float32.

    pixel_counts holds, for each class, its pixels in the training set, and all (labelled) pixels of
    the images that contain it; their ratio is the frequency of the class. weight = median of the
    frequencies / frequency: Eigen & Fergus 2015, "Predicting Depth, Surface Normals and Semantic
    Labels", section 6.3.2. Classes that never occur get 0 and do not enter the median.
    """
    pixels, pixels_of_images = pixel_counts.astype(np.float64).T
    occurs = pixels > 0
    weights = np.zeros(len(pixels), np.float32)
    frequency = pixels[occurs] / pixels_of_images[occurs]
    if frequency.size:
        weights[occurs] = np.median(frequency) / frequency
    return weights


def _float32(logits: Array) -> jax.Array:
    return jnp.asarray(logits, jnp.float32)


def _targets(logits: Float[Array, "*B K"], labels: Integer[Array, "*B"]) -> Float[Array, "*B K"]:
    """One-hot labels; all 0 at IGNORE, NaN where the label is no class."""
    classes = logits.shape[-1]
    known = ((labels >= 0) & (labels < classes)) | (labels == IGNORE)
    return jnp.where(known[..., None], jax.nn.one_hot(labels, classes), jnp.nan)


def _lovasz_extension(
    errors: Float[Array, "N"], foreground: Bool[Array, "N"], background: Bool[Array, "N"]
) -> Float[Array, ""]:
    """Σ m_i g_i (Berman et al. eq. 8) for one class; pixels neither fore- nor background are free.

    g_i is the rise of the Jaccard loss when the i-th worst pixel becomes wrong, too (eq. 9). The
    paper's Algorithm 1 subtracts neighbouring Jaccard losses, which differ in their last digits
    only; here each step is written out. With I the foreground pixels still right and U the union,
    both after the step, a foreground pixel adds 1 / U, and a background pixel, which makes the
    union grow from U - 1 to U, adds I / (U - 1) - I / U.
    """
    order = jnp.argsort(jax.lax.stop_gradient(errors), descending=True)
    wrong_foreground, wrong_background = foreground[order], background[order]
    intersection = foreground.sum() - jnp.cumsum(wrong_foreground)
    union = jnp.maximum(foreground.sum() + jnp.cumsum(wrong_background), 1).astype(jnp.float32)
    rises = wrong_foreground / union
    rises += wrong_background * intersection / (union * jnp.maximum(union - 1, 1))
    # The rises are constants wherever there is a gradient, so it need not go through the sort.
    return errors @ jnp.zeros_like(errors).at[order].set(rises, unique_indices=True)
