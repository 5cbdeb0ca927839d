"""Progress of long work on a terminal: one live line; elsewhere (a pipe, a log file) plain lines, a few per stage."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

# A log gets a line this often at most.
_LOG_EVERY_SEC = 10.0


# Called as work goes on, as (stage, done, total): `done` of `total` units of `stage` are complete. The first call of a stage may have done = 0.
OnProgress = Callable[[str, int, int], None]


class ProgressLine:
    """Prints the progress of each stage, with its speed and the time left.

    Speed is measured from the second report of a stage on, since the time before includes compilation.
    """

    def __init__(self, stream=None, *, unit: str = "tokens", clock=time.monotonic):
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream.isatty()
        self._unit = unit
        self._clock = clock
        self._stage = None
        self._width = 0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = self._clock()
        if stage != self._stage:
            self._stage = stage
            self._began = self._logged = now
            self._base = None
        if done >= total:
            elapsed = now - self._began
            speed = f" ({total / elapsed:.0f} {self._unit}/s)" if elapsed > 0 else ""
            self._print(f"{stage:<12} {total} {self._unit} in {elapsed:.1f} s{speed}", last=True)
            self._stage = None
            return
        if done and self._base is None:
            self._base = (now, done)
        line = f"{stage:<12} {done}/{total} {self._unit}"
        if self._base and done > self._base[1] and now > self._base[0]:
            speed = (done - self._base[1]) / (now - self._base[0])
            line += f", {speed:.0f} {self._unit}/s, {(total - done) / speed:.0f} s left"
        if self._live:
            self._print(line, last=False)
        elif now - self._logged >= _LOG_EVERY_SEC:
            self._logged = now
            self._print(line, last=True)

    def _print(self, line: str, *, last: bool) -> None:
        if self._live:
            line = "\r" + line.ljust(self._width)
            self._width = 0 if last else len(line) - 1
        self._stream.write(line + ("\n" if last else ""))
        self._stream.flush()

    def clear(self) -> None:
        """Ends a line that is still open, before other text is printed."""
        if self._width:
            self._stream.write("\r" + " " * self._width + "\r")
            self._stream.flush()
            self._width = 0
