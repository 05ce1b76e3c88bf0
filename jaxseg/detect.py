"""Detection by `python -m jaxseg.predict`, where a run's task is detection.

For each picture NAME: `NAME_overlay.png`, of the picture's own size, with boxes, masks and
skeletons of what scores `--threshold` or more; for a video `NAME_overlay.mp4`, which shows how many
frames a second are detected. `predictions.json` lists them, with how many objects of each class
were drawn. `detections.json` holds all detections
in pictures, whatever they score, in COCO's results format: category_id is the label, and image_id
the picture's name where all names are numbers, as COCO's are, or else its position in
`predictions.json`.
"""

import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxseg import run
from jaxseg.metrics import coco
from jaxseg.metrics.records import Record
from jaxseg.pictures import VIDEOS, on_canvas, read_picture, rewrite_video, write_all
from jaxseg.tasks import detection
from jaxseg.train.log import write_whole
from jaxseg.viz import draw
from jaxseg.viz.objects import write_texts

RECENT = 25  # frames whose mean rate is shown

Detect = Callable[[np.ndarray], Record]  # uint8 [H W 3] -> what is in it, in its pixels


def make_detect(opened: run.Run) -> Detect:
    """Detections in one RGB picture of any size, which is seen as in evaluation."""
    variables = jax.device_put(opened.variables)

    @jax.jit
    def predict(image):
        found = opened.model.predict(variables, image[None])
        return {name: found[name][0] for name in detection.OF_OBJECTS if name in found}

    def detect(image: np.ndarray) -> Record:
        seen, seen_size = on_canvas(image, opened.config.data)
        found = jax.tree.map(np.asarray, predict(seen))
        return detection.to_record(found, np.array(seen_size), image.shape[:2])

    return detect


def number_pictures(inputs: Sequence[Path]) -> dict[Path, int]:
    """The image_id of each input: its name, where all pictures have different numbers for names,
    or else its position."""
    names = [path.stem for path in inputs if path.suffix.lower() not in VIDEOS]
    if all(name.isdecimal() for name in names) and len({*map(int, names)}) == len(names):
        return {path: int(path.stem) for path in inputs if path.stem in names}
    return {path: position for position, path in enumerate(inputs)}


def draw_rate(image: np.ndarray, rate: float) -> np.ndarray:
    """The picture, with a rate in its upper left corner."""
    frame = np.array([[0, 0, *image.shape[1::-1]]], np.float32)
    return write_texts(image, frame, np.zeros((1, 3), np.uint8), [f"{rate:.1f} frames/s"])


def detect_all(
    opened: run.Run, inputs: list[Path], output: Path, threshold: float
) -> list[dict[str, Any]]:
    """Write the drawings and the two lists (see above), whose first is given back."""
    detect, info, image_ids = make_detect(opened), opened.info, number_pictures(inputs)
    detections: list[dict[str, Any]] = []

    def paint(image: np.ndarray, record: Record) -> tuple[np.ndarray, Counter[str]]:
        shown = detection.above(record, threshold)
        counts = Counter(info.classes[label] for label in shown["labels"])
        return detection.draw_record(image, shown, info), counts

    def write_picture(path: Path) -> dict[str, Any]:
        image = read_picture(path)
        record = detect(image)
        detections.extend(coco.results(record, image_ids[path]))
        painted, counts = paint(image, record)
        overlay = output / f"{path.stem}_overlay.png"
        draw.write_png(overlay, painted)
        return {
            "size": list(image.shape[:2]),
            "image_id": image_ids[path],
            "overlay": overlay.name,
            "objects": counts,
        }

    def write_video(path: Path) -> dict[str, Any]:
        overlay, totals = output / f"{path.stem}_overlay.mp4", Counter[str]()
        seconds: list[float] = []

        def paint_frame(number: int, image: np.ndarray) -> np.ndarray:
            if number == 1:
                detect(image)  # compiles
            start = time.perf_counter()
            record = detect(image)
            seconds.append(time.perf_counter() - start)
            painted, counts = paint(image, record)
            totals.update(counts)
            return draw_rate(painted, 1 / statistics.mean(seconds[-RECENT:]))

        size, count = rewrite_video(path, overlay, paint_frame)
        return {
            "size": list(size),
            "frames": count,
            "frames_per_second": 1 / statistics.mean(seconds),
            "overlay": overlay.name,
            "objects": totals,
        }

    def write(path: Path) -> dict[str, Any]:
        return (write_video if path.suffix.lower() in VIDEOS else write_picture)(path)

    results = write_all(inputs, output, write, info.classes)
    write_whole(output / "detections.json", json.dumps(detections) + "\n")
    return results
