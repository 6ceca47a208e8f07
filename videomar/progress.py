"""How far a command is: a bar on a terminal, elsewhere a line every so often, both with the time that is left.

The time left is what the rest takes at the mean rate so far. What the first piece of work took is left out of that
(loading, encoding, first touches), and nothing is said before a twentieth is done: until then it would be a guess.
While a long piece is under way, it counts down.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from videomar.console import log

DELAY, TICK = 1.0, 1.0  # seconds until a bar, and until it is drawn again though nothing is finished
FIRST, EVERY = 10.0, 30.0  # seconds until a line, where there is no terminal: of another stage, of the same one
_FORM = "{desc}{percentage:3.0f}%|{bar}| {postfix}"


class Progress:
    """What is done of how much, in any unit, as long as it goes with time; a context manager.

    Pieces of unlike length are counted by what each is expected to take.
    """

    def __init__(self, total: float = 0, clock: Callable[[], float] = time.monotonic) -> None:
        """total: of `step`; 0 where only `at` is used, or where nobody knows."""
        self._clock, self._began = clock, clock()
        self._total, self._done, self._doing = total, 0.0, ""
        self._told = self._began  # when the last piece was finished
        self._base: tuple[float, float] | None = None  # done and time after the first piece of work
        self._bar: Any = None
        self._over, self._drawing = threading.Event(), threading.Lock()
        self._said, self._said_doing = self._began, ""
        if log.isEnabledFor(logging.INFO) and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total or None, leave=False, delay=DELAY, miniters=0)

    def step(self, doing: str = "", amount: float = 1) -> None:
        """So much more is done, and this is going on."""
        self.at(doing or self._doing, self._done + amount, self._total)

    def at(self, doing: str, done: float, total: float = 0) -> None:
        """So much is done in all, and this is going on; less than before: another stage."""
        now = self._clock()
        with self._drawing:
            if done < self._done:
                self._base, self._began = None, now
            if self._base is None and done > 0:
                self._base = done, now
            self._doing, self._done, self._total, self._told = doing, done, total, now
        if self._bar is not None:
            self._draw()
        elif now - self._said >= (FIRST if doing != self._said_doing else EVERY):
            self._said, self._said_doing = now, doing
            share = f" {done / total:.0%}," if total else ""
            log.info("%s:%s %s", doing, share, self._times(now))

    def left(self) -> float | None:
        """Seconds that the rest takes; None as long as that is a guess."""
        if self._base is None or not self._total or self._done < 0.05 * self._total or self._done <= self._base[0]:
            return None
        rate = (self._done - self._base[0]) / max(self._told - self._base[1], 1e-9)
        return max(0.0, (self._total - self._done) / rate - (self._clock() - self._told))

    def write(self, line: str) -> None:
        """A line on standard output, above the bar."""
        if self._bar is None:
            print(line, flush=True)
        else:
            self._bar.write(line)

    def _draw(self) -> None:
        with self._drawing:
            done, total = self._done, self._total
            self._bar.total, self._bar.n = total or None, min(done, total) if total else 0
            self._bar.bar_format = _FORM if total else "{desc}{postfix}"
            self._bar.set_postfix_str(self._times(self._clock()), refresh=False)
            self._bar.set_description_str(f"{self._doing}  ", refresh=False)
            self._bar.update(0)

    def _keep_drawing(self) -> None:
        while not self._over.wait(TICK):
            self._draw()

    def _times(self, now: float) -> str:
        left = self.left()
        return f"{spelled(now - self._began)} passed" + (f", about {spelled(left)} left" if left is not None else "")

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._ticking = threading.Thread(target=self._keep_drawing, daemon=True)
            self._ticking.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._bar is not None:
            self._ticking.join()
            self._bar.close()


def spelled(seconds: float) -> str:
    """A duration for people: 42 s, 3 min 5 s, 2 h 4 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"
