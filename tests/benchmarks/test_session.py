"""One part's failure costs no other, every message is kept, and the files are whole whenever one looks."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import __main__ as session
from benchmarks.gpu import environment
from benchmarks.gpu.budget import CLOSING, PARTS, TOTAL, Part, allowance, lacking

INJECTED = """
import os, sys, time
from benchmarks.gpu.parts.notes import start

def main(job):
    what = job.words[0]
    job.notes.value("before", what)
    if what == "raises":
        raise ValueError("the reason | of it\\nin two lines")
    if what == "hangs":
        time.sleep(600)
    if what == "killed":
        os.kill(os.getpid(), 9)
    if what == "junk":
        job.notes.file.write_text("{ no JSON")
        os.write(1, b"\\xff\\xfe junk")
        sys.exit(3)
    if what == "partly":
        with job.notes.trying("a thing"):
            raise RuntimeError("not here")
    job.notes.row("a table", first_cell=1.5, second=float("nan"))

start(main)
"""


@pytest.fixture
def together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a session of injected parts; the results."""
    (tmp_path / "modules" / "injected").mkdir(parents=True)
    (tmp_path / "modules" / "injected" / "part.py").write_text(INJECTED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    monkeypatch.setattr("benchmarks.gpu.process.GRACE", 0.2)

    def run(*parts: Part, options: tuple[str, ...] = ()) -> dict[str, Any]:
        monkeypatch.setattr(session, "PARTS", parts)
        code = session.main(["-o", str(tmp_path / "out"), "--work", str(tmp_path / "work"), "--cpu", *options])
        results = json.loads((tmp_path / "out" / "results.json").read_text())
        assert code == (0 if all(p["status"] in ("ok", "left out") for p in results["parts"].values()) else 1)
        results["page"] = (tmp_path / "out" / "results.md").read_text()
        return results

    return run


def part(what: str, seconds: float = 20.0, least: float = 1.0, needs: tuple[str, ...] = ()) -> Part:
    return Part(what, "injected.part", (what,), seconds, least, f"a part that {what}", needs)


def test_each_way_to_fail_is_told_and_costs_no_other_part(together: Any) -> None:
    results = together(
        part("raises"), part("hangs", 4.0), part("killed"), part("junk"), part("partly"), part("works")
    )  # fmt: skip
    parts, page = results["parts"], results["page"]
    assert {name: p["status"] for name, p in parts.items() if name != "fill"} == {
        "raises": "failed", "hangs": "timed out", "killed": "failed", "junk": "failed", "partly": "ok", "works": "ok",
    }  # fmt: skip
    assert "ValueError: the reason | of it" in parts["raises"]["why"] and "ValueError: the reason | of it" in page
    assert parts["raises"]["found"]["values"] == {"before": "raises"}  # what was known before it failed
    assert "injected/part.py" in parts["hangs"]["why"]  # where it hung
    assert parts["killed"]["code"] == -9 and parts["junk"]["code"] == 3 and parts["junk"]["found"] == {}
    assert parts["partly"]["found"]["problems"] == ["a thing: RuntimeError: not here"]
    assert parts["works"]["found"]["tables"] == {"a table": [{"first cell": 1.5, "second": None}]}
    assert "not done: a thing: RuntimeError: not here" in page and "| 1.5 | - |" in page


def test_what_is_not_brought_and_what_there_is_no_time_for_is_left_out_and_said(together: Any) -> None:
    results = together(
        part("needs", needs=("engines-of-gold",)), part("works"), part("late", least=500.0), options=("--seconds", "60")
    )  # fmt: skip
    assert results["parts"]["needs"]["why"] == "engines-of-gold was not brought"
    assert results["parts"]["late"]["status"] == "left out" and "it needs 500" in results["parts"]["late"]["why"]
    assert results["parts"]["works"]["status"] == "ok"


def test_the_files_are_whole_after_every_part(together: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[set[str]] = []
    add = session.Results.add

    def adds(self: Any, name: str, **fields: Any) -> None:
        add(self, name, **fields)
        seen.append(set(json.loads((tmp_path / "out" / "results.json").read_text())["parts"]))

    monkeypatch.setattr(session.Results, "add", adds)
    together(part("works"), part("raises"))
    assert seen == [{"fill"}, {"fill", "works"}, {"fill", "works", "raises"}]


def test_an_environment_that_cannot_be_made_is_a_result_too(together: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(environment, "make", broken)
    results = together(part("works"))
    assert "the disk is full" in results["parts"]["environment"]["why"] and "works" not in results["parts"]


def test_the_parts_of_a_card_fit_into_nine_minutes_and_name_modules_that_exist() -> None:
    assert TOTAL == 9 * 60
    spent, started = 0.0, []
    for each in PARTS:  # every part taking all that it may
        if given := allowance(each, TOTAL - spent):
            started.append(each.name)
            spent += given
        assert importlib.util.find_spec(f"benchmarks.gpu.parts.{each.module}") is not None
    assert spent <= TOTAL - CLOSING
    assert started[:7] == [each.name for each in PARTS[:7]]  # the most precious are never squeezed out
    assert len({each.name for each in PARTS}) == len(PARTS)


def test_a_part_gets_what_is_left_or_nothing() -> None:
    one = part("works", seconds=30, least=10)
    assert allowance(one, 100) == 30 and allowance(one, 20 + CLOSING) == 20 and allowance(one, 9 + CLOSING) == 0
    assert lacking(part("x", needs=("a", "b")), {"b": 1}) == ["a"]
