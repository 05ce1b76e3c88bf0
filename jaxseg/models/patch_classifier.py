"""The pixel classifier from before fully convolutional networks (Cireşan et al. 2012, "Deep Neural
Networks Segment Neuronal Membranes in Electron Microscopy Images", section 2): a small network sees
the window around a pixel and gives the pixel's class. Pictures are continued by mirroring.

It trains on windows of sampled pixels. There are three ways to see a whole picture with it:

    patchwise  window after window, as the paper did
    dense      all windows at once: a pooling takes the maximum everywhere, and what comes after it
               is dilated in place of the pooling's stride (Long et al. 2015, section 3.1; the same
               sharing as by the fragments of Giusti et al. 2013, "Fast Image Scanning with Deep
               Max-Pooling Convolutional Neural Networks"). The same scores, without doing again
               what windows have in common
    strided    as a plain fully convolutional network: every s-th pixel, others are interpolated

    w      side of the window, odd
    s      stride, 2 for each pooling
    P      sampled pixels of an image
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float, Integer

from jaxseg.nn.conv import Conv
from jaxseg.ops.conv import max_pool2d, mirror_pad, resize_bilinear
from jaxseg.ops.losses import segmentation_losses
from jaxseg.types import FLOAT32, IGNORE, Array, Batch, Mean, Model, Precision, Variables

# {w: kernel sizes}, each convolution followed by a 2×2 pooling. 95 is the paper's largest (N4).
WINDOWS = {95: (4, 5, 4, 4), 65: (4, 4, 5)}


class PatchClassifier(nn.Module):
    """[B H W C] -> logits [B h w K] of the windows that begin at every s-th pixel,
    h = ⌊(H − w)/s⌋ + 1, or, `dense`, at every pixel, h = H − w + 1."""

    num_classes: int
    window: int = 95
    width: int = 48  # of each convolution
    head_width: int = 200
    precision: Precision = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, dense: bool = False) -> Array:
        conv = partial(Conv, padding=0, precision=self.precision)
        size, rate = self.window, 1
        for i, kernel_size in enumerate(self.kernel_sizes(), start=1):
            x = nn.relu(conv(self.width, kernel_size, dilation=rate, name=f"conv{i}")(x))
            x = max_pool_everywhere(x, rate) if dense else max_pool2d(x)
            size, rate = (size - kernel_size + 1) // 2, 2 * rate if dense else 1
        x = nn.relu(conv(self.head_width, size, dilation=rate, name="dense")(x))
        return conv(self.num_classes, 1, name="classifier")(x).astype(jnp.float32)

    def kernel_sizes(self) -> tuple[int, ...]:
        if self.window not in WINDOWS:
            known = ", ".join(map(str, WINDOWS))
            raise ValueError(f"window is {self.window}, expected one of {known}")
        return WINDOWS[self.window]


def max_pool_everywhere(x: Array, rate: int) -> Array:
    """Maximum over 2×2 pixels that are `rate` apart, at each place: [B H−rate W−rate C]."""
    x = jnp.maximum(x[:, :-rate], x[:, rate:])
    return jnp.maximum(x[:, :, :-rate], x[:, :, rate:])


def predict_patchwise(
    network: PatchClassifier, variables: Variables, image: Array, *, at_once: int = 16
) -> dict[str, Array]:
    """The predictions for images [B H W C], window after window, `at_once` at a time."""
    b, height, width, _ = image.shape
    padded = continued(image, network.window)

    def classify(pixel: Array) -> Array:
        which, pixel = pixel // (height * width), pixel % (height * width)
        patch = cut(padded[which], pixel, network.window, width)
        return score(network, variables, patch[None])[0, 0, 0]

    logits = lax.map(classify, jnp.arange(b * height * width), batch_size=at_once)
    return predictions(logits.reshape(b, height, width, -1))


def predict_dense(network: PatchClassifier, variables: Variables, image: Array) -> dict[str, Array]:
    """The predictions for images [B H W C], of all windows at once."""
    return predictions(score(network, variables, continued(image, network.window), dense=True))


def predict_strided(
    network: PatchClassifier, variables: Variables, image: Array
) -> dict[str, Array]:
    """The predictions for images [B H W C], of every s-th pixel, others interpolated."""
    stride = 2 ** len(network.kernel_sizes())
    height, width = image.shape[1:3]
    # Continued so that the last scores lie upon or beyond the last pixels.
    more = -(height - 1) % stride, -(width - 1) % stride
    logits = score(network, variables, continued(image, network.window, more))
    size = [stride * (n - 1) + 1 for n in logits.shape[1:3]]
    logits = resize_bilinear(logits, (size[0], size[1]), align_corners=True)
    return predictions(logits[:, :height, :width])


PREDICT = {"dense": predict_dense, "strided": predict_strided, "patchwise": predict_patchwise}


def score(network: nn.Module, variables: Variables, x: Array, **options: Any) -> Array:
    apply: Any = network.apply
    return apply(variables, x, **options)


def predictions(logits: Float[Array, "B H W K"]) -> dict[str, Array]:
    probabilities = jax.nn.softmax(logits)
    return {"probabilities": probabilities, "segmentation": probabilities.argmax(-1)}


def continued(image: Array, window: int, more: tuple[int, int] = (0, 0)) -> Array:
    """Images whose windows are those around the pixels of [B H W C], and around `more` rows and
    columns after them."""
    margin = window // 2
    return mirror_pad(image, (margin, margin), (margin + more[0], margin + more[1]))


def cut(padded: Float[Array, "H2 W2 C"], pixel: Array, window: int, width: int) -> Array:
    """The window [w w C] around a pixel; pixels are counted row by row, `width` of them in each."""
    start = (pixel // width, pixel % width, 0)
    return lax.dynamic_slice(padded, start, (window, window, padded.shape[-1]))


def sample_pixels(
    key: Array, labels: Integer[Array, "H W"], count: int, balanced: bool
) -> Integer[Array, "P"]:
    """Random labelled pixels, counted row by row: all equally likely, or all classes that there
    are. Without any labelled pixel, the last one."""
    labels = labels.reshape(-1)
    chances = (labels != IGNORE).astype(jnp.float32)
    if balanced:
        chances /= jnp.bincount(labels, length=IGNORE + 1)[labels]
    total = jnp.cumsum(chances)
    places = jax.random.uniform(key, (count,)) * total[-1]
    return jnp.searchsorted(total, places, side="right").clip(0, len(labels) - 1)


def build(
    num_classes: int,
    *,
    samples: int = 64,
    balanced: bool = True,
    prediction: str = "dense",  # or "strided", "patchwise"
    losses: tuple[str, ...] = ("cross_entropy",),
    class_weights: tuple[float, ...] | None = None,
    axis_name: str | None = None,
    **fields: Any,
) -> Model:
    """The pixel classifier as a `Model`; fields: those of `PatchClassifier`.

    samples: P, of each image at each step; balanced: as many of each class that the image has (as
    in the paper, section 2.2), else of all pixels alike. losses, class_weights: see
    `nn.semantic.segmentation_model`; they are those of the sampled pixels. Raises ValueError for
    another prediction or window.
    """
    if prediction not in PREDICT:
        raise ValueError(f"prediction is {prediction!r}, expected one of {', '.join(PREDICT)}")
    del axis_name  # no batch norm
    network = PatchClassifier(num_classes, **fields)
    network.kernel_sizes()
    window = network.window

    def init(key: Array, batch: Batch) -> Variables:
        channels = batch["image"].shape[-1]
        return dict(jax.jit(network.init)(key, jnp.zeros((1, window, window, channels))))

    def loss(variables: Variables, batch: Batch, key: Array) -> tuple[dict[str, Mean], Variables]:
        def sample(key: Array, padded: Array, maps: dict[str, Array]) -> tuple[Array, Any]:
            height, width = maps["segmentation"].shape
            pixels = sample_pixels(key, maps["segmentation"], samples, balanced)
            patches = jax.vmap(lambda pixel: cut(padded, pixel, window, width))(pixels)
            values = {name: x.reshape(height * width)[pixels, None] for name, x in maps.items()}
            return patches, values

        maps = {name: batch[name] for name in ("segmentation", "pixel_weights") if name in batch}
        keys = jax.random.split(key, len(batch["image"]))
        patches, sampled = jax.vmap(sample)(keys, continued(batch["image"], window), maps)
        logits = score(network, variables, patches.reshape(-1, *patches.shape[2:]))
        logits = logits.reshape(len(patches), samples, 1, num_classes)
        return segmentation_losses(logits, batch | sampled, losses, class_weights), {}

    def predict(variables: Variables, image: Float[Array, "B H W C"]) -> dict[str, Array]:
        return PREDICT[prediction](network, variables, image)

    return Model(init, loss, predict)
