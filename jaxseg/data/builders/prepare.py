"""Writes a Source once, as ArrayRecord files of TFDS, and reads it back at random.

    <cache>/<name>/unpacked/<archive>-<hash>/                archives, unpacked
    <cache>/<name>/prepared/<name>-<fingerprint>/<version>/  what `Dataset` reads

A prepared example is the Source's, with `image` uint8 [H W 3] decoded and `name` beside it.
A copy is prepared when its folder exists: TFDS writes beside it and renames at the end, so what
is killed half-way never counts, and is cleared away by the next preparation.
"""

import contextlib
import dataclasses
import fcntl
import importlib
import inspect
import io
import operator
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, SupportsIndex

import cv2
import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from jaxtyping import Int64, UInt8
from PIL import Image
from tqdm import tqdm

from jaxseg.data.builders.source import (
    DataError,
    Example,
    Source,
    encode_png,
    expand,
    is_archive,
    unpack,
)
from jaxseg.types import IGNORE

VERSION = "2.0.0"  # of the layout of prepared examples; copies of another version are not read

ImageFeature, TensorFeature = tfds.features.Image, tfds.features.Tensor
FEATURES = {
    "segmentation": ImageFeature(shape=(None, None, 1), encoding_format="png"),
    "boxes": TensorFeature(shape=(None, 4), dtype=np.float32),
    "labels": TensorFeature(shape=(None,), dtype=np.int32),
    "crowd": TensorFeature(shape=(None,), dtype=np.bool_),
    "difficult": TensorFeature(shape=(None,), dtype=np.bool_),
    "area": TensorFeature(shape=(None,), dtype=np.float32),
    # Eight pixels of a row a byte: sixty masks of a photograph are written and read in 10 ms
    # altogether; as bools, zlib alone would take ten times as long.
    "masks": TensorFeature(shape=(None, None, None), dtype=np.uint8, encoding="zlib"),
    "keypoints": TensorFeature(shape=(None, None, 3), dtype=np.float32, encoding="zlib"),
}

OBJECTS = tuple(field for field in FEATURES if field != "segmentation")


class Dataset(NamedTuple):
    """A prepared dataset. Items of a split are decoded examples (see the module's docstring)."""

    name: str
    classes: tuple[str, ...]
    palette: UInt8[np.ndarray, "K 3"]
    splits: "dict[str, Records]"
    # split -> for each class, its pixels, and the pixels (without ignored ones) of the images in
    # which it occurs; zeros for sets without segmentation
    pixel_counts: dict[str, Int64[np.ndarray, "K 2"]]
    skipped: dict[str, str]  # "split/key" -> why it was left out
    sizes: dict[str, Int64[np.ndarray, "N 2"]]  # split -> (height, width) of each picture
    keypoint_names: tuple[str, ...] = ()
    keypoint_flip: tuple[int, ...] = ()  # which keypoint each becomes in a mirrored picture
    skeleton: tuple[tuple[int, int], ...] = ()  # pairs of keypoints that a line joins

    def first(self, count: int) -> "Dataset":
        """The first examples of each split. Pixels are counted in all, as before."""
        splits = {s: Records(r.folder, r.split, count) for s, r in self.splits.items()}
        return self._replace(splits=splits, sizes={s: n[:count] for s, n in self.sizes.items()})


def prepare(
    name: str,
    source: str | os.PathLike | None = None,
    *,
    cache: str | os.PathLike | None = None,
    on_error: str = "raise",
    **options: Any,
) -> Dataset:
    """The dataset `name`, prepared from `source` unless the cache already has it.

    name: a format of `jaxseg.data.builders`, or the dotted path of a module with `open_source`.
    source: a folder, an archive, or a folder that holds just an archive; None means
        `$JAXSEG_DATA/<name>`. Formats that generate their examples need none.
    cache: None means `$JAXSEG_CACHE`, or else `~/.cache/jaxseg`.
    on_error: "raise" stops at the first bad example; "skip" leaves bad ones out, logs how many,
        and lists them in `skipped`.
    options: those of the format's `open_source`.

    Raises DataError, naming the file, the reason and what was expected.
    """
    if on_error not in ("raise", "skip"):
        raise DataError(f"on_error {on_error!r}; expected 'raise' or 'skip'")
    module = _find_format(name)
    cache = expand(cache or os.environ.get("JAXSEG_CACHE") or "~/.cache/jaxseg")
    home = cache / re.sub(r"[^\w.-]", "_", name)
    with _only_one_process(home):
        for leftover in [
            *home.glob("unpacked/incomplete.*"),
            *home.glob("prepared/*/incomplete.*"),
        ]:
            shutil.rmtree(leftover, ignore_errors=True)
        opened = module.open_source(_find_source(name, source, module, home), **options)
        _check_source(opened)
        folder = _write(opened, home, skip=on_error == "skip")
    dataset = load_prepared(folder)
    if dataset.skipped:
        first, reason = next(iter(dataset.skipped.items()))
        logging.warning(
            "%s: skipped %d bad examples, the first is %s: %s",
            name, len(dataset.skipped), first, reason,
        )  # fmt: skip
    return dataset


def load_prepared(folder: str | os.PathLike) -> Dataset:
    """The dataset in a folder that `prepare` wrote. Raises DataError for another VERSION's."""
    info = tfds.builder_from_directory(os.fspath(folder)).info
    if str(info.version) != VERSION:
        raise DataError(f"{folder}: version {info.version}; expected {VERSION}: prepare it again")
    about = info.metadata
    return Dataset(
        name=about["name"],
        classes=tuple(about["classes"]),
        palette=np.array(about["palette"], np.uint8),
        splits={split: Records(folder, split) for split in about["pixel_counts"]},
        pixel_counts={s: np.array(c, np.int64) for s, c in about["pixel_counts"].items()},
        skipped=dict(about["skipped"]),
        sizes={s: np.array(z, np.int64).reshape(-1, 2) for s, z in about["sizes"].items()},
        keypoint_names=tuple(about["keypoint_names"]),
        keypoint_flip=tuple(about["keypoint_flip"]),
        skeleton=tuple((first, second) for first, second in about["skeleton"]),
    )


class Records:
    """Random access to one prepared split, or its first `count` examples. Threads may share it;
    pickled, it is two strings and a number."""

    def __init__(self, folder: str | os.PathLike, split: str, count: int | None = None):
        self.folder, self.split, self.count = os.fspath(folder), split, count
        builder = tfds.builder_from_directory(self.folder)
        encoded = {k: tfds.decode.SkipDecoding() for k in ("image", "segmentation")}
        self.fields = tuple(builder.info.features)
        self.records: Any = builder.as_data_source(
            split=split, decoders={k: v for k, v in encoded.items() if k in self.fields}
        )

    def __len__(self) -> int:
        return len(self.records) if self.count is None else min(self.count, len(self.records))

    def __getitem__(self, index: SupportsIndex) -> Example:
        position = range(len(self))[operator.index(index)]
        return _decode(self.records[position], self.fields)

    def __reduce__(self) -> tuple:
        return Records, (self.folder, self.split, self.count)


def _decode(record: Example, fields: Sequence[str]) -> Example:
    """An example as arrays of their own, so that they may be written to."""
    example: Example = {k: np.array(record[k]) for k in fields if k in OBJECTS}
    example["name"] = record["name"].decode()
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(record["image"], np.uint8), flags)
    if image is None:
        raise DataError(f"{example['name']}: its image cannot be decoded by OpenCV")
    example["image"] = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    if "segmentation" in fields:
        encoded = np.frombuffer(record["segmentation"], np.uint8)
        example["segmentation"] = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
    if "masks" in fields:
        bits = np.unpackbits(example["masks"], axis=-1, count=image.shape[1])
        example["masks"] = bits.view(np.bool_)
    return example


# Where a dataset comes from


def _find_format(name: str) -> ModuleType:
    path = name if "." in name else f"{__package__}.{name}"
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not path.startswith(error.name):
            raise  # the module is there, and lacks something it imports
        raise DataError(f"dataset {name!r}: no module {path}") from error
    if not hasattr(module, "open_source"):
        raise DataError(f"dataset {name!r}: module {path} has no function open_source")
    return module


def _find_source(
    name: str, source: str | os.PathLike | None, module: ModuleType, home: Path
) -> Path | None:
    """The folder to open, after unpacking; None for formats that need none."""
    if source is None:
        if inspect.signature(module.open_source).parameters["path"].default is None:
            return None
        if "JAXSEG_DATA" not in os.environ:
            raise DataError(f"dataset {name!r}: set data.source, or JAXSEG_DATA to its folder")
        source = Path(os.environ["JAXSEG_DATA"]) / name
    path = expand(source)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; expected dataset {name!r}")
    if path.is_dir():
        entries = [entry for entry in path.iterdir() if entry.name[0] != "."]
        if not entries:
            raise DataError(f"{path}: is empty; expected dataset {name!r}")
        archives = [entry for entry in entries if is_archive(entry)]
        if len(archives) != 1 or any(entry.is_dir() for entry in entries):
            return path
        path = archives[0]
    if not is_archive(path):
        raise DataError(f"{path}: expected a folder, a .tar.gz or a .zip")
    return unpack(path, home / "unpacked")


def _check_source(source: Source) -> None:
    for split, keys in source.splits.items():
        if not re.fullmatch(r"\w+", split) or split == "all":
            raise DataError(f"{source.name}: split {split!r}; expected letters, digits and _")
        if not keys:
            raise DataError(f"{source.name}: split {split!r} is empty; expected examples")
    unknown = set(source.fields) - set(FEATURES)
    if unknown:
        raise DataError(f"{source.name}: fields {sorted(unknown)}; expected {sorted(FEATURES)}")
    if not source.splits:
        raise DataError(f"{source.name}: has no splits; expected one at least")


# Writing


@dataclasses.dataclass(eq=False)
class _Config(tfds.core.BuilderConfig):
    source: Source | None = None
    skip: bool = False


class _Info(tfds.core.DatasetInfo):
    def initialize_from_bucket(self) -> None:
        """TFDS would look on the net for a description of our dataset."""


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The one builder of all formats: it copies a Source."""

    VERSION = tfds.core.Version(VERSION)
    name = "prepared"
    url_infos = None  # nothing is downloaded; asking TFDS for it needs importlib_resources

    def _info(self) -> tfds.core.DatasetInfo:
        source = self.builder_config.source
        return _Info(
            builder=self,
            disable_shuffling=True,  # keeps the official order
            features=tfds.features.FeaturesDict(
                {
                    "image": ImageFeature(),
                    "name": tfds.features.Text(),
                    **{field: FEATURES[field] for field in source.fields},
                }
            ),
            metadata=tfds.core.MetadataDict(
                name=source.name,
                classes=list(source.classes),
                palette=source.palette.tolist(),
                pixel_counts={},
                skipped={},
                sizes={},
                keypoint_names=list(source.keypoint_names),
                keypoint_flip=list(source.keypoint_flip),
                skeleton=[list(pair) for pair in source.skeleton],
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        return {
            split: self._generate_examples(split) for split in self.builder_config.source.splits
        }

    def _generate_examples(self, split: str) -> Iterator[tuple[int, Example]]:
        source, skip, about = (
            self.builder_config.source,
            self.builder_config.skip,
            self.info.metadata,
        )
        counts = np.zeros((len(source.classes), 2), np.int64)
        keys = source.splits[split]
        sizes: list[tuple[int, int]] = []
        for key in tqdm(keys, f"preparing {source.name} {split}", unit=" images", mininterval=0.5):
            try:
                example = _encode(source, split, key)
            except DataError as error:
                if not skip:
                    raise
                about["skipped"][f"{split}/{key}"] = str(error)
                continue
            if "segmentation" in example:
                counts += _count_pixels(example["segmentation"], len(source.classes))
                example["segmentation"] = io.BytesIO(encode_png(example["segmentation"]))
            sizes.append(_size(example["image"]))
            yield len(sizes) - 1, example
        if not sizes:
            reason = about["skipped"][f"{split}/{keys[0]}"]
            raise DataError(f"{source.name}: every example of {split!r} is bad; first: {reason}")
        about["pixel_counts"][split] = counts.tolist()
        about["sizes"][split] = sizes


def _write(source: Source, home: Path, *, skip: bool) -> Path:
    """Prepares a source unless it already is, and returns the folder."""
    name = re.sub(r"[^\w.-]", "_", f"{source.name}-{source.fingerprint}") + "-skip" * skip
    folder = home / "prepared" / name / VERSION
    if folder.is_dir():
        return folder
    with _quiet_tfds():
        builder = _Builder(
            data_dir=home,
            config=_Config(name=name, source=source, skip=skip),
            file_format="array_record",
        )
        builder.download_and_prepare(
            download_dir=folder.parent / "incomplete.downloads",  # stays empty
            download_config=tfds.download.DownloadConfig(try_download_gcs=False),
        )
    shutil.rmtree(folder.parent / "incomplete.downloads", ignore_errors=True)
    return folder


def _encode(source: Source, split: str, key: str) -> Example:
    """One example as TFDS wants it: without TensorFlow it takes images as files only."""
    example = source.read(split, key)
    if set(example) != {"image", *source.fields}:
        raise DataError(
            f"{source.name}: example {split}/{key} has {sorted(example)}; expected image and"
            f" {sorted(source.fields)}"
        )
    counts = {f: len(example[f]) for f in OBJECTS if f in example}
    if len(set(counts.values())) > 1:
        raise DataError(
            f"{source.name}: example {split}/{key} has {counts}; expected as many of each"
        )
    image = io.BytesIO(example["image"])
    if "masks" in example:
        if example["masks"].shape[1:] != _size(image):
            raise DataError(
                f"{source.name}: example {split}/{key} has masks {example['masks'].shape}; expected"
                f" the picture's height and width, {_size(image)}"
            )
        example["masks"] = np.packbits(example["masks"], axis=-1)
    return {**example, "image": image, "name": key}


def _size(image: io.BytesIO) -> tuple[int, int]:
    """(height, width) of an encoded picture, by its header."""
    with Image.open(image) as header:
        size = header.height, header.width
    image.seek(0)
    return size


def _count_pixels(labels: UInt8[np.ndarray, "H W"], num_classes: int) -> Int64[np.ndarray, "K 2"]:
    pixels = np.bincount(labels.ravel(), minlength=IGNORE + 1)[:num_classes]
    return np.stack([pixels, (pixels > 0) * pixels.sum()], axis=1).astype(np.int64)


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    """TFDS prints and logs at length what our progress line says shortly. Readers are heard."""

    def is_heard(record: Any) -> bool:
        return record.levelname == "ERROR" or "tensorflow_datasets" not in record.pathname

    logging.get_absl_logger().addFilter(is_heard)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
        logging.get_absl_logger().removeFilter(is_heard)


@contextlib.contextmanager
def _only_one_process(folder: Path) -> Iterator[None]:
    """Processes that want the same dataset wait for the first; the lock dies with its process."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
