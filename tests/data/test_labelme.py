"""LabelMe folders: masks by hand, groups, splits, and each refusal."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxseg.data.builders import DataError, labelme, prepare

POLYGON = {
    "label": "cat",
    "shape_type": "polygon",
    "points": [[2, 1], [6, 1], [6, 4], [2, 4]],
    "group_id": None,
}
RECTANGLE = {"label": "dog", "shape_type": "rectangle", "points": [[9, 7], [7, 5]], "group_id": 3}
CIRCLE = {"label": "cat", "shape_type": "circle", "points": [[3, 6], [3, 7.6]], "group_id": None}


def write_picture(folder: Path, stem: str = "a", shapes: list | None = None, **fields) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 10, 3), 50, np.uint8)).save(folder / f"{stem}.png")
    content = {
        "version": "5.4.1",
        "shapes": [POLYGON, RECTANGLE, CIRCLE] if shapes is None else shapes,
        "imagePath": "../elsewhere.png",
        "imageData": "not read",
        "imageHeight": 8,
        "imageWidth": 10,
    }
    (folder / f"{stem}.json").write_text(json.dumps(content | fields))


def test_shapes_by_hand(tmp_path):
    write_picture(tmp_path / "set")
    dataset = prepare("labelme", tmp_path / "set", cache=tmp_path / "cache")
    assert dataset.classes == ("background", "cat", "dog")
    (example,) = dataset.splits["train"]
    assert example["name"] == "a"
    np.testing.assert_array_equal(example["labels"], [1, 2, 1])
    expected = np.zeros((3, 8, 10), bool)
    expected[0, 1:4, 2:6] = True
    expected[1, 5:7, 7:9] = True
    expected[2, 5:7, 1:5] = expected[2, 4:8, 2:4] = True  # centres less than 1.6 from (3, 6)
    np.testing.assert_array_equal(example["masks"], expected)
    np.testing.assert_array_equal(example["boxes"], [[2, 1, 6, 4], [7, 5, 9, 7], [1, 4, 5, 8]])


def test_groups_are_one_object(tmp_path):
    """Of one label and group_id."""
    shapes = [RECTANGLE, POLYGON, RECTANGLE | {"points": [[0, 0], [1, 2]]}]
    shapes.append(CIRCLE | {"group_id": 3})
    write_picture(tmp_path, shapes=shapes)
    example = labelme.open_source(tmp_path).read("train", "a")
    np.testing.assert_array_equal(example["labels"], [2, 1, 1])
    np.testing.assert_array_equal(example["boxes"][0], [0, 0, 9, 7])
    assert example["masks"].sum(axis=(1, 2)).tolist() == [6, 12, 12]


def test_pictures_without_objects_and_without_shape_types(tmp_path):
    write_picture(tmp_path, shapes=[])
    old = {"label": "cat", "points": POLYGON["points"]}
    write_picture(tmp_path, "b", shapes=[old])
    source = labelme.open_source(tmp_path)
    empty, one = (source.read("train", key) for key in "ab")
    assert [empty[k].shape for k in ("boxes", "labels", "masks")] == [(0, 4), (0,), (0, 8, 10)]
    np.testing.assert_array_equal(one["boxes"], [[2, 1, 6, 4]])


def test_shapes_without_area_are_left_out_and_said(tmp_path, caplog):
    """Points and lines, whatever their labels, and outlines that no pixel belongs to."""
    shapes = [POLYGON | {"shape_type": kind} for kind in ("point", "line", "linestrip")]
    shapes = [shape | {"label": "nose", "points": []} for shape in shapes]
    shapes += [POLYGON, POLYGON | {"points": [[1, 1], [5, 1.1], [1, 1]]}]
    shapes += [RECTANGLE, RECTANGLE | {"points": [[1, 1], [1, 5]]}]
    write_picture(tmp_path / "set", shapes=shapes)
    write_picture(tmp_path / "set", "b", shapes=[POLYGON])
    with caplog.at_level(logging.WARNING, logger="absl"):
        dataset = prepare("labelme", tmp_path / "set", cache=tmp_path / "cache")
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert "a.json: left out 5 of 7 shapes" in said[0]
    assert "[0, 1, 2, 4, 6]" in said[0]
    assert dataset.classes == ("background", "cat", "dog")
    example = dataset.splits["train"][0]
    np.testing.assert_array_equal(example["labels"], [1, 2])
    np.testing.assert_array_equal(example["boxes"], [[2, 1, 6, 4], [7, 5, 9, 7]])


def test_the_size_of_the_picture_may_be_absent(tmp_path):
    write_picture(tmp_path, imageHeight=None, imageWidth=None)
    write_picture(tmp_path, "b", imageHeight=None)
    document = json.loads((tmp_path / "a.json").read_text())
    del document["imageHeight"], document["imageWidth"]
    (tmp_path / "c.json").write_text(json.dumps(document))
    Image.open(tmp_path / "a.png").save(tmp_path / "c.png")
    source = labelme.open_source(tmp_path)
    for key in "abc":
        assert source.read("train", key)["masks"].shape == (3, 8, 10)


def test_classes_by_option_and_by_what_occurs(tmp_path):
    write_picture(tmp_path, shapes=[RECTANGLE])
    (tmp_path / "b.json").write_text("broken")
    assert labelme.open_source(tmp_path).classes == ("background", "dog")
    source = labelme.open_source(tmp_path, classes=["mouse", "dog"])
    assert source.classes == ("background", "mouse", "dog")
    assert source.read("train", "a")["labels"].tolist() == [2]
    assert source.fingerprint != labelme.open_source(tmp_path).fingerprint


def test_splits_of_folders_lists_and_by_number(tmp_path):
    for folder, stems in {"one": "dacb", "two/train": "ab", "two/val": "a"}.items():
        for stem in stems:
            write_picture(tmp_path / folder, stem)
    one, two = tmp_path / "one", tmp_path / "two"
    assert labelme.open_source(one).splits == {"train": ("a", "b", "c", "d")}
    found = labelme.open_source(one, val_every=2).splits
    assert found == {"train": ("a", "c"), "val": ("b", "d")}
    assert labelme.open_source(two).splits == {"train": ("a", "b"), "val": ("a",)}
    (one / "train.txt").write_text("d\nb\n")
    (one / "val.txt").write_text("a")
    assert labelme.open_source(tmp_path / "one").splits == {"train": ("d", "b"), "val": ("a",)}
    with pytest.raises(DataError, match=r"one, .*train, .*val; expected one, or one a split"):
        labelme.open_source(tmp_path)
    (one / "val.txt").write_text("e")
    with pytest.raises(DataError, match=r"lists name \['e'\], which are not there"):
        labelme.open_source(one)


def points(*pairs):
    return [POLYGON | {"points": list(pairs)}]


REFUSED = {
    "label": ([POLYGON | {"label": "fox"}], r"shapes\[0\]: label 'fox'; expected one of cat, dog"),
    "no label": ([RECTANGLE, {}], r"shapes\[1\]: label None"),
    "background": ([POLYGON | {"label": "background"}], "label 'background'"),
    "type": ([POLYGON | {"shape_type": "mask"}], r"shape_type 'mask'; .*polygon, rectangle, circ"),
    "short": (points([0, 0], [1, 1]), r"shapes\[0\]: a polygon of 2 points; expected 3 or more"),
    "corners": ([RECTANGLE | {"points": [[0, 0]]}], "a rectangle of 1 points; expected 2"),
    "circle": ([CIRCLE | {"points": POLYGON["points"]}], "a circle of 4 points; expected 2"),
    "nan": (points([0, float("nan")], [1, 1], [2, 2]), "points .*nan.*expected finite pairs"),
    "huge": (points([0, 0], [10**400, 1], [2, 2]), r"shapes\[0\]: points .*expected finite pairs"),
    "triples": (points([0, 0, 0], [1, 1, 1], [2, 2, 2]), "expected finite pairs"),
    "ragged": (points([0, 0], [1], [2, 2]), "expected finite pairs"),
    "words": (points("ab", "cd", "ef"), "expected finite pairs"),
    "no points": ([{"label": "cat"}], "points None; expected finite pairs"),
    "outside": (points([0, 0], [11.5, 0], [5, 5]), "a pixel outside; expected x in 0 … 10 and y"),
    "above": (points([0, -2], [9, 0], [5, 5]), "more than a pixel outside"),
    "group text": ([POLYGON | {"group_id": "x"}], "group_id 'x'; expected an integer or null"),
    "shape": ([1], r"shapes \[1\]; expected a list of objects"),
}


@pytest.mark.parametrize(("shapes", "message"), REFUSED.values(), ids=REFUSED)
def test_labelme_refuses(tmp_path, shapes, message):
    write_picture(tmp_path / "set", shapes=shapes)
    options = dict(classes=["cat", "dog"], cache=tmp_path / "cache")
    with pytest.raises(DataError, match=message) as error:
        prepare("labelme", tmp_path / "set", **options)
    assert "a.json" in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"imageHeight": 10, "imageWidth": 8},
            r"imageHeight and imageWidth \(10, 8\); .*\(8, 10\)",
        ),
        ({"imageHeight": None, "imageWidth": 8}, r"imageHeight and imageWidth \(None, 8\)"),
        ({"shapes": {}}, r"shapes {}; expected a list"),
    ],
)
def test_labelme_refuses_documents(tmp_path, fields, message):
    write_picture(tmp_path, **fields)
    with pytest.raises(DataError, match=message):
        labelme.open_source(tmp_path, classes=["cat"]).read("train", "a")


def test_labelme_refuses_files(tmp_path):
    with pytest.raises(DataError, match="folders with JSON files, up to two below: none"):
        labelme.open_source(tmp_path)
    for stem in "abc":
        write_picture(tmp_path, stem)
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.json").unlink()
    (tmp_path / "c.png").unlink()
    source = labelme.open_source(tmp_path, classes=["cat", "dog"])
    for key, message in {
        "a": r"a\.json: cannot be read as JSON",
        "b": r"b\.json: no such file, but there is .*b\.png",
        "c": r"c\.jpg: no such file, but there is .*c\.json",
    }.items():
        with pytest.raises(DataError, match=message):
            source.read("train", key)
    with pytest.raises(DataError, match="entry 'cat' occurs twice"):
        labelme.open_source(tmp_path, classes=["cat", "cat"])
    with pytest.raises(DataError, match="option val_every 1"):
        labelme.open_source(tmp_path, val_every=1)
