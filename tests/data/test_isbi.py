"""ISBI 2012: both layouts, the slices held back, and what is refused."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from jaxseg.data.builders import DataError, isbi, prepare

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (4, 9, 12), dtype=np.uint8)
LABELS = (RNG.integers(0, 2, (4, 9, 12)) * 255).astype(np.uint8)


def write_png(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_tiff(path: Path, pages: np.ndarray) -> None:
    first, *others = [Image.fromarray(page) for page in pages]
    first.save(path, save_all=True, append_images=others)


def write_folder(root: Path, numbers=(0, 2, 9, 10)) -> Path:
    for number, image, label in zip(numbers, IMAGES, LABELS, strict=True):
        write_png(root / f"train/image/{number}.png", image)
        write_png(root / f"train/label/{number}.png", label)
    return root


def write_volumes(root: Path, images=IMAGES, labels=LABELS) -> Path:
    write_tiff(root / "train-volume.tif", images)
    write_tiff(root / "train-labels.tif", labels)
    return root


@pytest.mark.parametrize(
    ("write", "names"), [(write_folder, ["0", "2", "9", "10"]), (write_volumes, list("0123"))]
)
def test_both_layouts_come_back_as_written(tmp_path, write, names):
    (tmp_path / "data/isbi").mkdir(parents=True)
    write(tmp_path / "data/isbi")
    dataset = prepare("isbi", tmp_path / "data", held_out=1, cache=tmp_path / "cache")
    assert dataset.classes == ("membrane", "cell")
    assert [len(dataset.splits[s]) for s in ("train", "val")] == [3, 1]
    examples = [e for split in ("train", "val") for e in dataset.splits[split]]
    assert [e["name"] for e in examples] == names
    for example, image, label in zip(examples, IMAGES, LABELS, strict=True):
        np.testing.assert_array_equal(example["image"], np.stack([image] * 3, axis=-1))
        np.testing.assert_array_equal(example["segmentation"], label == 255)


def test_the_last_slices_are_held_back(tmp_path):
    write_folder(tmp_path)
    open_source = isbi.open_source
    assert open_source(tmp_path, held_out=2).splits == {"train": ("0", "2"), "val": ("9", "10")}
    assert open_source(tmp_path, held_out=0).splits == {"train": ("0", "2", "9", "10")}
    prints = {open_source(tmp_path, held_out=n).fingerprint for n in (0, 1, 2)}
    assert len(prints) == 3
    for held_out in (-1, 4):
        with pytest.raises(DataError, match=f"held_out {held_out}; expected 0 … 3 of its 4 slices"):
            open_source(tmp_path, held_out=held_out)


def change_label(root: Path) -> None:
    labels = LABELS[1].copy()
    labels[0, :3] = 7
    write_png(root / "train/label/2.png", labels)


BAD_SLICES = {
    "label value": (
        change_label,
        r"label/2\.png: value 7 at 3 pixels .*one of \[0, 255\]",
    ),
    "no label": (lambda r: (r / "train/label/2.png").unlink(), r"label/2\.png: no such file"),
    "no image": (lambda r: (r / "train/image/2.png").unlink(), r"image/2\.png: no such file"),
    "size": (
        lambda r: write_png(r / "train/label/2.png", LABELS[1, :8]),
        r"label/2\.png: mask of 8×12 pixels; expected 9×12",
    ),
    "broken": (lambda r: (r / "train/image/2.png").write_text("?"), "not a whole image"),
}


@pytest.mark.parametrize("name", BAD_SLICES)
def test_a_bad_slice_is_named_or_skipped(tmp_path, name):
    spoil, message = BAD_SLICES[name]
    spoil(write_folder(tmp_path / "data"))
    options = {"held_out": 1, "cache": tmp_path / "cache"}
    with pytest.raises(DataError, match=message):
        prepare("isbi", tmp_path / "data", **options)
    dataset = prepare("isbi", tmp_path / "data", on_error="skip", **options)
    assert list(dataset.skipped) == ["train/2"]
    assert [e["name"] for e in dataset.splits["train"]] == ["0", "9"]


def remove(path: str):
    return lambda root: shutil.rmtree(root / path)


BAD_FOLDERS = {
    "nothing": (remove("train"), "no 'train/image' here.*train-volume.tif and train-labels.tif"),
    "no labels": (remove("train/label"), "train/label: no such folder"),
    "not a number": (
        lambda r: write_png(r / "train/image/cell.png", IMAGES[0]),
        r"cell\.png: not the number of a slice",
    ),
    "twice": (
        lambda r: write_png(r / "train/image/02.png", IMAGES[0]),
        "train/image: entry '2' occurs twice",
    ),
}


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_a_bad_folder_is_refused(tmp_path, name):
    spoil, message = BAD_FOLDERS[name]
    spoil(write_folder(tmp_path))
    with pytest.raises(DataError, match=message):
        isbi.open_source(tmp_path, held_out=1)


def test_hidden_files_are_no_slices(tmp_path):
    (write_folder(tmp_path) / "train/label/._0.png").write_text("left by macOS")
    assert len(isbi.open_source(tmp_path, held_out=0).splits["train"]) == 4


def test_volumes_of_different_lengths_are_refused(tmp_path):
    write_volumes(tmp_path, labels=LABELS[:3])
    with pytest.raises(DataError, match=r"train-labels\.tif: 3 pages; expected 4"):
        isbi.open_source(tmp_path, held_out=1)
    (tmp_path / "train-labels.tif").unlink()
    with pytest.raises(DataError, match=r"train-labels\.tif: no such file"):
        isbi.open_source(tmp_path, held_out=1)
    (tmp_path / "train-labels.tif").write_text("?")
    with pytest.raises(DataError, match=r"train-labels\.tif: not a whole TIFF"):
        isbi.open_source(tmp_path, held_out=1)


def test_bad_pages_are_named(tmp_path):
    def first_error(**volumes):
        source = isbi.open_source(write_volumes(tmp_path, **volumes), held_out=1)
        with pytest.raises(DataError) as error:
            source.read("train", "0")
        return str(error.value)

    labels = LABELS.copy()
    labels[0, 0, :2] = 254
    assert "train-labels.tif: page 0 has value 254 at 2 pixels; expected one of [0, 255]" in (
        first_error(labels=labels)
    )
    assert "page 0 is (8, 12); expected (9, 12), the size" in first_error(labels=LABELS[:, :8])
    assert "page 0 is (7, 12); expected 8×8 pixels" in first_error(
        images=IMAGES[:, :7], labels=LABELS[:, :7]
    )
    assert "has mode RGB; expected 8-bit grey" in first_error(images=np.stack([IMAGES] * 3, -1))
    deep = IMAGES.astype(np.uint16) * 256
    assert "has mode I;16; expected 8-bit grey" in first_error(images=deep)


def test_the_real_slices(real_data, tmp_path):
    """Slices 0 … 23 of the training volume."""
    if not (real_data / "isbi2012_em").is_dir():
        pytest.skip("isbi2012_em is not there")
    dataset = prepare("isbi", real_data / "isbi2012_em", cache=tmp_path)
    names = {split: [e["name"] for e in records] for split, records in dataset.splits.items()}
    assert names == {
        "train": [str(n) for n in range(18)],
        "val": [str(n) for n in range(18, 24)],
    }
    example = dataset.splits["val"][2]
    root = next((tmp_path / "isbi/unpacked").glob("*/membrane/train"))
    label = cv2.imread(str(root / "label/20.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(example["segmentation"], label // 255)
    image = cv2.imread(str(root / "image/20.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(example["image"], np.stack([image] * 3, axis=-1))
    counts = sum(dataset.pixel_counts.values())
    assert counts[:, 1].tolist() == [24 * 512 * 512] * 2
    assert 0.2 < counts[0, 0] / counts[0, 1] < 0.25  # membranes
