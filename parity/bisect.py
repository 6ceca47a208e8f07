"""Where B leaves A: the first call of the real loop over its gate, then the first layer of that call.

The call is made again from A's inputs, layer by layer (layers.py). Where its layers are innocent, its inputs are not:
the passes that wrote the K/V it reads are walked next, then the text's K/V. Knows nothing of output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from videomar.carried import decoder_axes
from videomar.errors import InputError
from videomar.graphs import (
    HEAD_CONDITION,
    HEAD_STEP,
    TEXT_ENCODER,
    TEXT_KEY_VALUES,
    TOKENIZER_DECODER,
    TOKENIZER_ENCODER,
    TRANSFORMER_STEP,
    contract,
    layer_names,
)
from videomar.parity.cases import Case
from videomar.parity.deviation import Deviation, Pass, Recorded, first_deviation
from videomar.parity.layers import Walk, Walked, relative
from videomar.parity.lockstep import DECODED, ENCODED, HEAD, TEXT
from videomar.parity.pieces import Cut
from videomar.parity.sides import OnnxSide, Side
from videomar.parity.subject import Subject
from videomar.runtime.backends.plain import nothing_carried
from videomar.tolerances import coarser

# The largest error a layer may add on exact inputs. Of the demo model's layers the farthest add 2e-7 (FP32, two
# emitters or PyTorch) and 3e-3 (FP16, a softmax of large scores); docs/bisect.md has the table.
LAYER_GATE = {"fp32": 1e-5, "fp16": 5e-3, "int8": 0.1}

Arrays = Mapping[str, np.ndarray]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Place:
    """One call: a part (a graph, or the head before and in its loop) and where in the loop; -1: outside of it."""

    part: str
    frame: int = -1
    step: int = -1
    head_step: int = -1

    def __str__(self) -> str:
        spots = (("latent frame", self.frame), ("mask step", self.step), ("head step", self.head_step))
        return ", ".join([self.part, *(f"{what} {n}" for what, n in spots if n >= 0)])


@dataclass(frozen=True)
class Finding:
    """What a bisection found. `guilty` is None when no single layer is to blame."""

    deviation: Deviation | None  # None: no call left its gate, and the layers of the last calls were looked at
    case: str
    gate: float  # of a layer
    looked: int = 0  # layers that were walked
    place: Place | None = None
    walked: Walked | None = None
    module: str = ""
    weights: dict[str, float | None] = field(
        default_factory=dict
    )  # of the guilty layer -> relative difference from A's
    visible: bool = True  # False: engines, whose layers cannot be seen

    @property
    def found(self) -> bool:
        """Whether anything left its gate."""
        return self.deviation is not None or (self.walked is not None and self.walked.guilty is not None)


def bisect(
    a: Subject, b: Subject, cases: Sequence[Case], knobs: dict[str, object], threads: int | None, progress: Progress
) -> Finding:
    """Find the first place; raises InputError when the two are checkpoints or no layers of B can be told."""
    deviation, notes, case = None, Recorded(), cases[0]
    for case in cases:
        deviation, notes = first_deviation(a, b, case, knobs, lambda frame, step: progress("in lockstep"))
        if deviation is not None:
            break
    gate = LAYER_GATE[coarser(a.precision, b.precision)]
    if "engine" in (s.manifest.kind for s in (a, b) if s.manifest is not None):
        return Finding(deviation, case.name, gate, visible=False)
    first, second = sides(a, b, threads)
    return Search(first, second, notes, gate, progress).run(deviation, case.name)


def sides(a: Subject, b: Subject, threads: int | None) -> tuple[Side, OnnxSide]:
    """Both with their layers to be seen; a checkpoint is always the one that is compared with."""
    if b.manifest is None:
        a, b = b, a
    if b.manifest is None:
        raise InputError(
            f"{a.directory} and {b.directory} are both checkpoints, expected exported artifacts on one side; run "
            "`videomar export` on the second"
        )
    second = OnnxSide(b.directory, b.manifest, threads)
    if a.manifest is not None:
        return OnnxSide(a.directory, a.manifest, threads), second
    from videomar.parity.reference import TorchBackend
    from videomar.parity.torch_side import TorchSide

    assert isinstance(a.backend, TorchBackend)
    return TorchSide(a.backend.model, a.backend.prefix), second


class Search:
    """The walks that follow a deviation."""

    def __init__(self, a: Side, b: OnnxSide, notes: Recorded, gate: float, progress: Progress) -> None:
        self._a, self._b, self._notes, self._gate, self._progress = a, b, notes, gate, progress
        self._part: str = ""  # the part cut last, and its cut
        self._latest: tuple[list[str], Cut]

    def run(self, deviation: Deviation | None, case: str) -> Finding:
        """Walk the suspects in turn; the first call with a guilty layer is the place."""
        shown: tuple[Place, Walked] | None = None
        looked = 0
        for place, walked in self._suspects(deviation):
            looked += len(walked.layers)
            if walked.guilty is not None:
                tensor = walked.guilty.tensor
                weights = self._weights(place.part, tensor)
                module = self._module(tensor, weights)
                return Finding(deviation, case, self._gate, looked, place, walked, module, weights)
            # The call that left its gate is the first; without one, the transformer has the most to show.
            if shown is None or (deviation is None and place.part == TRANSFORMER_STEP):
                shown = place, walked
        return Finding(deviation, case, self._gate, looked, *(shown or ()))

    def _suspects(self, deviation: Deviation | None) -> Iterator[tuple[Place, Walked]]:
        notes, kind = self._notes, deviation.kind if deviation else None
        if kind in (TEXT, None):
            yield self._simple(TEXT_ENCODER, {"ids": notes.ids})
        if kind in (ENCODED, None):
            yield self._simple(TOKENIZER_ENCODER, {"pixels": notes.pixels})
        if kind is None:
            yield from self._text()
        if kind in ("z", "sampled", None):
            yield from self._passes(history=kind is not None)
        if kind in (HEAD, None):
            yield from self._head(every_step=kind is not None)
        if kind in (DECODED, None):
            yield from self._decoded(history=kind is not None)

    def _simple(self, part: str, inputs: dict[str, np.ndarray | None]) -> tuple[Place, Walked]:
        given = {name: value for name, value in inputs.items() if value is not None}
        return Place(part), self.walk(part, given, given)

    def _text(self) -> Iterator[tuple[Place, Walked]]:
        assert self._notes.states is not None
        states = {"states": self._notes.states}
        yield Place(TEXT_KEY_VALUES), self.walk(TEXT_KEY_VALUES, states, states)

    def _decoded(self, history: bool) -> Iterator[tuple[Place, Walked]]:
        """The latest latent frame; then, with `history`, those that made what it was carried."""
        config, latents = self._b.config, self._notes.latents
        spec = contract(config, "fp32", in_place=False)[TOKENIZER_DECODER]
        nothing = nothing_carried(spec, decoder_axes(config.tokenizer, *self._notes.decoding))
        results = [t.name for t in spec.outputs if t.name != "pixels"]
        calls, carried = [], [nothing, nothing]
        for i, latent in enumerate(latents):
            calls.append([_decoder_inputs(latent, i, c) for c in carried])
            if i + 1 < len(latents):
                self._progress("frames decoded before")
                made = [
                    side.whole(TOKENIZER_DECODER, inputs, results)
                    for side, inputs in zip((self._a, self._b), calls[-1], strict=True)
                ]
                carried = [{name: m[name.replace("past_", "present_")] for name in nothing} for m in made]
        for i in (len(calls) - 1, *range(len(calls) - 1 if history else 0)):
            yield Place(TOKENIZER_DECODER, i), self.walk(TOKENIZER_DECODER, *calls[i])

    def _passes(self, history: bool) -> Iterator[tuple[Place, Walked]]:
        """The latest pass; then, with `history`, those that wrote the K/V it read, then what wrote the text's."""
        notes = self._notes
        assert notes.plan is not None and notes.states is not None and notes.latest is not None
        states = {"states": notes.states}
        depth = len(self._b.graph(TEXT_KEY_VALUES).outputs) // 2
        names, present = layer_names("text", depth), layer_names("present", depth)
        text = [side.whole(TEXT_KEY_VALUES, states, names) for side in (self._a, self._b)]
        text = [{name: v[: notes.plan.branches] for name, v in each.items()} for each in text]
        pasts = [_none_finished(each, depth) for each in text]
        passes = [*notes.finished, notes.latest]
        stored: list[tuple[Pass, list[dict[str, np.ndarray]]]] = []
        for each in passes[:-1]:
            self._progress("K/V of finished frames")
            inputs = [_step_inputs(each, t, past) for t, past in zip(text, pasts, strict=True)]
            stored.append((each, pasts))
            made = [s.whole(TRANSFORMER_STEP, i, present) for s, i in zip((self._a, self._b), inputs, strict=True)]
            pasts = [_kept(outputs, depth) for outputs in made]
        for each, before in [(passes[-1], pasts), *(stored if history else [])]:
            inputs = [_step_inputs(each, t, past) for t, past in zip(text, before, strict=True)]
            place = Place(TRANSFORMER_STEP, each.frame, each.step)
            yield place, self.walk(TRANSFORMER_STEP, *inputs)
        if history:
            yield from self._text()

    def _head(self, every_step: bool) -> Iterator[tuple[Place, Walked]]:
        """Before the loop, then step by step from A's x; without `every_step`, the first and the last one."""
        notes = self._notes
        assert notes.plan is not None and notes.head is not None and notes.z is not None
        guidance, x, draws = notes.head
        given = {"z": notes.z, "timesteps": notes.plan.timesteps}
        found: list[dict[str, np.ndarray]] = [{}, {}]
        yield Place(HEAD_CONDITION, *notes.head_at), self.walk(HEAD_CONDITION, given, given, found)
        steps = list(zip(notes.plan.timesteps, notes.plan.coefficients, draws, strict=True))
        own = x
        for i, (timestep, coefficients, draw) in enumerate(steps):
            common = {"step_coefficients": coefficients, "draw": draw, "guidance": np.full(1, guidance, np.float32)}
            mine, theirs = (
                common | {"condition": f["condition"], "step_time": f["time"][i], "x": x_}
                for f, x_ in zip(found, (x, own), strict=True)
            )
            mine |= {"z": notes.z, "timestep": np.float32(timestep)}
            results: list[dict[str, np.ndarray]] = [{}, {}]
            if every_step or i in (0, len(steps) - 1):
                yield Place(HEAD_STEP, *notes.head_at, i), self.walk(HEAD_STEP, mine, theirs, results)
            else:
                results = [s.whole(HEAD_STEP, given, ["next"]) for s, given in ((self._a, mine), (self._b, theirs))]
            x, own = (r["next"].astype(np.float32) for r in results)

    def _cut(self, part: str, inputs: Arrays) -> tuple[list[str], Cut]:
        """The tensors both sides can tell, in A's order, and B cut at them, in its own."""
        if part == self._part:
            return self._latest
        mine, theirs = self._a.tensors(part, inputs), self._b.tensors(part, inputs)
        inner = part != TRANSFORMER_STEP or self._a.emitter == self._b.emitter
        smoothed = self._smoothed(part) if "int8" in (self._a.precision, self._b.precision) else set()
        common = {
            name
            for name, operator in theirs.items()
            if name in mine and name not in smoothed and ("/" not in name or (inner and mine[name] == operator))
        }
        if self._a.emitter == "pytorch":
            common = self._alike(part, inputs, common)
        # The head's layers are walked once a diffusion step.
        cut = self._b.cut(part, [n for n in theirs if n in common], keep_open=part == HEAD_STEP)
        self._part, self._latest = part, ([n for n in mine if n in common], cut)
        return self._latest

    def _alike(self, part: str, inputs: Arrays, names: set[str]) -> set[str]:
        """Those of one shape on both sides: a graph may go on, in a module's name, after what the module returns."""
        shapes: list[dict[str, tuple[int, ...]]] = [{}, {}]
        for side, found in zip((self._a, self._b), shapes, strict=True):
            ordered = [n for n in side.tensors(part, inputs) if n in names]
            side.flow(part, inputs, ordered, lambda name, value, found=found: found.update({name: value.shape}))
        return {name for name in names if shapes[0].get(name) == shapes[1].get(name)}

    def _smoothed(self, part: str) -> set[str]:
        """Norms whose weights differ by powers of two a channel: calibration folds such divisors into them."""
        found = set()
        for name, operator in self._b.tensors(part, {}).items():
            if operator == "LayerNormalization" and name.endswith(("norm1", "norm2")):
                mine, theirs = (side.weight(part, f"{name}.weight") for side in (self._a, self._b))
                if mine is not None and theirs is not None and mine.shape == theirs.shape:
                    with np.errstate(divide="ignore", invalid="ignore"):
                        ratio = mine.astype(np.float64) / theirs.astype(np.float64)
                    powers = np.log2(np.abs(ratio))
                    if np.nanmax(np.abs(powers)) > 0.5 and np.nanmax(np.abs(powers - np.round(powers))) < 1e-2:
                        found.add(name)
        return found

    def walk(
        self,
        part: str,
        mine: Arrays,
        theirs: Arrays,
        found: list[dict[str, np.ndarray]] | None = None,
    ) -> Walked:
        """One call with A's inputs and B's own; `found` takes A's and B's results."""
        self._progress(f"layers of {part}")
        order, pieces = self._cut(part, mine)
        outputs = self._b.graph(part).outputs
        listener = Walk(
            pieces,
            self._b.inputs(part, mine),
            self._b.inputs(part, theirs),
            self._gate,
            [n for n in outputs if n in pieces.order],
            found is not None,
        )
        self._a.flow(part, mine, order, listener)
        walked = listener.finish()
        if found is not None:
            for into, lane in zip(found, (listener.reference, listener.own), strict=True):
                into.update({name: lane[name] for name in outputs})
        return walked

    def _weights(self, part: str, tensor: str) -> dict[str, float | None]:
        """How far the guilty layer's stored tensors are from A's of the same name; None where A has none of that name
        and form."""
        found: dict[str, float | None] = {}
        for name in self._latest[1].weights(tensor):
            stem = name.removesuffix("_scale")
            mine, theirs = self._a.weight(part, name), self._b.weight(part, name)
            whole = self._b.weight(part, f"{stem}_quantized") if stem != name else None
            if whole is not None and theirs is not None:  # per output channel
                name, mine, theirs = stem, self._a.weight(part, stem), whole * theirs
            if theirs is not None and theirs.dtype.kind == "f" and theirs.ndim:
                found[name] = None if mine is None else relative(theirs, mine)
        return found

    def _module(self, tensor: str, weights: Mapping[str, float | None]) -> str:
        """Whose fault it is: a layer may run through several modules where the sides are not written alike.

        The first whose stored tensors are not A's; else the only one of which nothing can be said; else the last.
        """
        cut = self._latest[1]
        if "int8" in (self._a.precision, self._b.precision):
            return cut.graph.module(tensor)  # a quantized linear with the smoothed norm in front
        steps = cut.modules(tensor)
        for module, read in steps:
            if any((weights.get(name) or 0) > self._gate / 5 for name in read):
                return module
        open_ones = {m for m, read in steps if not read or any(weights.get(name) is None for name in read)}
        return open_ones.pop() if len(open_ones) == 1 else cut.graph.module(tensor)


def _none_finished(text: Arrays, depth: int) -> dict[str, np.ndarray]:
    empty = text["text_key_0"][:, :, :0]
    return {name: empty for name in layer_names("past", depth)}


def _kept(outputs: Arrays, depth: int) -> dict[str, np.ndarray]:
    names = zip(layer_names("past", depth), layer_names("present", depth), strict=True)
    return {past: outputs[present] for past, present in names}


def _decoder_inputs(latent: np.ndarray, done: int, carried: Arrays) -> dict[str, np.ndarray]:
    return {"latents": latent[None, :, None], "done": np.array([done]), **carried}


def _step_inputs(each: Pass, text: Arrays, past: Arrays) -> dict[str, np.ndarray]:
    given = {"tokens": each.tokens, "masked": each.masked, "predict": each.predict}
    return {**given, "rope_cos": each.cos, "rope_sin": each.sin, **text, **past}
