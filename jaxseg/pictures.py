"""Pictures and videos as the commands that predict find, read and write them."""

import glob
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float32, UInt8
from ml_collections import ConfigDict

from jaxseg.config import resize_of
from jaxseg.data import transforms
from jaxseg.train.log import write_whole

PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v"}


def find_inputs(pattern: str, option: str = "--input") -> list[Path]:
    """The pictures and videos that a file, a folder or a glob pattern stands for, sorted.

    Raises FileNotFoundError, which names the option, where there is none.
    """
    path = Path(pattern)
    known = PICTURES | VIDEOS
    if path.is_dir():
        found = [p for p in path.iterdir() if p.suffix.lower() in known]
    else:
        found = [path] if path.is_file() else [Path(p) for p in glob.glob(pattern, recursive=True)]
        found = [p for p in found if p.is_file()]
    if not found:
        raise FileNotFoundError(f"{option}={pattern}: no picture or video there")
    return sorted(found)


def read_picture(path: Path) -> np.ndarray:
    """uint8 RGB [H W 3], turned as its EXIF says. ValueError where it cannot be read."""
    data = np.fromfile(path, np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if image is None:
        raise ValueError(f"{path}: not a readable picture")
    return image[..., ::-1]


def read_frames(path: Path) -> Iterator[np.ndarray]:
    """The RGB frames of a video."""
    capture = cv2.VideoCapture(str(path))
    while True:
        there, frame = capture.read()
        if not there:
            break
        yield frame[..., ::-1]
    capture.release()


def write_all(
    inputs: list[Path],
    output: Path,
    write: Callable[[Path], dict[str, Any]],
    classes: Sequence[str],
) -> list[dict[str, Any]]:
    """Write every input's prediction, and `predictions.json`, which lists what `write` says of
    them. One that fails is reported under "error" and the others go on.

    ValueError where two inputs would write the same files.
    """
    stems = [path.stem for path in inputs]
    for path in inputs:
        if stems.count(path.stem) > 1:
            raise ValueError(f"several inputs are called {path.stem}: their files would collide")
    output.mkdir(parents=True, exist_ok=True)
    results = []
    for path in inputs:
        try:
            result = write(path)
        except ValueError as error:
            result = {"error": str(error)}
        results.append({"input": str(path), **result})
    record = {"classes": list(classes), "predictions": results}
    write_whole(output / "predictions.json", json.dumps(record, indent=2) + "\n")
    return results


def rewrite_video(
    path: Path, output: Path, paint: Callable[[int, np.ndarray], np.ndarray]
) -> tuple[tuple[int, int], int]:
    """Write a video as an mp4, each frame painted anew; its (height, width), and how many there
    are. paint: (number from 1 on, frame) -> frame. ValueError where it cannot be read."""
    rate = cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FPS) or 25.0
    writer, size, count = None, (0, 0), 0
    for count, image in enumerate(read_frames(path), start=1):
        painted = paint(count, image)
        if writer is None:
            size = image.shape[:2]
            code = cv2.VideoWriter.fourcc(*"mp4v")
            writer = cv2.VideoWriter(str(output), code, rate, size[::-1])
        writer.write(np.ascontiguousarray(painted[..., ::-1]))
    if writer is None:
        raise ValueError(f"{path}: not a readable video")
    writer.release()
    return size, count


def on_canvas(
    image: UInt8[np.ndarray, "h w 3"], data: ConfigDict
) -> tuple[Float32[np.ndarray, "H W 3"], tuple[int, int]]:
    """A picture as evaluation sees it by `config.data`, normalised and with padding; and the
    (height, width) that it has there."""
    canvas, resize = tuple(data.image_size), resize_of(data)
    buckets = [tuple(size) for size in data.get("buckets") or ()]  # older runs have none
    if buckets:
        canvas = buckets[transforms.choose_bucket(image.shape[:2], buckets, resize)]
    return transforms.picture_on_canvas(image, canvas, resize)
