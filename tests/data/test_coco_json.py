"""COCO JSON: boxes, masks and keypoints by hand, the real set, and each refusal."""

import copy
import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle_masks

from jaxseg.data.builders import DataError, coco, prepare

RECTANGLE = [2, 1, 6, 1, 6, 4, 2, 4]  # columns 2 … 5, rows 1 … 3
# Column by column: 17 pixels, then 3 of the object (column 2, rows 1 … 3), …
COUNTS = [17, 3, 5, 2, 53]  # … and 2 more (column 3, rows 1 and 2)
# 17 takes two characters; from the fourth on, differences: 2 - 3 = -1 and 53 - 5 = 48.
COMPRESSED = "a035O`1"
RLE_MASK = np.zeros((8, 10), bool)
RLE_MASK[1:4, 2] = RLE_MASK[1:3, 3] = True

POINTS = [1, 2, 2, 0, 0, 0, 3, 4, 1]
PERSON = {
    "id": 7,
    "name": "person",
    "keypoints": ["nose", "left_eye", "right_eye"],
    "skeleton": [[1, 2], [3, 1]],
}


def annotation(number: int, **fields) -> dict:
    return {
        "id": number,
        "image_id": 5,
        "category_id": 7,
        "bbox": [2, 1, 4, 3],
        "area": 12.5,
        "iscrowd": 0,
        "segmentation": [RECTANGLE],
        "keypoints": POINTS,
    } | fields


def document() -> dict:
    return {
        "images": [
            {"id": 5, "file_name": "a.png", "height": 8, "width": 10},
            {"id": 3, "file_name": "b.png", "height": 8, "width": 10},
        ],
        "annotations": [
            annotation(11),
            annotation(
                4,
                category_id=2,
                bbox=[0, 0.25, 10, 7.5],
                iscrowd=1,
                segmentation={"size": [8, 10], "counts": COUNTS},
            ),
        ],
        "categories": [PERSON, {"id": 2, "name": "cat"}],
    }


def write_coco(root: Path, content: dict | None = None, name="instances_val2017.json") -> Path:
    for folder in ("annotations", "val2017"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for picture in ("a", "b"):
        pixels = np.full((8, 10, 3), 50, np.uint8)
        Image.fromarray(pixels).save(root / f"val2017/{picture}.png")
    (root / "annotations" / name).write_text(json.dumps(content or document()))
    return root


def test_coco_by_hand(tmp_path):
    dataset = prepare("coco", write_coco(tmp_path / "set"), cache=tmp_path / "cache")
    assert dataset.classes == ("background", "cat", "person")  # in the order of their ids
    assert dataset.keypoint_names == ()
    np.testing.assert_array_equal(dataset.sizes["val"], [[8, 10], [8, 10]])
    first, second = dataset.splits["val"]
    assert (first["name"], second["name"]) == ("5", "3")  # in the file's order
    np.testing.assert_array_equal(first["boxes"], [[2, 1, 6, 4], [0, 0.25, 10, 7.75]])
    np.testing.assert_array_equal(first["labels"], [2, 1])
    np.testing.assert_array_equal(first["crowd"], [False, True])
    np.testing.assert_array_equal(first["area"], [12.5, 12.5])
    rectangle = np.zeros((8, 10), bool)
    rectangle[1:4, 2:6] = True
    np.testing.assert_array_equal(first["masks"], [rectangle, RLE_MASK])
    assert {k: v.dtype.name for k, v in first.items() if k not in ("name", "image")} == {
        "boxes": "float32",
        "labels": "int32",
        "crowd": "bool",
        "area": "float32",
        "masks": "bool",
    }
    assert second["boxes"].shape == (0, 4)
    assert second["masks"].shape == (0, 8, 10)


def test_keypoints_by_hand(tmp_path):
    write_coco(tmp_path, name="person_keypoints_val2017.json")
    source = coco.open_source(tmp_path, keypoints=True, masks=False)
    assert source.fields == ("boxes", "labels", "crowd", "area", "keypoints")
    assert source.keypoint_names == ("nose", "left_eye", "right_eye")
    assert source.keypoint_flip == (0, 2, 1)
    assert source.skeleton == ((0, 1), (2, 0))
    points = source.read("val", "5")["keypoints"]
    np.testing.assert_array_equal(points[0], [[1, 2, 2], [0, 0, 0], [3, 4, 1]])
    assert source.read("val", "3")["keypoints"].shape == (0, 3, 3)

    dataset = prepare("coco", tmp_path, keypoints=True, cache=tmp_path / "cache")
    assert dataset.keypoint_names == source.keypoint_names
    assert dataset.keypoint_flip == source.keypoint_flip
    assert dataset.skeleton == source.skeleton


def test_a_person_has_cocos_keypoints_where_the_file_names_none(tmp_path):
    content = document()
    content["categories"] = [{"id": 2, "name": "cat"}, {"id": 7, "name": "person"}]
    content["annotations"] = [annotation(1, keypoints=[1, 2, 2] * 17)]
    write_coco(tmp_path, content, name="person_keypoints_val2017.json")
    source = coco.open_source(tmp_path, keypoints=True)
    assert len(source.keypoint_names) == 17
    for place, other in enumerate(source.keypoint_flip):
        names = source.keypoint_names[place], source.keypoint_names[other]
        assert names[0].replace("left", "").replace("right", "") == names[1].replace(
            "left", ""
        ).replace("right", "")
        assert (place == other) == (names[0] == "nose")
    assert source.read("val", "5")["keypoints"].shape == (1, 17, 3)


@pytest.mark.parametrize(
    ("names", "flip"),
    [
        ("nose left_eye right_eye", (0, 2, 1)),
        ("Nose LeftEye RightEye", (0, 2, 1)),
        ("RIGHT-EAR LEFT-EAR EyeLeft EyeRight", (1, 0, 3, 2)),
        ("l_hip r_hip Paw_L Paw_R L_F_Paw R_F_Paw", (1, 0, 3, 2, 5, 4)),
        ("left_paw right_hoof cleft left l1 r1", (0, 1, 2, 3, 4, 5)),  # nothing pairs
        ("Left left right Nose nose", (2, 1, 0, 3, 4)),  # one partner each
    ],
)
def test_keypoints_of_the_two_sides_change_places(tmp_path, names, flip):
    content = document() | {"annotations": []}
    content["categories"] = [{"id": 7, "name": "animal", "keypoints": names.split()}]
    write_coco(tmp_path, content, name="person_keypoints_val2017.json")
    assert coco.open_source(tmp_path, keypoints=True).keypoint_flip == flip


def test_sparse_labels_are_category_ids(tmp_path):
    source = coco.open_source(write_coco(tmp_path), sparse_labels=True)
    assert source.classes == ("background", "N/A", "cat", "N/A", "N/A", "N/A", "N/A", "person")
    np.testing.assert_array_equal(source.read("val", "5")["labels"], [7, 2])


def masks_of(tmp_path: Path, *segmentations) -> np.ndarray:
    content = document()
    content["annotations"] = [annotation(n, segmentation=s) for n, s in enumerate(segmentations)]
    return coco.open_source(write_coco(tmp_path, content)).read("val", "5")["masks"]


def test_masks_of_every_kind(tmp_path):
    """Two parts, a hole that the second part fills in, compressed and plain run lengths."""
    left, right = [0, 0, 2, 0, 2, 8, 0, 8], [7, 2, 10, 2, 10, 5, 7, 5]
    found = masks_of(
        tmp_path,
        [left, right],
        {"size": [8, 10], "counts": COMPRESSED},
        {"size": [8, 10], "counts": [0, 80]},
        {"size": [8, 10], "counts": [80]},
    )
    expected = np.zeros((4, 8, 10), bool)
    expected[0, :, :2] = expected[0, 2:5, 7:] = True
    expected[1] = RLE_MASK
    expected[2] = True
    np.testing.assert_array_equal(found, expected)


def test_compressed_run_lengths_are_those_of_pycocotools(tmp_path):
    rng = np.random.default_rng(0)
    masks = rng.random((20, 8, 10)) < rng.random((20, 1, 1))
    texts = [rle_masks.encode(np.asfortranarray(mask, np.uint8))["counts"] for mask in masks]
    rles = [{"size": [8, 10], "counts": text.decode()} for text in texts]
    np.testing.assert_array_equal(masks_of(tmp_path, *rles), masks)


def test_boxes_without_size_are_left_out_and_said(tmp_path, caplog):
    content = document()
    content["annotations"] += [annotation(8, bbox=[1, 1, 0, 3]), annotation(9, bbox=[1, 1, 3, 0.0])]
    with caplog.at_level(logging.WARNING, logger="absl"):
        source = coco.open_source(write_coco(tmp_path, content))
    assert "left out 2 of 4 annotations" in caplog.text
    assert "[8, 9]" in caplog.text
    assert len(source.read("val", "5")["boxes"]) == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bbox": [float("nan"), 2, 0, 4]}, r"bbox \[nan.*expected 4 numbers, all finite"),
        ({"bbox": [1, 2, -5, 0]}, r"inverted bbox \[1, 2, -5, 0\]"),
        ({"bbox": ["x", None, 0, "?"]}, r"bbox \['x', None, 0, '\?'\]; expected 4 numbers"),
        ({"bbox": [1, 1, 0, 3], "category_id": 3}, "category_id 3; expected the id of one of"),
        ({"bbox": [1, 1, 0, 3], "category_id": [7]}, r"category_id \[7\]; expected the id"),
    ],
)
def test_boxes_without_size_are_refused_if_more_is_wrong(tmp_path, fields, message):
    content = document()
    content["annotations"].append(annotation(8, **fields))
    source = coco.open_source(write_coco(tmp_path, content))
    with pytest.raises(DataError, match=rf"val2017\.json: annotation 8: {message}"):
        source.read("val", "5")


def test_boxes_are_cut_at_the_border_within_a_pixel(tmp_path):
    content = document()
    content["annotations"] = [annotation(1, bbox=[-0.5, 0, 11.5, 8.75])]
    box = coco.open_source(write_coco(tmp_path, content)).read("val", "5")["boxes"]
    np.testing.assert_array_equal(box, [[0, 0, 10, 8]])


def test_area_and_crowd_may_be_absent(tmp_path):
    content = document()
    for entry in content["annotations"]:
        del entry["area"], entry["iscrowd"]
    example = coco.open_source(write_coco(tmp_path, content)).read("val", "5")
    np.testing.assert_array_equal(example["area"], [12, 75])  # those of the boxes
    np.testing.assert_array_equal(example["crowd"], [False, False])


def test_pictures_without_objects_can_be_left_out(tmp_path):
    content = document()
    content["images"].append({"id": 6, "file_name": "b.png", "height": 8, "width": 10})
    content["annotations"].append(annotation(1, image_id=6, iscrowd=1))
    write_coco(tmp_path, content)
    assert coco.open_source(tmp_path).splits == {"val": ("5", "3", "6")}
    assert coco.open_source(tmp_path, with_objects=("val",)).splits == {"val": ("5",)}


def test_other_layouts(tmp_path):
    """A folder a split, with its JSON file in it."""
    write_coco(tmp_path)
    (tmp_path / "annotations/instances_val2017.json").rename(tmp_path / "val2017/_coco.json")
    options = dict(annotations="{split}2017/_coco.json", images="{split}2017")
    source = coco.open_source(tmp_path, **options)
    assert source.splits == {"val": ("5", "3")}
    assert len(source.read("val", "5")["boxes"]) == 2


def test_fingerprint_follows_files_and_options(tmp_path):
    write_coco(tmp_path)
    options = [{}, {"masks": False}, {"sparse_labels": True}, {"with_objects": ("val",)}]
    found = {coco.open_source(tmp_path, **o).fingerprint for o in options}
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "val2017/b.png")
    assert len(found | {coco.open_source(tmp_path).fingerprint}) == 5


# What is refused


def change(**fields):
    """Changes fields of the first annotation; None removes one."""

    def spoil(content: dict) -> None:
        content["annotations"][0] |= fields
        for name in [name for name, value in fields.items() if value is None]:
            del content["annotations"][0][name]

    return spoil


def rle(**fields):
    return change(segmentation={"size": [8, 10], "counts": COUNTS} | fields)


def add(field: str, entry: dict):
    return lambda content: content[field].append(entry)


REFUSED = {
    "no id": (change(id=None), r"annotations\[0\]: id None; expected an integer"),
    "text id": (change(id="11"), r"annotations\[0\]: id '11'; expected an integer"),
    "id twice": (change(id=4), "annotations: id 4 occurs twice"),
    "no image_id": (change(image_id=None), "annotation 11: image_id None; expected .*2 images"),
    "unknown image": (change(image_id=6), "annotation 11: image_id 6; expected the id"),
    "image_id list": (change(image_id=[5]), r"annotation 11: image_id \[5\]"),
    "no category_id": (change(category_id=None), "annotation 11: category_id None; .*2 categories"),
    "unknown category": (change(category_id=3), "annotation 11: category_id 3; expected the id"),
    "no bbox": (change(bbox=None), "annotation 11: without bbox; expected 4 numbers"),
    "three numbers": (change(bbox=[1, 2, 3]), r"annotation 11: bbox \[1, 2, 3\]; expected 4"),
    "null in bbox": (change(bbox=[1, 2, 3, None]), "annotation 11: bbox .*expected 4 numbers"),
    "nan": (change(bbox=[float("nan"), 1, 2, 2]), r"annotation 11: bbox \[nan.*all finite"),
    "infinite": (change(bbox=[1, 1, float("inf"), 2]), "annotation 11: bbox .*all finite"),
    "huge": (change(bbox=[1, 1, 10**400, 2]), "annotation 11: bbox .*all finite"),
    "negative width": (change(bbox=[4, 1, -2, 3]), r"annotation 11: inverted bbox \[4, 1, -2, 3\]"),
    "negative height": (change(bbox=[4, 1, 2, -3]), "annotation 11: inverted bbox"),
    "left": (change(bbox=[-1.5, 1, 4, 3]), "11: bbox .*more than a pixel outside.*0 … 10 and"),
    "below": (change(bbox=[2, 1, 4, 8.5]), "11: bbox .*more than a pixel outside.*y in 0 … 8"),
    "on the border": (change(bbox=[10, 1, 0.5, 3]), "11: bbox .*inside the picture"),
    "area": (change(area=-1), "annotation 11: area -1; expected"),
    "area nan": (change(area=float("nan")), r"annotation 11: area \[nan\]; expected 1 numbers"),
    "crowd": (change(iscrowd=2), "annotation 11: iscrowd 2; expected 0 or 1"),
    "no segmentation": (change(segmentation=None), "11: segmentation None; .*masks=False"),
    "no polygons": (change(segmentation=[]), r"annotation 11: segmentation \[\]; expected poly"),
    "odd": (change(segmentation=[RECTANGLE[:7]]), "11: segmentation: polygon of 7 coordinates"),
    "short": (change(segmentation=[RECTANGLE[:4]]), "11: segmentation: polygon of 4 coordinates"),
    "one list": (change(segmentation=RECTANGLE), "annotation 11: segmentation 2; expected numbers"),
    "nan polygon": (
        change(segmentation=[[float("nan")] * 6]),
        "annotation 11: segmentation .*nan.*all finite",
    ),
    "far polygon": (
        change(segmentation=[[0, 0, 1e8, 0, 0, 1e8]]),
        "annotation 11: segmentation: polygon .*far outside",
    ),
    "rle size": (rle(size=[10, 8]), r"11: segmentation: RLE of size \[10, 8\]; .*\[8, 10\]"),
    "rle without size": (rle(size=None), "annotation 11: segmentation: RLE of size None"),
    "rle short": (rle(counts=[17, 3]), r"11: segmentation: RLE counts \[17, 3\]; .*to 8×10"),
    "rle long": (rle(counts=[17, 3, 61]), "annotation 11: segmentation: RLE counts .*to 8×10"),
    "rle negative": (rle(counts=[83, -3]), "annotation 11: segmentation: RLE counts"),
    "rle of text": (rle(counts="a0"), r"annotation 11: segmentation: RLE counts \[17\]"),
    "rle empty": (rle(counts=""), r"annotation 11: segmentation: RLE counts \[\]"),
    "rle alphabet": (rle(counts="a0 3"), "annotation 11: segmentation: RLE counts 'a0 3'"),
    "rle none": (rle(counts=None), "annotation 11: segmentation: RLE counts None"),
    "image twice": (
        add("images", {"id": 5, "file_name": "c.png", "height": 8, "width": 10}),
        "images: id 5 occurs twice",
    ),
    "category twice": (add("categories", {"id": 2, "name": "x"}), "categories: id 2 occurs twice"),
    "name twice": (add("categories", {"id": 9, "name": "cat"}), "entry 'cat' occurs twice"),
    "no category name": (add("categories", {"id": 9}), "category 9: name None; expected text"),
    "no file_name": (add("images", {"id": 9}), "image 9: file_name None"),
    "out": (add("images", {"id": 9, "file_name": "../../x"}), r"'\.\./\.\./x' leads out of"),
    "missing": (
        add("images", {"id": 9, "file_name": "c.png", "height": 8, "width": 10}),
        r"c\.png: no such file, but .*instances_val2017\.json asks for it",
    ),
    "size": (
        add("images", {"id": 9, "file_name": "b.png", "height": 10, "width": 8}),
        r"image 9: height and width \(10, 8\); expected \(8, 10\), the size of b\.png",
    ),
    "no size": (add("images", {"id": 9, "file_name": "b.png"}), r"width \(None, None\)"),
    "no images": (lambda c: c.pop("images"), "images None; expected a list of objects"),
    "numbers": (lambda c: c.update(annotations=[1]), r"annotations \[1\]; expected a list"),
}


@pytest.mark.parametrize(("spoil", "message"), REFUSED.values(), ids=REFUSED)
def test_coco_refuses(tmp_path, spoil, message):
    content = document()
    spoil(content)
    write_coco(tmp_path / "set", content)
    with pytest.raises(DataError, match=message) as error:
        prepare("coco", tmp_path / "set", cache=tmp_path / "cache")
    assert "instances_val2017.json" in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"keypoints": POINTS[:6]}, r"annotation 11: keypoints .*; expected 9 numbers"),
        ({"keypoints": None}, "annotation 11: without keypoints; expected 9 numbers"),
        ({"keypoints": [*POINTS[:8], 3]}, "annotation 11: keypoints: visibility 3; expected 0, 1"),
        ({"keypoints": [float("nan"), *POINTS[1:]]}, r"annotation 11: keypoints \[nan.*finite"),
    ],
)
def test_coco_refuses_keypoints(tmp_path, fields, message):
    content = document()
    change(**fields)(content)
    write_coco(tmp_path / "set", content, name="person_keypoints_val2017.json")
    with pytest.raises(DataError, match=message):
        prepare("coco", tmp_path / "set", keypoints=True, cache=tmp_path / "cache")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"skeleton": [[0, 1]]}, r"category 7: skeleton \[\[0, 1\]\]; expected pairs of 1 … 3"),
        ({"skeleton": [[1, 2, 3]]}, "category 7: skeleton"),
        ({"keypoints": "nose"}, "category 7: keypoints 'nose'; expected names"),
    ],
)
def test_coco_refuses_skeletons(tmp_path, fields, message):
    content = document()
    content["categories"][0] = PERSON | fields
    write_coco(tmp_path, content, name="person_keypoints_val2017.json")
    with pytest.raises(DataError, match=message):
        coco.open_source(tmp_path, keypoints=True)


def test_coco_refuses_categories_that_differ(tmp_path):
    content = copy.deepcopy(document())
    content["categories"][1]["name"] = "dog"
    write_coco(tmp_path)
    write_coco(tmp_path, content, name="instances_train2017.json")
    with pytest.raises(
        DataError, match=r"instances_val.*: its categories are not those of .*train"
    ):
        coco.open_source(tmp_path)
    content["categories"] = [PERSON, {"id": 2, "name": "cat"}, PERSON | {"id": 9, "name": "child"}]
    content["categories"][2]["keypoints"] = ["hand"]
    content["categories"][2]["skeleton"] = []
    write_coco(tmp_path / "b", content, name="person_keypoints_val2017.json")
    with pytest.raises(
        DataError, match=r"category 9: other keypoints or skeleton than .*category 7"
    ):
        coco.open_source(tmp_path / "b", keypoints=True)


def test_coco_refuses_what_is_not_there(tmp_path):
    write_coco(tmp_path)
    with pytest.raises(DataError, match=r"has splits \[\].*year '2014'"):
        coco.open_source(tmp_path, year="2014")
    with pytest.raises(DataError, match=r"instances_train2017\.json: cannot be read"):
        coco.open_source(tmp_path, splits=("train",))
    with pytest.raises(DataError, match="expected one at least, train"):
        coco.open_source(tmp_path, with_objects=("train",))
    content = document()
    content["categories"][1]["id"] = 0
    with pytest.raises(DataError, match="category ids 0 … 7; expected 1 … 9999"):
        coco.open_source(write_coco(tmp_path, content), sparse_labels=True)
    (tmp_path / "annotations/instances_val2017.json").write_text("{")
    with pytest.raises(DataError, match=r"val2017\.json: cannot be read as JSON"):
        coco.open_source(tmp_path)


def test_bad_annotations_are_skipped_with_their_picture(tmp_path):
    content = document()
    content["annotations"][0]["bbox"] = [4, 1, -2, 3]
    write_coco(tmp_path / "set", content)
    dataset = prepare("coco", tmp_path / "set", on_error="skip", cache=tmp_path / "cache")
    assert [example["name"] for example in dataset.splits["val"]] == ["3"]
    np.testing.assert_array_equal(dataset.sizes["val"], [[8, 10]])
    assert "annotation 11: inverted" in dataset.skipped["val/5"]


# The real set


def test_coco_mini(real_data, tmp_path):
    if not (real_data / "coco_mini").is_dir():
        pytest.skip("coco_mini is not there")
    dataset = prepare("coco", real_data / "coco_mini", cache=tmp_path)
    assert {k: len(v) for k, v in dataset.splits.items()} == {"train": 80, "val": 40}
    assert len(dataset.classes) == 81
    examples = {split: list(records) for split, records in dataset.splits.items()}
    counts = {s: (sum(len(e["boxes"]) for e in es)) for s, es in examples.items()}
    assert counts == {"train": 739, "val": 349}
    crowds = {s: sum(e["crowd"].sum() for e in es) for s, es in examples.items()}
    assert crowds == {"train": 8, "val": 3}
    for split, es in examples.items():
        sizes = [example["image"].shape[:2] for example in es]
        np.testing.assert_array_equal(dataset.sizes[split], sizes)
        for example in es:
            # An area is that of the polygon, before pixels are made of it; those of crowds differ.
            pixels, area = example["masks"].sum(axis=(1, 2)), example["area"]
            assert np.all((np.abs(pixels - area) <= 12 + 0.1 * area) | example["crowd"])
            boxes = example["boxes"]
            assert np.all(boxes[:, 2:] > boxes[:, :2])
            assert np.all(boxes <= np.tile(example["image"].shape[1::-1], 2))


def test_coco_mini_keypoints(real_data, tmp_path):
    if not (real_data / "coco_mini").is_dir():
        pytest.skip("coco_mini is not there")
    dataset = prepare("coco", real_data / "coco_mini", keypoints=True, masks=False, cache=tmp_path)
    assert dataset.classes == ("background", "person")
    assert dataset.keypoint_names == coco.KEYPOINTS
    assert dataset.skeleton == coco.SKELETON
    assert dataset.keypoint_flip[:3] == (0, 2, 1)
    seen = {
        split: sum((example["keypoints"][..., 2] > 0).any(axis=1).sum() for example in records)
        for split, records in dataset.splits.items()
    }
    assert seen == {"train": 86, "val": 68}
