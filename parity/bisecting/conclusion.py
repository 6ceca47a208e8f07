"""What follows from a finding: the kind of fault, what mends it and how far that was proved, in sentences and as data.

Knows nothing of how the place was found.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from videomar.graphs import HEAD_CONDITION, HEAD_STEP
from videomar.parity.bisecting.bisect import Finding
from videomar.parity.bisecting.layers import HALF_MAX, Layer

AROUND = 3  # layers shown on either side of the place


@dataclass(frozen=True)
class Conclusion:
    """kind: none, engine, overflow, precision, quantization, fault, inputs or sum; sentences, most important first."""

    kind: str
    verdict: str
    mend: str


def conclude(finding: Finding, precision: str) -> Conclusion:
    """Judge a finding; precision: B's."""
    seen = f"{finding.deviation} ({finding.case}). " if finding.deviation else ""
    if not finding.found:
        return Conclusion("none", f"Nothing leaves its gate{_looked(finding)}.", "")
    if not finding.visible:
        return Conclusion(
            "engine",
            f"{seen}Layers of an engine cannot be seen from outside.",
            "Bisect the ONNX artifacts the engine was built from; if they are clean, the builder is at fault: mark "
            "layers as outputs and compare them with `polygraphy run --trt-outputs`.",
        )
    if finding.place is None or finding.walked is None:
        return Conclusion("inputs", f"{seen}No layer of it could be walked.", "")
    guilty = finding.walked.guilty
    if guilty is None:
        return _without_a_layer(finding, seen)
    first = "" if finding.deviation else "No call leaves its gate on this backend, but a layer does. "
    layer = guilty.tensor if finding.module == guilty.tensor else f"{guilty.tensor}, of module {finding.module}"
    verdict = (
        f"{seen}{first}The first layer is {layer}, in {_where(finding)}: it adds {_number(guilty.added)} to what it is "
        f"given, its gate is {_number(finding.gate)}."
    )
    return Conclusion(*_kind_and_mend(finding, guilty, precision, verdict))


def _kind_and_mend(finding: Finding, guilty: Layer, precision: str, verdict: str) -> tuple[str, str, str]:
    walked = finding.walked
    assert walked is not None
    wide = guilty.wide is not None and guilty.wide <= finding.gate
    remains = _remains(finding)
    if wide and precision == "int8":
        mend = (
            f"Keep {finding.module} in floating point (videomar calibrate ... --keep {finding.module}), or calibrate "
            f"again if its input's scale does not fit what A holds there. With its activations not quantized it adds "
            f"{_number(guilty.wide)}{remains}."
        )
        return "quantization", verdict, mend
    if wide:
        kept = ", ".join(walked.wide)
        if guilty.largest > HALF_MAX:
            why, kind = f"A's largest value there is {guilty.largest:.4g}, FP16 ends at {HALF_MAX:.0f}", "overflow"
        elif math.isinf(guilty.added):
            why, kind = f"A's largest value there is {guilty.largest:.4g}; a step on the way overflows", "overflow"
        else:
            why, kind = "FP16 has too few digits there", "precision"
        graph = finding.place.part if finding.place else ""
        option = " ".join(f"{graph}:{tensor}" for tensor in walked.wide)
        mend = (
            f"Keep in FP32: {kept} (videomar export ... --precision fp16 --fp32 {option}). In FP32 the layer adds "
            f"{_number(guilty.wide)}{remains}."
        )
        return kind, f"{verdict} {why}.", mend
    changed = {name: error for name, error in finding.weights.items() if error and error > finding.gate / 5}
    unknown = [name for name, error in finding.weights.items() if error is None]
    if changed:
        look = "; ".join(f"{name} differs from A's by {_number(error)}" for name, error in changed.items())
    elif unknown:
        look = f"look at {', '.join(unknown)}, and at what the layer is connected to"
    else:
        look = "its stored tensors are A's: look at what it is connected to, and in which order"
    if guilty.tensor.startswith("present_"):
        look += "; this is the K/V cache that later frames read"
    mend = f"A fault, not a rounding: in FP32 it stays {_number(guilty.wide)}, so no precision mends it: {look}"
    if remains:
        mend += f". With A's tensor in its place the layer is right{remains}"
    return "fault", verdict, f"{mend[0].upper()}{mend[1:]}."


def _without_a_layer(finding: Finding, seen: str) -> Conclusion:
    walked, place = finding.walked, finding.place
    assert walked is not None
    end = max(walked.outputs.values(), default=0.0)
    most = max(walked.layers, key=lambda layer: layer.added)
    if end <= finding.gate:
        return Conclusion(
            "inputs",
            f"{seen}Run layer by layer, {place} agrees with A ({_number(end)} at its end): the graphs are right, what "
            "runs them is not.",
            "Look at how the backend keeps K/V, and run B with --backend ort-cpu.",
        )
    return Conclusion(
        "sum",
        f"{seen}No single layer is to blame: errors add up to {_number(end)} over {place}; the largest part is "
        f"{_number(most.added)}, of {most.tensor}.",
        f"Keep {most.tensor} in a higher precision first, then bisect again.",
    )


def _looked(finding: Finding) -> str:
    if not finding.visible:
        return "; layers of engines cannot be seen"
    if finding.walked is None:
        return ""
    most = max(finding.walked.layers, key=lambda layer: layer.added)
    return (
        f": no call of the loop, and none of {finding.looked} layers of its last calls. Of {finding.place}, "
        f"{most.tensor} adds the most, {_number(most.added)}; a layer's gate is {_number(finding.gate)}"
    )


def _where(finding: Finding) -> str:
    place, deviation = finding.place, finding.deviation
    assert place is not None
    if deviation is None or deviation.frame < 0 or place.frame == deviation.frame:
        return str(place)
    return f"{place}, which wrote what latent frame {deviation.frame} read"


def _remains(finding: Finding) -> str:
    walked = finding.walked
    if walked is None or walked.remains is None:
        return ""
    at = "the step's end" if finding.place and finding.place.part in (HEAD_CONDITION, HEAD_STEP) else "the call's end"
    return f" and {_number(walked.remains)} remains at {at}"


def around(finding: Finding) -> list[Layer]:
    """The layers beside the place, in dataflow order."""
    if finding.walked is None or not finding.found:
        return []
    layers = finding.walked.layers
    center = finding.walked.guilty or max(layers, key=lambda layer: layer.added)
    at = next(i for i, layer in enumerate(layers) if layer.tensor == center.tensor)
    return layers[max(0, at - AROUND) : at + AROUND + 1]


def as_text(finding: Finding, conclusion: Conclusion) -> str:
    """The table around the place and the sentences."""
    rows = around(finding)
    guilty = finding.walked.guilty if finding.walked else None
    lines = []
    if rows:
        lines.append(f"{finding.place}:")
        width = max(len(layer.tensor) for layer in rows)
        lines.append(f"  {'tensor':{width}}  {'error in':>9} {'added':>9} {'error out':>9} {'max abs':>9}")
        for layer in rows:
            numbers = " ".join(f"{_number(v):>9}" for v in (layer.carried, layer.added, layer.error, layer.max_abs))
            mark = f"  <- over {_number(finding.gate)}" if guilty and layer.tensor == guilty.tensor else ""
            lines.append(f"  {layer.tensor:{width}}  {numbers}{mark}")
    return "\n".join([*lines, conclusion.verdict, *([conclusion.mend] if conclusion.mend else [])])


def as_data(finding: Finding, conclusion: Conclusion, sides: dict[str, str]) -> dict[str, Any]:
    """Everything, for JSON; what is not finite is null."""
    data: dict[str, Any] = {"kind": conclusion.kind, "verdict": conclusion.verdict, "mend": conclusion.mend, **sides}
    data |= {"case": finding.case, "found": finding.found, "gate": finding.gate}
    data["deviation"] = _plain(vars(finding.deviation)) if finding.deviation else None
    data["place"] = {**vars(finding.place), "module": finding.module} if finding.place else None
    if finding.walked is not None:
        walked = finding.walked
        data["tensor"] = walked.guilty.tensor if walked.guilty else None
        data["weights"] = _plain(finding.weights)
        data["keep_in_fp32"] = list(walked.wide)
        data["remains"] = _plain(walked.remains)
        data["peak"] = {"tensors": walked.peak_tensors, "bytes": walked.peak_bytes}
        data["layers"] = [_plain(vars(layer)) for layer in walked.layers]
    return data


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def _number(value: float | None) -> str:
    return "-" if value is None else ("not finite" if math.isinf(value) else f"{value:.1e}" if value else "0")
