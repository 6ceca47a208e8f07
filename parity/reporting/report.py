"""The results as one HTML page that needs nothing but itself: no script, no network, dark on light, printable.

Knows how it looks. Knows nothing of how anything was measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from videomar.graphs import GRAPHS
from videomar.parity.comparing.ladder import Shown
from videomar.parity.comparing.results import Data
from videomar.parity.comparing.table import MEASURES, TITLES, gate_text, number
from videomar.parity.reporting.charts import frames_strip
from videomar.parity.reporting.drawing import ACCENT, BAD, FONT, INK, MUTED, RULE, to_svg
from videomar.parity.reporting.extras import extra_sections
from videomar.parity.reporting.views import drift_map, forced_lines, psnr_lines, z_map
from videomar.tolerances import CLIP, FORCED, RUNGS, TASK

COLUMNS = ("rung", "cosine", "relative L2", "largest diff.", "PSNR", "gate", "where it is worst")
STYLE = f"""
:root {{ color-scheme: light; }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: #fff; color: {INK}; font: 15px/1.5 {FONT}; font-variant-numeric: tabular-nums; }}
main {{ max-width: 1168px; margin: 0 auto; padding: 48px 32px 64px; }}
header p {{ margin: 0; color: {MUTED}; }}
h1 {{ font-size: 30px; line-height: 1.25; font-weight: 650; letter-spacing: -0.01em; margin: 4px 0 24px; }}
h2 {{ font-size: 20px; font-weight: 650; margin: 56px 0 4px; }}
h3 {{ font-size: 13px; font-weight: 600; margin: 32px 0 8px; }}
p.note {{ margin: 0 0 16px; color: {MUTED}; }}
.verdict {{ border-left: 4px solid {ACCENT}; padding: 8px 0 8px 16px; margin: 0 0 12px; }}
.verdict.missed {{ border-color: {BAD}; }}
.verdict b {{ display: block; font-weight: 650; color: {ACCENT}; }}
.verdict.missed b {{ color: {BAD}; }}
code {{ font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }}
.verdict code {{ display: block; margin-top: 8px; overflow-wrap: anywhere; }}
table {{ border-collapse: collapse; width: 100%; margin: 16px 0 24px; font-size: 14px; }}
th {{ text-align: left; font-weight: 600; color: {MUTED}; font-size: 12px; }}
th, td {{ padding: 8px 16px 8px 0; border-bottom: 1px solid {RULE}; vertical-align: top; }}
td.n, th.n {{ text-align: right; white-space: nowrap; }}
td small {{ display: block; color: {MUTED}; }}
.ok {{ color: {ACCENT}; }} .no {{ color: {BAD}; font-weight: 650; }} .na {{ color: {MUTED}; }}
.pair {{ display: grid; grid-template-columns: 1fr 1fr; gap: 32px 24px; margin-top: 24px; }}
svg {{ max-width: 100%; height: auto; display: block; font-family: {FONT}; }}
.wide {{ margin-top: 32px; }}
dl {{ display: grid; grid-template-columns: 160px 1fr; gap: 4px 16px; font-size: 13px; margin: 8px 0; }}
dt {{ color: {MUTED}; }} dd {{ margin: 0; overflow-wrap: anywhere; }}
details {{ margin-top: 24px; }} summary {{ cursor: pointer; color: {MUTED}; }}
pre {{ font: 12px/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-x: auto; }}
@media (max-width: 800px) {{ .pair {{ grid-template-columns: 1fr; }} main {{ padding: 24px 16px; }} }}
@media (max-width: 640px) {{
  h1 {{ font-size: 22px; overflow-wrap: anywhere; }}
  table, tbody, tr {{ display: block; }} th, td:empty {{ display: none; }}
  tr {{ border-bottom: 1px solid {RULE}; padding: 8px 0; }}
  td {{ border: 0; padding: 2px 0; display: flex; justify-content: space-between; gap: 16px; text-align: right; }}
  td::before {{ content: attr(data-column); color: {MUTED}; flex: none; }}
  td:first-child {{ font-weight: 650; }} td:first-child::before {{ content: none; }}
  dl {{ grid-template-columns: 1fr; }}
}}
@media print {{
  main {{ padding: 0; max-width: none; }}
  svg, tr {{ break-inside: avoid; }}
  details {{ display: none; }}
}}
"""


def page(data: Data, shown: Mapping[str, Shown], extras: Mapping[str, Any]) -> str:
    """The whole document."""
    reference, names = data["reference"], [c["label"] for c in data["candidates"]]
    title = f"{', '.join(names)} against {reference['label']}"
    body = [
        "<header>",
        f"<p>{escape(summary_line(data))}</p>",
        f"<h1>{escape(title)}</h1>",
        *(_verdict(candidate) for candidate in data["candidates"]),
        "</header>",
    ]
    for candidate in data["candidates"]:
        body.append(_candidate(candidate, data, shown.get(candidate["label"])))
    body += extra_sections(extras)
    body.append(_environment(data))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>{''.join(body)}</main></body></html>\n"
    )


def summary_line(data: Data) -> str:
    """What was run and when, in one line."""
    s, count, environment = data["settings"], len(data["cases"]), data["environment"]
    return (
        f"videomar {environment.get('videomar', '')} \u00b7 {environment['date']} \u00b7 "
        f"{count} clip{'s' if count != 1 else ''} of {s['frames']} frames, {s['width']}x{s['height']}, "
        f"{s['mask_steps']} mask steps, {s['head_steps']} head steps"
    )


def _verdict(candidate: Data) -> str:
    text, _, command = candidate["sentence"].partition("; videomar ")
    kind, word = ("", "Passed") if candidate["passed"] else (" missed", "Missed")
    code = f"<code>videomar {escape(command.removesuffix(' finds the layer'))}</code>" if command else ""
    return f'<div class="verdict{kind}"><b>{word}</b>{escape(text)}{code}</div>'


def _candidate(candidate: Data, data: Data, shown: Shown | None) -> str:
    settings, reference = data["settings"], data["reference"]
    note = (
        f"{candidate['precision']} on {candidate['backend']}, against {reference['label']} ({reference['precision']} "
        f"on {reference['backend']}); worst of all clips, gates of {candidate['tolerances']}."
    )
    charts = [drift_map(candidate, 540), z_map(candidate, settings, 540)]
    charts += [forced_lines(candidate, 540), psnr_lines(candidate, 540)]
    parts = [
        f"<section><h2>{escape(candidate['label'])}</h2><p class='note'>{escape(note)}</p>",
        _ladder(candidate, data),
        '<div class="pair">' + "".join(f"<div>{to_svg(chart)}</div>" for chart in charts) + "</div>",
    ]
    if shown is not None:
        title = f"Farthest clip: {shown.case}, \u201c{shown.prompt}\u201d, {shown.psnr:.1f} dB"
        strip = frames_strip(title, shown.reference, shown.candidate, (reference["label"], candidate["label"]))
        parts.append(f'<div class="wide">{to_svg(strip)}</div>')
    return "".join([*parts, "</section>"])


def _ladder(candidate: Data, data: Data) -> str:
    numbers = "".join(f"<th class='n'>{name}</th>" for name in COLUMNS[1:5])
    rows = [f"<tr><th>{COLUMNS[0]}</th>{numbers}<th>{COLUMNS[5]}</th><th>{COLUMNS[6]}</th></tr>"]
    for finding in candidate["findings"]:
        if finding["rung"] in GRAPHS:
            got = "&ndash;" if finding["passed"] is None else number("relative_l2", finding["got"])
            gates = _gates(candidate, finding["rung"])
            rows.append(_row([finding["rung"], "", got, "", "", gates, escape(_where(finding))]))
    for rung in RUNGS:
        if rung in FORCED:
            measures = candidate["rungs"][rung]["measures"]
            cells = [_cell(measures, name) for name in ("cosine", "relative_l2", "max_abs", "psnr")]
            where = _where(measures.get("relative_l2"))
        elif rung == CLIP:
            free = candidate["free"]
            clips, drift = free["clips"], free["drift"]["measures"]
            ssim = f"SSIM {clips['ssim']['worst']:.5f}" if "ssim" in clips else "&ndash;"
            cells = [ssim, _cell(drift, "relative_l2"), "", _cell(clips, "psnr")]
            branched = len(free["branched"])
            where = f"branched in {branched} of {len(data['cases'])} clips" + (
                f"; {len(free['failed'])} overflowed" if free["failed"] else ""
            )
        else:
            cells, where = _task(candidate, data)
        rows.append(_row([TITLES[rung], *cells, _gates(candidate, rung), escape(where)]))
    return f"<table>{''.join(rows)}</table>"


def _row(cells: Sequence[str]) -> str:
    """A row of COLUMNS; each cell holds its column's name, for screens too narrow for columns."""
    found = (_td(name, cell, 1 <= i <= 4) for i, (name, cell) in enumerate(zip(COLUMNS, cells, strict=True)))
    return f"<tr>{''.join(found)}</tr>"


def _td(column: str, cell: str, number: bool) -> str:
    kind = " class='n'" if number else ""
    return f"<td{kind} data-column='{column}'><div>{cell}</div></td>" if cell else f"<td{kind}></td>"


def _task(candidate: Data, data: Data) -> tuple[list[str], str]:
    mine, theirs = candidate["task"], data["task"]
    if mine is None or theirs is None:
        return ["", "", "", ""], "no scenes of the demo world"
    return (
        [f"followed {mine['followed']:.1%}", f"centroid error {mine['centroid_error_mean']:.2%}", "", ""],
        f"reference: {theirs['followed']:.1%} followed, {theirs['centroid_error_mean']:.2%}",
    )


def _cell(measures: Mapping[str, Any], name: str) -> str:
    if name not in measures:
        return "&ndash;"
    mean = measures[name]["mean"]
    small = f"<small>mean {escape(number(name, mean))}</small>" if mean is not None else ""
    return escape(number(name, measures[name]["worst"])) + small


def _where(stat: Mapping[str, Any] | None) -> str:
    if stat is None:
        return ""
    parts = [str(stat["case"])] + [f"latent frame {stat['frame']}"] * (stat["frame"] >= 0)
    return ", ".join(parts + [f"mask step {stat['step']}"] * (stat["step"] >= 0))


def _gates(candidate: Data, rung: str) -> str:
    kinds = {True: ("ok", "passed"), False: ("no", "missed"), None: ("na", "not judged")}
    found = []
    for finding in candidate["findings"]:
        if finding["rung"] == rung:
            kind, word = kinds[finding["passed"]]
            note = f": {finding['note']}" if finding["note"] else ""
            bound = f"{MEASURES[finding['measure']]} {gate_text(finding)}"
            got = f", got {number(finding['measure'], finding['got'])}" if rung == TASK else ""
            found.append(f'<span class="{kind}">{escape(bound + got)} &middot; {word}{escape(note)}</span>')
    return "<br>".join(found) or '<span class="na">none</span>'


def _environment(data: Data) -> str:
    rows = [(key, value) for key, value in data["environment"].items() if key != "command"]
    blocks = [_list(rows)]
    for side in (data["reference"], *data["candidates"]):
        files = " ".join(f"{name} {digest}" for name, digest in side["hashes"].items())
        about = f"{side['directory']} ({side['model']}, {side['precision']}). {side['why']}"
        blocks.append(f"<h3>{escape(side['label'])}</h3>" + _list([("is", about), ("SHA-256", files)]))
    cases = "; ".join(f"{case['name']}: {case['prompt']}" for case in data["cases"])
    blocks.append("<h3>Clips</h3>" + _list([("prompts", cases)]))
    numbers = escape(json.dumps(data, indent=1, allow_nan=False), quote=False)
    return (
        "<section><h2>Made with</h2>"
        f"<p><code>{escape(data['environment']['command'])}</code></p>{''.join(blocks)}"
        f"<details><summary>Every number, as JSON</summary><pre>{numbers}</pre></details></section>"
    )


def _list(rows: list[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in rows) + "</dl>"
