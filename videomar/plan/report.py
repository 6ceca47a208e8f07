"""A plan in words, as a table with bars, as JSON and as a picture (SVG). Knows nothing of how numbers came to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from videomar.plan.advice import Change, smallest_change
from videomar.plan.devices import GIB, MIB, Device
from videomar.plan.memory import Memory, builds, fits, plan_memory
from videomar.plan.request import Request
from videomar.plan.roofline import Times, plan_times

BAR = 32  # characters of the longest bar
EIGHTHS = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True)
class Report:
    """What a generation needs on a device, how long it takes, and what would make it fit."""

    request: Request
    device: Device
    memory: Memory
    times: Times
    change: Change | None

    @property
    def fits(self) -> bool:
        return fits(self.memory, self.device) and builds(self.memory, self.device)


def make_report(request: Request, device: Device) -> Report:
    """Plan a request on a device."""
    memory = plan_memory(request, device.backend)
    change = None
    if not fits(memory, device):
        change = smallest_change(request, lambda other: fits(plan_memory(other, device.backend), device))
    return Report(request, device, memory, plan_times(request, device), change)


def size_text(size: float) -> str:
    """1.23 GiB, 45.6 MiB."""
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / MIB:.1f} MiB"


def time_text(seconds: float) -> str:
    """2 h 5 min, 3 min 20 s, 12.3 s, 4.56 ms."""
    if seconds >= 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
    if seconds >= 60:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def verdict(memory: Memory, device: Device, change: Change | None) -> str:
    """Whether it fits, and what would make it, in a sentence each for generating and for building."""
    free = f"{size_text(device.free)} of {device.title} is free"
    said = f"generating needs {size_text(memory.peak)}, {free}"
    if fits(memory, device):
        said = f"fits: {said}"
    elif change is None:
        said = f"does not fit: {said}; no option of this tool makes it small enough"
    else:
        said = f"does not fit: {said}; the smallest change that fits: {' '.join(change.options)} ({change.cost})"
    if not builds(memory, device):
        missing = size_text(memory.build - device.free)
        said += f"\nbuilding the engines needs {size_text(memory.build)}: add {missing} of swap for it (docs/jetson.md)"
    return said


def as_text(report: Report) -> str:
    """A table with bars."""
    return "\n".join([*_head(report), "", *_memory_rows(report), "", *_time_rows(report), "", _end(report)])


def _head(report: Report) -> list[str]:
    r, s = report.request, report.request.sampling
    form = f"{r.precision}, {r.emitter}" + (f", K/V window {s.kv_window}" if s.kv_window else "")
    extras = [", guidance in two passes"] * (s.passes == 2)
    extras += [", text embeddings given"] * r.text_embeddings
    extras += [", no picture"] * (r.given == 0)
    return [
        f"{r.config.name} on {report.device.title} ({report.device.backend})",
        f"{s.frames} frames of {s.width}x{s.height} ({r.frames} latent frames of {r.tokens} tokens), "
        f"{s.mask_steps} mask steps, {s.head_steps} head steps, guidance {s.guidance_scale:g}",
        *(f"{name.replace('_', ' ')} {value}" for name, value in s.dials.items()),
        form + "".join(extras),
    ]


def _memory_rows(report: Report) -> list[str]:
    moment, free = report.memory.largest, report.device.free
    rows = [(name, size) for name, size in moment.parts.items() if size]
    most = max(free, moment.total, report.memory.build)
    lines = [f"memory, at its largest: {moment.name}"]
    lines += [_row(name, size_text(size), f"{size / moment.total:6.1%}", size / most) for name, size in rows]
    lines.append(_row("needed", size_text(moment.total), "", moment.total / most))
    another = report.memory.another
    lines.append(_row("another clip in flight", size_text(another), "", another / most))
    if report.memory.build:
        lines.append(_row("to build the engines", size_text(report.memory.build), "", report.memory.build / most))
    lines.append(_row("free on the device", size_text(free), "", free / most))
    return lines


def _time_rows(report: Report) -> list[str]:
    t = report.times
    stages = [("text", t.text), ("encoder", t.encoder), ("transformer", t.transformer), ("head", t.heads)]
    stages.append(("decoder", t.decoder))
    lines = ["time, estimated"]
    lines += [_row(n, time_text(s), f"{s / t.clip:6.1%}", s / t.clip) for n, s in stages]
    lines.append(_row("clip", time_text(t.clip), "", 1.0))
    step = f"mask step {time_text(t.step + t.head)} (transformer {time_text(t.step)}, head {time_text(t.head)})"
    return [*lines, f"{step}, latent frame {time_text(t.frame)}, first one seen after {time_text(t.first)}"]


def _row(name: str, size: str, share: str, part: float) -> str:
    return f"  {name:26} {size:>12} {share:>7}  {bar(part)}".rstrip()


def bar(part: float, width: int = BAR) -> str:
    """A bar of eighths of characters; whatever is above nothing shows."""
    eighths = round(min(1.0, max(0.0, part)) * width * 8)
    return EIGHTHS[8] * (eighths // 8) + EIGHTHS[eighths % 8].strip() if part <= 0 or eighths else EIGHTHS[1]


def _end(report: Report) -> str:
    return verdict(report.memory, report.device, report.change)


def as_data(report: Report) -> dict[str, Any]:
    """Everything, JSON-ready; bytes and seconds."""
    r, t, d = report.request, report.times, report.device
    names = ("text", "encoder", "transformer", "heads", "decoder", "step", "head", "frame", "first", "clip")
    return {
        "model": r.config.name,
        "device": {"name": d.name, "memory": d.memory, "free": d.free, "backend": d.backend, "source": d.source},
        "fits": report.fits,
        "verdict": _end(report),
        "memory": {m.name: dict(m.parts) for m in report.memory.moments},
        "peak": report.memory.peak,
        "another": report.memory.another,
        "build": report.memory.build,
        "seconds": {name: getattr(t, name) for name in names},
        "change": None
        if report.change is None
        else {"options": list(report.change.options), "cost": report.change.cost},
    }


COLOURS = ("#8a8f98", "#b07aa1", "#4e79a7", "#59a14f", "#9c755f", "#e15759", "#f28e2b", "#edc948", "#76b7b2", "#bab0ac")


def as_svg(reports: Sequence[Report]) -> str:
    """One bar a plan, its parts in colours, with what is free as a line: an SVG picture, 900 pixels wide."""
    left, wide, high, top = 205, 665, 46, 62
    names = list(dict.fromkeys(n for r in reports for n, size in r.memory.largest.parts.items() if size))
    colours = dict(zip(names, COLOURS * (1 + len(names) // len(COLOURS)), strict=False))
    most = max(max(r.memory.peak, r.memory.build) for r in reports) * 1.08
    bottom = top + high * len(reports)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="900" height="{bottom + 30 + 20 * -(-(len(names) + 2) // 3)}" '
        'font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="12" y="24" font-size="16">{escape(_head(reports[0])[0].split(" on ")[0])}: memory and time</text>',
        f'<text x="12" y="44" fill="#555">{escape("; ".join(_head(reports[0])[1:]))}</text>',
    ]
    for i, r in enumerate(reports):
        y, x = top + i * high, float(left)
        lines.append(f'<text x="12" y="{y + 15}">{escape(r.device.title)}</text>')
        mark = "fits" if r.fits else "does not fit"
        note = f"{mark}, clip {time_text(r.times.clip)}"
        lines.append(f'<text x="12" y="{y + 31}" fill="{"#2a7" if r.fits else "#c33"}">{escape(note)}</text>')
        for name, size in r.memory.largest.parts.items():
            width = wide * size / most
            lines.append(
                f'<rect x="{x:.1f}" y="{y + 4}" width="{width:.1f}" height="20" fill="{colours.get(name, "#ccc")}">'
                f"<title>{escape(name)}: {size_text(size)}</title></rect>"
            )
            x += width
        lines.append(f'<text x="{x + 6:.1f}" y="{y + 19}">{size_text(r.memory.peak)}</text>')
        if r.memory.build:
            width = wide * r.memory.build / most
            lines.append(f'<rect x="{left}" y="{y + 27}" width="{width:.1f}" height="5" fill="#333"/>')
        if r.device.free < most:
            at = left + wide * r.device.free / most
            lines.append(f'<path d="M{at:.1f} {y} v36" stroke="#c33" stroke-width="2" stroke-dasharray="4 2"/>')
    for i, name in enumerate([*names, "to build the engines (thin)", "free on the device (dashed)"]):
        x, y = 12 + 290 * (i % 3), bottom + 18 + 20 * (i // 3)
        colour = colours.get(name, "#333" if "build" in name else "#c33")
        lines.append(f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="{colour}"/>')
        lines.append(f'<text x="{x + 18}" y="{y}">{escape(name)}</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"
