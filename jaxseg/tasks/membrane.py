"""Membranes between cells, as in the ISBI 2012 challenge: semantic segmentation into two classes,
also scored by how well the cells are told apart.

Rand errors need whole pictures on the host, so the counts hold every slice's probability map, in
bytes: a quarter of a megabyte for 512×512, twice.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxseg.metrics import confusion, rand
from jaxseg.tasks import semantic
from jaxseg.types import Array, Batch, Task


class Counts(NamedTuple):
    """What is known of N slices; those that are not `valid` only fill up a batch."""

    matrix: Any  # int [K K], confusion
    probability: Any  # uint8 [N H W], of a cell, in 255ths
    segmentation: Any  # uint8 [N H W], the truth
    image_size: Any  # int32 [N 2], of the slice inside the padding
    valid: Any  # bool [N]


def make_task(dataset: Any, split: str) -> Task:
    """The task for a `data.builders.prepare.Dataset`, whatever its split, of two classes: the first
    are membranes and the second cells. ValueError for other numbers of classes."""
    if len(dataset.classes) != 2:
        told = tuple(dataset.classes)
        raise ValueError(f"task membrane: classes {told}; expected membrane and cell")
    pixels = semantic.make_task(dataset, split)
    return Task(
        measure=measure,
        add=add,
        score=score,
        report=lambda counts: pixels.report(counts.matrix),
        figures=lambda counts: pixels.figures(counts.matrix),
        draw=pixels.draw,
    )


def measure(predictions: dict[str, Array], batch: Batch) -> Counts:
    """The `Counts` of a batch, from its predictions' `probabilities` [B H W 2]."""
    cell = predictions["probabilities"][..., 1]
    return Counts(
        matrix=semantic.measure(predictions, batch, num_classes=2),
        probability=jnp.round(255 * cell).astype(jnp.uint8),
        segmentation=batch["segmentation"].astype(jnp.uint8),
        image_size=batch["image_size"],
        valid=batch["valid"],
    )


def add(a: Counts, b: Counts) -> Counts:
    """The slices of both."""
    matrix = np.add(a.matrix, b.matrix, dtype=np.int64)
    return Counts(matrix, *(np.concatenate(rows) for rows in zip(a[1:], b[1:], strict=True)))


def score(counts: Counts) -> dict[str, float]:
    """The scores of `confusion.scores`, and those of `metrics.rand`, in 0 … 1:

        pixel_error    share of wrong pixels at a threshold of 0.5
        pixel_f_error  1 − F-score of the cells' pixels
        rand_error     1 − F-score of pairs of pixels
        v_rand         F-score of pairs of pixels after thinning: 1 is best

    The last three are those of the threshold that is best for each.
    """
    probabilities, truths = zip(*_pictures(counts), strict=True)
    return {
        **confusion.scores(counts.matrix),
        "pixel_error": rand.pixel_error(probabilities, truths),
        "pixel_f_error": rand.pixel_f_error(probabilities, truths)[0],
        "rand_error": rand.rand_error(probabilities, truths)[0],
        "v_rand": 1 - rand.rand_error(probabilities, truths, thin=True)[0],
    }


def _pictures(counts: Counts) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Probability in 0 … 1 and truth of each slice, without padding."""
    for n in np.flatnonzero(counts.valid):
        height, width = counts.image_size[n]
        probability = np.asarray(counts.probability[n, :height, :width]) / np.float32(255)
        yield probability, np.asarray(counts.segmentation[n, :height, :width])
