"""The ladder as text for a terminal, drawn from the results' data. Knows nothing of how they were measured."""

from __future__ import annotations

from typing import Any

from videomar.graphs import GRAPHS
from videomar.tolerances import FORCED

TITLES = {
    "text": "text states",
    "encoded": "encoded latents",
    "z": "z",
    "head": "head, given z",
    "sampled": "sampled tokens",
    "decoded": "decoded pixels",
    "clip": "free-running clip",
    "task": "task of the demo world",
}
MEASURES = {
    "cosine": "cosine",
    "relative_l2": "relative L2",
    "max_abs": "largest difference",
    "psnr": "PSNR",
    "ssim": "SSIM",
    "followed_lost": "motion followed, lost",
    "centroid_lost": "centroid error, added",
}


def number(measure: str, value: float | None) -> str:
    """A measure's value with its unit, as short as it can be."""
    if value is None:
        return "not finite"
    if measure == "psnr":
        return "equal" if value >= 200 else f"{value:.1f} dB"
    if measure in ("followed_lost", "centroid_lost"):
        return f"{value + 0.0 if abs(value) >= 0.005 else 0.0:.2f} points"
    if measure in ("cosine", "ssim"):
        return f"{value:.7f}" if measure == "cosine" else f"{value:.5f}"
    return f"{value:.1e}"


def gate_text(finding: dict[str, Any]) -> str:
    """A gate's bound, such as ">= 0.9999"."""
    unit = {"psnr": " dB", "followed_lost": " points", "centroid_lost": " points"}.get(finding["measure"], "")
    return f"{'>=' if finding['at_least'] else '<='} {finding['limit']:g}{unit}"


def mark(passed: bool | None) -> str:
    """A gate's outcome in a word."""
    return {True: "passed", False: "MISSED", None: "not judged"}[passed]


def as_text(data: dict[str, Any]) -> str:
    """One block a candidate, the conclusions last."""
    lines: list[str] = []
    for candidate in data["candidates"]:
        lines += [*_candidate(candidate, data), ""]
    lines += [candidate["sentence"] for candidate in data["candidates"]]
    return "\n".join(lines)


def _candidate(candidate: dict[str, Any], data: dict[str, Any]) -> list[str]:
    reference, count = data["reference"], len(data["cases"])
    lines = [
        f"{candidate['label']} ({candidate['precision']}, {candidate['backend']}) against {reference['label']} "
        f"({reference['precision']}, {reference['backend']}), worst of {count} clip{'s' * (count > 1)}; gates of "
        f"{candidate['tolerances']}"
    ]
    for finding in candidate["findings"]:
        if finding["rung"] in GRAPHS:
            got = "-" if finding["passed"] is None else number("relative_l2", finding["got"])
            note = f" ({finding['note']})" if finding["note"] else ""
            lines.append(
                f"  {finding['rung']:22}  {'':>10}  {got:>11}  {'':>10}  {'':>9}  relative L2 {gate_text(finding)} "
                f"{mark(finding['passed'])}{note}"
            )
    lines.append(f"  {'rung':22}  {'cosine':>10}  {'relative L2':>11}  {'max abs':>10}  {'PSNR':>9}  gates")
    for rung in FORCED:
        measures = candidate["rungs"][rung]["measures"]
        cells = [number(n, measures[n]["worst"]) if n in measures else "-" for n in ("cosine", "relative_l2")]
        cells += [number(n, measures[n]["worst"]) if n in measures else "-" for n in ("max_abs", "psnr")]
        lines.append(
            f"  {TITLES[rung]:22}  {cells[0]:>10}  {cells[1]:>11}  {cells[2]:>10}  {cells[3]:>9}  "
            + _gates(candidate, rung)
        )
    free = candidate["free"]
    drift = free["drift"]["measures"].get("relative_l2", {"worst": None})["worst"]
    psnr, ssim = (free["clips"].get(n, {"worst": None})["worst"] for n in ("psnr", "ssim"))
    cells = ["-" if v is None else number(n, v) for n, v in (("ssim", ssim), ("relative_l2", drift), ("psnr", psnr))]
    lines.append(
        f"  {TITLES['clip']:22}  {'SSIM ' + cells[0]:>10}  {cells[1]:>11}  {'':>10}  {cells[2]:>9}  "
        + _gates(candidate, "clip")
    )
    if free["branched"]:
        lines.append(f"  branched in {len(free['branched'])} of {len(data['cases'])} clips")
    if candidate["task"]:
        followed, error = candidate["task"]["followed"], candidate["task"]["centroid_error_mean"]
        theirs = data["task"]["followed"], data["task"]["centroid_error_mean"]
        lines.append(
            f"  {TITLES['task']:22}  motion followed {followed:.1%} (reference {theirs[0]:.1%}), "
            f"centroid error {error:.2%} (reference {theirs[1]:.2%})  " + _gates(candidate, "task")
        )
    return lines


def _gates(candidate: dict[str, Any], rung: str) -> str:
    found = [f for f in candidate["findings"] if f["rung"] == rung]
    texts = [f"{MEASURES[f['measure']]} {gate_text(f)} {mark(f['passed'])}" for f in found]
    return ", ".join(texts) or "no gate"
