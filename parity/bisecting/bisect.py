"""Where B leaves A: the first call of the real loop over its gate, then the first layer of that call.

The call is made again from A's inputs, layer by layer (layers.py). Where its layers are innocent, its inputs are not:
the passes that wrote the K/V it reads are walked next, then the text's K/V. Knows nothing of output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from videomar.carried import decoder_axes
from videomar.config import SamplingConfig
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
from videomar.parity.bisecting.deviation import Deviation, Pass, Recorded, first_deviation
from videomar.parity.bisecting.layers import Walked
from videomar.parity.bisecting.pair import Pair
from videomar.parity.bisecting.sides import OnnxSide, Side
from videomar.parity.cases import Case
from videomar.parity.lockstep import DECODED, ENCODED, HEAD, TEXT
from videomar.parity.subject import Subject
from videomar.runtime.backends.plain import modulations_of, nothing_carried
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
    weights: dict[str, float | None] = field(default_factory=dict)  # its stored tensors: relative difference from A's
    visible: bool = True  # False: engines, whose layers cannot be seen

    @property
    def found(self) -> bool:
        """Whether anything left its gate."""
        return self.deviation is not None or (self.walked is not None and self.walked.guilty is not None)


def bisect(
    a: Subject, b: Subject, cases: Sequence[Case], sampling: SamplingConfig, threads: int | None, progress: Progress
) -> Finding:
    """Find the first place; raises InputError when the two are checkpoints or no layers of B can be told."""
    deviation, notes, case = None, Recorded(), cases[0]
    for case in cases:
        deviation, notes = first_deviation(a, b, case, sampling, lambda step: progress("in lockstep"))
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
    from videomar.parity.bisecting.torch_side import TorchSide
    from videomar.parity.reference import TorchBackend

    assert isinstance(a.backend, TorchBackend)
    return TorchSide(a.backend.model, a.backend.prefix), second


class Search:
    """The walks that follow a deviation."""

    def __init__(self, a: Side, b: OnnxSide, notes: Recorded, gate: float, progress: Progress) -> None:
        self._pair, self._notes, self._progress = Pair(a, b, gate), notes, progress

    def run(self, deviation: Deviation | None, case: str) -> Finding:
        """Walk the suspects in turn; the first call with a guilty layer is the place."""
        shown: tuple[Place, Walked] | None = None
        looked, pair = 0, self._pair
        for place, walked in self._suspects(deviation):
            looked += len(walked.layers)
            if walked.guilty is not None:
                tensor = walked.guilty.tensor
                weights = pair.weights(place.part, tensor)
                module = pair.module(tensor, weights)
                return Finding(deviation, case, pair.gate, looked, place, walked, module, weights)
            # The call that left its gate is the first; without one, the transformer has the most to show.
            if shown is None or (deviation is None and place.part == TRANSFORMER_STEP):
                shown = place, walked
        return Finding(deviation, case, pair.gate, looked, *(shown or ()))

    def _suspects(self, deviation: Deviation | None) -> Iterator[tuple[Place, Walked]]:
        notes, kind = self._notes, deviation.kind if deviation else None
        if kind in (TEXT, None):
            yield self._simple(TEXT_ENCODER, {"ids": notes.ids})
        if kind in (ENCODED, None) and notes.pixels is not None:
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
        self._progress(f"layers of {part}")
        return Place(part), self._pair.walk(part, given, given)

    def _text(self) -> Iterator[tuple[Place, Walked]]:
        yield self._simple(TEXT_KEY_VALUES, {"states": self._notes.states})

    def _decoded(self, history: bool) -> Iterator[tuple[Place, Walked]]:
        """The latest latent frame; then, with `history`, those that made what it was carried."""
        config, latents = self._pair.b.config, self._notes.latents
        spec = contract(config, "fp32", in_place=False)[TOKENIZER_DECODER]
        nothing = nothing_carried(spec, decoder_axes(config.tokenizer, *self._notes.decoding))

        def inputs(i: int, side: int, carried: Arrays) -> Arrays:
            return {"latents": latents[i][None, :, None], "done": np.array([i]), **carried}

        walks = self._in_turn(TOKENIZER_DECODER, len(latents), inputs, [nothing, nothing], history)
        yield from ((Place(TOKENIZER_DECODER, i), walked) for i, walked in walks)

    def _passes(self, history: bool) -> Iterator[tuple[Place, Walked]]:
        """The latest pass; then, with `history`, those that wrote the K/V it read, then what wrote the text's."""
        notes, pair = self._notes, self._pair
        assert notes.plan is not None and notes.states is not None and notes.latest is not None
        names = [n for n in pair.b.graph(TEXT_KEY_VALUES).outputs if n.startswith("text_")]
        text = [side.whole(TEXT_KEY_VALUES, {"states": notes.states}, names) for side in (pair.a, pair.b)]
        text = [{name: v[: notes.plan.branches] for name, v in each.items()} for each in text]
        empty = text[0]["text_key_0"][:, :, :0]
        nothing = dict.fromkeys(layer_names("past", len(names) // 2), empty)
        passes = [*notes.finished, notes.latest]

        def inputs(i: int, side: int, carried: Arrays) -> Arrays:
            return {**_as_inputs(passes[i]), **text[side], **carried}

        for i, walked in self._in_turn(TRANSFORMER_STEP, len(passes), inputs, [nothing, nothing], history):
            yield Place(TRANSFORMER_STEP, passes[i].frame, passes[i].step), walked
        if history:
            yield from self._text()

    def _in_turn(
        self,
        part: str,
        count: int,
        inputs: Callable[[int, int, Arrays], Arrays],
        nothing: Sequence[Arrays],
        history: bool,
    ) -> Iterator[tuple[int, Walked]]:
        """Walk the last of `count` calls that hand something on; then, with `history`, the others in order.

        inputs: (number of the call, side, what it was handed); every side is handed its own, A's as A made it.
        """
        pair, sides = self._pair, (self._pair.a, self._pair.b)

        def handed_on(i: int, carried: Sequence[Arrays]) -> list[Arrays]:
            self._progress(f"what {part} hands on")
            results = [name.replace("past_", "present_") for name in nothing[0]]
            made = [side.whole(part, inputs(i, k, carried[k]), results) for k, side in enumerate(sides)]
            return [{name: each[name.replace("past_", "present_")] for name in nothing[0]} for each in made]

        def walked(i: int, carried: Sequence[Arrays]) -> tuple[int, Walked]:
            self._progress(f"layers of {part}")
            return i, pair.walk(part, inputs(i, 0, carried[0]), inputs(i, 1, carried[1]))

        carried = list(nothing)
        for i in range(count - 1):
            carried = handed_on(i, carried)
        yield walked(count - 1, carried)
        if history:
            carried = list(nothing)
            for i in range(count - 1):
                yield walked(i, carried)
                carried = handed_on(i, carried)

    def _head(self, every_step: bool) -> Iterator[tuple[Place, Walked]]:
        """Before the loop, then step by step from A's x; without `every_step`, the first and the last one."""
        notes, pair = self._notes, self._pair
        assert notes.plan is not None and notes.head is not None and notes.z is not None
        guidance, x, draws, solver = notes.head
        schedule = notes.plan.schedules[len(draws), solver]
        given = {"z": notes.z, "timesteps": schedule.timesteps}
        found: list[dict[str, np.ndarray]] = [{}, {}]
        yield Place(HEAD_CONDITION, *notes.head_at), pair.walk(HEAD_CONDITION, given, given, found)
        steps = list(zip(schedule.timesteps, schedule.coefficients, draws, strict=True))
        own = x
        for i, (timestep, coefficients, draw) in enumerate(steps):
            common = {"step_coefficients": coefficients, "draw": draw, "guidance": np.full(1, guidance, np.float32)}
            mine, theirs = (common | {"x": x_} | modulations_of(f, i) for f, x_ in zip(found, (x, own), strict=True))
            mine |= {"z": notes.z, "timestep": np.float32(timestep)}
            results: list[dict[str, np.ndarray]] = [{}, {}]
            if every_step or i in (0, len(steps) - 1):
                self._progress("layers of the head")
                yield Place(HEAD_STEP, *notes.head_at, i), pair.walk(HEAD_STEP, mine, theirs, results)
            else:
                results = [s.whole(HEAD_STEP, given, ["next"]) for s, given in ((pair.a, mine), (pair.b, theirs))]
            x, own = (r["next"].astype(np.float32) for r in results)


def _as_inputs(each: Pass) -> dict[str, np.ndarray]:
    given = {"tokens": each.tokens, "masked": each.masked, "predict": each.predict}
    return {**given, "rope_cos": each.cos, "rope_sin": each.sin}
