"""One exported graph on ONNX Runtime, its inputs and outputs bound on the device. Knows nothing of clips."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from benchmarks.gpu.parts.notes import Job
from videomar.artifacts import read_manifest
from videomar.graphs import contract
from videomar.runtime.backends import ort_providers
from videomar.runtime.backends.ort_memory import DeviceMemory, HostMemory, Memory
from videomar.runtime.backends.ort_session import open_session


class Bound:
    """sizes: of the contract's axes; those left out come from the model's own clip."""

    def __init__(self, job: Job, artifacts: str, name: str, sizes: Mapping[str, int], profile: bool = False) -> None:
        directory = job.artifacts / artifacts
        manifest = read_manifest(directory)
        config, in_place = manifest.config, manifest.emitter == "native"
        spec = contract(config, manifest.activations, in_place, manifest.cache_tokens)[name]
        s, stride = config.sampling, config.tokenizer.spatial_stride
        tokens = s.height * s.width // stride**2
        known = {"branches": 2, "tokens": tokens, "past": tokens, "total": 2 * tokens, "steps": s.head_steps}
        self.sizes = known | {"text": config.text.max_tokens, "predicted": max(1, tokens // s.mask_steps)} | dict(sizes)
        providers = ort_providers.cuda() if job.cuda else ort_providers.CPU
        self.memory: Memory = DeviceMemory("cuda", 0, providers.copying) if job.cuda else HostMemory()
        noted = {"enable_profiling": True, "profile_file_prefix": str(job.scratch / f"{name}-profile")}
        self.session = open_session(
            directory / f"{name}.onnx", providers=providers.of(spec), **(noted if profile else {})
        )
        providers.check(self.session.get_providers())
        self.binding, self.name = self.session.io_binding(), name
        rng, self._held = np.random.default_rng(0), []
        shared = {}
        for tensor in (*spec.inputs, *spec.outputs):
            shape = [self.sizes[a] if isinstance(a, str) else a for a in tensor.axes]
            place = tensor.name.replace("present_", "past_") if in_place else tensor.name
            buffer = shared.get(place) or self.memory.zeros(shape, tensor.dtype)
            shared[place] = buffer
            if tensor in spec.outputs:
                self.memory.bind_output(self.binding, tensor.name, buffer)
            elif tensor.name == "start":
                self.memory.put(self.binding, "start", buffer, np.int64(self.sizes["total"] - self.sizes["tokens"]))
            elif tensor.name == "predict":
                self.memory.put(self.binding, "predict", buffer, np.arange(shape[0]))
            elif tensor.dtype == "bool":
                self.memory.put(self.binding, tensor.name, buffer, np.ones(shape, bool))
            else:
                values = 0.5 * rng.standard_normal(shape, np.float32)
                self.memory.put(self.binding, tensor.name, buffer, values.astype(tensor.dtype))
        self._held = list(shared.values())

    def run(self) -> None:
        self.memory.run(self.session, self.binding, self.name)

    def seconds(self) -> float:
        """Of one run, waited for."""
        began = time.perf_counter()
        self.run()
        return time.perf_counter() - began
