"""COCO: JSON files of boxes, masks, keypoints and crowds. And other sets in its format.

    annotations/instances_<split><year>.json          or person_keypoints_<split><year>.json
    <split><year>/<file_name>                          the pictures

A box (x, y, width, height) becomes (x, y, x + width, y + height). Polygons and run lengths, plain
or compressed, become masks as COCO's own API draws them. Keypoints stay COCO's whole numbers, which
its evaluation and published networks take as they are. Lin et al., "Microsoft COCO", 2014.

Boxes without width or height, of which COCO has a few, are left out, and a log line says how many.
Boxes that reach up to a pixel outside their picture are cut at its border; all else is refused.
"""

import re
import reprlib
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np
from absl import logging
from jaxtyping import Bool, Float32, Float64
from pycocotools import mask as rle_masks

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
    read_json,
)

SPLITS = ("train", "val", "test")

# What COCO's category "person" says, for files whose categories say nothing.
KEYPOINTS = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder",
    "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee",
    "right_knee", "left_ankle", "right_ankle",
)  # fmt: skip
SKELETON = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8),
    (7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
)  # fmt: skip

Entry = dict[str, Any]  # an object of the JSON file


class _Split(NamedTuple):
    file: Path
    folder: Path  # of the pictures
    images: dict[str, Entry]  # key -> image
    objects: dict[str, list[Entry]]  # key -> annotations
    categories: list[Entry]  # by id


def open_source(
    path: str | Path,
    *,
    year: str | int = "2017",
    keypoints: bool = False,
    masks: bool = True,
    sparse_labels: bool = False,
    splits: Sequence[str] | None = None,
    with_objects: Sequence[str] = (),
    annotations: str = "annotations/{kind}_{split}{year}.json",
    images: str = "{split}{year}",
) -> Source:
    """COCO in `path` or up to two folders below. An example's key is its image id.

    Examples have `boxes`, `labels`, `crowd` and `area`; `masks` and `keypoints` if asked for.

    keypoints: reads person_keypoints instead of instances.
    sparse_labels: labels are the category ids, and ids between them the classes "N/A", as
        published weights count them (91 for COCO); otherwise 1 … K-1 in the order of the ids.
    splits: those to read; None means each of train, val and test whose JSON file is there.
    with_objects: the splits of which pictures without an object, crowds aside, are left out.
    annotations, images: where the JSON file and the pictures of a split are, in `path`.
    """
    kind = "person_keypoints" if keypoints else "instances"
    fixed = annotations.partition("{")[0].rpartition("/")[0]  # "annotations"
    root = find_root(path, fixed, f"COCO with {annotations}") if fixed else Path(path)

    def place(pattern: str, split: str) -> Path:
        return root / pattern.format(kind=kind, split=split, year=year)

    wanted = splits or [s for s in SPLITS if place(annotations, s).is_file()]
    if not wanted or not set(with_objects) <= set(wanted):
        raise DataError(
            f"{root}: has splits {list(wanted)} as {annotations} ({kind}, year {year!r}); expected"
            f" one at least{''.join(f', {split}' for split in with_objects)}"
        )
    found = {
        split: _read_split(place(annotations, split), place(images, split)) for split in wanted
    }
    names, label_of = _number_classes(found, sparse_labels)
    keypoint_names, skeleton = _read_skeleton(found) if keypoints else ((), ())

    def read(split: str, key: str) -> Example:
        here = found[split]
        image, size = _read_picture(here.images[key], here.folder, here.file)
        objects = [(o, f"{here.file}: annotation {o['id']}") for o in here.objects[key]]
        example = {"image": image, **_read_objects(objects, size, label_of)}
        if masks:
            example["masks"] = _decode([_read_rle(o, size, where) for o, where in objects], size)
        if keypoints:
            count = len(keypoint_names)
            points = [_read_keypoints(o, count, where) for o, where in objects]
            example["keypoints"] = np.array(points, np.float32).reshape(-1, count, 3)
        return example

    files = [s.file for s in found.values()]
    files += [s.folder / i["file_name"] for s in found.values() for i in s.images.values()]
    options = dict(masks=masks, sparse_labels=sparse_labels, with_objects=sorted(with_objects))
    return Source(
        name=f"coco{year}-{kind}",
        fingerprint=fingerprint(root, files, splits=list(found), **options),
        classes=names,
        palette=color_map(len(names)),
        splits={
            split: tuple(_keys(s, only_with_objects=split in with_objects))
            for split, s in found.items()
        },
        fields=("boxes", "labels", "crowd", "area")
        + ("masks",) * masks
        + ("keypoints",) * keypoints,
        read=read,
        keypoint_names=keypoint_names,
        keypoint_flip=_mirror(keypoint_names),
        skeleton=skeleton,
    )


# The file as a whole. What concerns one example only is checked when that is read.


def _read_split(file: Path, folder: Path) -> _Split:
    document = read_json(file)
    if not isinstance(document, dict):
        raise DataError(f"{file}: expected an object with images, annotations and categories")
    images = _read_entries(document, "images", file)
    annotations = _read_entries(document, "annotations", file)
    categories = _read_entries(document, "categories", file)
    for number, image in images.items():
        if not isinstance(image.get("file_name"), str):
            raise DataError(
                f"{file}: image {number}: file_name {image.get('file_name')!r}; expected a name"
            )
        inside(folder, image["file_name"], file)

    objects: dict[str, list[Entry]] = {str(number): [] for number in images}
    without_size = []
    for number, annotation in annotations.items():
        image_id = annotation.get("image_id")
        if type(image_id) is not int or image_id not in images:
            raise DataError(
                f"{file}: annotation {number}: image_id {image_id!r}; expected the id of one of the"
                f" {len(images)} images"
            )
        if _has_no_size(annotation, categories):
            without_size.append(number)
        else:
            objects[str(image_id)].append(annotation)
    if without_size:
        logging.warning(
            "%s: left out %d of %d annotations, whose boxes have no width or no height: %s",
            file, len(without_size), len(annotations), reprlib.repr(without_size),
        )  # fmt: skip
    return _Split(
        file,
        folder,
        {str(number): image for number, image in images.items()},
        objects,
        [categories[number] for number in sorted(categories)],
    )


def _read_entries(document: Entry, field: str, file: Path) -> dict[int, Entry]:
    """The objects of a list by their ids."""
    entries = document.get(field)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(f"{file}: {field} {reprlib.repr(entries)}; expected a list of objects")
    found: dict[int, Entry] = {}
    for position, entry in enumerate(entries):
        number = entry.get("id")
        if type(number) is not int:
            raise DataError(f"{file}: {field}[{position}]: id {number!r}; expected an integer")
        if number in found:
            raise DataError(f"{file}: {field}: id {number} occurs twice; expected each once")
        found[number] = entry
    return found


def _has_no_size(annotation: Entry, categories: Container[int]) -> bool:
    """Whether a box only lacks width or height; what else is wrong is said when it is read."""
    box, category = annotation.get("bbox"), annotation.get("category_id")
    known = type(category) is int and category in categories
    return known and _are_numbers(box) and len(box) == 4 and min(box[2:]) == 0


def _keys(split: _Split, only_with_objects: bool) -> list[str]:
    return [
        key
        for key in split.images
        if not only_with_objects or any(not o.get("iscrowd") for o in split.objects[key])
    ]


def _same_categories(splits: dict[str, _Split]) -> list[Entry]:
    first, *others = splits.values()
    for category in first.categories:
        if not isinstance(category.get("name"), str):
            raise DataError(
                f"{first.file}: category {category['id']}: name {category.get('name')!r}; expected"
                " text"
            )
    names = [(category["id"], category["name"]) for category in first.categories]
    check_unique((name for _, name in names), first.file)
    for other in others:
        if [(category["id"], category.get("name")) for category in other.categories] != names:
            raise DataError(f"{other.file}: its categories are not those of {first.file}")
    return first.categories


def _number_classes(
    splits: dict[str, _Split], sparse: bool
) -> tuple[tuple[str, ...], dict[int, int]]:
    """Name of each label, and the label of each category id."""
    categories = _same_categories(splits)
    if not sparse:
        names = ("background", *(category["name"] for category in categories))
        return names, {category["id"]: n for n, category in enumerate(categories, start=1)}
    ids = [category["id"] for category in categories]
    if ids and not (ids[0] > 0 and ids[-1] < 10000):
        raise DataError(
            f"{next(iter(splits.values())).file}: category ids {ids[0]} … {ids[-1]}; expected"
            " 1 … 9999 with the option sparse_labels"
        )
    name_of = {0: "background"} | {category["id"]: category["name"] for category in categories}
    names = tuple(name_of.get(number, "N/A") for number in range(max(name_of) + 1))
    return names, {number: number for number in ids}


def _read_skeleton(
    splits: dict[str, _Split],
) -> tuple[tuple[str, ...], tuple[tuple[int, int], ...]]:
    """Names of the keypoints and the pairs that lines join, the same for all categories."""
    found = {}
    for split in splits.values():
        for category in split.categories:
            if "keypoints" not in category:
                continue
            names, lines = category["keypoints"], category.get("skeleton", [])
            where = f"{split.file}: category {category['id']}"
            if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
                raise DataError(f"{where}: keypoints {reprlib.repr(names)}; expected names")
            pairs = isinstance(lines, list) and all(
                isinstance(line, list) and len(line) == 2 for line in lines
            )
            if not pairs or not all(n in range(1, len(names) + 1) for line in lines for n in line):
                raise DataError(
                    f"{where}: skeleton {reprlib.repr(lines)}; expected pairs of 1 … {len(names)}"
                )
            skeleton = tuple((int(first) - 1, int(second) - 1) for first, second in lines)
            found[tuple(names), skeleton] = where
    if len(found) > 1:
        one, other, *_ = found.values()
        raise DataError(f"{other}: other keypoints or skeleton than those of {one}")
    return next(iter(found), (KEYPOINTS, SKELETON))


def _mirror(names: Sequence[str]) -> tuple[int, ...]:
    """Which keypoint each becomes in a mirrored picture: left_eye is right_eye, nose is nose.

    The same for LeftEye, eye-left, l_eye and Eye_L, where the other side has such a name, too.
    """
    other = {"left": "right", "right": "left", "l": "r", "r": "l"}
    sides = re.compile("left|right|(?<![a-z0-9])[lr](?![a-z0-9])")
    lower = [name.lower() for name in names]
    mirrored = [sides.sub(lambda side: other[side[0]], name) for name in lower]
    partners = [lower.index(m) if m in lower else n for n, m in enumerate(mirrored)]
    # Both ways, so that what is mirrored twice is as it was.
    return tuple(p if partners[p] == n else n for n, p in enumerate(partners))


# One example


def _read_picture(entry: Entry, folder: Path, file: Path) -> tuple[bytes, tuple[int, int]]:
    path = check_file(folder / entry["file_name"], file)
    image, (height, width) = read_image(path)
    declared = entry.get("height"), entry.get("width")
    if declared != (height, width):
        raise DataError(
            f"{file}: image {entry['id']}: height and width {declared}; expected"
            f" {(height, width)}, the size of {path.name}"
        )
    return image, (height, width)


def _read_objects(
    objects: list[tuple[Entry, str]], size: tuple[int, int], label_of: dict[int, int]
) -> Example:
    """What all annotations have; each comes with the words that name it."""
    labels = [_read_label(o, label_of, where) for o, where in objects]
    boxes = [_read_box(o, size, where) for o, where in objects]
    return {
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "labels": np.array(labels, np.int32),
        "crowd": np.array([_read_crowd(o, where) for o, where in objects], bool),
        "area": np.array([_read_area(o, where) for o, where in objects], np.float32),
    }


def _read_numbers(entry: Entry, field: str, count: int, where: str) -> Float64[np.ndarray, "N"]:
    if field not in entry:
        raise DataError(f"{where}: without {field}; expected {count} numbers")
    return _check_numbers(entry[field], f"{where}: {field}", count)


def _check_numbers(values: Any, where: str, count: int | None = None) -> Float64[np.ndarray, "N"]:
    if not _are_numbers(values) or count not in (None, len(values)):
        wanted = "numbers" if count is None else f"{count} numbers"
        raise DataError(f"{where} {reprlib.repr(values)}; expected {wanted}, all finite")
    return np.array(values, np.float64)


def _are_numbers(values: Any) -> TypeGuard[list[float]]:
    # A comparison, because NaN fails it, and integers may be too large for floats.
    return isinstance(values, list) and all(
        type(value) in (int, float) and abs(value) < 1e9 for value in values
    )


def _read_label(entry: Entry, label_of: dict[int, int], where: str) -> int:
    number = entry.get("category_id")
    if type(number) is not int or number not in label_of:
        raise DataError(
            f"{where}: category_id {number!r}; expected the id of one of the {len(label_of)}"
            " categories"
        )
    return label_of[number]


def _read_crowd(entry: Entry, where: str) -> bool:
    crowd = entry.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise DataError(f"{where}: iscrowd {crowd!r}; expected 0 or 1")
    return bool(crowd)


def _read_box(entry: Entry, size: tuple[int, int], where: str) -> Float32[np.ndarray, "4"]:
    x, y, width, height = _read_numbers(entry, "bbox", 4, where)
    if width < 0 or height < 0:
        raise DataError(f"{where}: inverted bbox {entry['bbox']}; expected width, height > 0")
    edges = np.array(size[::-1], np.float64)  # right and bottom
    low, high = np.array([x, y]), np.array([x + width, y + height])
    if (low < -1).any() or (high > edges + 1).any():
        raise DataError(
            f"{where}: bbox {entry['bbox']} reaches more than a pixel outside; expected x in"
            f" 0 … {size[1]} and y in 0 … {size[0]}"
        )
    box = np.concatenate([low.clip(0, edges), high.clip(0, edges)]).astype(np.float32)
    if not (box[:2] < box[2:]).all():
        raise DataError(f"{where}: bbox {entry['bbox']}; expected some of it inside the picture")
    return box


def _read_area(entry: Entry, where: str) -> float:
    """As annotated; other tools' files may leave it out, and mean the box."""
    if "area" not in entry:
        return float(np.prod(entry["bbox"][2:]))
    area = _check_numbers([entry["area"]], f"{where}: area", 1)[0]
    if area < 0:
        raise DataError(f"{where}: area {entry['area']}; expected square pixels, 0 or more")
    return float(area)


def _read_keypoints(entry: Entry, count: int, where: str) -> Float64[np.ndarray, "J 3"]:
    points = _read_numbers(entry, "keypoints", 3 * count, where).reshape(count, 3)
    wrong = points[~np.isin(points[:, 2], (0, 1, 2)), 2]
    if len(wrong):
        raise DataError(f"{where}: keypoints: visibility {wrong[0]:g}; expected 0, 1 or 2")
    return np.where(points[:, 2:] > 0, points, 0)


def _read_rle(entry: Entry, size: tuple[int, int], where: str) -> Any:
    """An object's mask as pycocotools has it."""
    height, width = size
    where = f"{where}: segmentation"
    segmentation = entry.get("segmentation")
    if isinstance(segmentation, dict):
        if segmentation.get("size") != [height, width]:
            raise DataError(
                f"{where}: RLE of size {segmentation.get('size')}; expected {[height, width]}, that"
                " of its image"
            )
        counts = segmentation.get("counts")
        if isinstance(counts, str):
            counts = _run_lengths(counts, where)
        # pycocotools trusts them, and would show memory that was never written.
        listed = isinstance(counts, list) and all(type(n) is int and n >= 0 for n in counts)
        if not listed or sum(counts) != height * width:
            raise DataError(
                f"{where}: RLE counts {reprlib.repr(counts)}; expected run lengths that add up to"
                f" {height}×{width}"
            )
        rle: Any = {"size": [height, width], "counts": counts}
        return rle_masks.frPyObjects(rle, height, width)
    if not isinstance(segmentation, list) or not segmentation:
        raise DataError(
            f"{where} {reprlib.repr(segmentation)}; expected polygons or RLE (or the option"
            " masks=False)"
        )
    for polygon in segmentation:
        points = _check_numbers(polygon, where)
        if len(points) < 6 or len(points) % 2:
            raise DataError(
                f"{where}: polygon of {len(points)} coordinates; expected an even number, 6 or more"
            )
        # Drawing takes time and memory by the length of the outline.
        if (abs(points.reshape(-1, 2)) > 2 * np.array([width, height])).any():
            raise DataError(
                f"{where}: polygon {reprlib.repr(polygon)} reaches far outside; expected x in"
                f" 0 … {width} and y in 0 … {height}"
            )
    return rle_masks.merge(rle_masks.frPyObjects(segmentation, height, width))


def _run_lengths(text: str, where: str) -> list[int]:
    """The run lengths in COCO's compressed text: 5 bits a character, low ones first, then a bit
    that says whether more follow; from the fourth on, differences to the last but one."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise DataError(f"{where}: RLE counts {reprlib.repr(text)}; expected COCO's text")
        value |= (bits & 31) << shift
        shift += 5
        if bits < 32:
            if bits & 16:  # the sign
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts


def _decode(rles: Any, size: tuple[int, int]) -> Bool[np.ndarray, "M H W"]:
    if not rles:
        return np.zeros((0, *size), bool)
    return np.ascontiguousarray(rle_masks.decode(rles).transpose(2, 0, 1)).view(bool)
