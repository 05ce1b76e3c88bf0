"""Predict: `python -m jaxseg.predict --workdir=RUN --input=FILE|FOLDER|GLOB|VIDEO --output=DIR`.

For each picture NAME: `NAME_overlay.png`, `NAME.png` (a palette PNG whose indices are the labels),
both of the picture's own size; for a video `NAME_overlay.mp4` and one mask a frame in `NAME/`.
`predictions.json` lists them, with each class's share of the pixels. Of a detector: see
`jaxseg.detect`.

Without a model, label maps that are at hand are refined by the dense CRF:
`python -m jaxseg.predict --crf --labels=MASKS --input=PICTURES --output=DIR`; see `jaxseg.refine`.
"""

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np

from jaxseg import cli, detect, pictures, refine, run
from jaxseg.crf import dense
from jaxseg.data import transforms
from jaxseg.pictures import VIDEOS, find_inputs, read_picture, write_all
from jaxseg.viz import draw

Segment = Callable[[np.ndarray], np.ndarray]  # uint8 [H W 3] -> labels, uint8 [H W]


def make_segment(opened: run.Run, predict: Callable, window: int = 0) -> Segment:
    """Labels for one RGB picture of any size.

    The picture is seen as in evaluation: on the config's `image_size` canvas, shrunk if it is
    larger. So all pictures share one compiled program. Probabilities are enlarged again before the
    decision. With a `window`, which `predict` works in, it is seen at its own size.
    """
    variables = jax.device_put(opened.variables)

    @jax.jit
    def probabilities(image):
        return predict(variables, image[None])["probabilities"][0]

    def segment(image: np.ndarray) -> np.ndarray:
        size = image.shape[:2]
        if window:
            sees = -(-size[0] // window) * window, -(-size[1] // window) * window
            seen, (height, width) = transforms.picture_on_canvas(image, sees)
        else:
            seen, (height, width) = pictures.on_canvas(image, opened.config.data)
        found = np.array(probabilities(seen))[:height, :width]
        return _enlarge(found, size).argmax(-1).astype(np.uint8)

    return segment


def _enlarge(probabilities: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[h w K] interpolated to [*size K]; OpenCV takes few channels at a time."""
    if probabilities.shape[:2] == tuple(size):
        return probabilities
    resize = partial(cv2.resize, dsize=size[::-1], interpolation=cv2.INTER_LINEAR)
    planes = [resize(probabilities[..., k]) for k in range(probabilities.shape[-1])]
    return np.stack(planes, axis=-1)


def predict_picture(path: Path, output: Path, segment: Segment, info: run.Info) -> dict[str, Any]:
    """Write one picture's mask and overlay; what to say of them in `predictions.json`."""
    image = read_picture(path)
    labels = segment(image)
    mask, overlay = output / f"{path.stem}.png", output / f"{path.stem}_overlay.png"
    draw.write_indexed_png(mask, labels, info.palette)
    draw.write_png(overlay, draw.overlay(image, labels, info.palette))
    counts = np.bincount(labels.ravel(), minlength=len(info.classes))
    return {
        "size": list(image.shape[:2]),
        "mask": mask.name,
        "overlay": overlay.name,
        "classes": _shares(counts, info),
    }


def predict_video(path: Path, output: Path, segment: Segment, info: run.Info) -> dict[str, Any]:
    """Write a video's overlay and a mask a frame; what to say of them in `predictions.json`."""
    folder, overlay = output / path.stem, output / f"{path.stem}_overlay.mp4"
    totals = np.zeros(len(info.classes), np.int64)

    def paint(number: int, image: np.ndarray) -> np.ndarray:
        labels = segment(image)
        folder.mkdir(exist_ok=True)
        draw.write_indexed_png(folder / f"{number:06d}.png", labels, info.palette)
        totals[:] += np.bincount(labels.ravel(), minlength=len(totals))
        return draw.overlay(image, labels, info.palette)

    size, count = pictures.rewrite_video(path, overlay, paint)
    return {
        "size": list(size),
        "frames": count,
        "masks": folder.name,
        "overlay": overlay.name,
        "classes": _shares(totals, info),
    }


def label_all(
    inputs: list[Path], output: Path, segment_of: Callable[[Path], Segment], info: run.Info
) -> list[dict[str, Any]]:
    """Predict labels for every input. segment_of: input -> how to segment it."""

    def write(path: Path) -> dict[str, Any]:
        of_kind = predict_video if path.suffix.lower() in VIDEOS else predict_picture
        return of_kind(path, output, segment_of(path), info)

    return write_all(inputs, output, write, info.classes)


def _shares(counts: np.ndarray, info: run.Info) -> dict[str, float]:
    """Each class's share of the pixels."""
    return dict(zip(info.classes, (counts / counts.sum()).tolist(), strict=True))


def predict_by_run(options: Namespace, inputs: list[Path]) -> list[dict[str, Any]]:
    """Predict with a trained model, as the command's options say."""
    opened = run.open_run(options.workdir, which=options.checkpoint)
    predict, _ = cli.careful(opened.model.predict, options, opened.config)
    if run.is_detection(opened.config):
        return detect.detect_all(opened, inputs, options.output, options.threshold)
    segment = make_segment(opened, predict, options.window)
    return label_all(inputs, options.output, lambda path: segment, opened.info)


def refine_labels(options: Namespace, inputs: list[Path]) -> list[dict[str, Any]]:
    """Refine label maps, as the command's options say."""
    masks = refine.match_masks(inputs, find_inputs(options.labels, "--labels"))
    by_colour = options.by_colour
    info = refine.describe_masks(
        [*masks.values()], num_classes=options.num_classes, by_colour=by_colour
    )
    settings = dense.settings_of(cli.crf_settings(options.crf, {}) or {}, "--crf")
    refined = refine.make_refine(info, options.confidence, settings, by_colour=by_colour)

    def segment_of(path: Path) -> Segment:
        if path.suffix.lower() in VIDEOS:
            raise ValueError(f"{path}: --labels are for pictures, not for videos")
        if path not in masks:
            raise ValueError(f"{path}: there is no mask {path.stem} in --labels={options.labels}")
        return lambda image: refined(image, masks[path])

    return label_all(inputs, options.output, segment_of, info)


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.make_parser(__doc__, workdir_needed=False)
    parser.add_argument("--input", required=True, help="a picture, video, folder or pattern")
    parser.add_argument("--output", type=Path, required=True, help="the folder to write to")
    cli.add_care_options(parser)
    parser.add_argument(
        "--threshold", type=float, default=0.5, help="score from which a detection is drawn"
    )
    parser.add_argument("--labels", help="with --crf: a mask, folder or pattern; no model is used")
    parser.add_argument(
        "--confidence", type=float, default=0.7, help="probability of the --labels, where known"
    )
    parser.add_argument("--num-classes", type=int, help="of the --labels, else as many as occur")
    parser.add_argument(
        "--by-colour",
        action="store_true",
        help="take palette PNGs of --labels by their colours: black is unknown",
    )
    options = parser.parse_args(argv)
    if options.labels and (options.crf in (None, "none") or options.workdir):
        parser.error("--labels are refined by --crf, without a --workdir")
    if not options.labels and not options.workdir:
        parser.error("expected --workdir, or --crf and --labels")
    with cli.told_errors():
        inputs = find_inputs(options.input)
        results = (refine_labels if options.labels else predict_by_run)(options, inputs)
    failed = [result for result in results if "error" in result]
    print(f"{len(results) - len(failed)} of {len(results)} written to {options.output}")
    if failed:
        sys.exit("\n".join(f"error: {result['error']}" for result in failed))


if __name__ == "__main__":
    main()
