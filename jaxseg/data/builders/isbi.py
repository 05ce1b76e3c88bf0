"""ISBI 2012 EM segmentation challenge: 512×512 slices of fly neuropil, and where membranes are.

    train/image/0.png, 1.png …   train/label/0.png, 1.png …    a picture a slice, or
    train-volume.tif             train-labels.tif              the challenge's own: a page a slice

Both are 8-bit grey; a label of 0 is membrane, 255 is the inside of a cell, and there is no other.
Numbers may have gaps. Arganda-Carreras et al., "Crowdsourcing the creation of image segmentation
algorithms for connectomics", 2015.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jaxseg.data.builders.source import (
    IMAGE_SUFFIXES,
    MIN_SIDE,
    DataError,
    Example,
    Source,
    check_file,
    check_unique,
    encode_png,
    find_root,
    fingerprint,
    read_image,
    read_labels,
)

CLASSES = ("membrane", "cell")
PALETTE = np.array([[220, 50, 47], [0, 0, 0]], np.uint8)  # black is not painted: cells stay as seen
LABELS = {0: 0, 255: 1}  # value in a file -> label
VOLUME, VOLUME_LABELS = "train-volume.tif", "train-labels.tif"


class Slice(NamedTuple):
    """Where a slice lies: two files, and which page of them (None: they are single pictures)."""

    image: Path
    label: Path
    page: int | None = None


def open_source(path: str | Path, *, held_out: int = 6) -> Source:
    """The labelled slices in `path` or up to two folders below. Examples have `segmentation`.

    held_out: how many slices make up the split "val"; the others are "train". There is no official
    validation split, and neighbouring slices look alike, so these are the last ones in a row: then
    only one of them has a neighbour in "train". 0 holds back none.
    """
    path = Path(path)
    if any(found for above in ("", "*/", "*/*/") for found in path.glob(above + VOLUME)):
        root = find_root(path, VOLUME, f"the challenge's {VOLUME}")
        slices = _find_pages(root)
    else:
        what = f"slices in train/image/ and train/label/, or {VOLUME} and {VOLUME_LABELS}"
        root = find_root(path, "train/image", what)
        slices = _find_pictures(root / "train")
    if not 0 <= held_out < len(slices):
        raise DataError(
            f"{root}: option held_out {held_out}; expected 0 … {len(slices) - 1} of its"
            f" {len(slices)} slices"
        )

    def read(split: str, key: str) -> Example:
        where = slices[key]
        check_file(where.image, where.label)
        check_file(where.label, where.image)
        if where.page is not None:
            return _read_pages(where.image, where.label, where.page)
        image, size = read_image(where.image)
        return {"image": image, "segmentation": read_labels(where.label, 2, size, label_map=LABELS)}

    keys, count = tuple(slices), len(slices) - held_out
    splits = {"train": keys[:count], "val": keys[count:]}
    return Source(
        name="isbi",
        fingerprint=fingerprint(
            root, [f for s in slices.values() for f in (s.image, s.label)], held_out=held_out
        ),
        classes=CLASSES,
        palette=PALETTE,
        splits={split: found for split, found in splits.items() if found},
        fields=("segmentation",),
        read=read,
    )


def _find_pictures(folder: Path) -> dict[str, Slice]:
    """Number -> slice, in order; a partner that is missing gets a likely path."""
    images, labels = (_by_number(folder / name) for name in ("image", "label"))
    return {
        str(n): Slice(
            images.get(n, folder / f"image/{n}.png"), labels.get(n, folder / f"label/{n}.png")
        )
        for n in sorted(images.keys() | labels.keys())
    }


def _by_number(folder: Path) -> dict[int, Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected slices 0.png, 1.png …")
    files = [f for f in folder.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES]
    files = [f for f in files if f.name[0] != "."]
    for file in files:
        if not (file.stem.isascii() and file.stem.isdigit()):
            raise DataError(f"{file}: not the number of a slice; expected 0.png, 1.png …")
    if not files:
        raise DataError(f"{folder}: holds no slices; expected 0.png, 1.png …")
    check_unique((str(int(f.stem)) for f in sorted(files)), folder)
    return {int(f.stem): f for f in files}


def _find_pages(root: Path) -> dict[str, Slice]:
    """Page -> slice. Both volumes must have as many pages."""
    image, label = root / VOLUME, root / VOLUME_LABELS
    counts = [_count_pages(check_file(file, root)) for file in (image, label)]
    if counts[0] != counts[1]:
        raise DataError(f"{label}: {counts[1]} pages; expected {counts[0]}, as {VOLUME} has")
    return {str(page): Slice(image, label, page) for page in range(counts[0])}


def _read_pages(image: Path, label: Path, page: int) -> Example:
    seen, values = _read_page(image, page), _read_page(label, page)
    if min(seen.shape) < MIN_SIDE:
        raise DataError(
            f"{image}: page {page} is {seen.shape}; expected {MIN_SIDE}×{MIN_SIDE} pixels at least"
        )
    if values.shape != seen.shape:
        raise DataError(
            f"{label}: page {page} is {values.shape}; expected {seen.shape}, the size of its image"
        )
    wrong = ~np.isin(values, list(LABELS))
    if wrong.any():
        raise DataError(
            f"{label}: page {page} has value {values[wrong][0]} at {np.count_nonzero(wrong)}"
            f" pixels; expected one of {list(LABELS)}"
        )
    labels = (values == 255).astype(np.uint8)
    return {"image": encode_png(np.stack([seen] * 3, axis=-1)), "segmentation": labels}


def _read_page(path: Path, page: int) -> UInt8[np.ndarray, "H W"]:
    """One page of a multi-page TIFF."""
    try:
        with Image.open(path, formats=("TIFF",)) as volume:
            volume.seek(page)
            mode, pixels = volume.mode, np.asarray(volume)
    except Exception as error:  # Pillow's decoders raise nearly every kind on broken bytes
        raise DataError(f"{path}: page {page} is not a whole picture ({error})") from error
    if mode != "L":
        raise DataError(f"{path}: page {page} has mode {mode}; expected 8-bit grey")
    return pixels


def _count_pages(path: Path) -> int:
    try:
        with Image.open(path, formats=("TIFF",)) as volume:
            return getattr(volume, "n_frames", 1)
    except Exception as error:
        raise DataError(f"{path}: not a whole TIFF ({error})") from error
