"""Does one more clip fit: planned before it begins, from the plan's own parts. Knows nothing of queues.

Weights and the working memory of one step are there once, since one step runs at a time; each clip adds what it holds
between its steps: K/V of frames and text, buffers, the decoder's carried frames, pixels.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from videomar.artifacts import Manifest
from videomar.config import SamplingConfig
from videomar.plan.memory import plan_memory
from videomar.plan.report import size_text
from videomar.plan.request import Request
from videomar.runtime.memory_check import BACKEND
from videomar.serving.jobs import Job

OWN = ("K/V of frames", "K/V of text", "clip", "decoder's carried frames", "pixels")


@dataclass(frozen=True)
class Need:
    """Bytes of one clip."""

    own: int  # held from its first step to its last
    shared: int  # beside all clips: libraries, weights, the largest step


@dataclass(frozen=True, eq=False)
class Budget:
    """All memory that may be taken, the model's included; None where it cannot be told and nothing is refused."""

    manifest: Manifest
    backend: str
    total: int | None

    def need(self, sampling: SamplingConfig, given: int) -> Need:
        """What a clip of so many given pixel frames takes, with the longest prompt."""
        m = self.manifest
        request = Request(
            m.config,
            sampling,
            precision=m.precision,
            emitter=m.emitter,
            cache_tokens=m.cache_tokens,
            given=given,
            lean=False,
        )
        moments = plan_memory(request, self.backend if self.backend == BACKEND else "trt").moments
        running = [moment for moment in moments if not moment.name.startswith("loading")]
        own = max(sum(moment.parts.get(part, 0) for part in OWN) for moment in running)
        shared = max(moment.total - sum(moment.parts.get(part, 0) for part in OWN) for moment in running)
        return Need(own, shared)

    def of(self, job: Job) -> Need:
        """What a job's clip takes."""
        return _of(self, job.sampling, job.given)

    def refuses(self, need: Need) -> str | None:
        """Why a clip can never be made here, or None."""
        if self.total is None or need.own + need.shared <= self.total:
            return None
        return (
            f"this clip needs {size_text(need.own + need.shared)} of memory, {size_text(self.total)} can be had; ask "
            "for fewer frames, a smaller size, or kv_window"
        )

    def fits(self, need: Need, others: Iterable[Need]) -> bool:
        """Whether a clip may begin beside others; one alone always may, since none is accepted that `refuses`."""
        others = list(others)
        if self.total is None or not others:
            return True
        every = [need, *others]
        return max(n.shared for n in every) + sum(n.own for n in every) <= self.total


@lru_cache(maxsize=1024)
def _of(budget: Budget, sampling: str, given: int) -> Need:
    return budget.need(SamplingConfig(**json.loads(sampling)), given)
