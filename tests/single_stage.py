"""What the tests of single-stage detectors share: torchvision's photographs, one step of training
on them, and a small batch."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import published
from PIL import Image

from jaxseg.data.transforms import picture_on_canvas
from jaxseg.ops.conv import resize_bilinear
from jaxseg.types import MEAN, STD
from jaxseg.weights.convert import to_torchvision

PHOTOS = ("chelsea", "astronaut")
PYRAMID = ("0", "1", "2", "p6", "p7")  # the names of its maps in the references


def batch_of(reference):
    """The two photographs as torchvision resizes them, and their objects."""
    targets = np.load(reference.folder / "targets.npz")
    batch = {
        "image": np.zeros((2, 384, 448, 3), np.float32),
        "image_size": np.zeros((2, 2), np.int32),
        "valid": np.ones(2, bool),
        "boxes": np.zeros((2, 8, 4), np.float32),
        "labels": np.zeros((2, 8), np.int32),
        "object_mask": np.zeros((2, 8), bool),
    }
    for i, photo in enumerate(PHOTOS):
        with Image.open(reference.folder / f"{photo}.png") as image:
            pixels = (np.asarray(image.convert("RGB"), np.float32) / 255 - MEAN) / STD
        original = np.array(pixels.shape[:2])
        scale = min(320 / original.min(), 448 / original.max())
        height, width = size = (original * scale).astype(int)
        resized = resize_bilinear(jnp.asarray(pixels[None]), (int(height), int(width)))
        batch["image"][i, :height, :width] = resized[0]
        batch["image_size"][i] = size
        boxes = targets[f"{photo}/boxes"]
        ratio = np.tile((size / original)[::-1], 2)
        batch["boxes"][i, : len(boxes)] = boxes * ratio
        batch["labels"][i, : len(boxes)] = targets[f"{photo}/labels"]
        batch["object_mask"][i, : len(boxes)] = True
    return batch


def check_detections(reference, told, image_size):
    """Boxes in the photographs' own pixels, labels and scores are the reference's, and so is their
    order, but where two scores are the same but for rounding."""
    assert len(image_size) == sum(key.startswith("boxes_") for key in reference.arrays)
    for i, size in enumerate(image_size):
        with Image.open(reference.folder / f"{reference.meta['images'][i]}.png") as image:
            ratio = np.tile(image.size / np.asarray(size)[::-1], 2)
        assert told["detection_mask"][i].all()
        found = np.column_stack([told["boxes"][i] * ratio, 1e3 * told["labels"][i]])
        expected = reference.arrays[f"boxes_{i}"], 1e3 * reference.arrays[f"labels_{i}"]
        apart = np.abs(found[:, None] - np.column_stack(expected)).max(-1)
        order = apart.argmin(1)
        assert apart[np.arange(len(order)), order].max() < 1e-2
        assert len(set(order)) == len(order)
        scores = reference.arrays[f"scores_{i}"]
        np.testing.assert_allclose(scores[order], scores, atol=2e-5)
        np.testing.assert_allclose(told["scores"][i], scores, atol=2e-5)


def check_default(reference, network, predictions, settings):
    """What default settings find on a photograph, on torchvision's canvas: with more padding, what
    is near the right and lower border changes, as convolutions see further into it."""
    with Image.open(reference.folder / f"{reference.meta['images'][0]}.png") as photo:
        photo = np.asarray(photo.convert("RGB"))
    image, size = picture_on_canvas(photo, (800, 1216), (800, 1333))
    variables, _ = published.weights(reference, network, image[None])
    predict = jax.jit(nn.apply(predictions, network), static_argnums=1)
    told = jax.device_get(predict(variables, settings, image[None], None))
    check_detections(reference, told, [size])


def check_training(reference, network, losses, settings, statistics, names):
    """Losses, gradients and running statistics of one step; names: {ours: torchvision's} of the
    losses, statistics: "train" for those of the batch, "train_bn_eval" for the running ones."""
    batch = batch_of(reference)
    variables, family = published.weights(reference, network, batch["image"][:1])
    network = network.clone(training=statistics == "train")
    measure = nn.apply(losses, network, mutable=["batch_stats"])

    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # it runs but once
    @partial(jax.value_and_grad, has_aux=True)
    def step(params, rest, batch):
        found, after = measure({"params": params, **rest}, settings, batch)
        means = {name: mean.value() for name, mean in found.items()}
        return sum(means.values()), (means, after)

    params = variables.pop("params")
    (_, (found, after)), gradients = jax.device_get(step(params, variables, batch))
    assert {names[name] for name in found} == set(reference.meta[f"{statistics}_losses_f64"])
    for name, loss in found.items():
        exact = reference.meta[f"{statistics}_losses_f64"][names[name]]
        own = abs(reference.meta[f"{statistics}_losses"][names[name]] - exact)
        # As for gradients: where torch's float32 is further from float64, 5 times as far.
        np.testing.assert_allclose(loss, exact, rtol=0, atol=max(1e-5 * exact, 5 * own))
    gradients = to_torchvision({"params": gradients}, family)
    published.check_gradients(reference, statistics, gradients, 2e-4)
    if statistics == "train":
        after = to_torchvision({"params": params, **after}, family)
        for name in (name for name in reference.arrays if name.startswith("after/")):
            assert published.error(after[name.removeprefix("after/")], reference, name) < 1e-4


# ---- a small batch


OBJECTS = {
    "none": [],
    "one": [[10, 10, 40, 50]],
    "one pixel": [[10, 10, 11, 11]],
    "no area": [[10, 10, 10, 30]],
    "duplicates": [[10, 10, 40, 50]] * 3,
    "at the border": [[0, 0, 96, 64], [90, 60, 96, 64]],
}


def batch_with(boxes, crowd=False, rows=2):
    """Random pictures of 64×96 pixels, all with these objects."""
    image = np.random.default_rng(0).normal(size=(rows, 64, 96, 3)).astype(np.float32)
    batch = {
        "image": image,
        "image_size": np.tile(np.array([64, 96], np.int32), (rows, 1)),
        "valid": np.ones(rows, bool),
        "boxes": np.zeros((rows, 3, 4), np.float32),
        "labels": np.zeros((rows, 3), np.int32),
        "object_mask": np.zeros((rows, 3), bool),
        "crowd": np.zeros((rows, 3), bool),
    }
    count = len(boxes)
    batch["boxes"][:, :count] = np.reshape(boxes, (-1, 4))
    batch["labels"][:, :count] = np.arange(count) % 3 + 1
    batch["object_mask"][:, :count] = True
    batch["crowd"][:, :count] = crowd
    return batch
