"""Darknet's files: `.cfg`, which describes a network, and `.weights`, its numbers, one array after
the other, without names or shapes.

    sections   [Section], of which the first is [net]; the others are layers, numbered from 0
    arrays     {name: array} in torch's layouts: "7.conv.weight" [F C kh kw] and, of a layer without
               norm, "7.conv.bias"; else "7.norm.weight", "7.norm.bias", "7.norm.running_mean",
               "7.norm.running_var". `weights.tables` knows YOLOv3's layers by these names.

A `.weights` begins with its version (three int32) and the number of pictures that it was trained on
(int64; int32 before version 0.2). Then comes, of each convolution, the bias, with a norm also its
scale, mean and variance, and the kernel, all float32 and little-endian. Nothing is read before the
file has been found to be exactly as long as the `.cfg` says.
"""

import math
import os
import struct
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxseg.weights.files import WeightsError

VERSION = (0, 2, 0)
_LARGEST = 2**31 - 1  # of any number in a .cfg: Darknet's int


class Section(NamedTuple):
    kind: str  # "net", "convolutional" …
    options: dict[str, str]


class Convolution(NamedTuple):
    layer: int
    shape: tuple[int, int, int, int]  # [F C kh kw]
    has_norm: bool

    def arrays(self) -> dict[str, tuple[int, ...]]:
        """{name: shape}, in the order of the file."""
        layer, features = self.layer, self.shape[:1]
        bias = {f"{layer}.conv.bias": features}
        if self.has_norm:
            names = "bias", "weight", "running_mean", "running_var"
            bias = {f"{layer}.norm.{name}": features for name in names}
        return {**bias, f"{layer}.conv.weight": self.shape}


class Weights(NamedTuple):
    arrays: dict[str, np.ndarray]
    seen: int = 0  # pictures in training
    version: tuple[int, int, int] = VERSION


# ---- .cfg


def read_cfg(path: str | Path) -> list[Section]:
    """The sections of a `.cfg`. WeightsError, which names file and line, where it is none."""
    path = Path(path)
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path}: expected a .cfg of Darknet ({error})") from error
    sections: list[Section] = []
    for number, line in enumerate(text.splitlines(), start=1):
        line = "".join(line.split())
        where = f"{path}, line {number}"
        if not line or line[0] in "#;":
            continue
        if line[0] == "[" and line[-1] == "]":
            sections.append(Section(line[1:-1], {}))
            continue
        name, equals, value = line.partition("=")
        if not (sections and name and equals):
            raise WeightsError(f"{where}: {line[:40]!r}, expected [section], or name=value in one")
        if name in sections[-1].options and len(sections) > 1:  # published files repeat [net]'s
            raise WeightsError(f"{where}: {name[:40]} is given twice in [{sections[-1].kind}]")
        sections[-1].options.setdefault(name, value)
    if not sections or sections[0].kind not in ("net", "network"):
        raise WeightsError(f"{path}: expected [net] as its first section")
    return sections


def write_cfg(path: str | Path, sections: Sequence[Section]) -> None:
    """Write sections as a `.cfg`; all of it or nothing."""
    parts = [
        f"[{kind}]\n" + "".join(f"{name}={value}\n" for name, value in options.items())
        for kind, options in sections
    ]
    _write_whole(Path(path), "\n".join(parts).encode())


def yolov3_cfg(
    num_classes: int,
    *,
    anchors: Sequence[Sequence[int | float]],
    masks: Sequence[Sequence[int]],
    tiny: bool = False,
    width: int | None = None,
    ignore_iou: float = 0.5,
    image_size: tuple[int, int] = (416, 416),
) -> list[Section]:
    """The sections of `models.yolov3` with these options, as it has them; masks: which anchors each
    scale has, coarsest first. image_size: (height, width)."""
    classes, width = num_classes - 1, width or (16 if tiny else 32)
    sections: list[Section] = []

    def add(kind: str, **options: Any) -> int:
        """The number of the new layer."""
        sections.append(Section(kind, {name: str(value) for name, value in options.items()}))
        return len(sections) - 2

    def conv(features: int, size: int, stride: int = 1) -> int:
        shape = dict(filters=features, size=size, stride=stride, pad=1)
        return add("convolutional", batch_normalize=1, **shape, activation="leaky")

    add("net", width=image_size[1], height=image_size[0], channels=3)
    maps = {}  # the trunk's last layer of each stride
    conv(width, 3)
    if tiny:
        for stage in range(1, 6):
            add("maxpool", size=2, stride=2)
            maps[2**stage] = conv(width << stage, 3)
        add("maxpool", size=2, stride=1)
        conv(width << 6, 3)
    else:
        for stage, count in enumerate((1, 2, 8, 8, 4), start=1):
            conv(width << stage, 3, 2)
            for _ in range(count):
                conv(width << (stage - 1), 1)
                conv(width << stage, 3)
                maps[2**stage] = add("shortcut", **{"from": -3}, activation="linear")
    written = ",".join(f"{w:.9g},{h:.9g}" for w, h in anchors)  # every digit of a float32
    for level, mask in enumerate(masks):
        features = 16 * width >> level
        if level > 0:
            add("route", layers=-4)
            conv(features, 1)
            add("upsample", stride=2)
            add("route", layers=f"-1,{maps[32 >> level]}")
        for i in reversed(range((2, 1)[level] if tiny else 6)):
            conv(features << (i % 2 == 0), 3 if i % 2 == 0 else 1)
        outputs = len(mask) * (5 + classes)
        add("convolutional", filters=outputs, size=1, stride=1, pad=1, activation="linear")
        shared = dict(anchors=written, classes=classes, num=len(anchors))
        add("yolo", mask=",".join(map(str, mask)), **shared, ignore_thresh=ignore_iou)
    return sections


def yolov3_options(sections: Sequence[Section], name_of_file: str = "the .cfg") -> dict:
    """What `models.yolov3.build` needs for the network of a `.cfg`: num_classes, tiny, width and
    settings (anchors, masks, ignore_iou). WeightsError, which names the section, for any network
    that is not just this one."""
    scales = [section for section in sections if section.kind == "yolo"]
    if len(scales) not in (2, 3):
        raise WeightsError(f"{name_of_file} has {len(scales)} [yolo], expected 3, or 2 (tiny)")
    where = f"{name_of_file}: [yolo]"
    flat = _numbers(scales[0], "anchors", where)
    if len(flat) % 2 or not all(flat):
        raise WeightsError(f"{where} has anchors={str(flat)[:40]}, expected pairs above 0")
    settings = {
        "anchors": tuple(zip(flat[::2], flat[1::2], strict=False)),
        "masks": tuple(tuple(map(int, _numbers(scale, "mask", where))) for scale in scales),
        "ignore_iou": float(_numbers(scales[0], "ignore_thresh", where, "0.5")[0]),
    }
    if max(map(max, settings["masks"])) >= len(settings["anchors"]):
        raise WeightsError(f"{where} has a mask beyond its {len(settings['anchors'])} anchors")
    options = dict(
        num_classes=_whole(scales[0], "classes", where, 20) + 1,
        tiny=len(scales) == 2,
        width=_whole(sections[1], "filters", f"{name_of_file}: layer 0", 1),
    )
    expected = yolov3_cfg(**options, **settings)
    for layer, (found, should) in enumerate(zip_longest(sections, expected, fillvalue=_END), -1):
        where = f"{name_of_file}: " + f"layer {layer} [{found.kind[:40]}]" * (layer >= 0)
        if layer >= 0 and found.kind != should.kind:
            raise WeightsError(f"{where}, expected [{should.kind}] as in YOLOv3")
        for key, default in _DEFAULTS.get(should.kind, {}).items():
            value = found.options.get(key, default)
            wanted = should.options.get(key, default)
            if _plain(value) != _plain(wanted):
                raise WeightsError(f"{where} has {key}={value[:40]}, expected {wanted}")
    return options | {"settings": settings}


_END = Section("end", {})
# What a layer does depends on these options; they have these values where they are not given.
_DEFAULTS = {
    "convolutional": dict(
        batch_normalize="0",
        filters="1",
        size="1",
        stride="1",
        pad="0",
        padding="0",
        groups="1",
        dilation="1",
        activation="logistic",
        stride_x="0",
        stride_y="0",
        **dict.fromkeys(("flipped", "binary", "xnor", "bin_output", "antialiasing"), "0"),
    ),
    "maxpool": {"size": "2", "stride": "2", "maxpool_depth": "0", "antialiasing": "0"},
    "shortcut": {"from": "", "activation": "linear"},
    "upsample": {"stride": "2"},
    "route": {"layers": "", "groups": "1"},
    "yolo": {
        "classes": "20",
        "num": "1",
        "anchors": "",
        "mask": "",
        "scale_x_y": "1",
        "new_coords": "0",
    },
    "net": {"channels": "0"},
}


def _plain(value: str) -> tuple[float, ...] | str:
    """Numbers between commas, or the text."""
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError:
        return value


def _numbers(section: Section, key: str, where: str, default: str = "") -> tuple[int | float, ...]:
    """An option's numbers; whole ones are given as int."""
    value = _plain(section.options.get(key, default))
    if isinstance(value, str) or not all(0 <= x <= _LARGEST for x in value):
        raise WeightsError(f"{where} has {key}={str(value)[:40]!r}, expected numbers of 0 or more")
    return tuple(int(x) if x == int(x) else x for x in value)


def _whole(section: Section, key: str, where: str, default: int) -> int:
    text = section.options.get(key, str(default))
    if not (text.isascii() and text.isdecimal() and len(text) < 11 and 0 < int(text) <= _LARGEST):
        raise WeightsError(f"{where} has {key}={text[:40]}, expected a whole number above 0")
    return int(text)


# ---- .weights


def convolutions(
    sections: Sequence[Section], name_of_file: str = "the .cfg"
) -> Iterator[Convolution]:
    """The convolutions of a network, whose channels follow from its layers. WeightsError for layers
    that YOLOv3 has not."""
    channels = [_whole(sections[0], "channels", f"{name_of_file}: [net]", 0)]  # after each layer
    for layer, section in enumerate(sections[1:]):
        where = f"{name_of_file}: layer {layer} [{section.kind[:40]}]"

        match section.kind:
            case "convolutional":
                size, features = (_whole(section, k, where, 1) for k in ("size", "filters"))
                if section.options.get("groups", "1") != "1":
                    raise WeightsError(f"{where} has groups, expected 1")
                norm = section.options.get("batch_normalize", "0") != "0"
                yield Convolution(layer, (features, channels[-1], size, size), norm)
                channels.append(features)
            case "route":
                channels.append(sum(_sources(section, "layers", channels, where)))
            case "shortcut":
                if (added := _sources(section, "from", channels, where)) != [channels[-1]]:
                    raise WeightsError(f"{where} adds {added} channels to {channels[-1]}")
                channels.append(channels[-1])
            case "maxpool" | "upsample" | "yolo":
                channels.append(channels[-1])
            case _:
                kinds = "convolutional, maxpool, upsample, route, shortcut or yolo"
                raise WeightsError(f"{where}: expected {kinds}")


def _sources(section: Section, key: str, channels: list[int], where: str) -> list[int]:
    """The channels of the layers that an option names by their numbers; -1 is the one before.
    channels: of the picture, and of each layer before this one."""
    found, layer = [], len(channels) - 1
    for text in section.options.get(key, "").split(","):
        is_number = text.isascii() and text.removeprefix("-").isdecimal() and len(text) < 11
        number = int(text) if is_number else layer
        number += layer if number < 0 else 0
        if not 0 <= number < layer:
            raise WeightsError(
                f"{where} has {key}={text[:40]}, expected the number of a layer before"
            )
        found.append(channels[number + 1])
    if sum(found) > _LARGEST:
        raise WeightsError(f"{where} has {sum(found)} channels, expected {_LARGEST} at most")
    return found


def read_weights(path: str | Path, sections: Sequence[Section]) -> Weights:
    """The arrays of a `.weights` whose network has these sections. WeightsError, which names file
    and layer, where the file is not exactly as long as they say."""
    path = Path(path)
    layers = list(convolutions(sections, str(path.with_suffix(".cfg"))))
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        version = struct.unpack("<3i", file.read(12).ljust(12, b"\xff"))
        if not all(0 <= number < 1000 for number in version):
            raise WeightsError(f"{path}: begins with {version}, expected a version below 1000")
        counter = _counter_size(version)
        seen = int.from_bytes(file.read(counter), "little")
        place = 12 + counter
        for layer in layers:  # in whole numbers: whatever a .cfg says, nothing is allocated
            place += 4 * sum(math.prod(shape) for shape in layer.arrays().values())
            if place > size:
                raise WeightsError(
                    f"{path}: {size} bytes, expected at least {place}: they end in layer "
                    f"{layer.layer} [convolutional], of shape {layer.shape}"
                )
        if place != size:
            raise WeightsError(f"{path}: {size} bytes, expected {place} for {len(layers)} layers")
        shapes = {name: shape for layer in layers for name, shape in layer.arrays().items()}
        arrays = {
            name: np.fromfile(file, "<f4", math.prod(shape)).reshape(shape)
            for name, shape in shapes.items()
        }
    return Weights(arrays, seen, version)


def write_weights(path: str | Path, sections: Sequence[Section], weights: Weights) -> None:
    """Write a `.weights` for the network of these sections, all of it or nothing. Arrays that its
    layers have not, such as torch's counters, are left out; WeightsError for those that are lacking
    or have another shape."""
    path, counter = Path(path), _counter_size(weights.version)
    data = [struct.pack("<3i", *weights.version), weights.seen.to_bytes(counter, "little")]
    for layer in convolutions(sections, str(path)):
        for name, shape in layer.arrays().items():
            found = np.shape(weights.arrays[name]) if name in weights.arrays else "missing"
            if found != shape:
                raise WeightsError(f"{path}: {name} is {found}, expected {shape}")
            data.append(np.asarray(weights.arrays[name], "<f4").tobytes())
    _write_whole(path, b"".join(data))


def read_darknet(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of NAME.weights, for whose network NAME.cfg lies beside it. WeightsError where
    they do not belong together."""
    path = Path(path)
    if path.suffix != ".weights" or not path.is_file():
        raise WeightsError(f"{path}: expected a file NAME.weights, with NAME.cfg beside it")
    return read_weights(path, read_cfg(path.with_suffix(".cfg"))).arrays


def _counter_size(version: tuple[int, int, int]) -> int:
    """Bytes of the number of pictures."""
    return 8 if 10 * version[0] + version[1] >= 2 else 4


def _write_whole(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
