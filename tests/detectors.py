"""What the tests of detectors share: torchvision's photographs, one step of training on them, and
small batches."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import published
from networks import compiled_once
from PIL import Image

from jaxseg.data.transforms import picture_on_canvas
from jaxseg.ops.conv import resize_bilinear
from jaxseg.types import MEAN, STD
from jaxseg.weights.convert import to_torchvision

PHOTOS = ("chelsea", "astronaut")
PYRAMID = ("0", "1", "2", "p6", "p7")  # the names of its maps in the references


def picture(folder, photo):
    """A photograph as torchvision resizes it, and its size before."""
    with Image.open(folder / f"{photo}.png") as image:
        pixels = (np.asarray(image.convert("RGB"), np.float32) / 255 - MEAN) / STD
    original = np.array(pixels.shape[:2])
    scale = min(320 / original.min(), 448 / original.max())
    height, width = (original * scale).astype(int).tolist()
    return np.asarray(resize_bilinear(jnp.asarray(pixels[None]), (height, width)))[0], original


def batch_of(reference):
    """The two photographs as torchvision resizes them, and their objects."""
    targets, size = np.load(reference.folder / "targets.npz"), (384, 448)
    batch = no_objects(rows=2, size=size, most=8, joints=17) | {
        "image": np.zeros((2, *size, 3), np.float32)
    }
    for i, photo in enumerate(PHOTOS):
        pixels, original = picture(reference.folder, photo)
        height, width = batch["image_size"][i] = pixels.shape[:2]
        batch["image"][i, :height, :width] = pixels
        ratio = (batch["image_size"][i] / original).astype(np.float32)[::-1]
        count = len(targets[f"{photo}/boxes"])
        batch["boxes"][i, :count] = targets[f"{photo}/boxes"] * np.tile(ratio, 2)
        batch["labels"][i, :count] = targets[f"{photo}/labels"]
        batch["object_mask"][i, :count] = True
        masks = np.unpackbits(targets[f"{photo}/masks"], axis=-1)[..., : original[1]]
        y, x = (np.arange(n) * m // n for n, m in zip((height, width), original, strict=True))
        placed = np.zeros((count, *size), bool)
        placed[:, :height, :width] = masks[:, y][:, :, x]
        batch["masks"][i, :count] = np.packbits(placed, axis=-1)
        batch["keypoints"][i, :count] = targets[f"{photo}/keypoints"] * np.append(ratio, 1)
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


def train(reference, network, losses, settings, statistics, names, batch):
    """(gradients, variables) after one step, under torchvision's names; the losses must be the
    reference's. names: {ours: torchvision's}, statistics: "train" for those of the batch,
    "train_bn_eval" for the running ones."""
    variables, family = published.weights(reference, network, batch["image"][:1])
    network = network.clone(training=statistics == "train")
    measure = nn.apply(losses, network, mutable=["batch_stats"])

    @compiled_once
    @partial(jax.value_and_grad, has_aux=True)
    def step(params, rest, batch):
        found, after = measure({"params": params, **rest}, settings, batch)
        means = {name: mean.value() for name, mean in found.items()}
        return sum(means.values()), (means, after)

    params = variables.pop("params")
    (_, (found, after)), gradients = jax.device_get(step(params, variables, batch))
    expected = reference.meta[f"{statistics}_losses_f64"]
    assert {names[name] for name in found} == set(expected)
    for name, loss in found.items():
        exact = expected[names[name]]
        own = abs(reference.meta[f"{statistics}_losses"][names[name]] - exact)
        # As for gradients: where torch's float32 is further from float64, 5 times as far.
        np.testing.assert_allclose(loss, exact, rtol=0, atol=max(1e-5 * exact, 5 * own))
    gradients = to_torchvision({"params": gradients}, family)
    return gradients, to_torchvision({"params": params, **after}, family)


def check_training(reference, network, losses, settings, statistics, names, batch=None):
    """Losses, gradients and running statistics of one step: see `train`."""
    batch = batch_of(reference) if batch is None else batch
    gradients, after = train(reference, network, losses, settings, statistics, names, batch)
    published.check_gradients(reference, statistics, gradients, 2e-4)
    if statistics == "train":
        check_statistics(reference, after, 1e-4)


def check_statistics(reference, after, tolerance):
    for name in (name for name in reference.arrays if name.startswith("after/")):
        assert published.error(after[name.removeprefix("after/")], reference, name) < tolerance


# ---- a small batch


OBJECTS = {
    "none": [],
    "one": [[10, 10, 40, 50]],
    "one pixel": [[10, 10, 11, 11]],
    "no area": [[10, 10, 10, 30]],
    "duplicates": [[10, 10, 40, 50]] * 3,
    "at the border": [[0, 0, 96, 64], [90, 60, 96, 64]],
}


def no_objects(rows=2, size=(64, 96), most=3, joints=3):
    """Random pictures, and room for objects with masks and keypoints."""
    image = np.random.default_rng(0).normal(size=(rows, *size, 3)).astype(np.float32)
    return {
        "image": image,
        "image_size": np.tile(np.array(size, np.int32), (rows, 1)),
        "valid": np.ones(rows, bool),
        "boxes": np.zeros((rows, most, 4), np.float32),
        "labels": np.zeros((rows, most), np.int32),
        "object_mask": np.zeros((rows, most), bool),
        "crowd": np.zeros((rows, most), bool),
        "masks": np.zeros((rows, most, size[0], -(-size[1] // 8)), np.uint8),
        "keypoints": np.zeros((rows, most, joints, 3), np.float32),
    }


def batch_with(boxes, crowd=False, rows=2):
    """Random pictures of 64×96 pixels, all with these objects, whose masks fill their boxes."""
    batch = no_objects(rows)
    count, boxes = len(boxes), np.reshape(boxes, (-1, 4))
    batch["boxes"][:, :count] = boxes
    batch["labels"][:, :count] = np.arange(count) % 3 + 1
    batch["object_mask"][:, :count] = True
    batch["crowd"][:, :count] = crowd
    for m, (x0, y0, x1, y1) in enumerate(np.clip(boxes, 0, 999).astype(int)):
        mask = np.zeros((64, 96), bool)
        mask[y0:y1, x0:x1] = True
        batch["masks"][:, m] = np.packbits(mask, axis=-1)
        batch["keypoints"][:, m] = [[(x0 + x1) / 2, (y0 + y1) / 2, 2], [x0, y0, 1], [0, 0, 0]]
    return batch
