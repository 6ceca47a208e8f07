"""One clip on TensorRT: allocates once, warms up, captures a graph for every shape of a pass and for every diffusion
loop, and then only uploads inputs, copies on the device, launches, and reads back sampled tokens.

Which shapes there are stands in the plan. Knows nothing of masks or schedules.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np

from videomar.config import ANCESTRAL, ModelConfig
from videomar.graphs import HEAD_CONDITION, HEAD_STEP, TEXT_KEY_VALUES, TRANSFORMER_STEP
from videomar.runtime.backends.base import ClipPlan
from videomar.runtime.backends.cuda import CaptureRefused, Cuda
from videomar.runtime.backends.trt_buffers import Buffers
from videomar.runtime.backends.trt_engines import Context, Engine
from videomar.runtime.backends.trt_loop import Key, Loop
from videomar.runtime.backends.trt_memory import Cache, Rows
from videomar.runtime.backends.trt_replay import Replay

log = logging.getLogger(__name__)

Owned = TypeVar("Owned", Buffers, Context, Replay)
GRAPHS, ENQUEUE = "cuda-graphs", "enqueue"


@dataclass(frozen=True)
class Device:
    """What every clip of a backend shares. All work goes through one stream, so one block serves every context."""

    cuda: Cuda
    stream: Any
    block: int
    engines: Mapping[str, Engine]
    contexts: Mapping[str, Context]  # of the graphs that run once a clip


class Pass(NamedTuple):
    """One shape of a pass through the transformer."""

    seen: int  # finished frames
    part: int  # positions of the frame
    branches: int
    group: int  # which of the passes of a step


class TrtClip:
    """Device state of one generation. execution: "cuda-graphs" or "enqueue", whichever it came to."""

    def __init__(
        self,
        device: Device,
        config: ModelConfig,
        dtype: np.dtype,
        caches: Sequence[Cache],
        states: np.ndarray,
        plan: ClipPlan,
        capture: bool = True,
    ) -> None:
        """caches: of each pass that a step takes through the transformer; two share the branches of guidance."""
        self._device, self._plan, self._caches, self._finished = device, plan, caches, 0
        self._asked = plan.branches, 1  # by the last step: branches and outputs
        text, steps = states.shape[1], max(plan.steps_a_loop)
        sizes = {
            "branches": plan.branches,
            "text": text,
            "predicted": max(plan.counts),
            "steps": steps,
        }
        by_pass = {each: sizes | self._sizes(each) for each in self._taken()}
        self.execution, self._open = ENQUEUE, True
        self._passes: dict[Pass, Replay] = {}
        self._loops: dict[Key, Replay] = {}
        self._stack = ExitStack()
        try:
            self._check_profiles(sizes, by_pass)
            self._buffers = self._owned(Buffers(device.cuda, device.stream, config, dtype, caches, plan, text))
            self._run_text(sizes, states)
            self._make_passes(by_pass)
            self._make_loops(sizes)
            self._warm_up()
            if capture:
                self._capture()
        except BaseException:
            self.close()
            raise

    def _owned(self, owner: Owned) -> Owned:
        self._stack.callback(owner.close)
        return owner

    # ---- before the first frame

    def _taken(self) -> list[Pass]:
        """Every pass that the clip's steps may take, the largest first, so that it is the one that a refusal names."""
        plan = self._plan
        steps = {(min(s.frame, plan.seen), s.computed, s.branches) for s in plan.every}
        every = steps or {(seen, plan.tokens, plan.branches) for seen in range(plan.seen + 1)}
        return sorted({each for step in every for each in self._passes_of(*step)}, reverse=True)

    def _passes_of(self, seen: int, part: int, branches: int) -> list[Pass]:
        """What a step runs: all its branches at once, or one after the other."""
        at_once = min(branches, self._plan.branches // self._plan.passes)
        return [Pass(seen, part, at_once, group) for group in range(branches // at_once)]

    def _sizes(self, each: Pass) -> dict[str, int]:
        return {"branches": each.branches, "tokens": each.part, **self._caches[each.group].sizes(each.seen, each.part)}

    def _check_profiles(self, sizes: Mapping[str, int], by_pass: Mapping[Pass, Mapping[str, int]]) -> None:
        """Refuse what the engines were not built for before anything is allocated."""
        engines = self._device.engines
        for of in by_pass.values():
            engines[TRANSFORMER_STEP].profile(of)
        engines[TEXT_KEY_VALUES].profile(sizes)
        for branches in {self._plan.branches, *(s.branches for s in self._plan.every)}:
            for name in (HEAD_CONDITION, HEAD_STEP):
                engines[name].profile({**sizes, "branches": branches})

    def _run_text(self, sizes: Mapping[str, int], states: np.ndarray) -> None:
        """Text K/V, once a clip; always of both branches, of which a clip without guidance reads the first."""
        context = self._device.contexts[TEXT_KEY_VALUES]
        context.resize(sizes)
        context.bind_named(self._buffers.at)
        self._buffers.send_first(states)
        context.enqueue()
        self._buffers.send_second()

    def _context(self, name: str, sizes: Mapping[str, int], group: int = 0) -> Context:
        context: Context = self._owned(Context(self._device.engines[name], self._device.block, self._device.stream))
        context.resize(sizes)
        context.bind_named(self._buffers.at | self._buffers.of_pass(group))
        return context

    def _make_passes(self, by_pass: Mapping[Pass, Mapping[str, int]]) -> None:
        """A context of its own for every pass: capture freezes its shapes and addresses."""
        for each, sizes in by_pass.items():
            context = self._context(TRANSFORMER_STEP, sizes, each.group)
            context.bind(self._caches[each.group].bindings(each.seen, each.part, self._buffers.at))
            self._passes[each] = self._replay(context.enqueue, context)

    def _make_loops(self, sizes: Mapping[str, int]) -> None:
        for key, shape in self._buffers.loops.items():
            of = {**sizes, "branches": shape.branches, "steps": shape.ahead}
            condition, diffuse = (self._context(name, of) for name in (HEAD_CONDITION, HEAD_STEP))
            loop = Loop(shape, condition, diffuse, self._buffers.at)
            self._loops[key] = self._replay(loop.enqueue, *loop.contexts)

    def _replay(self, enqueue: Callable[[], None], *contexts: Context) -> Replay:
        return Replay(self._device.cuda, self._device.stream, enqueue, lambda: all(c.capturable for c in contexts))

    def _warm_up(self) -> None:
        """Run everything once, uncaptured, on inputs of zeros: TensorRT may allocate now, and not later."""
        for each in self._passes.values():
            each.run()
        self._buffers.gather()
        for loop in self._loops.values():
            loop.run()
        self._buffers.wait()

    def _capture(self) -> None:
        every = [*self._passes.values(), *self._loops.values()]
        for each in every:
            self._stack.callback(each.close)
        try:
            for each in every:
                each.capture()
        except CaptureRefused as error:
            for each in every:
                each.close()
            log.warning("TensorRT runs by plain enqueue, which is slower: no CUDA graph could be captured (%s)", error)
            return
        self.execution = GRAPHS
        loops = len(self._loops)
        log.info("TensorRT runs %d CUDA graphs for the transformer and %d for the head", len(every) - loops, loops)

    # ---- frames

    def step(
        self,
        tokens: np.ndarray,
        masked: np.ndarray,
        predict: np.ndarray,
        cos: np.ndarray,
        sin: np.ndarray,
        first: int = 0,
        branches: int | None = None,
    ) -> None:
        plan, count = self._plan, branches or self._plan.branches
        start = plan.slot(self._finished) * plan.tokens + first
        self._buffers.send_pass(tokens, masked, predict, cos, sin, start)
        for each in self._passes_of(min(self._finished, plan.seen), len(tokens), count):
            cache = self._caches[each.group]
            self._copy(cache.place(each.seen, each.branches, slice(first, first + each.part), self._buffers.at))
            self._passes[each].run()
        if count == plan.branches:
            self._buffers.gather()
        self._asked = count, len(predict)

    def _copy(self, copies: Iterable[Rows]) -> None:
        for r in copies:
            self._device.cuda.copy_rows(r.to, r.pitch, r.source, r.source_pitch, r.row, r.rows, self._device.stream)

    def z(self) -> np.ndarray:
        return self._buffers.read_z(*self._asked)

    def force(self, z: np.ndarray) -> None:
        self._buffers.write_z(z)

    def sample(self, guidance: float, initial: np.ndarray, draws: np.ndarray, solver: str = ANCESTRAL) -> np.ndarray:
        """As the protocol says; reading the result back is the one time that a mask step waits for the device."""
        self._buffers.send_noise(guidance, initial, draws)
        key = (len(draws), solver), self._asked[0]
        self._loops[key].run()
        return self._buffers.read_sampled(self._buffers.loops[key], len(initial))

    def keep(self) -> None:
        self._finished += 1  # the next pass has other addresses or lengths; a frame is moved only onto one unseen
        for cache in self._caches:
            self._copy(cache.keep(self._finished, self._buffers.at))

    def close(self) -> None:
        """Graphs, then contexts, then memory; again is harmless."""
        if self._open:
            self._open = False
            self._device.cuda.drain(self._device.stream)
        self._passes, self._loops = {}, {}
        self._stack.close()
