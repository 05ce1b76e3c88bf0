"""Penn-Fudan and the Data Science Bowl: instance masks by hand, the real sets, and refusals."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxseg.data.builders import DataError, dsb2018, pennfudan, prepare
from jaxseg.data.builders.source import bounds, unpack


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_bounds_by_hand():
    masks = np.zeros((3, 5, 7), bool)
    masks[0, 2, 3] = True
    masks[1, 0, 6] = masks[1, 4, 1] = True
    masks[2] = True
    np.testing.assert_array_equal(bounds(masks), [[3, 2, 4, 3], [1, 0, 7, 5], [0, 0, 7, 5]])
    assert bounds(masks[:0]).shape == (0, 4)


# Penn-Fudan

PEDESTRIANS = np.zeros((8, 10), np.uint8)
PEDESTRIANS[1:7, 2:4] = 2
PEDESTRIANS[3:, 3:5] = 1  # before the other


def write_pennfudan(root: Path, names: str = "abcdefg") -> Path:
    for name in names:
        save(
            root / f"PNGImages/{name}.{'jpg' if name == 'b' else 'png'}", np.zeros((8, 10, 3), "B")
        )
        save(root / f"PedMasks/{name}_mask.png", PEDESTRIANS)
    return root


def test_pennfudan_by_hand(tmp_path):
    write_pennfudan(tmp_path / "set")
    save(tmp_path / "set/PedMasks/c_mask.png", np.zeros((8, 10), np.uint8))
    dataset = prepare("pennfudan", tmp_path, cache=tmp_path / "cache")
    assert dataset.classes == ("background", "pedestrian")
    names = {split: [e["name"] for e in records] for split, records in dataset.splits.items()}
    assert names == {"train": ["a", "b", "c", "d", "f", "g"], "val": ["e"]}  # every fifth
    (example,) = dataset.splits["val"]
    np.testing.assert_array_equal(example["boxes"], [[3, 3, 5, 8], [2, 1, 4, 7]])
    np.testing.assert_array_equal(example["labels"], [1, 1])
    np.testing.assert_array_equal(example["masks"], [PEDESTRIANS == 1, PEDESTRIANS == 2])
    assert dataset.splits["train"][2]["boxes"].shape == (0, 4)


def test_own_splits_and_lists(tmp_path):
    write_pennfudan(tmp_path)
    splits = pennfudan.open_source(tmp_path, val_every=2).splits
    assert splits == {"train": ("a", "c", "e", "g"), "val": ("b", "d", "f")}
    assert pennfudan.open_source(tmp_path, val_every=0).splits == {"train": tuple("abcdefg")}
    assert pennfudan.open_source(tmp_path, val_every=9).splits == {"train": tuple("abcdefg")}
    (tmp_path / "val.txt").write_text("g\nb\n")
    source = pennfudan.open_source(tmp_path)
    assert source.splits == {"val": ("g", "b")}
    assert len(source.read("val", "b")["labels"]) == 2
    (tmp_path / "val.txt").write_text("h")
    with pytest.raises(DataError, match=r"h\.png: no such file, but .*val\.txt asks for it"):
        pennfudan.open_source(tmp_path).read("val", "h")
    (tmp_path / "val.txt").write_text("../a")
    with pytest.raises(DataError, match=r"val\.txt: entry '\.\./a' leads out of"):
        pennfudan.open_source(tmp_path)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (PEDESTRIANS * 2, r"a_mask\.png: pedestrians \[2, 4\]; expected 1 … 2"),
        (PEDESTRIANS[1:], r"a_mask\.png: mask of 7×10 pixels; expected 8×10"),
        (np.dstack([PEDESTRIANS] * 3), r"a_mask\.png: holds colours"),
    ],
)
def test_pennfudan_refuses_masks(tmp_path, mask, message):
    save(write_pennfudan(tmp_path) / "PedMasks/a_mask.png", mask)
    with pytest.raises(DataError, match=message):
        pennfudan.open_source(tmp_path).read("train", "a")


def test_pennfudan_refuses_files(tmp_path):
    write_pennfudan(tmp_path)
    (tmp_path / "PedMasks/a_mask.png").unlink()
    with pytest.raises(DataError, match=r"a_mask\.png: no such file, but .*PNGImages asks"):
        pennfudan.open_source(tmp_path).read("train", "a")
    with pytest.raises(DataError, match="option val_every 1 of 7 pictures"):
        pennfudan.open_source(tmp_path, val_every=1)
    (tmp_path / "PNGImages").rename(tmp_path / "pictures")
    with pytest.raises(DataError, match="no folder 'PNGImages' beside 'PedMasks'"):
        pennfudan.open_source(tmp_path)


def test_pennfudan(real_data, tmp_path):
    """120 pictures with 316 pedestrians."""
    if not (real_data / "pennfudan").is_dir():
        pytest.skip("pennfudan is not there")
    dataset = prepare("pennfudan", real_data / "pennfudan", cache=tmp_path)
    assert {k: len(v) for k, v in dataset.splits.items()} == {"train": 96, "val": 24}
    examples = [e for records in dataset.splits.values() for e in records]
    assert sum(len(e["boxes"]) for e in examples) == 316
    first = next(e for e in examples if e["name"] == "FudanPed00001")
    # Its annotation file, counting from 1, says (160, 182)–(302, 431) and (420, 171)–(535, 486).
    np.testing.assert_array_equal(first["boxes"], [[159, 181, 302, 431], [419, 170, 535, 486]])


# Data Science Bowl

ONE, TWO = (np.zeros((8, 10), np.uint8) for _ in range(2))
ONE[1:4, 1:4], TWO[3:8, 3:10] = 255, 255  # they share a pixel


def write_dsb(root: Path, names: str = "ab") -> Path:
    for name in names:
        folder = root / "stage1_train" / name
        save(folder / f"images/{name}.png", np.full((8, 10, 4), 255, np.uint8))
        save(folder / "masks/2.png", TWO)
        save(folder / "masks/1.png", ONE)
    return root


def test_dsb2018_by_hand(tmp_path):
    write_dsb(tmp_path / "set")
    (tmp_path / "set/val.txt").write_text("b\n")
    dataset = prepare("dsb2018", tmp_path, cache=tmp_path / "cache")
    assert dataset.classes == ("background", "nucleus")
    (example,) = dataset.splits["val"]
    assert example["name"] == "b"
    np.testing.assert_array_equal(example["boxes"], [[1, 1, 4, 4], [3, 3, 10, 8]])
    np.testing.assert_array_equal(example["labels"], [1, 1])
    np.testing.assert_array_equal(example["masks"], [ONE > 0, TWO > 0])
    np.testing.assert_array_equal(example["image"], np.full((8, 10, 3), 255))


def test_dsb2018_without_lists(tmp_path):
    write_dsb(tmp_path, "dcba")
    assert dsb2018.open_source(tmp_path).splits == {"train": tuple("abcd")}
    splits = dsb2018.open_source(tmp_path, val_every=3).splits
    assert splits == {"train": ("a", "b", "d"), "val": ("c",)}


def test_dsb2018_at_stage1_train(tmp_path, monkeypatch):
    """`path` is itself, or a folder of its name about it. macOS's files are not read."""
    folder = write_dsb(tmp_path / "stage1_train") / "stage1_train"
    for file in ("masks/._1.png", "images/._a.png"):
        (folder / "a" / file).write_bytes(b"not a picture")
    monkeypatch.chdir(folder)
    sources = [dsb2018.open_source(start) for start in (folder.parent, folder, ".")]
    assert len({source.fingerprint for source in sources}) == 1
    for source in sources:
        assert source.splits == {"train": ("a", "b")}
        assert source.read("train", "a")["boxes"].tolist() == [[1, 1, 4, 4], [3, 3, 10, 8]]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((8, 10), np.uint8), r"1\.png: an empty mask; expected a nucleus"),
        (np.diag([1, 2, 0, 0, 0, 0, 0, 0]).astype(np.uint8), "mask of 8×8 pixels; expected 8×10"),
        (ONE // 255 + TWO // 255 * 3, r"1\.png: values \[0, 1, 3, 4\]; expected 0, and 255"),
    ],
)
def test_dsb2018_refuses_masks(tmp_path, mask, message):
    save(write_dsb(tmp_path) / "stage1_train/a/masks/1.png", mask)
    with pytest.raises(DataError, match=message):
        dsb2018.open_source(tmp_path).read("train", "a")


def test_dsb2018_refuses_files(tmp_path):
    folder = write_dsb(tmp_path) / "stage1_train"
    (folder / "a/images/a.png").unlink()
    for file in (folder / "b/masks").iterdir():
        file.unlink()
    source = dsb2018.open_source(tmp_path)
    with pytest.raises(DataError, match=r"a\.png: no such file, but .*stage1_train asks for it"):
        source.read("train", "a")
    with pytest.raises(DataError, match="b/masks: holds no masks"):
        source.read("train", "b")
    (tmp_path / "train.txt").write_text("a\na\n")
    with pytest.raises(DataError, match=r"train\.txt: entry 'a' occurs twice"):
        dsb2018.open_source(tmp_path)


def test_dsb2018(real_data, tmp_path):
    """224 and 56 pictures with 8,425 nuclei; those of "val" are read."""
    archives = sorted((real_data / "dsb2018_nuclei").glob("*.tar.gz"))
    if len(archives) != 1:
        pytest.skip("dsb2018_nuclei is not there")
    root = unpack(archives[0], tmp_path)
    source = dsb2018.open_source(root)
    assert {split: len(keys) for split, keys in source.splits.items()} == {"train": 224, "val": 56}
    assert len(list(root.glob("*/stage1_train/*/masks/*.png"))) == 8425
    examples = [source.read("val", key) for key in source.splits["val"]]
    assert sum(len(example["labels"]) for example in examples) == 1836
    assert {e["masks"].shape[1:] for e in examples} == {(256, 256), (256, 320), (360, 360)}
    # They do not overlap, but for 9 pixels in the whole source.
    assert sum(np.count_nonzero(e["masks"].sum(axis=0) > 1) for e in examples) < 10
