"""Planted faults: is each one noticed, and is its place named?

    python benchmarks/plants.py [--out out] [--kinds scale ...] [--count 20] [--json FILE]

Twenty seeded plants each of six kinds, by surgery on copies of exported graphs (out/demo-fp32-portable, -fp32, -fp16):
another layer, frame, step and size each time. `compare` has to fail, `bisect` has to name module, frame and step.
A seventh kind, `quantized`, needs out/demo-int8: videomar calibrate out/demo-fp32-portable --demo 4 -o out/demo-int8
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from surgery import STEPS, TOKENS, Spot, Surgery, copy_with

from videomar.graphs import DIFFUSION_HEAD, TEXT_KEY_VALUES, TRANSFORMER_STEP
from videomar.parity.bisecting.bisect import bisect
from videomar.parity.bisecting.conclusion import conclude
from videomar.parity.cases import make_cases
from videomar.parity.comparing.compare import climb_all, labelled
from videomar.parity.comparing.verdict import judge
from videomar.parity.subject import open_subject
from videomar.schedule import DiffusionSchedule

PORTABLE, NATIVE, HALF, INT8 = "demo-fp32-portable", "demo-fp32", "demo-fp16", "demo-int8"
HEAD_STEPS, DEPTH, HEADS, DIM = 25, 4, 3, 64  # of the demo model's default clip
Rng = np.random.Generator


@dataclass(frozen=True)
class Plant:
    """A fault and where it has to be found; frame, step and head step only where the fault is confined to one."""

    kind: str
    what: str
    base: str
    graph: str
    edit: Callable[[Surgery], None]
    module: str
    spot: Spot | None = None
    head_step: int | None = None
    reference: Callable[[Surgery], None] | None = None  # edits the reference, too: an exact rescaling


def scaled(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda values: values * factor


def some_spot(rng: Rng, least: int = 0) -> Spot:
    """A pass of the default clip: frame 0 is given, frame 1 is stored after its last step, frame 2 is the last."""
    frame = int(rng.integers(least, 3))
    return (frame, 0) if frame == 0 else (frame, int(rng.integers(0, STEPS + (frame == 1))))


def block(rng: Rng, name: str) -> str:
    return f"decoder_blocks.{rng.integers(0, DEPTH)}.{name}"


# kinds


def scale(rng: Rng, i: int) -> Plant:
    """A matrix, a norm's gain or a module's result times a factor."""
    base = [PORTABLE, NATIVE, HALF][i % 3]
    factor = float(rng.choice([0.25, 0.5, 2.0, 4.0, -1.0] if base == HALF else [0.5, 0.9, 1.1, 2.0, -1.0]))
    if i % 2:
        module = block(rng, str(rng.choice(["norm1", "attn1.wo", "attn2.wo", "norm2", "ff.net.0.proj", "ff.net.2"])))
        spot = some_spot(rng)

        def at_once(s: Surgery) -> None:
            s.after(module, lambda at, t: (at + 1, s.insert(at, "Mul", [t, s.constant(factor)])), s.at_spot(spot))

        what = f"result x {factor:g} at frame {spot[0]}, step {spot[1]}"
        return Plant("scale", f"{module}: {what}", base, TRANSFORMER_STEP, at_once, module, spot)
    weights = [
        (TRANSFORMER_STEP, block(rng, str(rng.choice(["norm1", "norm2"])))),
        (TRANSFORMER_STEP, block(rng, str(rng.choice(["attn1.wo", "attn2.wo", "ff.net.0.proj", "ff.net.2"])))),
        (TRANSFORMER_STEP, "decoder_norm"),
        (TEXT_KEY_VALUES, f"attentions.{rng.integers(0, DEPTH)}.wkv"),
        (DIFFUSION_HEAD, f"res_blocks.{rng.integers(0, 3)}.{rng.choice(['in_ln', 'mlp.0', 'mlp.2'])}"),
        (DIFFUSION_HEAD, str(rng.choice(["final_layer.linear", "modulations.4", "input_proj", "cond_embed"]))),
        ("tokenizer_encoder", "vae.encoder.conv_in.conv_s"),
        ("tokenizer_decoder", "vae.decoder.conv_in.conv_s"),
        ("text_encoder", "encoder.llm.layers.1.mlp.down_proj"),
        ("text_encoder", "encoder.llm.layers.0.self_attn.o_proj"),
    ]
    graph, module = weights[i // 2 % len(weights)]
    name = f"{module}.weight"
    return Plant("scale", f"{name} x {factor:g}", base, graph, lambda s: s.weight(name, scaled(factor)), module)


def swapped(rng: Rng, i: int) -> Plant:
    """Keys where values belong."""
    layer, way = i % DEPTH, i // DEPTH
    base = [PORTABLE, NATIVE, HALF][i % 3]
    attn = f"decoder_blocks.{layer}.attn"
    key, value = f"present_key_{layer}", f"present_value_{layer}"
    if way == 0:
        module = f"{attn}1.{'wkv' if layer == DEPTH - 1 else 'wqkv'}"

        def rows(w: np.ndarray) -> np.ndarray:
            half = HEADS * DIM
            w[:, -2 * half :] = np.roll(w[:, -2 * half :], half, axis=1)
            return w

        return Plant(
            "swapped", f"{module}: rows", base, TRANSFORMER_STEP, lambda s: s.weight(f"{module}.weight", rows), module
        )
    if way == 1:

        def caches(s: Surgery) -> None:
            (k,), (v,) = s.nodes_reading(f"past_key_{layer}"), s.nodes_reading(f"past_value_{layer}")
            k.input[0], v.input[0] = v.input[0], k.input[0]

        return Plant("swapped", f"caches of layer {layer}", base, TRANSFORMER_STEP, caches, f"{attn}1", (1, 0))
    if way == 2:

        def read(s: Surgery) -> None:
            for node in s.nodes_reading(key):
                node.input[:] = [value if n == key else n for n in node.input]

        return Plant("swapped", f"{attn}1 reads V as K", base, TRANSFORMER_STEP, read, f"{attn}1")
    if way == 3:

        def text(s: Surgery) -> None:
            names = {f"text_key_{layer}": f"text_value_{layer}", f"text_value_{layer}": f"text_key_{layer}"}
            for node in s.body.node:
                if node.op_type != "Shape":
                    node.input[:] = [names.get(n, n) for n in node.input]

        return Plant("swapped", f"{attn}2 reads the text's V as K", base, TRANSFORMER_STEP, text, f"{attn}2")
    module = f"attentions.{layer}.wkv"

    def text_rows(w: np.ndarray) -> np.ndarray:
        parts = w.reshape(w.shape[0], HEADS, 2, DIM)
        return parts[:, :, ::-1].reshape(w.shape)

    return Plant(
        "swapped", f"{module}: rows", base, TEXT_KEY_VALUES, lambda s: s.weight(f"{module}.weight", text_rows), module
    )


def off_by_one(rng: Rng, i: int) -> Plant:
    """A RoPE table or a cache of the wrong frame."""
    layer, way = i % DEPTH, i // DEPTH
    attn = f"decoder_blocks.{layer}.attn1"
    if way in (0, 1):  # queries (way 0) or keys turned one frame too far
        query = way == 0 and layer < DEPTH - 1  # the last block's queries read gathered tables
        turn = np.zeros(DIM // 2)
        turn[:16] = 10000.0 ** -(np.arange(16) / 16)  # the frame's slice: 32 channels
        turn *= rng.choice([-1, 1])

        def rotate(s: Surgery) -> None:
            first = 0 if query else 4
            if layer == DEPTH - 1:
                nodes = [n for n in s.body.node if n.op_type == "Mul" and n.output[0].startswith(f"{attn}/mul")]
                nodes = [n for n in nodes if n.input[1] in ("rope_cos", "rope_sin")]
            else:
                names = [f"{attn}/mul" + (f"_{k}" if k else "") for k in range(first, first + 4)]
                nodes = [n for n in s.body.node if n.output[0] in names]
            assert len(nodes) == 4
            cos, sin = s.constant(np.cos(turn)), s.constant(np.sin(turn))
            parts = [
                s.insert(k, "Mul", list(p))
                for k, p in enumerate([("rope_cos", cos), ("rope_sin", sin), ("rope_sin", cos), ("rope_cos", sin)])
            ]
            wrong = {"rope_cos": s.insert(4, "Sub", parts[:2]), "rope_sin": s.insert(5, "Add", parts[2:])}
            for node in nodes:
                node.input[1] = wrong[node.input[1]]

        what = f"{attn}: {'queries' if query else 'keys'} turned a frame {'on' if turn[0] > 0 else 'back'}"
        return Plant("off by one", what, [PORTABLE, HALF][i % 2], TRANSFORMER_STEP, rotate, attn)
    which = str(rng.choice(["key", "value"]))
    past, present = f"past_{which}_{layer}", f"present_{which}_{layer}"
    if way == 2:

        def start(s: Surgery) -> None:
            (node,) = s.nodes_reading(past)
            less = s.insert(0, "Sub", ["start", s.constant([TOKENS], np.int64)])
            node.input[2] = s.insert(1, "Max", [less, s.constant([0], np.int64)])

        return Plant("off by one", f"{present} written a frame early", NATIVE, TRANSFORMER_STEP, start, attn, (1, 0))

    def older(s: Surgery) -> None:
        """Every finished frame but the first is the one before it (way 3), or the frames are turned round by one."""
        (node,) = s.nodes_reading(past)
        ends = [s.constant([v], np.int64) for v in (0, TOKENS, -TOKENS, 2**40, 2)]
        first = s.insert(0, "Slice", [past, ends[0], ends[1], ends[4]])
        if way == 3:
            rest = s.insert(1, "Slice", [past, ends[0], ends[2], ends[4]])
            parts = [first, rest]
        else:
            rest = s.insert(1, "Slice", [past, ends[1], ends[3], ends[4]])
            parts = [rest, first]
        node.input[0] = s.insert(2, "Concat", parts, axis=2)

    what = "of the frame before" if way == 3 else "turned round by a frame"
    return Plant("off by one", f"{past} {what}", [PORTABLE, HALF][i % 2], TRANSFORMER_STEP, older, attn, (2, 0))


def nan(rng: Rng, i: int) -> Plant:
    """One channel of a layer's result, at one step."""
    base = [PORTABLE, NATIVE, HALF][i % 3]

    def poison(module: str, condition: Callable[[Surgery], Any]) -> Callable[[Surgery], None]:
        def edit(s: Surgery) -> None:
            faulty = lambda at, t: (at + 1, s.insert(at, "Mul", [t, s.constant(np.nan)]))  # noqa: E731
            s.after(module, faulty, condition(s))

        return edit

    if i % 5 == 4:
        module = f"res_blocks.{rng.integers(0, 3)}.{rng.choice(['in_ln', 'mlp.0', 'mlp.2'])}"
        step = int(rng.integers(0, HEAD_STEPS))
        first = coefficients()[step, 0]
        edit = poison(module, lambda s: s.at_head_step(first))
        return Plant("NaN", f"{module} at head step {step}", base, DIFFUSION_HEAD, edit, module, None, step)
    layer = int(rng.integers(0, DEPTH))
    names = ["norm1", "attn1.k_norm", "attn1.wo", "attn2.wq", "attn2.wo", "norm2", "ff.net.0.proj", "ff.net.2"]
    module, spot = f"decoder_blocks.{layer}.{rng.choice(names)}", some_spot(rng)
    edit = poison(module, lambda s: s.at_spot(spot))
    return Plant("NaN", f"{module} at frame {spot[0]}, step {spot[1]}", base, TRANSFORMER_STEP, edit, module, spot)


def overflow(rng: Rng, i: int) -> Plant:
    """An exact rescaling, of reference and candidate alike, after which FP16 cannot hold a layer's result."""
    layer, way = i % DEPTH, i // DEPTH
    factor, width = float(2 ** rng.integers(15, 17)), HEADS * DIM
    last = layer == DEPTH - 1
    if way == 4:
        # Keys of the text are normalized, so a factor on them changes nothing; below 2^16 they stay in range.
        name, factor = f"attentions.{layer}.wkv", 2.0**16

        def keys(w: np.ndarray) -> np.ndarray:
            w = w.astype(np.float32)
            w.reshape(w.shape[0], HEADS, 2, DIM)[:, :, 0] *= factor
            assert np.abs(w).max() < 65504  # the stored numbers themselves fit
            return w

        def edit(s: Surgery) -> None:
            s.weight(f"{name}.weight", keys)

        return Plant("FP16 overflow", f"{name}: keys x {factor:g}", HALF, TEXT_KEY_VALUES, edit, name, reference=edit)
    attn = f"decoder_blocks.{layer}.attn1"
    name, part = {
        0: (f"{attn}.{'wq' if last else 'wqkv'}", slice(0, width)),
        1: (f"{attn}.{'wkv' if last else 'wqkv'}", slice(0, width) if last else slice(width, 2 * width)),
        2: (f"decoder_blocks.{layer}.attn2.wq", slice(0, width)),
        3: (f"{attn}.{'wkv' if last else 'wqkv'}", slice(-width, None)),
    }[way]
    if way == 3:
        factor = 2.0**15  # what reads the values is divided by it, into the smallest numbers that FP16 has

    def edit(s: Surgery) -> None:
        def more(w: np.ndarray) -> np.ndarray:
            w = w.astype(np.float32)
            w[:, part] *= factor
            assert np.abs(w).max() < 65504  # the stored numbers themselves fit
            return w

        s.weight(f"{name}.weight", more)
        if way == 3:  # values are not normalized: what reads them is divided
            s.weight(f"{attn}.wo.weight", scaled(1 / factor))

    what = {0: "queries", 1: "keys", 2: "queries", 3: "values"}[way]
    return Plant("FP16 overflow", f"{name}: {what} x {factor:g}", HALF, TRANSFORMER_STEP, edit, name, reference=edit)


def transposed(rng: Rng, i: int) -> Plant:
    """Heads in another order, or a square matrix of the head the wrong way round."""
    base = [PORTABLE, NATIVE, HALF][i % 3]
    layer, way = i % DEPTH, i // DEPTH
    order = [[1, 0, 2], [2, 1, 0], [1, 2, 0], [0, 2, 1], [2, 0, 1]][int(rng.integers(0, 5))]
    if way == 4 or i == 15:
        module = f"res_blocks.{i % 3}.mlp.{[0, 2][i % 2]}"
        return Plant(
            "transposed",
            f"{module}.weight",
            base,
            DIFFUSION_HEAD,
            lambda s: s.weight(f"{module}.weight", np.transpose),
            module,
        )
    last, width = layer == DEPTH - 1, HEADS * DIM
    module = (
        f"decoder_blocks.{layer}." + ["attn1.wo", "attn2.wo", f"attn1.{'wkv' if last else 'wqkv'}", "attn2.wq"][way]
    )

    def heads(w: np.ndarray) -> np.ndarray:
        if way < 2:
            return w.reshape(HEADS, DIM, -1)[order].reshape(w.shape)
        values = w[:, -width:].reshape(w.shape[0], HEADS, DIM)[:, order]
        w[:, -width:] = values.reshape(w.shape[0], width)
        return w

    what = f"{module}.weight: heads {order}"
    return Plant("transposed", what, base, TRANSFORMER_STEP, lambda s: s.weight(f"{module}.weight", heads), module)


def quantized(rng: Rng, i: int) -> Plant:
    """A Q/DQ scale of a linear: of its matrix or of its input."""
    layer = i % DEPTH
    names = ["attn1.wkv" if layer == DEPTH - 1 else "attn1.wqkv", "attn1.wo", "attn2.wo", "ff.net.0.proj", "ff.net.2"]
    module = f"decoder_blocks.{layer}.{names[i // DEPTH % len(names)]}"
    which, factor = ("weight", rng.choice([0.25, 4.0, -1.0])) if i % 2 else ("input", rng.choice([1 / 16, 32.0]))
    name = f"{module}.{which}_scale"
    edit = lambda s: s.weight(name, scaled(float(factor)))  # noqa: E731
    return Plant("Q/DQ scale", f"{name} x {factor:g}", INT8, TRANSFORMER_STEP, edit, module)


KINDS = {
    "scale": scale,
    "swapped": swapped,
    "off-by-one": off_by_one,
    "nan": nan,
    "overflow": overflow,
    "transposed": transposed,
    "quantized": quantized,
}


def coefficients() -> np.ndarray:
    return DiffusionSchedule.respaced(1000, HEAD_STEPS, 0.05).coefficients


def trial(plant: Plant, out: Path) -> dict[str, Any]:
    """Plant it, compare, bisect."""
    with tempfile.TemporaryDirectory(dir=out) as folder:
        # The same emitter on both sides tells the most; FP16 is portable.
        reference, planted = out / (NATIVE if plant.base == NATIVE else PORTABLE), Path(folder) / "planted"
        copy_with(out / plant.base, planted, plant.graph, plant.edit)
        if plant.reference is not None:
            reference = Path(folder) / "reference"
            copy_with(out / PORTABLE, reference, plant.graph, plant.reference)
        with open_subject(reference, 1) as a, open_subject(planted, 1) as b:
            sampling = a.config.sampling
            cases = make_cases(a.config, [], [], 1, 0, sampling.frames, sampling.height, sampling.width)
            ladder = climb_all(a, labelled([b]), cases, sampling)
            miss = judge(ladder, b.label, (a.precision, b.precision)).first_miss
            began = time.process_time()  # the machine may be shared
            finding = bisect(a, b, cases, sampling, 1, lambda doing: None)
            seconds = time.process_time() - began
            conclusion = conclude(finding, b.precision)
    place, guilty = finding.place, finding.walked.guilty if finding.walked else None
    named = place is not None and guilty is not None and finding.module == plant.module
    if named and plant.spot is not None:
        named = (place.frame, place.step) == plant.spot
    if named and plant.head_step is not None:
        named = place.head_step == plant.head_step
    return {
        "kind": plant.kind,
        "what": plant.what,
        "base": plant.base,
        "compare": None if miss is None else f"{miss.gate.rung} {miss.gate.measure}",
        "found": finding.found,
        "right": bool(named),
        "place": str(place),
        "tensor": guilty.tensor if guilty else None,
        "module": finding.module,
        "concluded": conclusion.kind,
        "remains": finding.walked.remains if finding.walked else None,
        "seconds": seconds,
        "verdict": conclusion.verdict,
        "mend": conclusion.mend,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS)[:6])
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    for kind in args.kinds:
        for i in range(args.count):
            plant = KINDS[kind](np.random.default_rng([list(KINDS).index(kind), i]), i)
            try:
                rows.append(trial(plant, args.out))
            except Exception as error:
                traceback.print_exc()
                rows.append({"kind": plant.kind, "what": plant.what, "base": plant.base, "error": repr(error)})
            row = rows[-1]
            if not row.get("right") or not row.get("compare"):
                print(json.dumps(row), flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
    print("| kind | plants | compare fails | found | right place | CPU s each |")
    print("|---|---|---|---|---|---|")
    for kind in dict.fromkeys(row["kind"] for row in rows):
        of = [row for row in rows if row["kind"] == kind]
        counts = [sum(bool(row.get(key)) for row in of) for key in ("compare", "found", "right")]
        seconds = np.median([row["seconds"] for row in of if "seconds" in row])
        print(f"| {kind} | {len(of)} | {counts[0]} | {counts[1]} | {counts[2]} | {seconds:.1f} |")


if __name__ == "__main__":
    main()
