"""From a prepared split to batches: shuffle, augment, normalise, batch, prefetch.

A training pipeline is a function of (seed, position) alone: batch t can be computed without the
batches before it. So its state is the step, a run resumes with any number of workers, and with n
processes each computes its own rows of the very batch that one process would see.

Pictures of different shapes can go to different canvases, `buckets`. The examples are then handed
over in `groups`, those of one bucket each, and a batch takes all its examples from one of them:
there are as many shapes, and compiled programs, as there are buckets.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import grain
import numpy as np
from absl import flags
from jaxtyping import Integer

from jaxseg.data import collage, transforms
from jaxseg.data.transforms import OBJECTS, Example, Resize, Size
from jaxseg.types import Batch

Examples = Sequence[Example] | Any  # random access is enough
Groups = Sequence[Integer[np.ndarray, "_"]]  # positions of the examples that may share a batch

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
    "area": np.float32,
    "object_mask": np.bool_,
    "masks": np.uint8,
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
    groups: Groups | None = None,
) -> Iterator[Batch]:
    """Endless batches from batch `start` on: this process's rows, batch_size / count of them.

    examples are shuffled anew in every epoch; augment: (example, rng) -> example of fixed shapes;
    process: (index, count); num_workers: processes that prepare batches, 0 for threads; groups:
    one by default. They take turns in proportion to their sizes, each at its own epochs.
    """
    index, count = process
    rows = _share(batch_size, count)
    if len(examples) == 0:
        raise ValueError("the training split is empty")
    groups = _groups(examples, groups)
    parts = []
    for number, group in enumerate(groups):
        source = grain.MapDataset.source(Numbered(examples, group))
        part = source.seed(seed + number).shuffle().repeat(EPOCHS).random_map(augment)
        # Batches before the share of a process: its rows are those of the global batch, in order.
        parts.append(part.batch(rows)[index::count])
    dataset = grain.MapDataset.mix(parts, weights=[len(group) for group in groups])
    return _iterate(dataset[start:], num_workers)


def evaluation_batches(
    examples: Examples,
    prepare: Callable[[Example], Example],
    *,
    batch_size: int,
    process: tuple[int, int] = (0, 1),
    num_workers: int = 0,
    groups: Groups | None = None,
) -> Iterator[Batch]:
    """All examples once, in order; `valid` is False for what fills up the last batch.

    Every process gets the same number of batches of batch_size / count rows. groups: one by
    default; they come one after the other, and each fills up its last batch.
    """
    index, count = process
    rows = _share(batch_size, count)
    parts = []
    for group in _groups(examples, groups):
        source = grain.MapDataset.source(FilledUp(Numbered(examples, group), batch_size))
        parts.append(source.map(partial(_prepare_valid, prepare)).batch(rows)[index::count])
    return _iterate(grain.MapDataset.concatenate(parts), num_workers)


def augment_example(
    example: Example,
    rng: np.random.Generator,
    *,
    image_size: Size,
    crop_size: Size,
    color: dict[str, float],
    resize: Resize = (),
    buckets: Sequence[Size] = (),
    mosaic: float = 0.0,
    copy_paste: float = 0.0,
    mixup: float = 0.0,
    min_visible: float = 0.0,
    others: Examples = (),
    num_classes: int,
    max_objects: int = 0,
    masks: bool = True,
    border_weights: tuple[float, float] | None = None,
    **jitter: Any,
) -> Example:
    """For training: the example moved by `jitter_example` onto a canvas of crop_size, or of its
    bucket, with random colours.

    mosaic: the probability that it shares the canvas with three others, each scaled to cover its
        part, times `scales`; not done where that made more than max_objects objects.
    copy_paste: the probability that objects of another are laid over it, each half of the time,
        and no more than there is room for.
    mixup: the probability that another is blended with it, half of each; not done where that made
        more than max_objects objects.
    others: where these other examples are drawn from.
    max_objects, masks: as in `whole_example`. color: see `transforms.jitter_color`.
    """
    if buckets:
        bucket = transforms.choose_bucket(example["image"].shape[:2], buckets, resize)
        image_size = crop_size = buckets[bucket]
    needs_masks = bool(copy_paste or border_weights or (masks and max_objects))
    jitter.update(resize=resize, min_visible=min_visible)

    def place(example: Example, image_size: Size, crop: Size, **options: Any):
        example = _without_unused(example, max_objects > 0, needs_masks)
        # Before there is padding, which has to keep its colour: it is known by it.
        example = {**example, "image": transforms.jitter_color(example["image"], rng, **color)}
        sizes = dict(image_size=image_size, crop_size=crop)
        return jitter_example(example, rng, **sizes, **jitter, **options)

    def another() -> Example:
        return others[int(rng.integers(len(others)))]

    moved, size = None, crop_size
    if mosaic and rng.random() < mosaic:
        pieces = []
        for part in random_quarters(rng, crop_size):
            source = another() if pieces else example
            covering = transforms.covering_size(source["image"].shape[:2], part)
            pieces.append(place(source, covering, part, anywhere=True)[0])
        moved = collage.mosaic(pieces)
    if moved is None or (max_objects and len(moved["boxes"]) > max_objects):
        moved, size = place(example, image_size, crop_size)
    if copy_paste and rng.random() < copy_paste:
        if "masks" not in moved:
            raise ValueError("augment.copy_paste cuts objects out by their masks; there are none")
        other, other_size = place(another(), image_size, crop_size)
        chosen = (rng.random(len(other["boxes"])) < 0.5) & ~transforms.is_crowd(other)
        chosen &= chosen.cumsum() <= max_objects - len(moved["boxes"])
        moved = collage.paste(moved, other, chosen, min_visible)
        size = max(size[0], other_size[0]), max(size[1], other_size[1])
    if mixup and rng.random() < mixup:
        other, other_size = place(another(), image_size, crop_size)
        if len(moved["boxes"]) + len(other["boxes"]) <= max_objects:
            moved = collage.blend(moved, other)
            size = max(size[0], other_size[0]), max(size[1], other_size[1])
    moved["image"] = transforms.normalize(moved["image"])
    return _finish(
        example,
        moved,
        size,
        num_classes=num_classes,
        max_objects=max_objects,
        masks=masks,
        border_weights=border_weights,
    )


def jitter_example(
    example: Example,
    rng: np.random.Generator,
    *,
    image_size: Size,
    crop_size: Size,
    scales: tuple[float, float],
    flip: bool,
    elastic: tuple[int, int | float] | None = None,
    keypoint_flip: tuple[int, ...] = (),
    resize: Resize = (),
    min_sizes: Sequence[int] = (),
    crop_overlaps: Sequence[float] = (),
    expand: float = 1.0,
    vertical_flip: bool = False,
    rotate: bool = False,
    min_visible: float = 0.0,
    anywhere: bool = False,
) -> tuple[Example, Size]:
    """Random part, turn, scale, crop with padding, flip and elastic deformation, on a canvas of
    crop_size; and the (height, width) of what is not padding below and right of the picture.

    min_sizes: with a pair as `resize`, its first, the shorter side, is drawn from them.
    expand: half of the time the picture is made smaller, by up to this factor, and lies anywhere,
        before the part is chosen ("zoom out", Liu et al. 2016, section 3.6).
    anywhere: where a picture lies that is smaller than the canvas; if not, then at the top left.
        Without `resize` it always lies anywhere.
    The rest: see the functions of `transforms`.
    """
    far = rng.uniform(1, expand) if expand > 1 and rng.random() < 0.5 else 1.0
    if crop_overlaps:
        part = transforms.crop_around_objects(rng, example, crop_overlaps, far)
        far, example = (far if part is example else 1.0), part
    turn, size = transforms.random_turn(
        rng, example["image"].shape[:2], vertical_flip=vertical_flip, rotate=rotate
    )
    if resize and resize != "stretch" and min_sizes:
        resize = int(rng.choice(min_sizes)), resize[1]
    if far > 1:
        scales, anywhere = (scales[0] / far, scales[1] / far), True
    anywhere |= not resize
    matrix = transforms.random_crop(
        rng, size, image_size, crop_size, scales, flip, resize, anywhere
    )
    field = None if elastic is None else transforms.elastic_field(rng, crop_size, *elastic)
    smooth = not resize or scales != (1.0, 1.0)  # at the scale of evaluation, sampled as there
    moved = transforms.warp(
        example, matrix @ turn, crop_size, keypoint_flip, field,
        smooth=smooth, min_visible=min_visible,
    )  # fmt: skip
    whole = not resize or field is not None
    return moved, crop_size if whole else transforms.reach(matrix, size, crop_size)


def random_quarters(rng: np.random.Generator, size: Size) -> list[Size]:
    """The sizes of the four parts of a canvas around a random point of its inner half: top left,
    top right, bottom left, bottom right."""
    top, left = (int(rng.integers(n // 4, n - n // 4, endpoint=True)) for n in size)
    bottom, right = size[0] - top, size[1] - left
    return [(top, left), (top, right), (bottom, left), (bottom, right)]


def whole_example(
    example: Example,
    *,
    image_size: Size,
    resize: Resize = (),
    buckets: Sequence[Size] = (),
    max_objects: int = 0,
    masks: bool = True,
    **finish: Any,
) -> Example:
    """The whole picture on the canvas, image_size or its bucket, for evaluation.

    max_objects: how many rows for objects; 0 leaves them out. masks: whether they have theirs, as
    `masks` uint8 [M H W/8], a bit a pixel: `unpackbits(masks, axis=-1, count=W)`.
    """
    original = example["image"].shape[:2]
    if buckets:
        image_size = buckets[transforms.choose_bucket(original, buckets, resize)]
    picture, size = transforms.picture_on_canvas(example["image"], image_size, resize)
    needs_masks = bool(finish.get("border_weights") or (masks and max_objects))
    labels = _without_unused(example, max_objects > 0, needs_masks)
    del labels["image"]
    moved = transforms.warp(labels, transforms.resize_matrix(original, size), image_size)
    moved["image"] = picture
    return _finish(example, moved, size, max_objects=max_objects, masks=masks, **finish)


def _without_unused(example: Example, keypoints: bool, masks: bool) -> Example:
    """Without the keypoints and masks that nobody asks for."""
    unused = [n for n, wanted in (("keypoints", keypoints), ("masks", masks)) if not wanted]
    return {name: value for name, value in example.items() if name not in unused}


def _finish(
    example: Example,
    moved: Example,
    picture_size: Size,
    *,
    num_classes: int,
    max_objects: int = 0,
    masks: bool = True,
    border_weights: tuple[float, float] | None = None,
) -> Example:
    """What a batch wants of an example, as what types."""
    if border_weights is not None:
        moved = transforms.add_border_weights(moved, *border_weights)
    moved = transforms.present_classes(moved, num_classes)
    unused = OBJECTS if not max_objects else () if masks else ("masks",)
    moved = {name: value for name, value in moved.items() if name not in unused}
    if "masks" in moved:
        moved["masks"] = np.packbits(moved["masks"], axis=-1)
    if max_objects:
        moved = transforms.pad_objects(moved, max_objects, example.get("name", "an image"))
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
    """Examples, all or those at some positions, with their position as `image_id`."""

    def __init__(self, examples: Examples, positions: Integer[np.ndarray, "_"] | None = None):
        self._examples = examples
        self._positions = np.arange(len(examples)) if positions is None else positions

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> Example:
        position = int(self._positions[index])
        return {**self._examples[position], "image_id": position}


class FilledUp:
    """(example, is real) pairs, up to a multiple of `batch_size` of them."""

    def __init__(self, examples: Examples, batch_size: int):
        self._examples, self._batch_size = examples, batch_size

    def __len__(self) -> int:
        return -(-len(self._examples) // self._batch_size) * self._batch_size

    def __getitem__(self, index: int) -> tuple[Example, bool]:
        count = len(self._examples)
        return self._examples[min(index, count - 1)], index < count


def _groups(examples: Examples, groups: Groups | None) -> Groups:
    """Those that are not empty; all examples as one, where there are none."""
    groups = [np.arange(len(examples))] if groups is None else groups
    return [group for group in groups if len(group)]


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
