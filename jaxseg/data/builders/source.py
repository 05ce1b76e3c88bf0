"""What a dataset on disk is, once read: a `Source`, and the careful readers that all formats share.

An Example is a dict:

    image         bytes            PNG or JPEG that decodes to 8-bit RGB, at least 8×8 pixels
    segmentation  uint8 [H W]      0 … K-1 and IGNORE
    boxes         float32 [M 4]    xyxy in pixels of the file, pixel centres at +0.5
    labels        int32 [M]        1 … K-1, the index into `classes`
    crowd         bool [M]         a region of many objects
    difficult     bool [M]         VOC's mark of objects that do not count
    area          float32 [M]      square pixels, as annotated: COCO's small, medium and large
    masks         bool [M H W]
    keypoints     float32 [M J 3]  x, y, visibility (0 absent, 1 hidden, 2 visible)

`image` is always there; a Source names in `fields` which of the others its examples have.
Nothing is repaired silently: what could be misread is refused with a DataError, whose message
names the file, what is wrong with it and what was expected.
"""

import gc
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Integer, UInt8
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from jaxseg.types import IGNORE

Example = dict[str, Any]

SPLITS = ("train", "val", "trainval", "test")
MIN_SIDE = 8  # pixels; smaller pictures are placeholders and broken downloads
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".gif", ".webp"}

# Decoders that only decode: Pillow's EPS, for one, would start a program.
_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "GIF", "WEBP")
_LOSSLESS = ("PNG", "BMP", "GIF", "TIFF")
_LOSSY_TIFF = ("jpeg", "webp")
_WITH_ALPHA = ("LA", "PA", "RGBA", "La", "RGBa")
_OPAQUE = ("1", "L", "P", "RGB")


class DataError(ValueError):
    """A file is not what the format promises. Names the file, the reason, what was expected."""


class Source(NamedTuple):
    """A dataset as it lies on disk, or as it is generated."""

    name: str
    fingerprint: str  # changes with the files and the options it was read from
    classes: tuple[str, ...]  # name of each label; 0 is background where there are boxes
    palette: UInt8[np.ndarray, "K 3"]
    splits: Mapping[str, Sequence[str]]  # split -> keys, in the official order
    fields: tuple[str, ...]  # what every example has beside `image`
    read: Callable[[str, str], Example]  # (split, key) -> example; raises DataError
    keypoint_names: tuple[str, ...] = ()
    keypoint_flip: tuple[int, ...] = ()  # which keypoint each becomes in a mirrored picture
    skeleton: tuple[tuple[int, int], ...] = ()  # pairs of keypoints that a line joins, from 0


# Folders, lists and archives


def find_root(path: str | Path, holds: str, what: str) -> Path:
    """The folder, `path` itself or at most two levels below, in which `holds` exists.

    Raises DataError when there is none, or more than one at the same depth.
    """
    path = Path(path)
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; expected {what}")
    for above in ("", "*/", "*/*/"):
        found = sorted(path.glob(above + holds))
        if len(found) > 1:
            names = ", ".join(str(f.relative_to(path)) for f in found[:4])
            raise DataError(f"{path}: holds {holds!r} more than once ({names}); name one folder")
        if found:
            return found[0].parents[len(PurePosixPath(holds).parts) - 1]
    raise DataError(f"{path}: no {holds!r} here or up to two folders below; expected {what}")


def find_pictures(folder: Path) -> dict[str, Path]:
    """The image files of a folder by their stems, sorted; raises DataError for equal stems."""
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES)
    files = [f for f in files if f.name[0] != "."]
    check_unique((f.stem for f in files), folder)
    return {f.stem: f for f in files}


def read_lines(path: Path) -> list[str]:
    """The non-empty lines of a text file, stripped. Raises DataError when there are none."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    lines = [line.strip() for line in lines if line.strip()]
    if not lines:
        raise DataError(f"{path}: is empty; expected one entry a line")
    return lines


def read_json(path: Path) -> Any:
    """What a JSON file holds."""
    collects = gc.isenabled()
    gc.disable()  # it would visit COCO's millions of lists again and again, for half of the time
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from error
    finally:
        if collects:
            gc.enable()


def inside(root: Path, entry: str, listed_in: Path) -> Path:
    """`root / entry`, refusing entries of a list file that would lead out of `root`."""
    relative = PurePosixPath(entry)
    if relative.is_absolute() or ".." in relative.parts or "\\" in entry or "\0" in entry:
        raise DataError(f"{listed_in}: entry {entry!r} leads out of {root}; expected a path in it")
    return root / relative


def read_names(file: Path, root: Path) -> tuple[str, ...]:
    """The lines of a list, which name files below `root`, each once."""
    names = tuple(read_lines(file))
    for name in names:
        inside(root, name, file)
    check_unique(names, file)
    return names


def find_splits(
    root: Path, names: Iterable[str], val_every: int = 0
) -> tuple[dict[str, tuple[str, ...]], dict[str, Path]]:
    """The keys of each split, and where it has been listed.

    What train.txt, val.txt, trainval.txt and test.txt in `root` name, a line each, where there
    are such lists. Otherwise all `names` in their sorted order are "train", but for every
    `val_every`-th, which is "val"; 0 holds none back.
    """
    lists = {s: file for s in SPLITS if (file := root / f"{s}.txt").is_file()}
    if lists:
        return {split: read_names(file, root) for split, file in lists.items()}, lists
    names = sorted(names)
    if val_every == 1 or val_every < 0 or not names:
        raise DataError(
            f"{root}: option val_every {val_every} of {len(names)} pictures; expected 0, or 2 and"
            " more, of some pictures"
        )
    held = set(names[val_every - 1 :: val_every]) if val_every else set()
    splits = {"train": tuple(n for n in names if n not in held), "val": tuple(sorted(held))}
    return {split: keys for split, keys in splits.items() if keys}, {}


def check_unique(keys: Iterable[str], where: Path) -> None:
    """Raises DataError naming the first key that occurs twice."""
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            raise DataError(f"{where}: entry {key!r} occurs twice; expected each example once")
        seen.add(key)


def check_file(path: Path, listed_in: Path) -> Path:
    """`path`, if it is a file; otherwise raises DataError naming who asked for it."""
    if not path.is_file():
        raise DataError(f"{path}: no such file, but {listed_in} asks for it")
    return path


def fingerprint(root: Path | None, files: Iterable[Path] = (), **options: Any) -> str:
    """A short hash of the options and of each file's path in `root`, size and time of change."""
    digest = hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode())
    for path in sorted(set(files)):
        try:
            stat = path.stat()
            state = f"{stat.st_size} {stat.st_mtime_ns}"
        except OSError:
            state = "missing"
        name = path.relative_to(root) if root else path
        digest.update(f"\n{name}\0{state}".encode())
    return digest.hexdigest()[:12]


def unpack(archive: Path, folder: Path) -> Path:
    """Unpacks a `.tar.gz`, `.tgz`, `.tar` or `.zip` once below `folder`; returns where it lies.

    The folder appears under its name only when it is whole. Members that would be written
    outside it, devices and links that lead out of it raise DataError.
    """
    stat = archive.stat()
    state = hashlib.sha256(f"{archive.name} {stat.st_size} {stat.st_mtime_ns}".encode())
    target = folder / f"{archive.name.split('.')[0]}-{state.hexdigest()[:12]}"
    if target.is_dir():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix="incomplete.", dir=folder))
    try:
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as file:
                for name in file.namelist():
                    inside(target, name, archive)
                file.extractall(partial)
        else:
            with tarfile.open(archive) as file:
                file.extractall(partial, filter="data")
        partial.rename(target)
    except DataError:
        raise
    except Exception as error:  # tarfile and zlib raise many kinds for broken archives
        raise DataError(f"{archive}: cannot be unpacked ({error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def is_archive(path: Path) -> bool:
    return path.is_file() and re.search(r"\.(tar\.gz|tgz|tar|zip)$", path.name) is not None


# Images


def _open(path: Path) -> tuple[bytes, Image.Image]:
    """The bytes of an image file and the picture in it, fully decoded."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
            _check_depth(image, data, path)
            image.load()
    except DataError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: far too large for an image ({error})") from error
    except Exception as error:  # Pillow's decoders raise nearly every kind on broken bytes
        raise DataError(f"{path}: not a whole image file ({error})") from error
    return data, image


def _check_depth(image: Image.Image, data: bytes, path: Path) -> None:
    """Pillow shows some 16-bit files as 8-bit ones, so this asks the files themselves."""
    bits = 8
    if image.format == "PNG":
        bits = data[24]  # of the IHDR chunk, which always comes first
    elif isinstance(image, TiffImageFile):
        bits = max(image.tag_v2.get(258, (1,)))  # the tag BitsPerSample
    if bits > 8 or image.mode[0] in "IF":
        raise DataError(f"{path}: {max(bits, 16)} bits a channel; expected 8")


def _check_opaque(image: Image.Image, path: Path) -> None:
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        lowest = np.asarray(image.convert("RGBA").getchannel("A")).min()
        if lowest < 255:
            raise DataError(f"{path}: has transparent pixels (alpha {lowest}); expected none")
    elif image.mode not in _OPAQUE:
        raise DataError(f"{path}: colour mode {image.mode}; expected grey, RGB or a palette")


def read_image(path: Path) -> tuple[bytes, tuple[int, int]]:
    """The picture as bytes of an 8-bit RGB PNG or JPEG, and its (height, width).

    Plain RGB files keep their bytes; grey, palette and opaque RGBA ones become RGB PNGs. Raises
    DataError for files that are broken, smaller than 8×8, 16-bit, transparent, CMYK, animated or
    marked as rotated.
    """
    data, image = _open(path)
    width, height = image.size
    if min(width, height) < MIN_SIDE:
        raise DataError(f"{path}: {height}×{width} pixels; expected at least {MIN_SIDE}×{MIN_SIDE}")
    _check_opaque(image, path)
    # Phones append pictures to a JPEG (MPO): the first is the photograph.
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        raise DataError(f"{path}: holds several pictures; expected one")
    # Nobody can tell whether the annotations were made before or after the rotation.
    orientation = image.getexif().get(0x0112, 1)
    if orientation not in (0, 1):  # some cameras write 0, which is not defined, for "not known"
        raise DataError(
            f"{path}: EXIF orientation {orientation}, so its annotations are ambiguous; expected 1"
            " (rotate the file first)"
        )
    plain = image.format in ("JPEG", "PNG") and image.mode == "RGB"
    if not plain or "transparency" in image.info:
        data = encode_png(np.asarray(image.convert("RGB")))
    return data, (height, width)


def encode_png(pixels: UInt8[np.ndarray, "H W"] | UInt8[np.ndarray, "H W 3"]) -> bytes:
    """A grey or RGB picture as PNG."""
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".png", pixels)[1].tobytes()


def read_labels(
    path: Path,
    num_classes: int,
    size: tuple[int, int],
    *,
    label_map: Mapping[int, int] | None = None,
    void: Iterable[int | Sequence[int]] = (),
    palette: UInt8[np.ndarray, "K 3"] | None = None,
) -> UInt8[np.ndarray, "H W"]:
    """The label of each pixel, 0 … num_classes - 1 or IGNORE, of a lossless mask of `size`.

    Grey and palette masks hold values (a 1-bit mask holds 0 and 1), which `label_map` turns into
    labels; without it the values are the labels. RGB masks hold the colours of `palette`. `void`
    lists values, or (r, g, b) colours, that become IGNORE, as 255 does unless `label_map` has it.

    Raises DataError for masks that are broken, lossy, 16-bit, of another size, or hold a value,
    colour or label that nothing explains.
    """
    values, colored = _read_mask(path, size)
    void = list(void)
    if colored:
        colors = [v for v in void if not isinstance(v, int)]
        return _labels_of_colors(values, num_classes, palette, colors, path)

    table = np.arange(256) if label_map is None else np.full(256, -1)
    table[IGNORE] = IGNORE
    table[[v for v in void if isinstance(v, int)]] = IGNORE
    for value, label in (label_map or {}).items():
        table[value] = label
    labels = table[values]
    wrong = ((labels < 0) | (labels >= num_classes)) & (labels != IGNORE)
    if wrong.any():
        value = int(values[wrong][0])
        if label_map is not None and table[value] < 0:
            raise DataError(
                f"{path}: value {value} at {np.count_nonzero(wrong)} pixels has no label;"
                f" expected one of {sorted(label_map)}"
            )
        raise DataError(
            f"{path}: label {table[value]} at {np.count_nonzero(wrong)} pixels; expected"
            f" 0 … {num_classes - 1} ({num_classes} classes) or {IGNORE} (ignore)"
        )
    return labels.astype(np.uint8)


def read_indices(path: Path, size: tuple[int, int]) -> UInt8[np.ndarray, "H W"]:
    """The raw values of a lossless grey or palette mask of `size`, such as instance numbers."""
    values, colored = _read_mask(path, size)
    if colored:
        raise DataError(f"{path}: holds colours; expected a grey or palette mask")
    return values


def bounds(masks: Bool[np.ndarray, "M H W"]) -> Float32[np.ndarray, "M 4"]:
    """The xyxy boxes about masks, none of them empty: the edges of their outermost pixels."""
    height, width = masks.shape[1:]
    rows, columns = np.any(masks, axis=2), np.any(masks, axis=1)
    left, top = columns.argmax(axis=1), rows.argmax(axis=1)
    right = width - np.flip(columns, axis=1).argmax(axis=1)
    bottom = height - np.flip(rows, axis=1).argmax(axis=1)
    return np.stack([left, top, right, bottom], axis=1).astype(np.float32)


def _read_mask(path: Path, size: tuple[int, int]) -> tuple[UInt8[np.ndarray, "H W *C"], bool]:
    """Values [H W] or colours [H W 3], and whether they are colours."""
    _, image = _open(path)
    if image.format not in _LOSSLESS or image.info.get("compression") in _LOSSY_TIFF:
        raise DataError(
            f"{path}: a {image.format} mask, whose labels are blurred by compression; expected PNG"
        )
    if (image.height, image.width) != size:
        raise DataError(
            f"{path}: mask of {image.height}×{image.width} pixels; expected {size[0]}×{size[1]},"
            " the size of its image"
        )
    if image.mode in ("1", "L", "P"):
        return np.asarray(image).astype(np.uint8), False
    _check_opaque(image, path)
    return np.asarray(image.convert("RGB")), True


def _labels_of_colors(
    colors: UInt8[np.ndarray, "H W 3"],
    num_classes: int,
    palette: UInt8[np.ndarray, "K 3"] | None,
    void: Sequence[Sequence[int]],
    path: Path,
) -> UInt8[np.ndarray, "H W"]:
    if palette is None:
        raise DataError(f"{path}: holds colours, but no palette says what they mean")
    known = np.array([*palette[:num_classes].tolist(), *map(list, void)], np.int64).reshape(-1, 3)
    labels = np.array([*range(num_classes), *[IGNORE] * len(void)], np.uint8)
    codes, known_codes = _color_codes(colors), _color_codes(known)
    order = np.argsort(known_codes)
    place = np.searchsorted(known_codes[order], codes).clip(max=len(known) - 1)
    place = order[place]
    wrong = known_codes[place] != codes
    if wrong.any():
        color = tuple(colors[wrong][0].tolist())
        raise DataError(
            f"{path}: colour {color} at {np.count_nonzero(wrong)} pixels is not in the palette"
        )
    return labels[place]


def _color_codes(colors: Integer[np.ndarray, "*N 3"]) -> Integer[np.ndarray, "*N"]:
    return colors.astype(np.int64) @ np.array([65536, 256, 1])


def color_map(num_classes: int) -> UInt8[np.ndarray, "K 3"]:
    """VOC's colours: the bits of a label, three at a time, from each channel's high bit down."""
    labels = np.arange(num_classes)
    colors = np.zeros((num_classes, 3), np.int64)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= ((labels >> (3 * bit + channel)) & 1) << (7 - bit)
    return colors.astype(np.uint8)


def expand(path: str | os.PathLike) -> Path:
    """A path as written in a config, with `~` and variables replaced."""
    return Path(os.path.expandvars(os.fspath(path))).expanduser()
