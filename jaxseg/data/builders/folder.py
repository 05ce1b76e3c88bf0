"""A folder of images and masks of your own, matched by file name.

    images/a.jpg        masks/a.png           with train.txt, val.txt …: names, one a line
    images/train/a.jpg  masks/train/a.png     or a folder a split
    classes.txt                               `name` or `name r g b` a line, in the order of labels

Without lists and split folders everything is the split "train". Masks are lossless: grey or
palette PNGs whose values are the labels (255 = IGNORE), or RGB pictures in the palette's colours.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from jaxseg.data.builders.source import (
    IMAGE_SUFFIXES,
    SPLITS,
    DataError,
    Example,
    Source,
    check_unique,
    color_map,
    find_pictures,
    find_root,
    fingerprint,
    inside,
    read_image,
    read_labels,
    read_lines,
)

Pairs = dict[str, tuple[Path, Path]]  # key -> (image, mask)


def open_source(
    path: str | Path,
    *,
    name: str = "folder",
    classes: Sequence[str] | None = None,
    palette: Sequence[Sequence[int]] | None = None,
    label_map: Mapping[int | str, int] | Iterable[Sequence[int]] | None = None,
    void: Iterable[int | Sequence[int]] = (),
    images: str = "images",
    masks: str = "masks",
) -> Source:
    """The images and masks in `path` or up to two folders below. Examples have `segmentation`.

    classes: names in the order of labels; None reads classes.txt.
    palette: an (r, g, b) a class; None takes classes.txt's colours, else VOC's.
    label_map: which label a mask's value stands for, {value: label} or (value, label) pairs;
        None means the values are the labels.
    void: values, or (r, g, b) colours, of pixels to ignore.
    images, masks: names of the two folders.
    """
    root = find_root(path, images, f"a folder with {images}/ and {masks}/")
    if not (root / masks).is_dir():
        raise DataError(f"{root}: no folder {masks!r} beside {images!r}")
    names, colors = _read_classes(root, classes, palette)
    values = _read_label_map(label_map)
    void = [v if isinstance(v, int) else tuple(v) for v in void]
    if any(not 0 <= v <= 255 for color in void for v in np.atleast_1d(color)):
        raise DataError(f"{root}: option void {void}; expected values or colours in 0 … 255")
    splits, lists = _find_splits(root / images, root / masks)

    def read(split: str, key: str) -> Example:
        image_path, mask_path = splits[split][key]
        _check_pair(image_path, mask_path)
        image, size = read_image(image_path)
        labels = read_labels(
            mask_path, len(names), size, label_map=values, void=void, palette=colors
        )
        return {"image": image, "segmentation": labels}

    files = [f for pairs in splits.values() for pair in pairs.values() for f in pair]
    return Source(
        name=name,
        fingerprint=fingerprint(
            root,
            [*files, *lists],
            classes=names,
            palette=None if colors is None else colors.tolist(),
            label_map=values and sorted(values.items()),
            void=void,
        ),
        classes=names,
        palette=color_map(len(names)) if colors is None else colors,
        splits={split: tuple(pairs) for split, pairs in splits.items()},
        fields=("segmentation",),
        read=read,
    )


def _read_classes(
    root: Path, classes: Sequence[str] | None, palette: Sequence[Sequence[int]] | None
) -> tuple[tuple[str, ...], UInt8[np.ndarray, "K 3"] | None]:
    """Class names, and their colours if anybody gave some."""
    where, colors = "folder: option palette", palette
    if classes is None:
        file = root / "classes.txt"
        if not file.is_file():
            raise DataError(f"{root}: set the option classes, or write classes.txt, a name a line")
        where = f"{file}"
        rows = [line.split() for line in read_lines(file)]
        if {len(row) for row in rows} not in ({1}, {4}):
            raise DataError(f"{file}: expected `name` or `name r g b` in every line alike")
        classes = [row[0] for row in rows]
        if palette is None and len(rows[0]) == 4:
            colors = [row[1:] for row in rows]
    names = tuple(classes)
    check_unique(names, root)
    if not 1 <= len(names) <= 255:
        raise DataError(f"{root}: {len(names)} classes; expected 1 … 255")
    if colors is None:
        return names, None
    try:
        rgb = np.array([[int(channel) for channel in color] for color in colors])
    except ValueError as error:
        raise DataError(f"{where}: {error}; expected colours as three integers") from error
    if rgb.shape != (len(names), 3) or rgb.min() < 0 or rgb.max() > 255:
        raise DataError(
            f"{where}: expected three integers 0 … 255 for each of {len(names)} classes"
        )
    check_unique(map(str, rgb.tolist()), Path(where))
    return names, rgb.astype(np.uint8)


def _read_label_map(label_map: Any) -> dict[int, int] | None:
    """Configs may write keys as strings and pairs as lists."""
    if label_map is None:
        return None
    pairs = label_map.items() if hasattr(label_map, "items") else label_map
    values = {int(value): int(label) for value, label in pairs}
    for value, label in values.items():
        if not (0 <= value <= 255 and 0 <= label <= 255):
            raise DataError(f"folder: label_map {value} -> {label}; expected values 0 … 255")
    return values


def _find_splits(images: Path, masks: Path) -> tuple[dict[str, Pairs], list[Path]]:
    """The pairs of each split, and the list files that named them."""
    folders = sorted(f.name for f in images.iterdir() if f.is_dir() and f.name[0] != ".")
    if folders:
        return {split: _match(images / split, masks / split) for split in folders}, []
    pairs = _match(images, masks)
    # Only the usual names are lists: any other text file may be a README.
    lists = [file for s in SPLITS if (file := images.parent / f"{s}.txt").is_file()]
    if not lists:
        return {"train": pairs}, []
    return {file.stem: _select(pairs, file, images, masks) for file in lists}, lists


def _match(images: Path, masks: Path) -> Pairs:
    """The files of equal names, sorted by name; a partner that is missing gets a likely path."""
    if not masks.is_dir():
        raise DataError(f"{masks}: no such folder, but {images} needs its masks there")
    image_of, mask_of = find_pictures(images), find_pictures(masks)
    if not image_of:
        raise DataError(f"{images}: holds no images; expected {', '.join(sorted(IMAGE_SUFFIXES))}")
    return {
        stem: (image_of.get(stem, images / f"{stem}.png"), mask_of.get(stem, masks / f"{stem}.png"))
        for stem in sorted(image_of.keys() | mask_of.keys())
    }


def _select(pairs: Pairs, file: Path, images: Path, masks: Path) -> Pairs:
    """The pairs that a list file names, by stem or file name, in its order."""
    stems = []
    for entry in read_lines(file):
        name = inside(file.parent, entry, file)
        stems.append(name.stem if name.suffix.lower() in IMAGE_SUFFIXES else entry)
    check_unique(stems, file)
    return {s: pairs.get(s, (images / f"{s}.png", masks / f"{s}.png")) for s in stems}


def _check_pair(image: Path, mask: Path) -> None:
    if not image.is_file():
        raise DataError(f"{mask}: has no image; expected {image.with_suffix('')} with some suffix")
    if not mask.is_file():
        raise DataError(f"{image}: has no mask; expected {mask}")
