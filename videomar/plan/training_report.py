"""A plan of training in words and as JSON. Knows nothing of how its numbers came to be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from videomar.plan.devices import Device
from videomar.plan.memory import GPU_BASELINE, Moment
from videomar.plan.report import size_text
from videomar.plan.training import Sizes


def peak(moments: Sequence[Moment]) -> Moment:
    """The moment that needs most."""
    return max(moments, key=lambda moment: moment.total)


def fits(moments: Sequence[Moment], device: Device) -> bool:
    """Whether the largest moment and the process itself go into what the device has free."""
    return peak(moments).total + GPU_BASELINE <= device.free


def as_text(sizes: Sizes, moments: Sequence[Moment], devices: Sequence[Device] = ()) -> str:
    """What is asked, the parts of the largest moment, the other moments' totals, and a verdict a device."""
    largest = peak(moments)
    asked = f"training {sizes.config.name}: {sizes.frames} frames of {sizes.height}x{sizes.width}, batch {sizes.batch}"
    asked += f" in {sizes.accumulate} parts" if sizes.accumulate > 1 else ""
    asked += ", recomputed" if sizes.recompute else ""
    asked += f", low-rank updates of {sizes.lora}" if sizes.lora else ""
    asked += ", products in bfloat16" if sizes.activation_bytes == 2 else ", all in float32"
    lines = [asked, f"  peak {size_text(largest.total)}, {largest.name}, without the process itself:"]
    parts = sorted(largest.parts.items(), key=lambda part: -part[1])
    lines += [f"  {size_text(size):>10}  {name}" for name, size in parts if size]
    lines += [f"  {moment.name}: {size_text(moment.total)}" for moment in moments if moment is not largest]
    for device in devices:
        verdict = "fits" if fits(moments, device) else "does not fit: a smaller --batch, --recompute, fewer --frames"
        lines.append(f"  {device.title}, {size_text(device.free)} free: {verdict}")
    return "\n".join(lines)


def as_data(sizes: Sizes, moments: Sequence[Moment], devices: Sequence[Device] = ()) -> dict[str, Any]:
    """The same as plain data; bytes."""
    return {
        "model": sizes.config.name,
        "peak": peak(moments).total,
        "moments": {moment.name: dict(moment.parts) for moment in moments},
        "fits": {device.name: fits(moments, device) for device in devices},
    }
