"""How well membranes separate cells: the errors of the ISBI 2012 challenge, on the host.

    probabilities  a slice each, float [H W] in 0 … 1: that a pixel lies inside a cell
    truths         a slice each, int   [H W]: 1 cell, 0 membrane, IGNORE
    segment        a 4-connected piece of the pixels above a threshold, or of the truth's cells

A pixel's probability must be above a threshold to be a cell. Slices may differ in size; pixels and
pairs of all slices are counted together.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Int
from scipy import ndimage
from skimage.metrics import adapted_rand_error
from skimage.morphology import skeletonize

from jaxseg.types import IGNORE

Slices = Iterable[np.ndarray]

THRESHOLDS = tuple(n / 10 for n in range(10))  # at 1 there are no cells


def pixel_error(probabilities: Slices, truths: Slices, threshold: float = 0.5) -> float:
    """The share of pixels on the wrong side of `threshold`, 0 … 1; nan where none is known."""
    predicted, truth = _known(probabilities, truths)
    return float(np.mean((predicted > threshold) != truth)) if truth.size else float("nan")


def pixel_f_error(
    probabilities: Slices, truths: Slices, thresholds: Sequence[float] = THRESHOLDS
) -> tuple[float, float]:
    """1 − F-score of the cells' pixels at the best threshold, and that threshold: what the
    challenge's table calls pixel error. nan where there is no cell."""
    predicted, truth = _known(probabilities, truths)
    if not truth.any():
        return float("nan"), float("nan")
    found = [predicted > threshold for threshold in thresholds]
    errors = [1 - 2 * (f & truth).sum() / (f.sum() + truth.sum()) for f in found]
    return _lowest(errors, thresholds)


def rand_error(
    probabilities: Slices,
    truths: Slices,
    thresholds: Sequence[float] = THRESHOLDS,
    *,
    thin: bool = False,
) -> tuple[float, float]:
    """1 − F-score of pairs of pixels at the best threshold, and that threshold; in 0 … 1.

    A pair is two pixels of one slice that are cell in truth; it is positive where both lie in one
    segment. Precision falls with what is merged, recall with what is split, and F is 2·common /
    (predicted + true) of the positive pairs. A predicted membrane's pixel inside a true cell is a
    segment of its own. nan where there is no pair.

    This is the challenge's first Rand error, which suffers from thick membranes. With `thin` they
    are first thinned to lines, and 1 − error is V^Rand (Arganda-Carreras et al. 2015, which counts
    a pixel as a pair with itself, too: that changes it by about one over the size of a cell).
    """
    probabilities = list(probabilities)
    truth = _number([slice == 1 for slice in truths])
    errors = []
    for threshold in thresholds:
        cells = [slice > threshold for slice in probabilities]
        cells = [thin_membranes(slice) for slice in cells] if thin else cells
        with np.errstate(invalid="ignore"):  # of precision, where nothing was predicted
            errors.append(adapted_rand_error(truth, _number(cells, every_pixel=True))[0])
    return _lowest(errors, thresholds)


def thin_membranes(cells: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """Cells grown until only lines of one pixel are between them, which still separate them."""
    # Thinning shortens a line's ends. Continued beyond the picture, it shortens them out there.
    beyond = 32
    lines = skeletonize(~np.pad(cells, beyond, mode="edge"))
    return ~lines[beyond:-beyond, beyond:-beyond]


def _known(probabilities: Slices, truths: Slices) -> tuple[np.ndarray, np.ndarray]:
    """Probability, and whether it is a cell, of all pixels that are not IGNORE: [N] each."""
    pairs = [(p[t != IGNORE], t[t != IGNORE]) for p, t in zip(probabilities, truths, strict=True)]
    predicted, truth = (np.concatenate(part) for part in zip(*pairs, strict=True))
    return predicted, truth == 1


def _number(
    slices: Sequence[Bool[np.ndarray, "_ _"]], *, every_pixel: bool = False
) -> Int[np.ndarray, "N"]:
    """Each pixel's segment, numbered from 1 on through all slices; 0 outside, or with
    `every_pixel` a number for each pixel outside."""
    numbers, last = [], 0
    for cells in slices:
        segments, count = ndimage.label(cells)  # by default 4-connected
        segments = np.where(cells, segments + last, 0)
        last += count
        if every_pixel:
            outside = np.count_nonzero(~cells)
            segments[~cells] = last + 1 + np.arange(outside)
            last += outside
        numbers.append(segments.ravel())
    return np.concatenate(numbers)


def _lowest(errors: Sequence[float], thresholds: Sequence[float]) -> tuple[float, float]:
    best = int(np.argmin(errors))
    return float(errors[best]), float(thresholds[best])
