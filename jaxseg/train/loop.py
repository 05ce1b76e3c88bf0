"""The loop: steps, records, evaluations, checkpoints; it can be killed anywhere and goes on.

A run is a sequence of states, and what happens at a state depends on its step alone. So a run that
was killed, and started again from its last checkpoint, repeats the same steps, writes the same
lines, and ends with the same numbers, bit for bit.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxseg.train.checkpoint import Checkpoints
from jaxseg.train.log import Log
from jaxseg.train.mesh import Parallel
from jaxseg.train.signals import Stopped, StopRequest
from jaxseg.train.step import Report, State, variables_of
from jaxseg.types import Batch, Variables


class NonFiniteError(FloatingPointError):
    """A loss or a gradient was not finite."""


class Scored(NamedTuple):
    """What an evaluation gives the loop."""

    split: str
    scores: dict[str, float]
    table: str  # for people
    pictures: dict[str, np.ndarray]  # uint8 [H W 3]
    counts: Any = None  # the task's, that all of it is made from


def train(
    *,
    step: Callable[[State, Batch], tuple[State, Report]],
    state: State,
    batches: Callable[[int], Iterator[Batch]],
    evaluate: Callable[[Variables, Callable[[], None]], Scored],
    schedule: Callable[[int], Any],
    parallel: Parallel,
    config: Any,
    workdir: Path,
) -> State | None:
    """Go from the last checkpoint in `workdir`, or from `state`, to `config.steps`.

    step: the pure step; state: the first, on the host; batches: step -> this process's rows of
    every batch from there on; evaluate: (variables on the host, check) -> Scored, which calls
    `check` now and then; schedule: learning rate by step, for the log.

    Gives the last state, on the host, or None where a signal stopped the run before: then it is
    saved, and the same call goes on. Raises NonFiniteError after more than
    `config.max_skipped_steps` steps whose loss or gradient was not finite.
    """
    checkpoints = Checkpoints(workdir / "checkpoints", config.keep_checkpoints)
    restored = checkpoints.restore(state)
    notes: dict[str, Any] = {"evaluated": -1, "best": None, "window": {}}
    if restored is not None:
        state, notes = restored
    done = int(state.step)

    folder = workdir if jax.process_index() == 0 else None
    log = Log(folder, config.steps, done=done, evaluated=notes["evaluated"])
    meter = Meter(notes["window"], config.data.batch_size)
    if restored is not None:
        log.say(f"resumed at step {done}")
    compiled, device_state = parallel.compile(step), parallel.put_state(state)
    reader = batches(done)
    pending = None  # (step, report) still being computed

    def settle() -> None:
        """Take in the pending report. That is one step late, so that the devices have their next
        work before the host waits for them."""
        nonlocal pending
        if pending is None:
            return
        (number, report), pending = pending, None
        report = parallel.fetch(report)
        values = {name: float(mean.value()) for name, mean in report.losses.items()}
        values["gradient_norm"] = float(report.gradient_norm)
        if report.finite:
            meter.add(values)
        else:
            skipped = int(report.skipped)
            told = f"step {number} is not finite: " + ", ".join(
                f"{name} {value}" for name, value in values.items()
            )
            if skipped > config.max_skipped_steps:
                raise NonFiniteError(f"{told}; nothing was changed by it (max_skipped_steps)")
            log.say(f"{told}; skipped, number {skipped} of {config.max_skipped_steps}")
        log.advance(**{**values, **meter.rates()})
        if number % config.log_every == 0:
            means, times = meter.lap()
            log.means(number, {**means, "learning_rate": float(schedule(number - 1))}, times)

    def is_due(every: int) -> bool:
        return done == config.steps or (every > 0 and done > 0 and done % every == 0)

    try:
        with StopRequest() as request:
            while True:
                improved = False
                if is_due(config.eval_every) and notes["evaluated"] < done:
                    settle()
                    try:
                        with meter.pause():
                            variables = variables_of(parallel.fetch(device_state))
                            scored = evaluate(variables, request.check)
                    except Stopped:
                        pass  # the next life evaluates
                    else:
                        score = _score(scored, config.best_metric)
                        improved = notes["best"] is None or score > notes["best"]
                        notes |= {"evaluated": done, "best": score if improved else notes["best"]}
                        _record(log, done, scored)
                stop = request.agreed(done, config.log_every)
                if improved or stop or is_due(config.checkpoint_every):
                    settle()
                    with meter.pause():
                        notes["window"] = dict(meter.window)
                        checkpoints.save(parallel.fetch(device_state), notes, best=improved)
                if stop or done >= config.steps:
                    break
                with meter.wait():
                    batch = parallel.put_batch(next(reader))
                device_state, report = compiled(device_state, batch)
                settle()
                done += 1
                pending = done, report
        checkpoints.wait()
        if done < config.steps or notes["evaluated"] < done:
            log.say(f"stopped at step {done}, saved; the same command goes on from there")
            return None
        return parallel.fetch(device_state)
    finally:
        if hasattr(reader, "close"):
            reader.close()
        checkpoints.close()
        log.close()


def _score(scored: Scored, name: str) -> float:
    if name not in scored.scores:
        raise ValueError(f"best_metric is {name!r}, expected one of {', '.join(scored.scores)}")
    return scored.scores[name]


def _record(log: Log, step: int, scored: Scored) -> None:
    log.scores(step, scored.split, scored.scores, scored.table)
    for name, picture in scored.pictures.items():
        log.picture(step, name, picture)


class Meter:
    """Sums of what steps report, and where the time goes. `window` belongs to a checkpoint, so that
    means do not depend on where a run was interrupted."""

    def __init__(self, window: dict[str, list], batch_size: int):
        self.window = dict(window)  # name -> [sum, count] since the last lap
        self._batch_size = batch_size
        self._restart()

    def add(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            total, count = self.window.get(name, (0.0, 0))
            self.window[name] = [total + value, count + 1]
        self._steps += 1

    def rates(self) -> dict[str, float]:
        """Images a second, and the share of the time spent waiting for data."""
        seconds = max(time.perf_counter() - self._start - self._paused, 1e-9)
        images = self._steps * self._batch_size / seconds
        return {"images_per_second": round(images, 2), "waiting": round(self._waited / seconds, 4)}

    def lap(self) -> tuple[dict[str, float], dict[str, float]]:
        """(means since the last lap, times since then), and begin anew."""
        means = {name: total / count for name, (total, count) in self.window.items()}
        rates = self.rates()
        self.window = {}
        self._restart()
        return means, rates

    def wait(self) -> "_Stopwatch":
        return _Stopwatch(self, "_waited")

    def pause(self) -> "_Stopwatch":
        return _Stopwatch(self, "_paused")

    def _restart(self) -> None:
        self._start, self._steps, self._waited, self._paused = time.perf_counter(), 0, 0.0, 0.0


class _Stopwatch:
    """Adds the seconds of its context to a field of a meter."""

    def __init__(self, meter: Meter, field: str):
        self._meter, self._field = meter, field

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_) -> None:
        seconds = time.perf_counter() - self._start
        setattr(self._meter, self._field, getattr(self._meter, self._field) + seconds)
