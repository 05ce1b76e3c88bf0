"""Oxford-IIIT Pet: cats and dogs of 37 breeds, each with a trimap.

    images/<name>.jpg
    annotations/trimaps/<name>.png   1 = pet, 2 = background, 3 = border, which is not classified
    annotations/trainval.txt, test.txt, list.txt     `name breed species number` a line:
                                                     breed 1 … 37, species 1 = cat, 2 = dog

Only what the lists name is read: the published archives also hold macOS's `._` files and MATLAB's.
Photographs that are PNGs or GIFs named .jpg are read as what they are; CMYK, animated and
transparent ones are refused. Parkhi, Vedaldi, Zisserman & Jawahar, "Cats and Dogs", 2012.
"""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from jaxseg.data.builders.source import (
    DataError,
    Example,
    Source,
    check_file,
    check_unique,
    color_map,
    find_root,
    fingerprint,
    inside,
    read_image,
    read_labels,
    read_lines,
)
from jaxseg.types import IGNORE

CLASSES = {"foreground": ("background", "pet"), "species": ("background", "cat", "dog")}
BORDERS = ("ignore", "class")


class Pet(NamedTuple):
    """A line of a list."""

    name: str
    breed: str
    species: int  # 1 = cat, 2 = dog
    listed_in: Path


def open_source(
    path: str | Path,
    *,
    classes: str = "foreground",
    border: str = "ignore",
    val_every: int = 0,
) -> Source:
    """The pets in `path` or up to two folders below. Examples have `segmentation`.

    classes: "foreground" (background, pet) or "species" (background, cat, dog).
    border: what a trimap's border becomes: "ignore" (IGNORE), or "class" (one more, the last).
    val_every: 0 keeps the official splits "trainval" and "test". n > 0 cuts "trainval" into "val",
        every n-th picture of each breed in the order of the list, and "train", the others.

    Where there are neither trainval.txt nor test.txt, list.txt as a whole is the split "train".
    """
    if classes not in CLASSES:
        raise DataError(f"pets: option classes {classes!r}; expected one of {', '.join(CLASSES)}")
    if border not in BORDERS:
        raise DataError(f"pets: option border {border!r}; expected one of {', '.join(BORDERS)}")
    root = find_root(path, "annotations/trimaps", "Oxford-IIIT Pet with images/ and annotations/")
    lists = _find_lists(root / "annotations")
    splits = {split: _read_list(file, root) for split, file in lists.items()}
    if val_every:
        whole = splits.pop("trainval", None) or splits.pop("train", None)
        if val_every < 2 or whole is None:
            raise DataError(
                f"{root}: option val_every {val_every}; expected 2 or more, and a list to train on"
                " (trainval.txt, or list.txt alone)"
            )
        splits = {**_hold_back(whole, val_every), **splits}
    pets = {split: {pet.name: pet for pet in found} for split, found in splits.items()}
    names = CLASSES[classes] + ("border",) * (border == "class")
    border_label = IGNORE if border == "ignore" else len(names) - 1

    def files(name: str) -> tuple[Path, Path]:
        return root / f"images/{name}.jpg", root / f"annotations/trimaps/{name}.png"

    def read(split: str, key: str) -> Example:
        pet = pets[split][key]
        image_path, trimap_path = (check_file(file, pet.listed_in) for file in files(key))
        image, size = read_image(image_path)
        values = {1: pet.species if classes == "species" else 1, 2: 0, 3: border_label}
        labels = read_labels(trimap_path, len(names), size, label_map=values)
        return {"image": image, "segmentation": labels}

    every = {file for found in pets.values() for name in found for file in files(name)}
    options = dict(classes=classes, border=border, val_every=val_every)
    return Source(
        name="pets",
        fingerprint=fingerprint(root, [*lists.values(), *every], **options),
        classes=names,
        palette=color_map(len(names)),
        splits={split: tuple(found) for split, found in pets.items()},
        fields=("segmentation",),
        read=read,
    )


def _find_lists(folder: Path) -> dict[str, Path]:
    """Split -> list file."""
    lists = {s: file for s in ("trainval", "test") if (file := folder / f"{s}.txt").is_file()}
    if not lists and (folder / "list.txt").is_file():
        lists = {"train": folder / "list.txt"}
    if not lists:
        raise DataError(f"{folder}: no lists; expected trainval.txt, test.txt or list.txt")
    return lists


def _read_list(file: Path, root: Path) -> list[Pet]:
    pets = []
    for line in read_lines(file):
        if line.startswith("#"):
            continue
        entries = line.split()
        if len(entries) != 4 or entries[2] not in ("1", "2"):
            raise DataError(
                f"{file}: line {line!r}; expected `name breed species number` with a species of 1"
                " (cat) or 2 (dog)"
            )
        inside(root, entries[0], file)
        pets.append(Pet(entries[0], entries[1], int(entries[2]), file))
    check_unique((pet.name for pet in pets), file)
    return pets


def _hold_back(pets: list[Pet], every: int) -> dict[str, list[Pet]]:
    """The n-th, 2n-th … of each breed as "val", the others as "train"."""
    splits: dict[str, list[Pet]] = {"train": [], "val": []}
    seen: Counter[str] = Counter()
    for pet in pets:
        seen[pet.breed] += 1
        splits["train" if seen[pet.breed] % every else "val"].append(pet)
    return splits
