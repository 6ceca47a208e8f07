"""Results as one Markdown page: goals first, then every part's tables. Knows nothing of what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.gpu.goals import judged


def page(results: Mapping[str, Any]) -> str:
    """All of it, from whatever parts there are."""
    about, parts = results["about"], results["parts"]
    card = parts.get("machine", {}).get("found", {}).get("values", {}).get("card", "unknown card")
    lines = [f"# {card}, {about.get('date', '')}", ""]
    lines += [f"{name}: {_cell(value)}  " for name, value in about.items() if name not in ("date", "installed")]
    if about.get("device") == "cpu":
        lines += ["", "**Tried on a CPU with small sizes: the figures say that the code runs, and nothing of a card.**"]
    lines += ["", "## Goals", "", *_table(judged(results))]
    lines += ["", "## Parts", "", *_table([_summary(name, part) for name, part in parts.items()])]
    if about.get("installed"):
        rows = [{"brought": name, "what became of it": what} for name, what in about["installed"].items()]
        lines += ["", "## Installed", "", *_table(rows)]
    for name, part in parts.items():
        lines += _part(name, part)
    return "\n".join(lines) + "\n"


def _summary(name: str, part: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "part": name,
        "": part.get("status", "?"),
        "seconds": part.get("seconds"),
        "of": part.get("limit"),
        "about": part.get("about", ""),
    }


def _part(name: str, part: Mapping[str, Any]) -> list[str]:
    found = part.get("found") or {}
    values, tables = found.get("values") or {}, found.get("tables") or {}
    problems, why = found.get("problems") or [], part.get("why")
    if not (values or tables or problems or why):
        return []
    lines = ["", f"## {name}", ""]
    if why:
        lines += [f"{part.get('status')}:", "", "```", str(why).strip().replace("```", "'''"), "```", ""]
    lines += [f"- not done: {' '.join(str(problem).split())}" for problem in problems]
    lines += [f"- {key}: {_cell(value)}" for key, value in values.items()]
    for title, rows in tables.items():
        lines += ["", f"### {title}", "", *_table(rows)]
    return lines


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    if not columns:
        return ["nothing"]
    lines = [_row(columns), _row("---" for _ in columns)]
    return lines + [_row(_cell(row.get(column)) for column in columns) for row in rows]


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    return " ".join(str(value).split()).replace("|", "/")
