"""How far a command is: estimates that hold, one line every so often without a terminal, nothing where nobody asked."""

from __future__ import annotations

import io
import logging
import sys

import numpy as np
import pytest

from videomar.console import saying
from videomar.progress import Progress, spelled


class Clock:
    """Time that passes when told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_time_left_is_within_30_percent_from_a_tenth_of_the_way_on() -> None:
    """A first step that takes as long as twenty (loading), and steps that vary by a third."""
    clock, seconds = Clock(), np.random.default_rng(0).uniform(0.67, 1.33, 200)
    seconds[0] = 20
    progress = Progress(len(seconds), clock)
    for index, step in enumerate(seconds):
        clock.now += step
        progress.step("working")
        left, true = progress.left(), seconds[index + 1 :].sum()
        if index + 1 < 0.05 * len(seconds):
            assert left is None
        elif 0.1 <= (index + 1) / len(seconds) <= 0.97:
            assert left is not None and abs(left / true - 1) < 0.3


def test_the_time_left_counts_down_while_a_long_piece_is_under_way() -> None:
    clock = Clock()
    progress = Progress(clock=clock)
    for done in (0, 10, 20):
        progress.at("tracing", done, 100)
        clock.now += 10
    assert progress.left() == pytest.approx(70)
    clock.now += 30
    assert progress.left() == pytest.approx(40)
    clock.now += 100
    assert progress.left() == 0


def test_another_stage_begins_anew() -> None:
    clock = Clock()
    progress = Progress(clock=clock)
    for done in range(1, 11):
        clock.now += 9
        progress.at("slow", done, 10)
    for done in range(1, 51):
        clock.now += 1
        progress.at("quick", done, 100)
    assert progress.left() == pytest.approx(50)


def test_work_of_unknown_length_promises_nothing() -> None:
    clock = Clock()
    progress = Progress(clock=clock)
    for _ in range(100):
        clock.now += 1
        progress.step("searching")
    assert progress.left() is None


def test_without_a_terminal_there_is_a_line_every_so_often(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with saying(), Progress(100, clock) as progress:
        for _ in range(100):
            clock.now += 1
            progress.step("exporting")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "exporting: 10%, 10 s passed, about 1 min 30 s left"
    assert lines[1:] == [f"exporting: {s}%, {spelled(s)} passed, about {spelled(100 - s)} left" for s in (40, 70, 100)]


def test_another_stage_is_told_sooner(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with saying(), Progress(clock=clock) as progress:
        for index, stage in enumerate(("loading", "exporting", "checking", "checking")):
            clock.now += 11
            progress.at(stage, index, 4)
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == ["loading", "exporting", "checking"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_a_bar_that_goes_and_says_each_thing_once(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, clock = Terminal(), Clock()
    monkeypatch.setattr(sys, "stderr", screen)
    with saying(), Progress(4, clock) as progress:
        progress._bar.delay = 0
        for _ in range(4):
            clock.now += 1
            progress._bar.last_print_t = 0  # as if long ago
            progress.step("latent frame 1 of 2")
    shown = screen.getvalue().split("\r")
    assert any("latent frame 1 of 2   75%|" in line and "3 s passed, about 1 s left" in line for line in shown)
    assert "::" not in screen.getvalue() and ": :" not in screen.getvalue()
    assert not shown[-1].strip()  # gone in the end


def test_who_uses_the_library_or_asks_for_quiet_sees_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    for quiet in (None, True):
        with saying(quiet=True) if quiet else Progress(1):
            progress = Progress(2, clock)
            clock.now += 100
            progress.step("x")
    assert capsys.readouterr() == ("", "")
    assert not logging.getLogger("videomar.command").handlers


class Full(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError("No space left on device")


def test_a_log_that_cannot_be_written_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Full())
    clock = Clock()
    with saying(), Progress(2, clock) as progress:
        clock.now += 100
        progress.step("x")


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (185, "3 min 5 s"), (7450, "2 h 4 min")]
)
def test_durations_are_spelled_for_people(seconds: float, said: str) -> None:
    assert spelled(seconds) == said
