"""What `fixtures/crf` holds (see its README), as arrays that mean field takes."""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

NORMALIZATIONS = ("none", "symmetric", "before", "after")
PHOTOS = [
    f"{photo}_s{s}_c{c}" for photo in ("astronaut", "coffee") for s, c in ((80, 13), (60, 10))
]


class Photo(NamedTuple):
    image: np.ndarray  # [213 320 3], RGB from 0 to 255, float32
    logits: np.ndarray  # [213·320 21]
    sigma: float
    colour_sigma: float


@cache
def load(fixtures: Path, name: str) -> dict[str, np.ndarray]:
    return dict(np.load(fixtures / f"crf/{name}.npz"))


def photo(fixtures: Path, name: str) -> Photo:
    """name: as in PHOTOS."""
    arrays = load(fixtures, "photos_input")
    title, sigma, colour_sigma = name.split("_")[:3]
    image = arrays[f"{title}_image"].astype(np.float32)
    coarse = arrays[f"{title}_coarse"].astype(np.float64)
    rows, columns = (_enlarge(image.shape[axis], coarse.shape[axis]) for axis in (0, 1))
    logits = np.einsum("ya,abk,xb->yxk", rows, coarse, columns, optimize=True)
    logits = logits.reshape(-1, coarse.shape[-1]).astype(np.float32)
    return Photo(image, logits, float(sigma[1:]), float(colour_sigma[1:]))


def _enlarge(n: int, m: int) -> np.ndarray:
    """[n m]: linear interpolation, corners on corners."""
    at = np.arange(n) * (m - 1) / (n - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(m)))


def agreement(marginals: np.ndarray, reference: dict[str, np.ndarray], key: str) -> float:
    """Share of the pixels with the same best label."""
    return (marginals.argmax(1) == reference[f"{key}_argmax"].ravel()).mean()


def total_variation(marginals: np.ndarray, reference: dict[str, np.ndarray], key: str) -> float:
    """½ Σ_k |p_k − q_k|, its mean over the pixels that are there."""
    name = next(name for name in reference if name.startswith(f"{key}_sub"))
    step = int(name.rpartition("sub")[2])
    return 0.5 * np.abs(marginals[::step] - reference[name].astype(np.float32)).sum(1).mean()
