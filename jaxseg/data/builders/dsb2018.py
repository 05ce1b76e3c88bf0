"""Data Science Bowl 2018: nuclei under many microscopes, each with a mask of its own.

    train.txt, val.txt                         names, a line each, where there are splits
    stage1_train/<name>/images/<name>.png      opaque RGBA
    stage1_train/<name>/masks/*.png            one nucleus a file: 0, and 255 where it is

Boxes bound the masks, which hardly ever overlap. Caicedo et al., "Nucleus segmentation across
imaging experiments", Nature Methods, 2019.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Bool

from jaxseg.data.builders.source import (
    DataError,
    Example,
    Source,
    bounds,
    check_file,
    color_map,
    find_root,
    find_splits,
    fingerprint,
    read_image,
    read_indices,
)

CLASSES = ("background", "nucleus")


def open_source(path: str | Path, *, val_every: int = 5) -> Source:
    """The nuclei in `path` or up to two folders below; `path` may also be stage1_train itself.
    Examples have `boxes`, `labels`, `masks`.

    The lists beside stage1_train name the pictures of each split. Without them, every
    `val_every`-th name in sorted order is "val", the others "train"; 0 leaves all in "train".
    """
    path = Path(path).absolute()
    if path.name == "stage1_train" and any(path.glob("*/images")):
        path = path.parent
    root = find_root(path, "stage1_train", "the Data Science Bowl with stage1_train/")
    folder = root / "stage1_train"
    names = [f.name for f in folder.iterdir() if f.is_dir() and f.name[0] != "."]
    splits, lists = find_splits(root, names, val_every)

    def image_of(key: str) -> Path:
        return folder / key / "images" / f"{key}.png"

    def masks_of(key: str) -> list[Path]:
        return sorted((folder / key / "masks").glob("[!.]*.png"))  # "._1.png" is macOS's

    def read(split: str, key: str) -> Example:
        image, size = read_image(check_file(image_of(key), lists.get(split, folder)))
        files = masks_of(key)
        if not files:
            raise DataError(f"{folder / key / 'masks'}: holds no masks; expected a PNG a nucleus")
        masks = np.stack([_read_mask(file, size) for file in files])
        return {
            "image": image,
            "boxes": bounds(masks),
            "labels": np.ones(len(masks), np.int32),
            "masks": masks,
        }

    every = {file for keys in splits.values() for k in keys for file in (image_of(k), *masks_of(k))}
    return Source(
        name="dsb2018",
        fingerprint=fingerprint(root, [*lists.values(), *every], splits=splits),
        classes=CLASSES,
        palette=color_map(len(CLASSES)),
        splits=splits,
        fields=("boxes", "labels", "masks"),
        read=read,
    )


def _read_mask(file: Path, size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    values = read_indices(file, size)
    mask = values > 0
    if not mask.any():
        raise DataError(f"{file}: an empty mask; expected a nucleus")
    if (values[mask] != values.max()).any():
        raise DataError(
            f"{file}: values {np.unique(values).tolist()}; expected 0, and 255 for the one nucleus"
        )
    return mask
