"""Ask the plan before a clip takes memory: refused in its words, instead of dying half-way.

Only where this process's memory is the device's, on ONNX Runtime's CPU; engines check their device as they allocate.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from videomar.artifacts import Manifest
from videomar.config import SamplingConfig
from videomar.errors import DeviceError
from videomar.plan.advice import smallest_change
from videomar.plan.memory import plan_memory
from videomar.plan.report import size_text
from videomar.plan.request import Request
from videomar.runtime.probes import free_memory, resident
from videomar.runtime.system import System

BACKEND = "ort-cpu"
OVERRIDE = "--no-memory-check tries all the same"


@dataclass(frozen=True)
class MemoryCheck:
    """What the plan has to know of opened artifacts, besides a clip's own numbers."""

    manifest: Manifest
    lean: bool
    system: System = field(default_factory=System)

    def require(
        self,
        sampling: SamplingConfig,
        given: int,
        text: int,
        text_embeddings: bool,
    ) -> SamplingConfig:
        """The same sampling; with two guidance passes where it leaves their number open and only two fit.

        given: conditioning frames, pixels; text: tokens of the prompt. Raises DeviceError if a clip needs more than is
        free, with the smallest change that would fit. Says nothing where memory cannot be told.
        """
        m = self.manifest
        request = Request(
            m.config,
            sampling,
            precision=m.precision,
            emitter=m.emitter,
            cache_tokens=m.cache_tokens,
            given=given,
            text=text,
            text_embeddings=text_embeddings and self.lean,  # else the encoder is there already
            lean=self.lean,
        )
        free, here = free_memory(self.system), resident(self.system)
        need = plan_memory(request, BACKEND).peak
        if not free or need <= free + here:  # what this process holds is part of what it needs
            return sampling
        halved = sampling.but(guidance_passes=2)
        if sampling.guidance_passes is None and sampling.branches == 2:
            if plan_memory(replace(request, sampling=halved), BACKEND).peak <= free + here:
                return halved
        change = smallest_change(request, lambda other: plan_memory(other, BACKEND).peak <= free + here)
        mend = "no option makes it small enough"
        if change:
            mend = f"the smallest change that fits: {' '.join(change.options)} ({change.cost})"
        raise DeviceError(
            f"this clip needs {size_text(need)} of memory, {size_text(free + here)} can be had; {mend}; {OVERRIDE}"
        )
