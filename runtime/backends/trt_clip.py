"""One clip on TensorRT: allocates once, warms up, captures one graph per number of finished frames and one for
each diffusion loop, and then only uploads inputs, launches, and reads back sampled tokens.

Shapes never change inside a clip. Knows nothing of masks or schedules.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import numpy as np

from videomar.config import ModelConfig
from videomar.errors import InputError
from videomar.graphs import HEAD_CONDITION, HEAD_STEP, TEXT_KEY_VALUES, TRANSFORMER_STEP
from videomar.runtime.backends.base import ClipPlan
from videomar.runtime.backends.cuda import CaptureRefused, Cuda
from videomar.runtime.backends.trt_buffers import Buffers
from videomar.runtime.backends.trt_engines import Context, Engine
from videomar.runtime.backends.trt_loop import Key, Loop
from videomar.runtime.backends.trt_memory import Cache
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
        _refuse_dials(plan)
        text, steps = states.shape[1], max(plan.schedules)
        sizes = {
            "branches": plan.branches,
            "tokens": plan.tokens,
            "text": text,
            "predicted": max(plan.counts),
            "steps": steps,
        }
        one = sizes | {"branches": plan.branches // plan.passes}
        by_frame = [one | caches[0].sizes(finished) for finished in range(plan.seen + 1)]
        self.execution, self._open = ENQUEUE, True
        self._passes: list[list[Replay]] = []  # by the number of frames that are seen
        self._loops: dict[Key, Replay] = {}
        self._stack = ExitStack()
        try:
            self._check_profiles(sizes, by_frame)
            self._buffers = self._owned(Buffers(device.cuda, device.stream, config, dtype, caches, plan, text))
            self._run_text(sizes, states)
            self._make_passes(by_frame)
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

    def _check_profiles(self, sizes: Mapping[str, int], by_frame: list[dict[str, int]]) -> None:
        """Refuse what the engines were not built for before anything is allocated."""
        engines = self._device.engines
        for each in reversed(by_frame):  # the largest first, so that it is the one named
            engines[TRANSFORMER_STEP].profile(each)
        for name in (TEXT_KEY_VALUES, HEAD_CONDITION, HEAD_STEP):
            engines[name].profile(sizes)

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

    def _make_passes(self, by_frame: list[dict[str, int]]) -> None:
        """A context of its own for every number of finished frames: capture freezes its shapes and addresses."""
        for finished, sizes in enumerate(by_frame):
            self._passes.append([])
            for group, cache in enumerate(self._caches):
                context = self._context(TRANSFORMER_STEP, sizes, group)
                context.bind(cache.bindings(finished, self._buffers.at))
                self._passes[-1].append(self._replay(context.enqueue, context))

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
        for each in chain(*self._passes):
            each.run()
        self._buffers.gather()
        for loop in self._loops.values():
            loop.run()
        self._buffers.wait()

    def _capture(self) -> None:
        every = [*chain(*self._passes), *self._loops.values()]
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
        plan = self._plan
        self._buffers.send_pass(tokens, masked, predict, cos, sin, plan.slot(self._finished) * plan.tokens)
        for each in self._passes[min(self._finished, plan.seen)]:
            each.run()
        self._buffers.gather()
        self._asked = len(predict)

    def z(self) -> np.ndarray:
        return self._buffers.read_z(self._asked)

    def force(self, z: np.ndarray) -> None:
        self._buffers.write_z(z)

    def sample(self, guidance: float, initial: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """As the protocol says; reading the result back is the one time that a mask step waits for the device."""
        self._buffers.send_noise(guidance, initial, draws)
        key = len(draws), self._plan.branches
        self._loops[key].run()
        return self._buffers.read_sampled(self._buffers.loops[key], len(initial))

    def keep(self) -> None:
        self._finished += 1  # the next pass has other addresses or lengths; a frame is moved only onto one unseen
        for cache in self._caches:
            for r in cache.keep(self._finished, self._buffers.at):
                self._device.cuda.copy_rows(r.to, r.pitch, r.source, r.source_pitch, r.row, r.rows, self._device.stream)

    def close(self) -> None:
        """Graphs, then contexts, then memory; again is harmless."""
        if self._open:
            self._open = False
            self._device.cuda.drain(self._device.stream)
        self._passes, self._loops = [], {}
        self._stack.close()


def _refuse_dials(plan: ClipPlan) -> None:
    """What this backend has no contexts for: a branch by itself, parts of a frame."""
    for there, options in (
        (plan.alone, "--guidance-start and --guidance-end"),
        (len(plan.parts) > 1, "--refresh-every"),
    ):
        if there:
            raise InputError(f"TensorRT's backend does not run {options}; leave it out, or use --backend ort-cuda")
