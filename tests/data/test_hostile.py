"""Every way in which files can lie, and the refusal that names it."""

import io
import tarfile
import zipfile
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from jaxseg.data.builders import DataError, prepare
from jaxseg.data.builders.source import read_image, read_indices, read_labels, unpack

RGB = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)


def save(path: Path, pixels: np.ndarray, mode: str | None = None, **options) -> Path:
    image = Image.fromarray(pixels)
    path.parent.mkdir(parents=True, exist_ok=True)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def truncated(path: Path) -> Path:
    save(path, RGB)
    path.write_bytes(path.read_bytes()[:-60])
    return path


def text(path: Path) -> Path:
    path.write_text("not found")
    return path


def rgba(path: Path, alpha: int) -> Path:
    return save(path, np.dstack([RGB, np.full((9, 12), alpha, np.uint8)]))


def deep(path: Path, channels: int) -> Path:
    cv2.imwrite(str(path), np.full((9, 12, channels), 300, np.uint16))
    return path


def animated(path: Path) -> Path:
    frames = [Image.fromarray(RGB + i) for i in range(2)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    return path


IMAGES = {
    "missing": ("a.png", lambda path: path, "cannot be read"),
    "truncated png": ("a.png", truncated, "not a whole image"),
    "truncated jpeg": ("a.jpg", truncated, "not a whole image"),
    "text": ("a.png", text, "not a whole image"),
    "1×1": ("a.png", partial(save, pixels=RGB[:1, :1]), "1×1 pixels; expected at least 8×8"),
    "thin": ("a.png", partial(save, pixels=RGB[:7]), "7×12 pixels"),
    "cmyk": ("a.jpg", partial(save, pixels=RGB, mode="CMYK"), "mode CMYK"),
    "rotated": ("a.jpg", partial(save, pixels=RGB, exif=orientation(6)), "orientation 6.*rotate"),
    "16-bit grey": ("a.png", partial(deep, channels=1), "16 bits"),
    "16-bit rgb": ("a.png", partial(deep, channels=3), "16 bits"),
    "16-bit tiff": ("a.tif", partial(deep, channels=1), "16 bits"),
    "float": ("a.tif", partial(save, pixels=RGB[..., 0].astype(np.float32)), "bits a channel"),
    "transparent": ("a.png", partial(rgba, alpha=254), "alpha 254"),
    "one transparent colour": (
        "a.png",
        partial(save, pixels=RGB, transparency=tuple(RGB[0, 0].tolist())),
        "transparent pixels",
    ),
    "animated": ("a.gif", animated, "several pictures"),
}


@pytest.mark.parametrize(("name", "write", "message"), IMAGES.values(), ids=IMAGES)
def test_read_image_refuses(tmp_path, name, write, message):
    path = write(tmp_path / name)
    with pytest.raises(DataError, match=message) as error:
        read_image(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("factor", [1, 3])  # Pillow warns above its limit, raises above twice it
def test_read_image_refuses_decompression_bombs(tmp_path, monkeypatch, factor):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9 * 12 // factor - 1)
    with pytest.raises(DataError, match="far too large"):
        read_image(save(tmp_path / "a.png", RGB))


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("a.png", None, {}),
        ("a.jpg", None, {}),
        ("b.jpg", None, {"exif": orientation(1)}),
        ("c.jpg", None, {"exif": orientation(0)}),
    ],
)
def test_plain_images_keep_their_bytes(tmp_path, name, mode, options):
    path = save(tmp_path / name, RGB, mode, **options)
    assert read_image(path) == (path.read_bytes(), (9, 12))


@pytest.mark.parametrize(
    ("name", "pixels", "mode"),
    [
        ("grey.png", RGB[..., 0], None),
        ("grey.jpg", np.full((9, 12), 77, np.uint8), None),
        ("palette.png", np.full_like(RGB, 51), "P"),
        ("opaque.png", np.dstack([RGB, np.full((9, 12), 255, np.uint8)]), None),
        ("rgb.bmp", RGB, None),
    ],
)
def test_other_images_become_rgb_png(tmp_path, name, pixels, mode):
    data, size = read_image(save(tmp_path / name, pixels, mode))
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    expected = np.broadcast_to(np.atleast_3d(pixels)[..., :3], (9, 12, 3))
    assert size == (9, 12)
    assert data[:4] == b"\x89PNG"
    np.testing.assert_array_equal(decoded[..., ::-1], expected)


LABELS = np.array([[0, 1, 2], [2, 255, 1]], np.uint8)


def test_read_labels_takes_values_of_grey_palette_and_1_bit_masks(tmp_path):
    grey = save(tmp_path / "grey.png", LABELS)
    indexed = Image.fromarray(LABELS, mode=None).convert("P")
    indexed.putdata(LABELS.ravel().tolist())
    indexed.putpalette([7, 7, 7] * 256)  # colours say nothing
    indexed.save(tmp_path / "indexed.png")
    bits = save(tmp_path / "bits.png", LABELS == 1)
    np.testing.assert_array_equal(read_labels(grey, 3, (2, 3)), LABELS)
    np.testing.assert_array_equal(read_labels(tmp_path / "indexed.png", 3, (2, 3)), LABELS)
    np.testing.assert_array_equal(read_labels(bits, 2, (2, 3)), [[0, 1, 0], [0, 0, 1]])


def test_read_labels_maps_values_and_ignores_void(tmp_path):
    path = save(tmp_path / "a.png", LABELS)
    found = read_labels(path, 2, (2, 3), label_map={0: 1, 2: 0, 255: 1}, void=[1])
    np.testing.assert_array_equal(found, [[1, 255, 0], [0, 1, 255]])


def test_read_labels_reads_colours(tmp_path):
    colors = np.array([[9, 0, 1], [0, 0, 0], [255, 255, 255]], np.uint8)
    path = save(tmp_path / "a.png", colors[[[0, 1, 2], [2, 1, 1]]])
    found = read_labels(path, 2, (2, 3), palette=colors[[1, 0]], void=[(255, 255, 255)])
    np.testing.assert_array_equal(found, [[1, 0, 255], [255, 0, 0]])
    with pytest.raises(DataError, match=r"colour \(255, 255, 255\) at 2 pixels"):
        read_labels(path, 2, (2, 3), palette=colors[[1, 0]])
    with pytest.raises(DataError, match="no palette"):
        read_labels(path, 2, (2, 3))
    with pytest.raises(DataError, match="holds colours"):
        read_indices(path, (2, 3))


def test_read_labels_refuses(tmp_path):
    path = save(tmp_path / "a.png", LABELS)
    with pytest.raises(DataError, match=r"label 2 at 2 pixels; expected 0 … 1 \(2 classes\)"):
        read_labels(path, 2, (2, 3))
    with pytest.raises(DataError, match="value 2 at 2 pixels has no label"):
        read_labels(path, 2, (2, 3), label_map={0: 0, 1: 1})
    with pytest.raises(DataError, match="mask of 2×3 pixels; expected 3×2"):
        read_labels(path, 3, (3, 2))
    with pytest.raises(DataError, match="JPEG mask"):
        read_labels(save(tmp_path / "a.jpg", LABELS), 3, (2, 3))
    with pytest.raises(DataError, match="TIFF mask"):
        read_labels(save(tmp_path / "a.tif", LABELS, compression="jpeg"), 3, (2, 3))
    with pytest.raises(DataError, match="16 bits"):
        read_labels(deep(tmp_path / "b.png", 1), 3, (9, 12))
    with pytest.raises(DataError, match="alpha 3"):
        read_labels(rgba(tmp_path / "c.png", 3), 3, (9, 12))


# Archives


def write_tar(path: Path, name: str) -> Path:
    with tarfile.open(path, "w:gz") as file:
        file.addfile(tarfile.TarInfo(name), io.BytesIO())
    return path


def write_zip(path: Path, name: str) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(name, "x")
    return path


@pytest.mark.parametrize(
    ("write", "name", "message"),
    [
        (write_tar, "../evil", "cannot be unpacked.*outside"),
        (write_zip, "../evil", "leads out of"),
        (write_zip, "/evil", "leads out of"),
    ],
)
def test_unpack_stays_inside(tmp_path, write, name, message):
    archive = write(tmp_path / ("a.zip" if write is write_zip else "a.tar.gz"), name)
    with pytest.raises(DataError, match=message):
        unpack(archive, tmp_path / "cache")
    assert not [f for f in tmp_path.rglob("*") if f.is_file() and f != archive]
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_unpack_refuses_broken_archives(tmp_path, name):
    (tmp_path / name).write_bytes(b"broken")
    with pytest.raises(DataError, match="cannot be unpacked"):
        unpack(tmp_path / name, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


# VOC

BOX = "<bndbox><xmin>2</xmin><ymin>1</ymin><xmax>12</xmax><ymax>9</ymax></bndbox>"
OBJECT = f"<object><name>cat</name>{BOX}</object>"


def write_voc(
    root: Path, xml: str = f"<annotation>{OBJECT}</annotation>", names: str = "a"
) -> Path:
    voc = root / "VOCdevkit/VOC2012"
    save(voc / "JPEGImages/a.jpg", RGB)
    save(voc / "SegmentationClass/a.png", np.full((9, 12), 8, np.uint8))
    save(voc / "SegmentationObject/a.png", np.eye(9, 12, dtype=np.uint8))
    for task in ("Main", "Segmentation"):
        (voc / "ImageSets" / task).mkdir(parents=True)
        (voc / "ImageSets" / task / "train.txt").write_text(names)
    (voc / "Annotations").mkdir()
    (voc / "Annotations/a.xml").write_text(xml)
    return voc


BOMB = '<!DOCTYPE a [<!ENTITY b "c">]>'
FILE = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]>'
ANNOTATIONS = {
    "malformed": ("<annotation>", "malformed XML"),
    "empty": ("", "malformed XML"),
    "encoding": ('<?xml version="1.0" encoding="klingon"?><annotation/>', "malformed XML.*klingon"),
    "entities": (f"{BOMB}<annotation>&b;</annotation>", "DTD or entities"),
    "external entity": (f"{FILE}<annotation>&b;</annotation>", "DTD or entities"),
    "inverted": (OBJECT.replace(">2<", ">13<"), r"inverted box \['13', '1', '12', '9'\]"),
    "nan": (OBJECT.replace(">2<", ">nan<"), "finite"),
    "word": (OBJECT.replace(">2<", ">two<"), "four numbers"),
    "left": (OBJECT.replace(">2<", ">0<"), "outside the image; expected x in 1 … 12"),
    "below": (OBJECT.replace(">9<", ">10<"), "outside the image.*y in 1 … 9"),
    "class": (OBJECT.replace("cat", "dragon"), "unknown class 'dragon'"),
    "background": (OBJECT.replace("cat", "background"), "unknown class 'background'"),
    "difficult": (
        f"<object><name>cat</name><difficult>yes</difficult>{BOX}</object>",
        "<difficult> 'yes'; expected 0 or 1",
    ),
    "no name": (f"<object>{BOX}</object>", "<object> without <name>"),
    "no box": ("<object><name>cat</name></object>", "without <bndbox>"),
    "no xmin": (OBJECT.replace("<xmin>2</xmin>", ""), "<bndbox> without <xmin>"),
}


@pytest.mark.parametrize(("xml", "message"), ANNOTATIONS.values(), ids=ANNOTATIONS)
def test_voc_refuses_annotations(tmp_path, xml, message):
    whole = xml if "object" not in xml else f"<annotation>{xml}</annotation>"
    write_voc(tmp_path, whole)
    with pytest.raises(DataError, match=message) as error:
        prepare("voc", tmp_path, task="detection", cache=tmp_path / "cache")
    assert "a.xml" in str(error.value)
    assert not list((tmp_path / "cache").rglob("*.array_record*"))


def test_voc_refuses_instances_without_objects(tmp_path):
    write_voc(tmp_path, "<annotation/>")
    with pytest.raises(DataError, match="instance 1, but the XML has 0 objects"):
        prepare("voc", tmp_path, cache=tmp_path / "cache")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("a\nb", "b.jpg: no such file, but .*train.txt asks for it"),
        ("a\na", "entry 'a' occurs twice"),
        ("\n", "train.txt: is empty"),
        ("../../secret", "leads out of"),
        ("/etc/passwd", "leads out of"),
    ],
)
def test_voc_refuses_lists(tmp_path, names, message):
    write_voc(tmp_path, names=names)
    with pytest.raises(DataError, match=message):
        prepare("voc", tmp_path, cache=tmp_path / "cache")


@pytest.mark.parametrize("folder", ["SegmentationClass", "Annotations"])
def test_voc_refuses_missing_files(tmp_path, folder):
    voc = write_voc(tmp_path)
    next((voc / folder).iterdir()).unlink()
    with pytest.raises(DataError, match=f"{folder}/a.*no such file"):
        prepare("voc", tmp_path, cache=tmp_path / "cache")


def test_voc_refuses_unknown_tasks(tmp_path):
    with pytest.raises(DataError, match="task 'pose'"):
        prepare("voc", tmp_path / write_voc(tmp_path), task="pose", cache=tmp_path / "cache")


# CamVid


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/SegNet/CamVid/a.png", "expected the paths of an image and its mask"),
        ("/SegNet/CamVid/../a.png /SegNet/CamVid/b.png", "leads out of"),
        ("/etc/a.png /etc/b.png", "leads out of"),
        ("a.png b.png\na.png b.png", "'a' occurs twice"),
        ("a.png c.png", "c.png: no such file"),
        ("a.png b.png", "label 12 at 108 pixels; expected 0 … 10"),
    ],
)
def test_camvid_refuses(tmp_path, line, message):
    save(tmp_path / "data/a.png", RGB)
    save(tmp_path / "data/b.png", np.full((9, 12), 12, np.uint8))
    (tmp_path / "data/train.txt").write_text(line)
    with pytest.raises(DataError, match=message):
        prepare("camvid", tmp_path / "data", cache=tmp_path / "cache")


# Folders


def write_folder(root: Path) -> Path:
    for name in ("a", "b"):
        save(root / f"images/{name}.jpg", RGB)
        save(root / f"masks/{name}.png", np.eye(9, 12, dtype=np.uint8))
    return root


FOLDERS = {
    "no mask": (lambda f: (f / "masks/b.png").unlink(), "b.jpg: has no mask; expected .*b.png"),
    "no image": (lambda f: (f / "images/b.jpg").unlink(), "b.png: has no image; expected .*/b"),
    "no images": (
        lambda f: [g.unlink() for g in (f / "images").iterdir()],
        "images: holds no images",
    ),
    "no folder": (lambda f: (f / "images").rename(f / "pictures"), "no 'images' here"),
    "no masks": (lambda f: (f / "masks").rename(f / "labels"), "no folder 'masks'"),
    "twice": (lambda f: save(f / "images/a.png", RGB), "entry 'a' occurs twice"),
    "empty list": (lambda f: (f / "val.txt").write_text(""), "val.txt: is empty"),
    "list": (lambda f: (f / "val.txt").write_text("c"), "c.png: has no image"),
    "list twice": (lambda f: (f / "val.txt").write_text("a\na.jpg"), "'a' occurs twice"),
    "list out": (lambda f: (f / "val.txt").write_text("../a"), "leads out of"),
    "binary list": (lambda f: (f / "val.txt").write_bytes(b"\xff\xfe"), "UTF-8"),
    "size": (
        lambda f: save(f / "masks/b.png", np.zeros((12, 9), np.uint8)),
        "b.png: mask of 12×9 pixels; expected 9×12",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), FOLDERS.values(), ids=FOLDERS)
def test_folder_refuses(tmp_path, spoil, message):
    spoil(write_folder(tmp_path / "data"))
    with pytest.raises(DataError, match=message):
        prepare("folder", tmp_path / "data", classes=["no", "yes"], cache=tmp_path / "cache")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "set the option classes, or write classes.txt"),
        ({"classes": ["a", "a"]}, "'a' occurs twice"),
        ({"classes": ["a", "b"], "palette": [[0, 0, 0]]}, "each of 2 classes"),
        ({"classes": ["a", "b"], "palette": [[0, 0, 0], [0, 0, 256]]}, "0 … 255"),
        ({"classes": ["a", "b"], "label_map": {"0": 300}}, "0 -> 300"),
        ({"classes": ["a", "b"], "void": [-1]}, "option void"),
    ],
)
def test_folder_refuses_options(tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        prepare("folder", write_folder(tmp_path / "data"), cache=tmp_path / "cache", **options)


def test_prepare_refuses_what_it_cannot_find(tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.delenv("JAXSEG_DATA", raising=False)
    with pytest.raises(DataError, match=r"set data\.source, or JAXSEG_DATA"):
        prepare("camvid", cache=cache)
    monkeypatch.setenv("JAXSEG_DATA", str(tmp_path))
    with pytest.raises(DataError, match="camvid: no such file or folder"):
        prepare("camvid", cache=cache)
    (tmp_path / "camvid").mkdir()
    with pytest.raises(DataError, match="camvid: is empty"):
        prepare("camvid", cache=cache)
    (tmp_path / "camvid/notes").write_text("x")
    with pytest.raises(DataError, match=r"no 'train\.txt' here or up to two folders below"):
        prepare("camvid", cache=cache)
    with pytest.raises(DataError, match=r"expected a folder, a \.tar\.gz"):
        prepare("camvid", tmp_path / "camvid/notes", cache=cache)
    with pytest.raises(DataError, match="'nothing': no module"):
        prepare("nothing", cache=cache)
    with pytest.raises(DataError, match="no function open_source"):
        prepare("json.decoder", cache=cache)
    with pytest.raises(DataError, match="on_error 'ignore'"):
        prepare("shapes", cache=cache, on_error="ignore")
