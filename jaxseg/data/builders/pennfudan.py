"""Penn-Fudan: pedestrians in street photographs, each with a mask.

    PNGImages/<name>.png        or .jpg
    PedMasks/<name>_mask.png    0 = background, n = the n-th pedestrian

Boxes bound the masks. The set has no official splits: where there are no lists, every fifth name in
sorted order is "val" (PennPed and FudanPed alike), the others "train". Wang, Shi, Song & Shen,
"Object detection combining recognition and segmentation", 2007.
"""

from pathlib import Path

import numpy as np

from jaxseg.data.builders.source import (
    DataError,
    Example,
    Source,
    bounds,
    check_file,
    color_map,
    find_pictures,
    find_root,
    find_splits,
    fingerprint,
    read_image,
    read_indices,
)

CLASSES = ("background", "pedestrian")


def open_source(path: str | Path, *, val_every: int = 5) -> Source:
    """Penn-Fudan in `path` or up to two folders below. Examples have `boxes`, `labels`, `masks`.

    Beside PNGImages, train.txt, val.txt … may list names. Without them, every `val_every`-th name
    is "val"; 0 leaves all in "train".
    """
    root = find_root(path, "PedMasks", "Penn-Fudan with PNGImages/ and PedMasks/")
    folder = root / "PNGImages"
    if not folder.is_dir():
        raise DataError(f"{root}: no folder 'PNGImages' beside 'PedMasks'")
    pictures = find_pictures(folder)
    splits, lists = find_splits(root, pictures, val_every)

    def files(key: str) -> tuple[Path, Path]:
        return pictures.get(key, folder / f"{key}.png"), root / f"PedMasks/{key}_mask.png"

    def read(split: str, key: str) -> Example:
        image_path, mask_path = (check_file(f, lists.get(split, folder)) for f in files(key))
        image, size = read_image(image_path)
        numbers = read_indices(mask_path, size)
        found = np.unique(numbers[numbers > 0])
        count = len(found)
        if count and found[-1] != count:
            raise DataError(f"{mask_path}: pedestrians {found.tolist()}; expected 1 … {count}")
        masks = numbers == np.arange(1, count + 1)[:, None, None]
        return {
            "image": image,
            "boxes": bounds(masks),
            "labels": np.ones(count, np.int32),
            "masks": masks,
        }

    every = {file for keys in splits.values() for key in keys for file in files(key)}
    return Source(
        name="pennfudan",
        fingerprint=fingerprint(root, [*lists.values(), *every], splits=splits),
        classes=CLASSES,
        palette=color_map(len(CLASSES)),
        splits=splits,
        fields=("boxes", "labels", "masks"),
        read=read,
    )
