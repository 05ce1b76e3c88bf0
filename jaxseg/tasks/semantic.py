"""Semantic segmentation: one label a pixel. What to measure and to draw, and how any semantic
model's `predict` is made more careful: several scales, mirrored, or tile by tile."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxseg.metrics import confusion
from jaxseg.types import IGNORE, MEAN, STD, Array, Batch, Task, Variables
from jaxseg.viz import draw

Predict = Callable[[Variables, Array], dict[str, Array]]


def make_task(dataset: Any, split: str) -> Task:
    """The task for a `data.builders.prepare.Dataset`, whatever the split: its `classes`, K of them,
    drawn in its `palette`, uint8 [K 3]. Counts are a confusion matrix [K K]."""
    classes = dataset.classes
    return Task(
        measure=partial(measure, num_classes=len(classes)),
        add=lambda a, b: np.add(a, b, dtype=np.int64),
        score=confusion.scores,
        report=partial(confusion.table, classes=classes),
        figures=lambda counts: {"confusion": draw.confusion_picture(counts, classes)},
        draw=partial(draw_example, palette=dataset.palette),
    )


def measure(predictions: dict[str, Array], batch: Batch, num_classes: int) -> Array:
    """Confusion matrix [K K] int32 of a batch; rows that are not `valid` do not count."""
    labels = jnp.where(batch["valid"][:, None, None], batch["segmentation"], IGNORE)
    return confusion.confusion_matrix(predictions["segmentation"], labels, num_classes)


def draw_example(
    example: Batch, prediction: dict[str, Array], palette: np.ndarray
) -> dict[str, np.ndarray]:
    """Picture, truth, prediction and errors of one example, uint8 [h w 3] each."""
    height, width = example["image_size"]
    image = draw.denormalize(np.asarray(example["image"])[:height, :width], MEAN, STD)
    maps = (x["segmentation"][:height, :width] for x in (example, prediction))
    image, truth, predicted = (draw.enlarge(np.asarray(x), 160) for x in (image, *maps))
    return {
        "picture": image,
        "truth": draw.overlay(image, truth, palette),
        "prediction": draw.overlay(image, predicted, palette),
        "errors": draw.errors(predicted, truth),
    }


def average_scales(
    predict: Predict, scales: Sequence[float] = (1.0,), flip: bool = False
) -> Predict:
    """Probabilities averaged over resized, and mirrored, copies of the image."""

    def averaged(variables: Variables, image: Array) -> dict[str, Array]:
        b, height, width, c = image.shape
        summed = []
        for scale in scales:
            size = max(round(height * scale), 1), max(round(width * scale), 1)
            resized = jax.image.resize(image, (b, *size, c), "linear")
            for mirror in (False, True)[: 1 + flip]:
                seen = resized[:, :, ::-1] if mirror else resized
                p = predict(variables, seen)["probabilities"]
                p = p[:, :, ::-1] if mirror else p
                summed.append(jax.image.resize(p, (b, height, width, p.shape[-1]), "linear"))
        return _decide(jnp.mean(jnp.stack(summed), axis=0))

    return averaged


def overlap_tiles(predict: Predict, window: int, margin: int) -> Predict:
    """Tile by tile: windows of `window` pixels, of which `margin` on each side is only context;
    the image is continued by mirroring (Ronneberger et al. 2015, figure 2).

    With a margin of at least the network's reach, and tiles that lie on its pooling grid, it is the
    prediction for the whole image. ValueError unless window > 2·margin.
    """
    stride = window - 2 * margin
    if stride <= 0:
        raise ValueError(f"window {window} has nothing inside a margin of {margin} on each side")

    def tiled(variables: Variables, image: Array) -> dict[str, Array]:
        _, height, width, c = image.shape
        rows, columns = -(-height // stride), -(-width // stride)
        right, bottom = columns * stride - width + margin, rows * stride - height + margin
        padded = jnp.pad(image, ((0, 0), (margin, bottom), (margin, right), (0, 0)), mode="reflect")

        def predict_tile(corner: Array) -> Array:
            start = (0, corner[0], corner[1], 0)
            tile = lax.dynamic_slice(padded, start, (image.shape[0], window, window, c))
            p = predict(variables, tile)["probabilities"]
            return p[:, margin : margin + stride, margin : margin + stride]

        corners = np.mgrid[:rows, :columns].reshape(2, -1).T * stride
        tiles = lax.map(predict_tile, jnp.asarray(corners))  # [rows·columns B s s K]
        tiles = tiles.reshape(rows, columns, *tiles.shape[1:]).transpose(2, 0, 3, 1, 4, 5)
        whole = tiles.reshape(image.shape[0], rows * stride, columns * stride, -1)
        return _decide(whole[:, :height, :width])

    return tiled


def _decide(probabilities: Array) -> dict[str, Array]:
    return {"probabilities": probabilities, "segmentation": probabilities.argmax(-1)}
