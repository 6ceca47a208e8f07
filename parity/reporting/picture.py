"""The first page of the report as a picture: verdict, ladder, drift, error and frames. OpenCV, no browser.

Knows how it looks. Knows nothing of how anything was measured.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np

from videomar.graphs import GRAPHS
from videomar.parity.comparing.ladder import Shown
from videomar.parity.comparing.results import Data
from videomar.parity.comparing.table import MEASURES, TITLES, gate_text, number
from videomar.parity.reporting.charts import frames_strip
from videomar.parity.reporting.drawing import ACCENT, BAD, INK, MUTED, RULE, Drawing, to_picture
from videomar.parity.reporting.report import summary_line
from videomar.parity.reporting.views import drift_map, forced_lines, psnr_lines, z_map
from videomar.tolerances import CLIP, FORCED, RUNGS

WIDTH, MARGIN, SCALE = 1104, 40, 1
COLUMNS = (0, 300, 420, 530, 640, 672, WIDTH)  # rung, four numbers (their right ends), gate, outcome


def card(data: Data, shown: Mapping[str, Shown]) -> np.ndarray:
    """The picture, [height, width, 3] uint8."""
    parts = [_head(data)]
    for candidate in data["candidates"]:
        parts.append(_candidate(candidate, data))
        maps = drift_map(candidate, 540), z_map(candidate, data["settings"], 540)
        curves = forced_lines(candidate, 540), psnr_lines(candidate, 540)
        parts += [_pair(maps), _pair(curves)]
        if candidate["label"] in shown:
            clip = shown[candidate["label"]]
            title = f"Farthest clip: {clip.case}, \u201c{clip.prompt}\u201d, {clip.psnr:.1f} dB"
            names = data["reference"]["label"], candidate["label"]
            parts.append(frames_strip(title, clip.reference, clip.candidate, names))
    whole = Drawing(WIDTH + 2 * MARGIN, 2 * MARGIN + sum(part.height + 16 for part in parts))
    y: float = MARGIN
    for part in parts:
        whole.place(part, MARGIN, y)
        y += part.height + 16
    return to_picture(whole, SCALE)


def _head(data: Data) -> Drawing:
    lines = [(c["passed"], line) for c in data["candidates"] for line in _verdict(c)]
    drawing = Drawing(WIDTH, 84 + 24 * len(lines))
    drawing.text(0, 12, summary_line(data), 13, MUTED, most=WIDTH)
    names = ", ".join(candidate["label"] for candidate in data["candidates"])
    drawing.text(0, 48, f"{names} against {data['reference']['label']}", 26, INK, 650, most=WIDTH)
    for i, (passed, line) in enumerate(lines):
        drawing.rect(0, 70 + 24 * i, 4, 24, ACCENT if passed else BAD)
        drawing.text(16, 87 + 24 * i, line, 14, INK, most=WIDTH - 16)
    return drawing


def _verdict(candidate: Data) -> list[str]:
    text, _, command = candidate["sentence"].partition("; videomar ")
    lines = textwrap.wrap(("Passed: " if candidate["passed"] else "Missed: ") + text, 140)
    return lines + ([f"videomar {command}"] if command else [])


def _candidate(candidate: Data, data: Data) -> Drawing:
    """The ladder as a table."""
    graphs = [finding for finding in candidate["findings"] if finding["rung"] in GRAPHS]
    rows = [(f["rung"], ["", number("relative_l2", f["got"]), "", ""], _findings(candidate, f["rung"])) for f in graphs]
    rows += [(TITLES[rung], _numbers(candidate, rung), _findings(candidate, rung)) for rung in RUNGS]
    height = 68 + sum(8 + 18 * max(1, len(findings)) for _, _, findings in rows)
    drawing = Drawing(WIDTH, height)
    drawing.text(0, 24, candidate["label"], 18, INK, 650, most=WIDTH)
    names = ("rung", "cosine", "relative L2", "largest diff.", "PSNR", "gate", "")
    for x, name, end in zip(COLUMNS, names, (0, 1, 1, 1, 1, 0, 1), strict=True):
        drawing.text(x, 54, name, 11, MUTED, 600, "end" if end else "start")
    y: float = 62
    for title, numbers, findings in rows:
        drawing.line([(0, y), (WIDTH, y)], RULE)
        drawing.text(0, y + 18, title, 13)
        for x, value in zip(COLUMNS[1:5], numbers, strict=True):
            drawing.text(x, y + 18, value, 13, anchor="end")
        for i, (bound, outcome, color) in enumerate(findings or [("none", "", MUTED)]):
            paint = color if outcome == "missed" else INK
            drawing.text(COLUMNS[5], y + 18 + 18 * i, bound, 13, paint, most=WIDTH - COLUMNS[5] - 76)
            drawing.text(COLUMNS[6], y + 18 + 18 * i, outcome, 13, color, 600, "end")
        y += 8 + 18 * max(1, len(findings))
    return drawing


def _numbers(candidate: Data, rung: str) -> Sequence[str]:
    if rung in FORCED:
        measures = candidate["rungs"][rung]["measures"]
        names = ("cosine", "relative_l2", "max_abs", "psnr")
        return [number(name, measures[name]["worst"]) if name in measures else "" for name in names]
    if rung == CLIP:
        clips, drift = candidate["free"]["clips"], candidate["free"]["drift"]["measures"]
        ssim = f"SSIM {clips['ssim']['worst']:.4f}" if "ssim" in clips else ""
        error = number("relative_l2", drift["relative_l2"]["worst"]) if drift else ""
        return [ssim, error, "", number("psnr", clips["psnr"]["worst"]) if "psnr" in clips else ""]
    return ["", "", "", ""]


def _findings(candidate: Data, rung: str) -> list[tuple[str, str, str]]:
    """(gate, outcome, colour) of a rung."""
    kinds = {True: ("passed", ACCENT), False: ("missed", BAD), None: ("not judged", MUTED)}
    found = []
    for finding in candidate["findings"]:
        if finding["rung"] == rung:
            bound = f"{MEASURES[finding['measure']]} {gate_text(finding)}"
            bound += f" (got {number(finding['measure'], finding['got'])})" if rung == RUNGS[-1] else ""
            bound += f" ({finding['note']})" if finding["passed"] is None else ""
            found.append((bound, *kinds[finding["passed"]]))
    return found


def _pair(two: tuple[Drawing, Drawing]) -> Drawing:
    drawing = Drawing(WIDTH, max(part.height for part in two))
    for part, x in zip(two, (0, WIDTH - two[1].width), strict=True):
        drawing.place(part, x, 0)
    return drawing
