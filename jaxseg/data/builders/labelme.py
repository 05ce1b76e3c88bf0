"""Pictures outlined with LabelMe: beside each, a JSON file of the same stem.

    a.jpg  a.json              with train.txt, val.txt …: stems, one a line
    train/a.jpg  train/a.json  or a folder a split

    {"imageHeight": 480, "imageWidth": 640, "shapes": [
        {"label": "cat", "shape_type": "polygon", "points": [[x, y], …], "group_id": null}, …]}

Polygons, rectangles (two opposite corners) and circles (the centre and a point on the edge). Shapes
of one label and group_id are one object, such as the two parts of a cat behind a pole. Points are
measured from the picture's top left corner, and pixels belong to an outline as in COCO's masks;
boxes bound the masks. Points, lines, and outlines so thin that no pixel belongs to them, are left
out, and a log line says how many. The copy of the picture that LabelMe may write into the JSON
file, and its path there, are not used.
"""

import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Bool, Float64
from pycocotools import mask as rle_masks

from jaxseg.data.builders.source import (
    DataError,
    Example,
    Source,
    bounds,
    check_unique,
    color_map,
    find_pictures,
    find_splits,
    fingerprint,
    read_image,
    read_json,
)

SHAPES = ("polygon", "rectangle", "circle")
NO_AREA = ("point", "line", "linestrip")
FOLDERS = ("*.json", "*/*.json", "*/*/*.json")

Shape = dict[str, Any]  # an entry of the JSON file's `shapes`


def open_source(
    path: str | Path, *, classes: Sequence[str] | None = None, val_every: int = 0
) -> Source:
    """The pictures in `path` or up to two folders below. Examples have `boxes`, `labels`, `masks`.

    classes: names of the objects, without the background; None means every label that occurs, other
        than those of points and lines alone, in sorted order.
    val_every: where there are neither lists nor split folders, every `val_every`-th picture in
        sorted order is "val", the others "train"; 0 leaves all in "train".
    """
    path = Path(path)
    splits, lists = _find_splits(path, val_every)
    files = [file for pairs in splits.values() for pair in pairs.values() for file in pair]
    if classes is None:
        classes = _find_labels(files)
    names = ("background", *classes)
    check_unique(names, path)

    def read(split: str, key: str) -> Example:
        picture, document = splits[split][key]
        for file, other in ((picture, document), (document, picture)):
            if not file.is_file():
                raise DataError(f"{file}: no such file, but there is {other}; expected both")
        image, size = read_image(picture)
        return {"image": image, **_read_objects(document, size, names)}

    return Source(
        name="labelme",
        fingerprint=fingerprint(path, [*files, *lists], classes=names, splits=list(splits)),
        classes=names,
        palette=color_map(len(names)),
        splits={split: tuple(pairs) for split, pairs in splits.items()},
        fields=("boxes", "labels", "masks"),
        read=read,
    )


def _find_splits(
    path: Path, val_every: int
) -> tuple[dict[str, dict[str, tuple[Path, Path]]], list[Path]]:
    """Split -> key -> (picture, JSON file), and the lists that named them."""
    files = (f for pattern in FOLDERS for f in path.glob(pattern) if f.name[0] != ".")
    folders = sorted({file.parent for file in files})
    if not folders or len({folder.parent for folder in folders}) > 1:
        found = ", ".join(str(folder) for folder in folders[:4]) or "none"
        raise DataError(
            f"{path}: folders with JSON files, up to two below: {found}; expected one, or one a"
            " split side by side"
        )
    if len(folders) > 1:
        return {folder.name: _match(folder) for folder in folders}, []
    pairs = _match(folders[0])
    keys, lists = find_splits(folders[0], pairs, val_every)
    missing = {key for listed in keys.values() for key in listed} - set(pairs)
    if missing:
        raise DataError(f"{folders[0]}: lists name {sorted(missing)[:4]}, which are not there")
    return {s: {key: pairs[key] for key in listed} for s, listed in keys.items()}, [*lists.values()]


def _match(folder: Path) -> dict[str, tuple[Path, Path]]:
    """The files of equal stems; a partner that is missing gets a likely path."""
    pictures = find_pictures(folder)
    stems = pictures.keys() | {f.stem for f in folder.glob("*.json") if f.name[0] != "."}
    return {
        stem: (pictures.get(stem, folder / f"{stem}.jpg"), folder / f"{stem}.json")
        for stem in sorted(stems)
    }


def _find_labels(files: Sequence[Path]) -> list[str]:
    found = set()
    for file in (f for f in files if f.suffix == ".json"):
        try:
            shapes = _read_shapes(file)[1]
            found |= {str(s.get("label")) for s in shapes if s.get("shape_type") not in NO_AREA}
        except DataError:
            continue  # it is refused when it is read
    return sorted(found)


# One picture


def _read_shapes(file: Path) -> tuple[dict[str, Any], list[Shape]]:
    """A JSON file, and the shapes in it."""
    document = read_json(file)
    shapes = document.get("shapes") if isinstance(document, dict) else None
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise DataError(f"{file}: shapes {reprlib.repr(shapes)}; expected a list of objects")
    return document, shapes


def _read_objects(file: Path, size: tuple[int, int], classes: Sequence[str]) -> Example:
    """The `boxes`, `labels` and `masks` of a JSON file."""
    document, shapes = _read_shapes(file)
    declared = document.get("imageHeight"), document.get("imageWidth")
    if any(n not in (None, side) for n, side in zip(declared, size, strict=True)):
        raise DataError(
            f"{file}: imageHeight and imageWidth {declared}; expected {size}, the picture's"
        )
    found: dict[tuple[Any, str, int], Any] = {}  # object, its label first -> its mask
    left_out = []
    for position, shape in enumerate(shapes):
        where = f"{file}: shapes[{position}]"
        if shape.get("shape_type") in NO_AREA:
            left_out.append(position)
            continue
        label = shape.get("label")
        if label not in classes[1:]:
            raise DataError(f"{where}: label {label!r}; expected one of {', '.join(classes[1:])}")
        mask = _draw(shape, size, where)
        group = shape.get("group_id")
        if group is not None and type(group) is not int:
            raise DataError(f"{where}: group_id {group!r}; expected an integer or null")
        if not mask.any():
            left_out.append(position)
            continue
        key = (label, "alone", position) if group is None else (label, "group", group)
        found[key] = found.get(key, False) | mask
    if left_out:
        logging.warning(
            "%s: left out %d of %d shapes, which cover no pixel: %s",
            file, len(left_out), len(shapes), reprlib.repr(left_out),
        )  # fmt: skip
    masks = np.array(list(found.values()), bool).reshape(-1, *size)
    return {
        "boxes": bounds(masks),
        "labels": np.array([classes.index(label) for label, *_ in found], np.int32),
        "masks": masks,
    }


def _draw(shape: Shape, size: tuple[int, int], where: str) -> Bool[np.ndarray, "H W"]:
    kind = shape.get("shape_type", "polygon")  # old files have nothing else, and do not say so
    if kind not in SHAPES:
        raise DataError(f"{where}: shape_type {kind!r}; expected one of {', '.join(SHAPES)}")
    points = _read_points(shape, size, where)
    if len(points) < 3 if kind == "polygon" else len(points) != 2:
        raise DataError(
            f"{where}: a {kind} of {len(points)} points; expected"
            f" {'3 or more' if kind == 'polygon' else 2}"
        )
    if kind == "circle":
        center, edge = points
        y, x = (np.arange(n) + 0.5 for n in size)
        reach = np.square(edge - center).sum()
        mask = np.square(x - center[0]) + np.square(y - center[1])[:, None] <= reach
    else:
        if kind == "rectangle":
            (left, top), (right, bottom) = points
            points = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
        rles: Any = rle_masks.frPyObjects([points.ravel().tolist()], *size)
        mask = rle_masks.decode(rles)[..., 0] > 0
    return mask


def _read_points(shape: Shape, size: tuple[int, int], where: str) -> Float64[np.ndarray, "N 2"]:
    listed: Any = shape.get("points")
    try:
        points = np.array([(x, y) for x, y in listed], np.float64).reshape(-1, 2)
    except (TypeError, ValueError, OverflowError):
        points = np.full((1, 2), np.nan)
    if not np.isfinite(points).all():
        raise DataError(f"{where}: points {reprlib.repr(listed)}; expected finite pairs [x, y]")
    height, width = size
    if (points < -1).any() or (points > np.array([width, height]) + 1).any():
        raise DataError(
            f"{where}: points {reprlib.repr(listed)} reach more than a pixel outside; expected x in"
            f" 0 … {width} and y in 0 … {height}"
        )
    return points
