"""Loaded arrays into the variables of a network: what fits is taken, what cannot fit is an error.

A path is "params/backbone/stem/conv/kernel": a collection, modules, the array's name.
"""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxseg.types import Array, Variables
from jaxseg.weights.convert import flatten
from jaxseg.weights.files import WeightsError

# Of K classes, heads say n (K + m) numbers at a place: (n, m).
PER_CLASS = (
    *((anchors, 0) for anchors in (1, 2, 3, 4, 6, 9)),  # 4: a box of each class, too
    (3, 4),  # YOLOv3: three anchors, each with a box, objectness, and K - 1 classes
)


class Report(NamedTuple):
    """The paths of arrays, each in one list."""

    taken: list[str]
    dropped: list[str]  # loaded, of another number of classes: these stay fresh
    fresh: list[str]  # not loaded
    left_over: list[str]  # loaded, but the network has no such array


def merge(
    variables: Variables,
    loaded: Variables,
    *,
    num_classes: int,
    adapt_input: bool = False,
    name_of_file: str = "the file",
) -> tuple[Variables, Report]:
    """`variables` with all arrays of `loaded` that belong there, in the dtypes of `variables`.

    A backbone comes whole or not at all: all of its parameters and running statistics, and none
    too many, so that no batch norm silently becomes a group norm. Of it only the kernel that reads
    the picture, known by its 3 input channels, may change: with `adapt_input`, for pictures of
    other numbers of channels (see `adapt_channels`). Outside the backbone, arrays that differ only
    in axes whose length goes with `num_classes`, see PER_CLASS, are dropped. The bias of a
    convolution that has none here moves into the running mean of its batch norm, which comes to the
    same.

    WeightsError for any other difference of shapes, for values that are not finite, and where
    nothing is taken.
    """
    ours = flatten(variables)
    theirs = _for_regions(_without_absorbed_biases(flatten(loaded), ours), ours)
    backbone, loaded_backbone = _backbone(ours), _backbone(theirs)
    if loaded_backbone and loaded_backbone != backbone:
        raise WeightsError(
            f"{name_of_file} has another backbone: it lacks {_some(backbone - loaded_backbone)}, "
            f"the network lacks {_some(loaded_backbone - backbone)}"
        )
    taken, dropped = {}, []
    for path in (path for path in ours if path in theirs):
        array, target, where = theirs[path], ours[path], f"{name_of_file}: {path}"
        axes = _differing_axes(array.shape, target.shape)
        if axes == [2] and array.shape[2] == 3 and path in backbone:
            if not adapt_input:
                raise WeightsError(
                    f"{where} reads 3 channels, the network {target.shape[2]}: adapt_input is off"
                )
            array = adapt_channels(np.asarray(array), target.shape[2])
        elif axes and path not in backbone and _by_class(array, target, axes, num_classes):
            dropped.append(path)
            continue
        elif axes != []:
            raise WeightsError(f"{where} is {array.shape}, the network's is {target.shape}")
        with np.errstate(over="ignore"):
            taken[path] = np.array(array, target.dtype, order="C")
        if not np.isfinite(taken[path]).all():
            raise WeightsError(f"{where} has values that are not finite")
    if not taken:
        raise WeightsError(f"{name_of_file} has nothing that fits, such as {_some(theirs)}")
    fresh = [path for path in ours if path not in theirs]
    left_over = [path for path in theirs if path not in ours]
    merged = flatten_dict(variables, keep_empty_nodes=True, sep="/") | taken
    return unflatten_dict(merged, sep="/"), Report([*taken], dropped, fresh, left_over)


def adapt_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """A kernel [kh kw 3 F] of RGB, for pictures of other numbers of channels.

    1 or 2 channels get the mean over RGB; of more, the first three keep theirs and the others get
    the mean. All are multiplied by 3 / channels: one channel gets the sum over RGB, and a picture
    with the same value in all channels gives what it gave before.
    """
    mean = kernel.mean(axis=2, keepdims=True)
    parts = [kernel] * (channels > 3) + [mean] * (channels - 3 if channels > 3 else channels)
    return np.concatenate(parts, axis=2) * (3 / channels)


def describe(report: Report) -> str:
    """A line for each list that is not empty: how many arrays, of which modules."""
    lines = []
    for title, paths in report._asdict().items():
        depth = 2 if title in ("taken", "fresh") else -1
        modules = Counter("/".join(path.split("/")[1:depth]) or path for path in paths)
        groups = [f"{module} {count}" for module, count in modules.items()]
        more = [f"{len(groups) - 6} more modules"] * (len(groups) > 6)
        if paths:
            lines += [f"{title.replace('_', ' ')} {len(paths)}: {', '.join(groups[:6] + more)}"]
    return "\n".join(lines)


def _for_regions(theirs: Variables, ours: Variables) -> Variables:
    """With a classifier's dense layers as those of the head of a detector's regions, where it has
    the same (Girshick 2015, "Fast R-CNN", section 2.3)."""

    def rename(path: str) -> str:
        ours_path = path.replace("/head/fc", "/box_head/fc")
        fits = ours_path in ours and np.shape(ours[ours_path]) == np.shape(theirs[path])
        return ours_path if fits else path

    return {rename(path): array for path, array in theirs.items()}


def _backbone(arrays: Variables) -> set[str]:
    return {path for path in arrays if path.split("/")[1:2] == ["backbone"]}


def _some(paths: Iterable[str]) -> str:
    paths = sorted(paths)
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return (", ".join(paths[:3]) or "nothing") + more


def _differing_axes(shape: tuple[int, ...], other: tuple[int, ...]) -> list[int] | None:
    """Where two shapes differ; None if they have not the same number of axes."""
    if len(shape) != len(other):
        return None
    return [axis for axis in range(len(shape)) if shape[axis] != other[axis]]


def _by_class(array: Array, target: Array, axes: list[int], num_classes: int) -> bool:
    """Whether these axes go with the number of classes, the array's with another one."""
    return any(
        all(target.shape[a] == n * (num_classes + m) and array.shape[a] % n == 0 for a in axes)
        for n, m in PER_CLASS
    )


def _without_absorbed_biases(theirs: Variables, ours: Variables) -> Variables:
    """`theirs`, with biases of convolutions that we lack subtracted from the means after them."""
    theirs = dict(theirs)
    for bias in [path for path in theirs if path.endswith("/conv/bias") and path not in ours]:
        mean = bias.replace("params/", "batch_stats/", 1).removesuffix("/conv/bias") + "/norm/mean"
        if mean in ours and mean in theirs and theirs[mean].shape == theirs[bias].shape:
            theirs[mean] = theirs[mean] - theirs.pop(bias)
    return theirs
