"""Sources read and prepared: values by hand, the real sets, and what a crash leaves behind."""

import logging
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import textwrap
import threading
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from jaxseg.data.builders import DataError, Source, camvid, folder, load_prepared, prepare, voc
from jaxseg.data.builders import prepare as prepare_function
from jaxseg.data.builders.source import color_map, encode_png

CLASSES = ["no", "yes"]


def save(path: Path, pixels: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def write_folder(
    root: Path, names: str = "abc", images: str = "images", masks: str = "masks"
) -> Path:
    """8×10 pictures of one grey each, with labels 0 but for 5 pixels of 1 and one of 255."""
    for position, name in enumerate(names):
        save(root / images / f"{name}.png", np.full((8, 10, 3), 10 * position, np.uint8))
        labels = np.zeros((8, 10), np.uint8)
        labels[0, :5], labels[7, 9] = 1, 255
        save(root / masks / f"{name}.png", labels)
    return root


def names_of(dataset) -> dict[str, list[str]]:
    return {split: [e["name"] for e in records] for split, records in dataset.splits.items()}


# Folders


def test_folder_comes_back_as_written(tmp_path):
    write_folder(tmp_path / "data")
    dataset = prepare("folder", tmp_path, classes=CLASSES, cache=tmp_path / "cache")
    assert dataset.classes == ("no", "yes")
    assert dataset.skipped == {}
    assert names_of(dataset) == {"train": ["a", "b", "c"]}
    example = dataset.splits["train"][2]
    assert example.keys() == {"image", "segmentation", "name"}
    assert example["image"].dtype == example["segmentation"].dtype == np.uint8
    np.testing.assert_array_equal(example["image"], np.full((8, 10, 3), 20))
    expected = np.zeros((8, 10))
    expected[0, :5], expected[7, 9] = 1, 255
    np.testing.assert_array_equal(example["segmentation"], expected)
    # 3 pictures: 74 pixels of 0 and 5 of 1, and 79 that count
    np.testing.assert_array_equal(dataset.pixel_counts["train"], [[222, 237], [15, 237]])


def test_pixel_counts_leave_out_images_without_the_class(tmp_path):
    write_folder(tmp_path / "data", "ab")
    save(tmp_path / "data/masks/b.png", np.zeros((8, 10), np.uint8))
    dataset = prepare("folder", tmp_path / "data", classes=CLASSES, cache=tmp_path / "cache")
    np.testing.assert_array_equal(dataset.pixel_counts["train"], [[154, 159], [5, 79]])


def test_channels_are_red_green_blue(tmp_path):
    write_folder(tmp_path / "data", "a")
    save(tmp_path / "data/images/a.png", np.full((8, 10, 3), [1, 2, 3], np.uint8))
    dataset = prepare("folder", tmp_path / "data", classes=CLASSES, cache=tmp_path / "cache")
    assert dataset.splits["train"][0]["image"][0, 0].tolist() == [1, 2, 3]


def test_splits_from_folders_and_lists(tmp_path):
    write_folder(tmp_path / "one", "ab", "images/train", "masks/train")
    write_folder(tmp_path / "one", "c", "images/val", "masks/val")
    assert folder.open_source(tmp_path / "one", classes=CLASSES).splits == {
        "train": ("a", "b"),
        "val": ("c",),
    }
    write_folder(tmp_path / "two")
    (tmp_path / "two/train.txt").write_text("c.png\n\n a \n")
    (tmp_path / "two/val.txt").write_text("b")
    (tmp_path / "two/README.txt").write_text("not a list")
    assert folder.open_source(tmp_path / "two", classes=CLASSES).splits == {
        "train": ("c", "a"),
        "val": ("b",),
    }


def test_classes_and_colours_from_a_file(tmp_path):
    write_folder(tmp_path, "a")
    (tmp_path / "classes.txt").write_text("sky 1 2 3\nground 4 5 6\n")
    colors = np.full((8, 10, 3), [4, 5, 6], np.uint8)
    colors[3, 3] = [1, 2, 3]
    colors[4, 4] = [0, 0, 0]
    save(tmp_path / "masks/a.png", colors)
    source = folder.open_source(tmp_path, void=[[0, 0, 0]])
    assert source.classes == ("sky", "ground")
    np.testing.assert_array_equal(source.palette, [[1, 2, 3], [4, 5, 6]])
    labels = source.read("train", "a")["segmentation"]
    assert (labels[3, 3], labels[4, 4], labels.sum()) == (0, 255, 255 + 78)


def test_label_maps_come_as_dicts_and_pairs(tmp_path):
    write_folder(tmp_path, "a")
    for label_map in ({"0": 1, "1": 0}, [[0, 1], [1, 0]]):
        source = folder.open_source(tmp_path, classes=CLASSES, label_map=label_map)
        assert np.bincount(source.read("train", "a")["segmentation"].ravel())[:2].tolist() == [
            5,
            74,
        ]


# Fingerprints, skipping, crashes


def test_fingerprint_follows_files_and_options(tmp_path):
    write_folder(tmp_path)

    def fingerprint(**options) -> str:
        return folder.open_source(tmp_path, classes=CLASSES, **options).fingerprint

    first = fingerprint()
    assert fingerprint() == first
    (tmp_path / "notes.md").write_text("not part of the data")
    assert fingerprint() == first
    assert fingerprint(void=[1]) != first
    stat = (tmp_path / "masks/b.png").stat()
    os.utime(tmp_path / "masks/b.png", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    second = fingerprint()
    assert second != first
    write_folder(tmp_path, "abcd")
    assert fingerprint() not in (first, second)


def test_a_changed_folder_is_prepared_again(tmp_path):
    write_folder(tmp_path / "data", "a")
    first = prepare("folder", tmp_path / "data", classes=CLASSES, cache=tmp_path / "cache")
    write_folder(tmp_path / "data", "ab")
    second = prepare("folder", tmp_path / "data", classes=CLASSES, cache=tmp_path / "cache")
    assert (len(first.splits["train"]), len(second.splits["train"])) == (1, 2)


def test_prepared_copies_are_used_again(tmp_path):
    write_folder(tmp_path / "data", "a")
    options = {"classes": CLASSES, "cache": tmp_path / "cache"}
    first = prepare("folder", tmp_path / "data", **options)
    written = Path(first.splits["train"].folder).stat().st_mtime_ns
    second = prepare("folder", tmp_path / "data", **options)
    assert Path(second.splits["train"].folder).stat().st_mtime_ns == written
    assert load_prepared(second.splits["train"].folder).classes == ("no", "yes")


def test_bad_examples_raise_or_are_skipped(tmp_path, caplog):
    write_folder(tmp_path / "data", "abcd")
    (tmp_path / "data/images/b.png").write_bytes(b"broken")
    (tmp_path / "data/masks/d.png").unlink()
    options = {"classes": CLASSES, "cache": tmp_path / "cache"}
    with pytest.raises(DataError, match=r"b\.png: not a whole image"):
        prepare("folder", tmp_path / "data", **options)
    assert not [f for f in (tmp_path / "cache").rglob("*") if f.name != "lock" and f.is_file()]
    for _ in range(2):  # the second time the reasons come from the prepared copy
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="absl"):
            dataset = prepare("folder", tmp_path / "data", on_error="skip", **options)
        assert names_of(dataset) == {"train": ["a", "c"]}
        assert set(dataset.skipped) == {"train/b", "train/d"}
        assert "d.png" in dataset.skipped["train/d"]
        assert len([m for m in caplog.messages if "skipped 2 bad examples" in m]) == 1
    with pytest.raises(DataError, match="not a whole image"):  # a copy with gaps is not taken
        prepare("folder", tmp_path / "data", **options)


def test_a_split_of_bad_examples_alone_raises(tmp_path):
    write_folder(tmp_path / "data", "a")
    (tmp_path / "data/images/a.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"every example of 'train' is bad; first: .*a\.png"):
        prepare(
            "folder", tmp_path / "data", classes=CLASSES, cache=tmp_path / "cache", on_error="skip"
        )


KILLED = """
    import os, sys
    from jaxseg.data.builders import folder, prepare
    open_source = folder.open_source
    def open_slowly(path, **options):
        source = open_source(path, **options)
        def die(split, key):
            if key == "c":
                os.kill(os.getpid(), 9)
            return source.read(split, key)
        return source._replace(read=die)
    folder.open_source = open_slowly
    prepare("folder", sys.argv[1], classes=["no", "yes"], cache=sys.argv[2])
"""


def test_a_killed_preparation_leaves_nothing_that_counts(tmp_path):
    data, cache = write_folder(tmp_path / "data"), tmp_path / "cache"
    run = [sys.executable, "-c", textwrap.dedent(KILLED), str(data), str(cache)]
    assert subprocess.run(run, capture_output=True).returncode == -9
    assert list(cache.rglob("incomplete.*"))
    dataset = prepare("folder", data, classes=CLASSES, cache=cache)
    assert names_of(dataset) == {"train": ["a", "b", "c"]}
    assert not list(cache.rglob("incomplete.*"))


# Records


def test_records_are_picklable_shared_and_bounded(tmp_path):
    write_folder(tmp_path / "data", "abcdefgh")
    dataset = prepare("folder", tmp_path / "data", classes=CLASSES, cache=tmp_path / "cache")
    records = dataset.splits["train"]
    pickled = pickle.dumps(records)
    assert len(pickled) < 1000
    copy = pickle.loads(pickled)
    assert copy[np.int64(3)]["name"] == records[-5]["name"] == "d"
    with pytest.raises(IndexError):
        records[8]
    found = {}

    def read(start: int) -> None:
        for index in range(start, start + 40):
            found[index] = records[index % 8]["image"][0, 0, 0]

    threads = [threading.Thread(target=read, args=(40 * t,)) for t in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {index: 10 * (index % 8) for index in range(160)}


def objects(num: int) -> dict:
    return {
        "image": encode_png(np.zeros((8, 9, 3), np.uint8)),
        "boxes": np.arange(4 * num, dtype=np.float32).reshape(num, 4),
        "labels": np.arange(num, dtype=np.int32),
        "crowd": np.arange(num) == 1,
        "difficult": np.arange(num) == 0,
        "area": np.arange(num, dtype=np.float32) / 3,
        "masks": np.arange(num * 72).reshape(num, 8, 9) % 3 == 0,
        "keypoints": np.arange(num * 15, dtype=np.float32).reshape(num, 5, 3) / 7,
    }


def test_objects_of_any_number_keep_shape_and_type(tmp_path, monkeypatch):
    """Through a format of the user's own, given by its module's path."""
    (tmp_path / "toyset").mkdir()
    (tmp_path / "toyset/format.py").write_text(
        "import sys\ndef open_source(path=None): return sys.modules['toyset'].SOURCE"
    )
    (tmp_path / "toyset/__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    import toyset

    toyset.SOURCE = Source(
        name="toys",
        fingerprint="0",
        classes=("background", "toy"),
        palette=np.zeros((2, 3), np.uint8),
        splits={"test": ("0", "1", "3")},
        fields=tuple(key for key in objects(0) if key != "image"),
        read=lambda split, key: objects(int(key)),
    )
    dataset = prepare("toyset.format", cache=tmp_path / "cache")
    assert dataset.name == "toys"
    assert (dataset.keypoint_names, dataset.keypoint_flip, dataset.skeleton) == ((), (), ())
    np.testing.assert_array_equal(dataset.pixel_counts["test"], np.zeros((2, 2)))
    for example in dataset.splits["test"]:
        expected = objects(int(example.pop("name")))
        assert example.pop("image").shape == (8, 9, 3)
        assert example.keys() == expected.keys() - {"image"}
        for field, value in example.items():
            assert value.dtype == expected[field].dtype
            np.testing.assert_array_equal(value, expected[field])
            value[...] = 0  # may be written to

    toyset.SOURCE = toyset.SOURCE._replace(fingerprint="1", fields=("boxes",))
    with pytest.raises(DataError, match=r"test/0 has .*expected image and \['boxes'\]"):
        prepare("toyset.format", cache=tmp_path / "cache")
    toyset.SOURCE = toyset.SOURCE._replace(fields=("colours",))
    with pytest.raises(DataError, match=r"fields .*colours"):
        prepare("toyset.format", cache=tmp_path / "cache")
    fields = {"image": objects(0)["image"], "masks": np.zeros((2, 9, 8), bool)}
    toyset.SOURCE = toyset.SOURCE._replace(fields=("masks",), read=lambda split, key: fields)
    with pytest.raises(DataError, match=r"test/0 has masks \(2, 9, 8\); expected .*\(8, 9\)"):
        prepare("toyset.format", cache=tmp_path / "cache")


@pytest.mark.parametrize("width", [8, 9, 15, 16, 17])
def test_masks_of_any_width(tmp_path, monkeypatch, width):
    """Eight pixels of a row are stored in a byte."""
    masks = np.random.default_rng(0).random((3, 11, width)) < 0.5
    example = {"image": encode_png(np.zeros((11, width, 3), np.uint8)), "masks": masks}
    source = Source(
        name="toys",
        fingerprint=str(width),
        classes=("background", "toy"),
        palette=np.zeros((2, 3), np.uint8),
        splits={"train": ("0",)},
        fields=("masks",),
        read=lambda split, key: example,
    )
    monkeypatch.setattr(folder, "open_source", lambda path: source)
    found = prepare("folder", tmp_path.parent, cache=tmp_path).splits["train"][0]["masks"]
    assert found.dtype == np.bool_
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, masks)


def test_sizes_are_those_of_the_pictures(tmp_path):
    write_folder(tmp_path / "data")
    for file in ("images/b.png", "masks/b.png"):
        pixels = cv2.imread(str(tmp_path / "data" / file), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(tmp_path / "data" / file), cv2.resize(pixels, (17, 9)) * 0)
    (tmp_path / "data/masks/a.png").unlink()  # a bad example is left out here, too
    options = {"classes": CLASSES, "cache": tmp_path / "cache", "on_error": "skip"}
    sizes = prepare("folder", tmp_path / "data", **options).sizes
    assert sizes.keys() == {"train"}
    assert sizes["train"].dtype == np.int64
    np.testing.assert_array_equal(sizes["train"], [[9, 17], [8, 10]])


def test_copies_of_another_version_are_refused(tmp_path):
    dataset = prepare("shapes", num_train=1, num_val=0, cache=tmp_path)
    info = Path(dataset.splits["train"].folder) / "dataset_info.json"
    info.write_text(info.read_text().replace('"2.0.0"', '"1.0.0"'))
    with pytest.raises(DataError, match=r"version 1\.0\.0; expected 2\.0\.0: prepare it again"):
        load_prepared(info.parent)


# Archives


@pytest.mark.parametrize("suffix", [".tar.gz", ".zip"])
@pytest.mark.parametrize("alone", [True, False])
def test_archives_are_unpacked_once(tmp_path, suffix, alone):
    write_folder(tmp_path / "set")
    archive = tmp_path / f"packed/set{suffix}"
    archive.parent.mkdir()
    if suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as file:
            for path in (tmp_path / "set").rglob("*.png"):
                file.write(path, path.relative_to(tmp_path))
    else:
        with tarfile.open(archive, "w:gz") as file:
            file.add(tmp_path / "set", "set")
    shutil.rmtree(tmp_path / "set")
    source = archive.parent if alone else archive
    options = {"classes": CLASSES, "cache": tmp_path / "cache"}
    first = prepare("folder", source, **options)
    assert names_of(first) == {"train": ["a", "b", "c"]}
    second = prepare("folder", source, **options)
    assert first.splits["train"].folder == second.splits["train"].folder
    assert len(list((tmp_path / "cache/folder/unpacked").iterdir())) == 1


def test_the_cache_follows_its_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXSEG_CACHE", str(tmp_path / "elsewhere"))
    dataset = prepare("shapes", num_train=1, num_val=0)
    assert Path(dataset.splits["train"].folder).is_relative_to(tmp_path / "elsewhere")


# VOC by hand

XML = """<annotation><object><name>person</name><difficult>1</difficult>
<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>8</ymax></bndbox>
<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>1</xmax><ymax>1</ymax></bndbox></part>
</object><object><name>aeroplane</name>
<bndbox><xmax>10</xmax><xmin>4.5</xmin><ymin>1</ymin><ymax>1</ymax></bndbox></object></annotation>"""


def test_voc_by_hand(tmp_path):
    root = tmp_path / "VOCdevkit/VOC2012"
    labels = np.zeros((8, 10), np.uint8)
    labels[1:8, :3], labels[0, 4:], labels[0, 3] = 15, 1, 255
    instances = np.select([labels == 15, labels == 1, labels == 255], [1, 2, 255])
    save(root / "JPEGImages/x.jpg", np.full((8, 10, 3), 128, np.uint8))
    save(root / "SegmentationClass/x.png", labels)
    save(root / "SegmentationObject/x.png", instances.astype(np.uint8))
    for path, content in {
        "ImageSets/Segmentation/train.txt": "x\n",
        "ImageSets/Main/val.txt": "x\n",
        "Annotations/x.xml": XML,
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content)

    for start in (tmp_path, tmp_path / "VOCdevkit", root):
        assert voc.open_source(start).splits == {"train": ("x",)}
    example = prepare("voc", tmp_path, cache=tmp_path / "cache").splits["train"][0]
    np.testing.assert_array_equal(example["boxes"], [[0, 1, 3, 8], [3.5, 0, 10, 1]])
    np.testing.assert_array_equal(example["labels"], [15, 1])
    np.testing.assert_array_equal(example["difficult"], [True, False])
    np.testing.assert_array_equal(example["segmentation"], labels)
    np.testing.assert_array_equal(example["masks"], [labels == 15, labels == 1])
    np.testing.assert_array_equal(example["image"], np.full((8, 10, 3), 128))

    own = voc.open_source(root, year=None, task="detection", classes=["person", "aeroplane"])
    assert own.classes == ("background", "person", "aeroplane")
    np.testing.assert_array_equal(own.read("val", "x")["labels"], [1, 2])
    points = voc.open_source(tmp_path, task="detection", drop_points=True).read("val", "x")
    np.testing.assert_array_equal(points["boxes"], [[0, 1, 3, 8]])  # the other is one pixel high
    np.testing.assert_array_equal(points["labels"], [15])
    np.testing.assert_array_equal(points["difficult"], [True])
    with pytest.raises(DataError, match="drop_points for task 'segmentation'"):
        voc.open_source(tmp_path, drop_points=True)

    detection = voc.open_source(tmp_path, task="detection")
    assert detection.splits == {"val": ("x",)}
    assert detection.read("val", "x").keys() == {"image", "boxes", "labels", "difficult"}


def test_voc_difficult(tmp_path):
    """0, 1, or nothing, which is 0."""
    write_year(tmp_path, "2007", train="1")
    file = tmp_path / "VOC2007/Annotations/1.xml"
    flag = "<difficult>1</difficult>"
    for written, expected in {
        flag: True,
        "<difficult> 0 </difficult>": False,
        "<difficult/>": False,
        "": False,
    }.items():
        file.write_text(XML.replace(flag, written))
        source = voc.open_source(tmp_path, year="2007", task="detection")
        assert source.read("train", "1")["difficult"].tolist() == [expected, False]


def write_year(root: Path, year: str, **lists: str) -> None:
    """Pictures as wide as their numbers, each with the objects of XML, named in lists."""
    for split, names in lists.items():
        path = root / f"VOC{year}/ImageSets/Main/{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(names.split()))
        for name in names.split():
            width = 10 + int(name)
            save(root / f"VOC{year}/JPEGImages/{name}.jpg", np.zeros((8, width, 3), np.uint8))
            annotation = root / f"VOC{year}/Annotations/{name}.xml"
            annotation.parent.mkdir(exist_ok=True)
            annotation.write_text(XML)


def test_voc_of_several_years(tmp_path):
    """07+12: the same names may occur in both, and only the first has a test split to be read."""
    first, second = tmp_path / "a/VOCdevkit", tmp_path / "b/VOCdevkit"
    write_year(first, "2007", train="1", trainval="1 2", test="3")
    write_year(second, "2012", trainval="2 4", test="9", val="4")
    options = dict(year=("2007", 2012), task="detection")
    dataset = prepare("voc", tmp_path, cache=tmp_path / "cache", **options)
    names = {split: [e["name"] for e in records] for split, records in dataset.splits.items()}
    trainval = ["2007/1", "2007/2", "2012/2", "2012/4"]
    assert names == {"trainval": trainval, "test": ["2007/3"]}
    np.testing.assert_array_equal(dataset.sizes["trainval"][:, 1], [11, 12, 12, 14])
    example = dataset.splits["trainval"][3]
    np.testing.assert_array_equal(example["labels"], [15, 1])
    assert dataset.name == "voc2007+2012-detection"
    assert len(voc.open_source(tmp_path, **options).read("test", "2007/3")["boxes"]) == 2

    one = voc.open_source(first, year=("2007",), task="detection")
    assert (one.name, one.splits["test"]) == ("voc2007-detection", ("3",))
    (second / "VOC2012/Annotations/2.xml").unlink()
    missing = r"VOC2012/Annotations/2\.xml: no such file, but .*VOC2012/.*trainval\.txt asks for it"
    with pytest.raises(DataError, match=missing):
        voc.open_source(tmp_path, **options).read("trainval", "2012/2")
    with pytest.raises(DataError, match=r"VOC2012/ImageSets/Main/train\.txt"):
        voc.open_source(tmp_path, splits=["train"], **options)
    with pytest.raises(DataError, match="no 'VOC2010/ImageSets/Main'"):
        voc.open_source(tmp_path, year=("2007", "2010"), task="detection")
    with pytest.raises(DataError, match=r"option year.*'2007' occurs twice"):
        voc.open_source(tmp_path, year=("2007", 2007), task="detection")
    with pytest.raises(DataError, match="option year is empty"):
        voc.open_source(tmp_path, year=(), task="detection")


def test_voc_colours():
    expected = [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    colors = color_map(256)
    np.testing.assert_array_equal(colors[:5], expected)
    np.testing.assert_array_equal(
        colors[[15, 20, 255]], [[192, 128, 128], [0, 64, 128], [224, 224, 192]]
    )


# The real sets


def test_camvid(real_data, tmp_path):
    """The official splits, in order, with labels as in the files."""
    if not (real_data / "camvid").is_dir():
        pytest.skip("camvid is not there")
    dataset = prepare("camvid", real_data / "camvid", cache=tmp_path)
    assert {k: len(v) for k, v in dataset.splits.items()} == {"train": 367, "val": 101}
    assert dataset.splits["train"][0]["name"] == "0001TP_006690"
    assert dataset.classes[3] == "road"
    assert dataset.palette[3].tolist() == [128, 64, 128]
    root = next((tmp_path / "camvid/unpacked").glob("*/CamVid"))
    for index in (0, 50, 100):
        example = dataset.splits["val"][index]
        labels = cv2.imread(str(root / f"valannot/{example['name']}.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(example["segmentation"], np.where(labels == 11, 255, labels))
        image = cv2.imread(str(root / f"val/{example['name']}.jpg"))[..., ::-1]
        np.testing.assert_array_equal(example["image"], image)
    total = dataset.pixel_counts["train"].sum(axis=0)[0]
    assert 0.95 < total / (367 * 360 * 480) < 0.97  # the README: 4 % are void


def test_camvid_finds_its_place_by_itself(real_data, tmp_path, monkeypatch):
    if not (real_data / "camvid").is_dir():
        pytest.skip("camvid is not there")
    monkeypatch.setenv("JAXSEG_DATA", str(real_data))
    calls = []
    monkeypatch.setattr(camvid, "open_source", lambda path: calls.append(path) or 1 / 0)
    monkeypatch.setattr(
        sys.modules[prepare_function.__module__], "unpack", lambda archive, home: archive
    )
    with pytest.raises(ZeroDivisionError):
        prepare("camvid", cache=tmp_path)
    assert calls == [real_data / "camvid/camvid_trainval.tar.gz"]


def test_voc_mini(real_data, tmp_path):
    """273 objects, 38 of them difficult, on 100 images; 93 of them with masks."""
    if not (real_data / "voc2012_mini").is_dir():
        pytest.skip("voc2012_mini is not there")
    options = {"source": real_data / "voc2012_mini", "cache": tmp_path}
    detection = prepare("voc", task="detection", splits=["train", "val"], **options)
    assert {k: len(v) for k, v in detection.splits.items()} == {"train": 70, "val": 30}
    examples = [e for records in detection.splits.values() for e in records]
    assert sum(len(e["boxes"]) for e in examples) == 273
    assert sum(e["difficult"].sum() for e in examples) == 38
    segmentation = prepare("voc", **options)
    sizes = {k: len(v) for k, v in segmentation.splits.items()}
    assert sizes == {"train": 66, "val": 27, "trainval": 93}
    counts = segmentation.pixel_counts
    np.testing.assert_array_equal(counts["train"] + counts["val"], counts["trainval"])
    for example in segmentation.splits["val"]:
        present = set(np.unique(example["segmentation"])) - {0, 255}
        assert present <= set(example["labels"].tolist())


def test_bccd(real_data, tmp_path):
    """The official splits; of 4,888 boxes, two points are left out."""
    if not (real_data / "bccd").is_dir():
        pytest.skip("bccd is not there")
    dataset = prepare("bccd", real_data / "bccd", cache=tmp_path, splits=["train", "val", "test"])
    assert {k: len(v) for k, v in dataset.splits.items()} == {"train": 205, "val": 87, "test": 72}
    assert dataset.classes == ("background", "RBC", "WBC", "Platelets")
    examples = [example for records in dataset.splits.values() for example in records]
    labels = np.concatenate([example["labels"] for example in examples])
    assert np.bincount(labels).tolist() == [0, 4155 - 2, 372, 361]
    boxes = np.concatenate([example["boxes"] for example in examples])
    assert np.all(boxes[:, 2:] - boxes[:, :2] > 1)
    # Counted from 1, the last pixel included, boxes reach all four borders and not beyond.
    assert (boxes.min(axis=0)[:2].tolist(), boxes.max(axis=0)[2:].tolist()) == ([0, 0], [640, 480])
