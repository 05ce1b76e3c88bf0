"""PASCAL VOC and sets of its layout: boxes, segmentations and instance masks of 20 classes.

    VOCdevkit/VOC<year>/ImageSets/Segmentation/<split>.txt   names, for task="segmentation"
                        ImageSets/Main/<split>.txt           names, for task="detection"
                        JPEGImages/<name>.jpg
                        Annotations/<name>.xml               objects with boxes
                        SegmentationClass/<name>.png         labels 0 … 20, 255 = IGNORE
                        SegmentationObject/<name>.png        value i = object i of the XML

VOC counts pixels from 1 and includes the last one, so the corner (xmin, ymin, xmax, ymax) is
(xmin - 1, ymin - 1, xmax, ymax) here. Everingham et al., "The PASCAL VOC challenge", 2010.

Several years make one set, as "07+12": each split is the union of theirs, with keys such as
"2007/000005". Only "test" is the first year's alone: after 2007 its annotations were kept secret.
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

import defusedxml.ElementTree
import numpy as np
from jaxtyping import Bool

from jaxseg.data.builders.source import (
    SPLITS,
    DataError,
    Example,
    Source,
    check_file,
    check_unique,
    color_map,
    find_root,
    fingerprint,
    read_image,
    read_indices,
    read_labels,
    read_names,
)
from jaxseg.types import IGNORE

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip
LISTS = {"segmentation": "Segmentation", "detection": "Main"}


def open_source(
    path: str | Path,
    *,
    year: str | int | Sequence[str | int] | None = "2012",
    task: str = "segmentation",
    splits: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    drop_points: bool = False,
) -> Source:
    """VOC<year> in `path` or up to two folders below; `path` may also be VOC<year> itself, where it
    is but one.

    Examples have `boxes`, `labels` and `difficult` where there are Annotations; for
    task="segmentation" they have `segmentation`, and `masks` where there are SegmentationObject
    masks.

    year: one, or several, as ("2007", "2012"). None means that the folder of ImageSets, of whatever
        name, is the set.
    splits: those to read; None means every list that is there, of each year.
    classes: names of the objects, without the background; None means VOC's 20.
    drop_points: leaves out boxes whose corners share a row or a column. VOC means boxes one pixel
        wide by that; where annotators drew by hand, they are slips. Needs task="detection".
    """
    if task not in LISTS:
        raise DataError(f"voc: task {task!r}; expected one of {', '.join(LISTS)}")
    if drop_points and task != "detection":
        raise DataError(f"voc: option drop_points for task {task!r}; expected task 'detection'")
    names = CLASSES if classes is None else ("background", *classes)
    check_unique(names, Path("voc: option classes"))
    roots = _find_roots(Path(path).resolve(), year, task)

    def year_of(key: str) -> str:
        return next(year for year in roots if key.startswith(year))

    def lists(split: str) -> dict[str, Path]:
        """The list of a split of each year that has a part in it."""
        years = list(roots)[:1] if split == "test" else roots
        return {y: roots[y] / "ImageSets" / LISTS[task] / f"{split}.txt" for y in years}

    if splits is None:
        splits = [s for s in SPLITS if all(file.exists() for file in lists(s).values())]
    if not splits:
        some = " and ".join(map(str, roots.values()))
        raise DataError(f"{some}: no list files for {task}; expected one of {', '.join(SPLITS)}")
    keys = {
        split: tuple(
            year + name
            for year, file in lists(split).items()
            for name in read_names(file, roots[year])
        )
        for split in splits
    }

    segmented = task == "segmentation"
    annotated = not segmented or _all_have(roots, "Annotations")
    instances = segmented and annotated and _all_have(roots, "SegmentationObject")

    def files(key: str) -> dict[str, Path]:
        root, name = roots[year_of(key)], key.removeprefix(year_of(key))
        found = {"image": root / "JPEGImages" / f"{name}.jpg"}
        if annotated:
            found["objects"] = root / "Annotations" / f"{name}.xml"
        if segmented:
            found["segmentation"] = root / "SegmentationClass" / f"{name}.png"
        if instances:
            found["masks"] = root / "SegmentationObject" / f"{name}.png"
        return found

    def read(split: str, key: str) -> Example:
        asking = lists(split)[year_of(key)]
        paths = {what: check_file(file, asking) for what, file in files(key).items()}
        image, size = read_image(paths["image"])
        example: Example = {"image": image}
        if annotated:
            example |= _read_objects(paths["objects"], size, names, drop_points)
        if segmented:
            example["segmentation"] = read_labels(paths["segmentation"], len(names), size)
        if instances:
            example["masks"] = _read_masks(paths["masks"], len(example["labels"]), size)
        return example

    every = {key for listed in keys.values() for key in listed}
    every_list = [file for split in splits for file in lists(split).values()]
    return Source(
        name=f"voc{'+'.join(_years(year))}-{task}",
        fingerprint=fingerprint(
            Path(os.path.commonpath([*roots.values()])),
            [*every_list, *(file for key in every for file in files(key).values())],
            splits=list(splits),
            classes=names,
            drop_points=drop_points,
        ),
        classes=names,
        palette=color_map(len(names)),
        splits=keys,
        fields=("segmentation",) * segmented
        + ("boxes", "labels", "difficult") * annotated
        + ("masks",) * instances,
        read=read,
    )


def _years(year: str | int | Sequence[str | int] | None) -> list[str]:
    years = [] if year is None else [year] if isinstance(year, str | int) else year
    return [str(y) for y in years]


def _find_roots(
    path: Path, year: str | int | Sequence[str | int] | None, task: str
) -> dict[str, Path]:
    """The folder of each year, by what the year's keys begin with: nothing where it is but one."""
    if year is None:
        what = f"a set of VOC's layout for {task}"
        return {"": find_root(path, f"ImageSets/{LISTS[task]}", what)}
    years = _years(year)
    check_unique(years, Path("voc: option year"))
    if not years:
        raise DataError("voc: option year is empty; expected one year at least")
    home = path.parent if path.name in {f"VOC{y}" for y in years} else path
    roots = {}
    for y in years:
        what = f"VOCdevkit with VOC{y} and its list files for {task}"
        root = find_root(home, f"VOC{y}/ImageSets/{LISTS[task]}", what) / f"VOC{y}"
        roots[f"{y}/" if len(years) > 1 else ""] = root
    return roots


def _all_have(roots: dict[str, Path], folder: str) -> bool:
    return all((root / folder).is_dir() for root in roots.values())


def _read_objects(
    path: Path, size: tuple[int, int], classes: Sequence[str], drop_points: bool
) -> Example:
    """The `boxes`, `labels` and `difficult` of an annotation file."""
    try:
        annotation = defusedxml.ElementTree.fromstring(path.read_bytes(), forbid_dtd=True)
    except defusedxml.DefusedXmlException as error:
        raise DataError(f"{path}: has a DTD or entities ({error}); expected plain XML") from error
    # Encodings that Python does not know are LookupErrors, or ValueErrors.
    except (defusedxml.ElementTree.ParseError, LookupError, ValueError, OSError) as error:
        raise DataError(f"{path}: malformed XML ({error})") from error
    objects = annotation.findall("object")
    boxes = np.array([_read_box(o, path, size) for o in objects], np.float32).reshape(-1, 4)
    found = {
        "boxes": boxes,
        "labels": np.array([_read_class(o, path, classes) for o in objects], np.int32),
        "difficult": np.array([_read_difficult(o, path) for o in objects], bool),
    }
    if drop_points:
        kept = (boxes[:, 2:] - boxes[:, :2] > 1).all(axis=1)
        found = {field: values[kept] for field, values in found.items()}
    return found


def _field(element: Element, name: str, path: Path) -> str:
    text = (element.findtext(name) or "").strip()
    if not text:
        raise DataError(f"{path}: <{element.tag}> without <{name}>")
    return text


def _read_class(element: Element, path: Path, classes: Sequence[str]) -> int:
    name = _field(element, "name", path)
    if name not in classes[1:]:
        raise DataError(f"{path}: unknown class {name!r}; expected one of {', '.join(classes[1:])}")
    return classes.index(name)


def _read_difficult(element: Element, path: Path) -> bool:
    text = (element.findtext("difficult") or "").strip()
    if text not in ("", "0", "1"):  # some years leave it out, and mean 0
        raise DataError(f"{path}: <difficult> {text!r}; expected 0 or 1")
    return text == "1"


def _read_box(
    element: Element, path: Path, size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """The xyxy box of an object, in pixels with centres at +0.5."""
    box = element.find("bndbox")
    if box is None:
        raise DataError(f"{path}: <object> without <bndbox>")
    texts = [_field(box, name, path) for name in ("xmin", "ymin", "xmax", "ymax")]
    try:
        xmin, ymin, xmax, ymax = map(float, texts)
    except ValueError as error:
        raise DataError(f"{path}: box {texts}; expected four numbers") from error
    if not all(map(math.isfinite, (xmin, ymin, xmax, ymax))):
        raise DataError(f"{path}: box {texts}; expected finite numbers")
    if xmax < xmin or ymax < ymin:
        raise DataError(f"{path}: inverted box {texts}; expected xmin ≤ xmax and ymin ≤ ymax")
    height, width = size
    if xmin < 1 or ymin < 1 or xmax > width or ymax > height:
        raise DataError(
            f"{path}: box {texts} reaches outside the image; expected x in 1 … {width} and y in"
            f" 1 … {height}"
        )
    return xmin - 1, ymin - 1, xmax, ymax


def _read_masks(path: Path, num_objects: int, size: tuple[int, int]) -> Bool[np.ndarray, "M H W"]:
    """The mask of each object; empty where the PNG does not show it."""
    numbers = read_indices(path, size)
    highest = int(numbers[numbers != IGNORE].max(initial=0))
    if highest > num_objects:
        raise DataError(
            f"{path}: instance {highest}, but the XML has {num_objects} objects; expected one each"
        )
    return numbers == np.arange(1, num_objects + 1)[:, None, None]
