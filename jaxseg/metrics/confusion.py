"""The scores of semantic segmentation, all of them functions of one matrix.

    matrix [K K]  how many pixels of class i (row, truth) were predicted as class j (column)
    t_i           pixels of class i, the sum of row i
    n_ii          those of them predicted right
    IU            n_ii / (t_i + Σ_j n_ji - n_ii), intersection over union, "Jaccard index"

Count on the device in int32, one matrix a batch, and add the matrices on the host in int64: float32
counts stop growing at 2^24 ≈ 17 million, which is not a hundred pictures.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Integer

from jaxseg.types import Array


def confusion_matrix(
    predicted: Integer[Array, "*B H W"], labels: Integer[Array, "*B H W"], num_classes: int
) -> Integer[jax.Array, "K K"]:
    """Exact counts, int32: for up to 2^31 pixels a call.

    Pixels whose label is IGNORE, and any label or prediction outside 0 … K-1, are left out.
    """
    known = (labels >= 0) & (labels < num_classes) & (predicted >= 0) & (predicted < num_classes)
    cells = num_classes * num_classes
    # int32 first: labels may come as uint8, in which label · K would wrap around.
    cell = jnp.asarray(labels, jnp.int32) * num_classes + jnp.asarray(predicted, jnp.int32)
    # A scatter-add. For 8 x 360 x 480 pixels and 12 classes it took 1 ms on two CPU cores, where
    # sorting took 50 ms and the product of two one-hot matrices 40 ms.
    counts = jnp.bincount(jnp.where(known, cell, cells).ravel(), length=cells + 1)
    return counts[:-1].reshape(num_classes, num_classes).astype(jnp.int32)


def scores(matrix: Integer[Array, "K K"]) -> dict[str, float]:
    """The four scores of Long et al. 2015, "Fully Convolutional Networks", section 5, in 0 … 1.

        pixel_accuracy         Σ n_ii / Σ t_i
        mean_accuracy          mean over classes of n_ii / t_i
        mean_iu                mean over classes of IU
        frequency_weighted_iu  Σ t_i IU_i / Σ t_i

    A class that does not occur has no accuracy, and one that neither occurs nor is predicted has no
    IU; the means leave them out. With no pixel counted at all, every score is nan.
    """
    counts, classes = np.asarray(matrix, np.int64), per_class(matrix)
    total = counts.sum()
    return {
        "pixel_accuracy": float(_ratio(np.trace(counts), total)),
        "mean_accuracy": _mean(classes["accuracy"]),
        "mean_iu": _mean(classes["iu"]),
        "frequency_weighted_iu": float(_ratio(np.nansum(classes["pixels"] * classes["iu"]), total)),
    }


def per_class(matrix: Integer[Array, "K K"]) -> dict[str, np.ndarray]:
    """iu, accuracy (recall) and precision, float64 [K], nan where undefined; pixels t_i, int64 [K].

    Undefined is 0 / 0: the accuracy of a class that does not occur, the precision of one that is
    never predicted, the IU of one that is neither.
    """
    counts = np.asarray(matrix, np.int64)
    right, truth, predicted = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    return {
        "iu": _ratio(right, truth + predicted - right),
        "accuracy": _ratio(right, truth),
        "precision": _ratio(right, predicted),
        "pixels": truth,
    }


def table(matrix: Integer[Array, "K K"], classes: Sequence[str]) -> str:
    """A text table in percent, one line a class, and the means in the last line.

    Raises ValueError where there are not K names.
    """
    if len(classes) != len(matrix):
        raise ValueError(f"{len(classes)} names for a matrix of {len(matrix)} classes")
    columns, width = per_class(matrix), max(map(len, ("class", "mean", *classes)))
    means = {name: _mean(columns[name]) for name in ("iu", "accuracy", "precision")}

    def line(name: str, values: dict[str, float], pixels: int) -> str:
        percents = (values["iu"], values["accuracy"], values["precision"])
        cells = ("-" if np.isnan(x) else f"{100 * x:.1f}" for x in percents)
        return f"{name:<{width}}" + "".join(f"{cell:>11}" for cell in cells) + f"{pixels:>16,}"

    head = f"{'class':<{width}}{'IU':>11}{'accuracy':>11}{'precision':>11}{'pixels':>16}"
    rule = "-" * len(head)
    body = [
        line(name, {key: float(column[k]) for key, column in columns.items()}, int(pixels))
        for k, (name, pixels) in enumerate(zip(classes, columns["pixels"], strict=True))
    ]
    return "\n".join([head, rule, *body, rule, line("mean", means, int(columns["pixels"].sum()))])


def _ratio(counts: ArrayLike, of: ArrayLike) -> Float[np.ndarray, "*K"]:
    counts, of = np.asarray(counts, np.float64), np.asarray(of, np.float64)
    return np.divide(counts, of, out=np.full(of.shape, np.nan), where=of > 0)


def _mean(values: Float[np.ndarray, "K"]) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
