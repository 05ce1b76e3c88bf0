"""From a prepared split to batches: shuffle, augment, normalise, batch, prefetch.

A training pipeline is a function of (seed, position) alone: batch t can be computed without the
batches before it. So its state is the step, a run resumes with any number of workers, and with n
processes each computes its own rows of the very batch that one process would see.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import grain
import numpy as np
from absl import flags

from jaxseg.data import transforms
from jaxseg.data.transforms import Example, Size
from jaxseg.types import Batch

Examples = Sequence[Example] | Any  # random access is enough

EPOCHS = 10**9  # no end: an unbounded `repeat` has a length that batches overflow

# What an example keeps in a batch, and as what.
_DTYPES = {
    "image": np.float32,
    "segmentation": np.int32,
    "pixel_weights": np.float32,
    "boxes": np.float32,
    "labels": np.int32,
    "crowd": np.bool_,
    "difficult": np.bool_,
    "object_mask": np.bool_,
    "masks": np.bool_,
    "keypoints": np.float32,
    "classes": np.bool_,
}


def training_batches(
    examples: Examples,
    augment: Callable[[Example, np.random.Generator], Example],
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    process: tuple[int, int] = (0, 1),
    num_workers: int = 0,
) -> Iterator[Batch]:
    """Endless batches from batch `start` on: this process's rows, batch_size / count of them.

    examples are shuffled anew in every epoch; augment: (example, rng) -> example of fixed shapes;
    process: (index, count); num_workers: processes that prepare batches, 0 for threads.
    """
    index, count = process
    rows = _share(batch_size, count)
    if len(examples) == 0:
        raise ValueError("the training split is empty")
    dataset = grain.MapDataset.source(Numbered(examples)).seed(seed).shuffle().repeat(EPOCHS)
    # Batches before the share of a process: its rows are those of the global batch, in order.
    dataset = dataset.random_map(augment).batch(rows)[start * count + index :: count]
    return _iterate(dataset, num_workers)


def evaluation_batches(
    examples: Examples,
    prepare: Callable[[Example], Example],
    *,
    batch_size: int,
    process: tuple[int, int] = (0, 1),
    num_workers: int = 0,
) -> Iterator[Batch]:
    """All examples once, in order; `valid` is False for what fills up the last batch.

    Every process gets the same number of batches of batch_size / count rows.
    """
    index, count = process
    rows = _share(batch_size, count)
    source = FilledUp(Numbered(examples), batch_size)
    dataset = grain.MapDataset.source(source).map(partial(_prepare_valid, prepare))
    return _iterate(dataset.batch(rows)[index::count], num_workers)


def augment_example(
    example: Example,
    rng: np.random.Generator,
    *,
    image_size: Size,
    crop_size: Size,
    scales: tuple[float, float],
    flip: bool,
    color: dict[str, float],
    elastic: tuple[int, int | float] | None = None,
    keypoint_flip: tuple[int, ...] = (),
    **finish: Any,
) -> Example:
    """Random scale, crop with padding, flip, elastic deformation and colours, for training."""
    size = example["image"].shape[:2]
    matrix = transforms.random_crop(rng, size, image_size, crop_size, scales, flip)
    field = None if elastic is None else transforms.elastic_field(rng, crop_size, *elastic)
    moved = _moved(example, matrix, crop_size, keypoint_flip, field, **finish)
    moved["image"] = transforms.jitter_color(moved["image"], rng, **color)
    return _finish(example, moved, crop_size, **finish)


def whole_example(example: Example, *, image_size: Size, **finish: Any) -> Example:
    """The whole picture on the canvas, for evaluation."""
    matrix, size = transforms.whole_picture(example["image"].shape[:2], image_size)
    return _finish(example, _moved(example, matrix, image_size, **finish), size, **finish)


def _moved(
    example: Example,
    matrix: transforms.Matrix,
    size: Size,
    keypoint_flip: tuple[int, ...] = (),
    field: transforms.Field | None = None,
    *,
    max_objects: int = 0,
    border_weights: tuple[float, float] | None = None,
    **_: Any,
) -> Example:
    """The example on its canvas, without the masks and keypoints that nobody asks for."""
    unused = set() if max_objects else {"keypoints"} if border_weights else {"keypoints", "masks"}
    wanted = {name: value for name, value in example.items() if name not in unused}
    return transforms.warp(wanted, matrix, size, keypoint_flip, field)


def _finish(
    example: Example,
    moved: Example,
    picture_size: Size,
    *,
    num_classes: int,
    max_objects: int = 0,
    border_weights: tuple[float, float] | None = None,
) -> Example:
    """What a batch wants of an example, as what types."""
    if border_weights is not None:
        moved = transforms.add_border_weights(moved, *border_weights)
    moved = transforms.present_classes(moved, num_classes)
    if max_objects:
        moved = transforms.pad_objects(moved, max_objects)
    else:
        per_object = ("boxes", "labels", "crowd", "difficult", "masks", "keypoints")
        moved = {name: value for name, value in moved.items() if name not in per_object}
    moved["image"] = transforms.normalize(moved["image"])
    moved = {name: np.asarray(value, _DTYPES[name]) for name, value in moved.items()}
    moved["image_id"] = np.int32(example["image_id"])
    moved["image_size"] = np.array(picture_size, np.int32)
    moved["original_size"] = np.array(example["image"].shape[:2], np.int32)
    moved["valid"] = np.bool_(True)
    return moved


def _prepare_valid(prepare: Callable[[Example], Example], item: tuple[Example, bool]) -> Example:
    example, valid = item
    return {**prepare(example), "valid": np.bool_(valid)}


class Numbered:
    """Examples with their position as `image_id`."""

    def __init__(self, examples: Examples):
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        return {**self._examples[index], "image_id": index}


class FilledUp:
    """(example, is real) pairs, up to a multiple of `batch_size` of them."""

    def __init__(self, examples: Examples, batch_size: int):
        self._examples, self._batch_size = examples, batch_size

    def __len__(self) -> int:
        return -(-len(self._examples) // self._batch_size) * self._batch_size

    def __getitem__(self, index: int) -> tuple[Example, bool]:
        count = len(self._examples)
        return self._examples[min(index, count - 1)], index < count


def _share(batch_size: int, count: int) -> int:
    if batch_size % count:
        raise ValueError(f"data.batch_size {batch_size} is not a multiple of {count} processes")
    return batch_size // count


def _iterate(dataset: grain.MapDataset, num_workers: int) -> Iterator[Batch]:
    threads = grain.ReadOptions(num_threads=4, prefetch_buffer_size=4)  # counted in batches
    iterable = dataset.to_iter_dataset(threads)
    if num_workers:
        if not flags.FLAGS.is_parsed():  # grain's workers need parsed flags, also in notebooks
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=2)
        iterable = iterable.mp_prefetch(options)
    return iter(iterable)
