"""What a run writes down: a progress bar, `metrics.jsonl`, `scores.json`, pictures, TensorBoard.

`metrics.jsonl` has one JSON object a line, `step` first. Everything that depends on the clock is
under the key "time"; the rest is identical for identical runs, also for those that were
interrupted: resuming at a step drops what an earlier life wrote after it.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm


class Log:
    """The open records of one run; silent with `folder=None` (all processes but the first)."""

    def __init__(self, folder: Path | None, steps: int, *, done: int, evaluated: int):
        """done: the step to go on from; evaluated: the last step whose evaluation it knows."""
        self._folder = folder
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        keep_lines(folder / "metrics.jsonl", done, evaluated)
        self._lines = (folder / "metrics.jsonl").open("a")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)
        interval = 0.5 if sys.stderr.isatty() else 30.0
        self._bar = tqdm(
            total=steps, initial=done, unit="step", mininterval=interval, dynamic_ncols=True
        )

    def advance(self, **shown: Any) -> None:
        """One more step on the bar."""
        if self._folder is not None:
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update()

    def say(self, text: str) -> None:
        """A line for people, above the bar."""
        if self._folder is not None:
            self._bar.clear()
            print(text, flush=True)

    def means(self, step: int, values: dict[str, float], time: dict[str, float]) -> None:
        """Training's means: a line of metrics.jsonl, and TensorBoard scalars."""
        self._write({"step": step, **values, "time": time})
        self._scalars("train", step, {**values, **time})

    def scores(self, step: int, split: str, scores: dict[str, float], table: str) -> None:
        """A full evaluation: a line of metrics.jsonl with its `split`, and `scores.json`,
        `scores.txt`, the latest."""
        self._write({"step": step, "split": split, **scores})
        self._scalars(split, step, scores)
        if self._folder is not None:
            write_scores(self._folder, step, split, scores, table)
        told = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
        self.say(f"step {step}, {split}: {told}")

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """`pictures/NAME.png` (the latest) and a TensorBoard panel. picture: uint8 [H W 3]."""
        if self._folder is not None:
            write_picture(self._folder, name, picture)
            self._board.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        if self._folder is not None:
            self._bar.close()
            self._lines.close()
            self._board.close()

    def _write(self, line: dict[str, Any]) -> None:
        if self._folder is not None:
            self._lines.write(json.dumps(line) + "\n")
            self._lines.flush()

    def _scalars(self, group: str, step: int, values: dict[str, float]) -> None:
        if self._folder is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{group}/{name}", value, step)


def write_scores(
    folder: Path, step: int, split: str, scores: dict[str, float], table: str, **options: Any
) -> None:
    """`scores.json` and `scores.txt`, the latest full evaluation of a run."""
    record = {"step": step, "split": split, **scores, **options}
    write_whole(folder / "scores.json", json.dumps(record, indent=2) + "\n")
    write_whole(folder / "scores.txt", table + "\n")


def write_picture(folder: Path, name: str, picture: np.ndarray) -> None:
    """`pictures/NAME.png` of a run. picture: uint8 [H W 3]."""
    (folder / "pictures").mkdir(exist_ok=True)
    png = cv2.imencode(".png", picture[..., ::-1])[1].tobytes()
    write_whole(folder / "pictures" / f"{name}.png", png)


def keep_lines(path: Path, done: int, evaluated: int) -> None:
    """Keep the whole lines of a metrics file up to the step `done`, and its evaluations up to the
    step `evaluated`: the others will be written again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        if not line.endswith("\n"):
            break
        values = json.loads(line)
        if values["step"] <= (evaluated if "split" in values else done):
            kept.append(line)
    write_whole(path, "".join(kept))


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)
