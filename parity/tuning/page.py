"""What `tune` found as one HTML file that opens offline: time against loss, a table, clips of the best settings.

Knows nothing of how anything was measured."""

from __future__ import annotations

import base64
import html
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from videomar.parity.tuning.measure import Tuning
from videomar.runtime.media import write_video

Clips = Mapping[str, Sequence[np.ndarray]]  # setting -> clips [frames, height, width, 3] uint8, the same starts for all

WIDTH, HEIGHT, EDGE = 640, 320, 46
STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; white-space: nowrap; font-variant-numeric: tabular-nums; }
td, th { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid #8884; }
tr.best { font-weight: 600; }
svg { width: 100%; height: auto; }
.clips { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: 1rem; }
video { width: 100%; image-rendering: pixelated; border-radius: 6px; }
figure { margin: 0; } figcaption { font-size: .85rem; }
"""


def write(tuning: Tuning, clips: Clips, prompts: Sequence[str], fps: float) -> str:
    """The page."""
    front = tuning.front
    shown = "".join(
        f"<h3>{html.escape(prompt)}</h3><div class=clips>"
        + "".join(_figure(name, clips[name][i], tuning, fps) for name in front if name in clips)
        + "</div>"
        for i, prompt in enumerate(prompts)
    )
    about = ", ".join(f"{name} {value}" for name, value in tuning.key.items() if isinstance(value, (str, int, float)))
    return f"""<!doctype html><html lang=en><meta charset=utf-8>
<meta name=viewport content="width=device-width"><title>videomar tune</title><style>{STYLE}</style>
<h1>Time against loss</h1>
<p>{html.escape(about)}</p>
<p>Apart: how far clips are from the exact schedule's under the same noise; 1 is as far as those of two seeds are from
each other. Bold: no other setting beats it in both time and loss.</p>
{_chart(tuning)}
<div class=wide><table><tr>{"".join(f"<th>{h}" for h in _heads(tuning))}</tr>
{"".join(_row(name, tuning) for name in sorted(tuning.rows, key=lambda n: -tuning.rows[n]["seconds"]))}</table></div>
<h2>Clips</h2>{shown}</html>
"""


def _heads(tuning: Tuning) -> list[str]:
    judged = any("coherence" in row for row in tuning.rows.values())
    return ["setting", "seconds", "faster", "apart", *(["whole shapes", "shares, p"] if judged else [])]


def _row(name: str, tuning: Tuning) -> str:
    row = tuning.rows[name]
    cells = [html.escape(name), f"{row['seconds']:.2f}", f"{row['faster']:.2f}x", f"{row['apart']:.3f}"]
    if "coherence" in row:
        low, high = row["coherence_interval"]
        cells += [f"{row['coherence']:.1%} ({low:.0%} to {high:.0%})", f"{row['p_value']:.3f}"]
    best = " class=best" if name in tuning.front else ""
    return f"<tr{best}>" + "".join(f"<td>{cell}" for cell in cells) + "</tr>\n"


def _chart(tuning: Tuning) -> str:
    most = max(row["seconds"] for row in tuning.rows.values()) or 1.0
    worst = max(row["loss"] for row in tuning.rows.values()) or 1.0
    front = tuning.front

    def at(name: str) -> tuple[float, float]:
        row = tuning.rows[name]
        x, y = row["seconds"] / most * (WIDTH - 2 * EDGE), row["loss"] / worst * (HEIGHT - 2 * EDGE)
        return EDGE + x, HEIGHT - EDGE - y

    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(at, front))
    dots = "".join(
        f"<circle cx={x:.1f} cy={y:.1f} r={5 if name in front else 3} fill={'#c0392b' if name in front else '#888'}>"
        f"<title>{html.escape(name)}</title></circle>"
        for name in tuning.rows
        for x, y in [at(name)]
    )
    return (
        f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role=img aria-label='seconds a clip against loss'>"
        f"<path d='M{EDGE} {EDGE}V{HEIGHT - EDGE}H{WIDTH - EDGE}' fill=none stroke=currentColor />"
        f"<polyline points='{line}' fill=none stroke='#c0392b' />{dots}"
        f"<text x={EDGE} y={HEIGHT - 14} fill=currentColor font-size=13>0 to {most:.2f} seconds a clip</text>"
        f"<text x={EDGE} y={EDGE - 14} fill=currentColor font-size=13>loss, to {worst:.3f}</text></svg>"
    )


def _figure(name: str, frames: np.ndarray, tuning: Tuning, fps: float) -> str:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "clip.mp4"
        write_video(file, frames, fps)
        data = base64.b64encode(file.read_bytes()).decode()
    row = tuning.rows[name]
    return (
        f"<figure><video autoplay loop muted playsinline src='data:video/mp4;base64,{data}'></video>"
        f"<figcaption>{html.escape(name)}<br>{row['seconds']:.2f} s, {row['faster']:.2f}x</figcaption></figure>"
    )
