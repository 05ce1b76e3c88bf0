"""Oxford-IIIT Pet: trimaps, lists, the pictures held back, and the quirks of the real archive."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from jaxseg.data.builders import DataError, pets, prepare
from jaxseg.types import IGNORE

TRIMAP = np.full((8, 10), 2, np.uint8)
TRIMAP[2:6, 2:6] = 3
TRIMAP[3:5, 3:5] = 1
# Three cats of a breed, two dogs of another.
LISTED = ["Bengal_1 6 1 2", "Bengal_2 6 1 2", "pug_1 26 2 9", "Bengal_3 6 1 2", "pug_2 26 2 9"]


def save(path: Path, pixels: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def write_pets(root: Path, **lists: list[str]) -> Path:
    """Pictures of one grey each, with the trimap above."""
    for file, lines in (lists or {"trainval": LISTED}).items():
        for name in (line.split()[0] for line in lines if line[0] != "#"):
            save(root / f"images/{name}.jpg", np.full((8, 10, 3), 60, np.uint8))
            save(root / f"annotations/trimaps/{name}.png", TRIMAP)
        (root / f"annotations/{file}.txt").write_text("\n".join(lines) + "\n")
    return root


def labels(source, key):
    split = next(iter(source.splits))
    return source.read(split, key)["segmentation"]


def test_trimaps_by_hand(tmp_path):
    write_pets(tmp_path)
    found = labels(pets.open_source(tmp_path), "pug_1")
    assert found[0, 0] == 0
    assert found[3, 3] == 1
    assert found[2, 2] == IGNORE
    assert np.bincount(found.ravel())[[0, 1, IGNORE]].tolist() == [64, 4, 12]

    source = pets.open_source(tmp_path, border="class")
    assert source.classes == ("background", "pet", "border")
    assert np.bincount(labels(source, "pug_1").ravel()).tolist() == [64, 4, 12]

    source = pets.open_source(tmp_path, classes="species")
    assert source.classes == ("background", "cat", "dog")
    assert [labels(source, name)[3, 3] for name in ("Bengal_1", "pug_1")] == [1, 2]

    source = pets.open_source(tmp_path, classes="species", border="class")
    assert source.classes == ("background", "cat", "dog", "border")
    assert labels(source, "pug_1")[2:4, 3].tolist() == [3, 2]
    assert len(source.palette) == 4


def test_options_change_the_fingerprint(tmp_path):
    write_pets(tmp_path)
    options = [{}, {"classes": "species"}, {"border": "class"}, {"val_every": 2}]
    assert len({pets.open_source(tmp_path, **o).fingerprint for o in options}) == 4


def test_the_official_lists(tmp_path):
    """list.txt, which has both and a header, is not needed beside them."""
    write_pets(tmp_path, trainval=LISTED[:3], test=LISTED[3:])
    (tmp_path / "annotations/list.txt").write_text("#Image CLASS-ID SPECIES BREED ID\nno list\n")
    splits = {"trainval": ("Bengal_1", "Bengal_2", "pug_1"), "test": ("Bengal_3", "pug_2")}
    assert pets.open_source(tmp_path).splits == splits


def test_list_txt_alone_is_for_training(tmp_path):
    write_pets(tmp_path, list=["#Image CLASS-ID SPECIES BREED ID", *LISTED])
    names = tuple(line.split()[0] for line in LISTED)
    assert pets.open_source(tmp_path).splits == {"train": names}
    assert pets.open_source(tmp_path, val_every=3).splits == {
        "train": ("Bengal_1", "Bengal_2", "pug_1", "pug_2"),
        "val": ("Bengal_3",),
    }


def test_every_nth_of_each_breed_is_held_back(tmp_path):
    write_pets(tmp_path, trainval=LISTED, test=["pug_9 26 2 9"])
    splits = pets.open_source(tmp_path, val_every=2).splits
    assert splits == {
        "train": ("Bengal_1", "pug_1", "Bengal_3"),
        "val": ("Bengal_2", "pug_2"),
        "test": ("pug_9",),
    }


def test_only_listed_files_are_read(tmp_path):
    write_pets(tmp_path / "data")
    for quirk in ("images/Bengal_9.mat", "images/Bengal_8.jpg", "annotations/trimaps/._pug_1.png"):
        (tmp_path / "data" / quirk).write_text("not for us")
    dataset = prepare("pets", tmp_path / "data", cache=tmp_path / "cache")
    assert [e["name"] for e in dataset.splits["trainval"]] == [s.split()[0] for s in LISTED]


def test_pictures_of_other_formats(tmp_path):
    """PNGs and GIFs in disguise are read, CMYK is refused or skipped."""
    write_pets(tmp_path / "data")
    pixels = np.full((8, 10, 3), [10, 20, 30], np.uint8)
    save(tmp_path / "data/images/Bengal_1.jpg", pixels, format="PNG")
    save(tmp_path / "data/images/Bengal_2.jpg", pixels[..., 0], format="GIF")
    Image.fromarray(pixels).convert("CMYK").save(tmp_path / "data/images/pug_1.jpg")
    with pytest.raises(DataError, match=r"pug_1\.jpg: colour mode CMYK"):
        prepare("pets", tmp_path / "data", cache=tmp_path / "cache")
    dataset = prepare("pets", tmp_path / "data", on_error="skip", cache=tmp_path / "cache")
    assert list(dataset.skipped) == ["trainval/pug_1"]
    seen = [dataset.splits["trainval"][n]["image"][0, 0].tolist() for n in (0, 1)]
    assert seen == [[10, 20, 30], [10, 10, 10]]


BAD = {
    "image": (lambda r: (r / "images/pug_1.jpg").unlink(), r"pug_1\.jpg: .*trainval\.txt asks"),
    "trimap": (
        lambda r: (r / "annotations/trimaps/pug_1.png").unlink(),
        r"pug_1\.png: .*trainval\.txt asks",
    ),
    "value": (
        lambda r: save(r / "annotations/trimaps/pug_1.png", TRIMAP - 1),
        r"pug_1\.png: value 0 at 4 pixels has no label; expected one of \[1, 2, 3\]",
    ),
    "size": (
        lambda r: save(r / "annotations/trimaps/pug_1.png", TRIMAP[1:]),
        r"pug_1\.png: mask of 7×10 pixels; expected 8×10",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named(tmp_path, name):
    spoil, message = BAD[name]
    spoil(write_pets(tmp_path))
    with pytest.raises(DataError, match=message):
        pets.open_source(tmp_path).read("trainval", "pug_1")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("pug_1 26 2", "expected `name breed species number`"),
        ("pug_1 26 3 9", r"with a species of 1 \(cat\) or 2 \(dog\)"),
        ("../pug_1 26 2 9", "leads out of"),
        ("Bengal_1 6 1 2", "occurs twice"),
    ],
)
def test_bad_lists_are_refused(tmp_path, line, message):
    write_pets(tmp_path)
    (tmp_path / "annotations/trainval.txt").write_text("\n".join([*LISTED, line]))
    with pytest.raises(DataError, match=message):
        pets.open_source(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": "breeds"}, "classes 'breeds'; expected one of foreground, species"),
        ({"border": "pet"}, "border 'pet'; expected one of ignore, class"),
        ({"val_every": 1}, "val_every 1; expected 2 or more"),
    ],
)
def test_bad_options_are_refused(tmp_path, options, message):
    write_pets(tmp_path)
    with pytest.raises(DataError, match=message):
        pets.open_source(tmp_path, **options)


def test_there_must_be_a_list(tmp_path):
    write_pets(tmp_path, test=LISTED)
    with pytest.raises(DataError, match="a list to train on"):
        pets.open_source(tmp_path, val_every=2)
    (tmp_path / "annotations/test.txt").unlink()
    with pytest.raises(DataError, match=r"no lists; expected trainval\.txt, test\.txt or"):
        pets.open_source(tmp_path)


def test_three_real_breeds(real_data, tmp_path):
    """80 pictures each of two breeds of cats and one of dogs."""
    if not (real_data / "oxford_pets3").is_dir():
        pytest.skip("oxford_pets3 is not there")
    options = {"classes": "species", "val_every": 5, "cache": tmp_path}
    dataset = prepare("pets", real_data / "oxford_pets3", **options)
    assert {split: len(records) for split, records in dataset.splits.items()} == {
        "train": 192,
        "val": 48,
    }
    names = [e["name"] for e in dataset.splits["val"]]
    breeds = [name.rpartition("_")[0] for name in names]
    assert {breed: breeds.count(breed) for breed in breeds} == {
        "Abyssinian": 16,
        "Bengal": 16,
        "american_bulldog": 16,
    }
    root = next((tmp_path / "pets/unpacked").glob("*/oxford_pets3"))
    for index in (0, 47):
        example = dataset.splits["val"][index]
        trimap = root / f"annotations/trimaps/{example['name']}.png"
        values = cv2.imread(str(trimap), cv2.IMREAD_UNCHANGED)
        pet = 1 if example["name"][0].isupper() else 2  # cats have capital letters
        expected = np.array([99, pet, 0, IGNORE])[values]
        np.testing.assert_array_equal(example["segmentation"], expected)
