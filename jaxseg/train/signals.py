"""Stopping cleanly: Ctrl-C and SIGTERM ask, the loop answers between two steps."""

import signal
from types import FrameType

import numpy as np
from jax import process_count
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """A stop was asked for in the middle of something that can be done again."""


class StopRequest:
    """Within its context, the first signal only takes note; a second Ctrl-C interrupts at once."""

    def __init__(self):
        self._asked = False

    def __enter__(self) -> "StopRequest":
        self._previous = {number: signal.signal(number, self._take) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True

    def check(self) -> None:
        """Raise Stopped if a stop was asked for; not with several processes, which stay in step."""
        if self._asked and process_count() == 1:
            raise Stopped

    def agreed(self, step: int, every: int) -> bool:
        """Whether to stop now; several processes ask each other every `every` steps."""
        if process_count() == 1:
            return self._asked
        if step % every:
            return False
        return bool(multihost_utils.process_allgather(np.array(self._asked)).any())
