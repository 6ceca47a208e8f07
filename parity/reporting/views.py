"""The charts of one candidate, taken from the results' data; shared by the page and the picture.

Knows which number goes into which chart. Knows nothing of pages or pixels.
"""

from __future__ import annotations

from typing import Any

from videomar.parity.reporting.charts import Curve, heat_map, lines
from videomar.parity.reporting.drawing import ACCENT, INK, MUTED, Drawing
from videomar.tolerances import HEAD, SAMPLED, Z

MOST = 100.0  # dB, the end of the axis of pixels
Cells = dict[tuple[int, int], float | None]


def cells_of(series: dict[str, Any], measure: str) -> Cells:
    """(frame, step) -> worst value of a series."""
    found = {}
    for row in series["by_step"]:
        if measure in row and row["frame"] >= 0 and row["step"] >= 0:
            found[row["frame"], row["step"]] = row[measure]["worst"]
    return found


def drift_map(candidate: dict[str, Any], width: float) -> Drawing:
    """How far the candidate's own tokens are from the reference's."""
    cells = cells_of(candidate["free"]["drift"], "relative_l2")
    title = "Drift of the free-running clip"
    if not cells:
        return _empty(title, "no clip was finished", width)
    return heat_map(title, cells, "latent frame", "mask step", "relative L2 of the step's tokens, worst clip", width)


def z_map(candidate: dict[str, Any], settings: dict[str, Any], width: float) -> Drawing:
    """z when both are fed the same."""
    cells = cells_of(candidate["rungs"][Z], "relative_l2")
    last = "K/V" if any(step == settings["mask_steps"] for _, step in cells) else ""
    return heat_map(
        "z, fed the same tokens", cells, "latent frame", "mask step", "relative L2, worst clip", width, last_column=last
    )


def forced_lines(candidate: dict[str, Any], width: float, height: float = 240) -> Drawing:
    """z, head and sampled tokens over the clip's mask steps."""
    order: list[tuple[int, int]] = sorted(cells_of(candidate["rungs"][SAMPLED], "relative_l2"))
    curves = [
        Curve(name, tuple(cells_of(candidate["rungs"][rung], "relative_l2").get(at) for at in order), color)
        for rung, name, color in ((SAMPLED, "sampled", ACCENT), (Z, "z", INK), (HEAD, "head", MUTED))
    ]
    ticks = {i: f"frame {frame}" for i, (frame, step) in enumerate(order) if step == 0}
    gate = next((f for f in candidate["findings"] if (f["rung"], f["measure"]) == (SAMPLED, "relative_l2")), None)
    bound = (gate["limit"], "gate, sampled") if gate else None
    title = "Error along the clip, fed the same"
    return lines(title, curves, "mask steps", "relative L2, worst clip", ticks, True, bound, width, height)


def psnr_lines(candidate: dict[str, Any], width: float, height: float = 240) -> Drawing:
    """Pixels of the free-running clip."""
    frames = candidate["free"]["frames"]
    title = "Pixels of the free-running clip"
    if not frames:
        return _empty(title, "no clip was finished", width)
    worst, mean = (
        Curve(name, tuple(min(MOST, row["psnr"][which]) for row in frames), color)
        for name, which, color in (("worst clip", "worst", ACCENT), ("mean", "mean", MUTED))
    )
    every = max(1, len(frames) // 8)
    ticks = {i: str(row["frame"]) for i, row in enumerate(frames) if i % every == 0}
    gate = next((f for f in candidate["findings"] if f["rung"] == "clip"), None)
    bound = (gate["limit"], "gate, clip") if gate else None
    return lines(
        title, [worst, mean], "frame", f"PSNR, dB; {MOST:g}: equal, or all but", ticks, False, bound, width, height
    )


def _empty(title: str, why: str, width: float) -> Drawing:
    drawing = Drawing(width, 56, f"{title}: {why}")
    drawing.text(0, 16, title, 13, INK, 600)
    drawing.text(0, 40, why, 12, MUTED)
    return drawing
