"""The page says what was reached, by how much it was missed, and what is not known."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu.goals import GOALS, judged
from benchmarks.gpu.report import page


def results(**values: dict[str, Any]) -> dict[str, Any]:
    parts = {name.replace("__", ": "): {"status": "ok", "found": {"values": of}} for name, of in values.items()}
    return {"about": {"date": "2026-11-28", "device": "cuda"}, "parts": parts}


def verdicts(found: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {row["goal"].split(",")[0] + row["goal"][-12:]: (row["reached"], row[""]) for row in judged(found)}


def test_goals_are_met_missed_by_a_ratio_or_not_known() -> None:
    told = judged(
        results(
            full__runtime={"clip seconds": 4.0, "transformer TFLOP/s": 350.0},
            full__eager={"clip seconds": 48.0},
            full__compiled={"clip seconds": 6.0},
            rates={"FP16 TFLOP/s": 700.0},
            copies={"bytes copied on the device a step, most": 0.0, "finished K/V, bytes": 1e9},
        )
    )
    rows = {row["goal"]: row for row in told}
    assert len(rows) == len(GOALS)
    eager, compiled, rate, *_ = told
    assert (eager["reached"], eager[""]) == ("12.00", "met")
    assert (compiled["reached"], compiled[""]) == ("1.50", "missed, at 0.75 of it")
    assert (rate["reached"], rate[""]) == ("0.50", "missed, at 0.71 of it")
    copied = rows["bytes copied on the device a step, of the finished K/V"]
    assert (copied["wanted"], copied["reached"], copied[""]) == ("<= 0", "0.0000", "met")
    memory = rows["memory, measured over planned, off by"]
    assert memory["reached"] == "-" and memory[""].startswith("not known: full: runtime has no 'memory")


def test_a_goal_of_at_most_is_missed_above_it() -> None:
    told = judged(
        results(
            head={"us a diffusion step, captured, modulations ahead": 9.0, "us to read the loop's weights once": 3.0},
            full__runtime={"memory measured, bytes": 104.0, "memory planned without the base, bytes": 100.0},
            copies={"bytes copied on the device a step, most": 5.0, "finished K/V, bytes": 0},
        )
    )
    by = {row["goal"]: row for row in told}
    assert by["head loop captured, modulations ahead: times the reading of its weights"][""] == "missed, at 1.50 of it"
    assert by["memory, measured over planned, off by"]["reached"] == "0.040"
    assert by["memory, measured over planned, off by"][""] == "met"
    assert by["bytes copied on the device a step, of the finished K/V"][""].startswith("not known")


def test_a_page_of_nothing_is_a_page() -> None:
    text = page({"about": {"date": "2026-11-28"}, "parts": {}})
    assert text.startswith("# unknown card, 2026-11-28") and "## Goals" in text and "nothing" in text


def test_cells_never_break_a_table_and_a_trial_on_a_cpu_says_so() -> None:
    found = results(machine={"card": "none", "odd": "a | b\nc"})
    found["about"]["device"] = "cpu"
    found["parts"]["machine"]["found"]["tables"] = {"t": [{"x": "1 | 2\n3", "y": True}, {"x": None, "z": 12345.6}]}
    text = page(found)
    assert "nothing of a card" in text and "- odd: a / b c" in text
    assert "| x | y | z |\n| --- | --- | --- |\n| 1 / 2 3 | yes | - |\n| - | - | 12,346 |" in text
