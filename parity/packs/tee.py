"""A backend that runs the real one and writes down a clip: its noise, z, tokens; and chosen calls of every graph.

The calls are made on a second, plain backend that is fed the same, graph by graph (runtime/backends/plain.py), so that
their inputs - K/V among them - are arrays. Knows nothing of files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from videomar.artifacts import Manifest
from videomar.config import ANCESTRAL
from videomar.graphs import DIFFUSION_HEAD, HEAD_CONDITION, HEAD_STEP, TRANSFORMER_STEP, contract
from videomar.runtime.backends.base import Backend, Clip, ClipPlan, Decoder
from videomar.runtime.backends.plain import Arrays, PlainBackend, Run, in_place
from videomar.schedule import Noise


def portable(manifest: Manifest) -> Manifest:
    """The same artifacts as if K/V were handed in and out, which is how a pack tells them."""
    return dataclasses.replace(manifest, emitter="portable", extra=manifest.extra | {"cache_tokens": None})


def portable_run(backend: Backend, manifest: Manifest) -> Run:
    """Every graph of a backend on the portable contract, whatever its emitter."""
    writes_in_place, cache = manifest.emitter == "native", manifest.cache_tokens

    def run(graph: str, feeds: Mapping[str, np.ndarray]) -> Arrays:
        if graph != TRANSFORMER_STEP or not writes_in_place:
            return backend.run_graph(graph, feeds)  # type: ignore[attr-defined]
        total = feeds["past_key_0"].shape[2] + len(feeds["tokens"])
        made = backend.run_graph(graph, in_place(feeds, cache))  # type: ignore[attr-defined]
        return {n: v[:, :, :total] if n.startswith("present_") else v for n, v in made.items()}

    return run


class Tee:
    """`Backend`. arrays: the clip by name (recorded.py); calls: graph -> (inputs, outputs) of the chosen calls."""

    def __init__(self, backend: Backend, manifest: Manifest) -> None:
        self.name = backend.name
        self.arrays: dict[str, np.ndarray] = {}
        self.calls: dict[str, list[tuple[Arrays, Arrays]]] = {}
        self._backend, self._raw = backend, portable_run(backend, manifest)
        self._specs = contract(manifest.config, manifest.activations, in_place=False)
        self._plain = PlainBackend(portable(manifest), self.run)
        self.writing = True
        self.diffusion_steps: tuple[int, ...] = ()  # of a chosen mask step, those that are written down
        self._diffused = 0

    def run(self, graph: str, feeds: Arrays) -> Arrays:
        """Run a graph and write the call down if it is chosen."""
        feeds = {t.name: np.array(feeds[t.name], t.dtype) for t in self._specs[graph].inputs}
        made = self._raw(graph, feeds)
        chosen = self.writing
        if graph == HEAD_CONDITION and chosen:  # modulations of all steps would be most of a pack
            steps = list(self.diffusion_steps)
            feeds = feeds | {"timesteps": feeds["timesteps"][steps]}
            self.calls.setdefault(graph, []).append((feeds, {name: value[steps] for name, value in made.items()}))
            return made
        if graph == HEAD_STEP:
            chosen, self._diffused = chosen and self._diffused in self.diffusion_steps, self._diffused + 1
        if chosen:
            self.calls.setdefault(graph, []).append((feeds, made))
        return made

    def encode_text(self, ids: np.ndarray) -> np.ndarray:
        self._plain.encode_text(ids)
        return self._note("states", self._backend.encode_text(ids))

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        self._plain.encode(pixels)
        return self._note("encoded", self._backend.encode(pixels))

    def decoder(self, frames: int, h: int, w: int) -> TeeDecoder:
        return TeeDecoder(self, self._backend.decoder(frames, h, w), self._plain.decoder(frames, h, w), frames)

    def note_decoded(self, pixels: np.ndarray) -> None:
        self._note("decoded", pixels)

    def _note(self, name: str, value: np.ndarray) -> np.ndarray:
        self.arrays[name] = np.array(value, np.float32)
        return value

    def begin(self, states: np.ndarray, plan: ClipPlan) -> TeeClip:
        self.writing = True
        clip = self._plain.begin(states, plan)
        self.writing = False
        return TeeClip(self, self._backend.begin(states, plan), clip, plan)

    def note_z(self, index: int, z: np.ndarray) -> None:
        self._note(f"z/{index}", z)

    def note_sampled(self, index: int, sampled: np.ndarray) -> None:
        self._note(f"sampled/{index}", sampled)

    def begin_diffusion(self, steps: int) -> None:
        """A diffusion loop of so many steps begins; the first, the middle and the last are written down."""
        self._diffused, self.diffusion_steps = 0, tuple(sorted({0, steps // 2, steps - 1}))

    def close(self) -> None:
        """The backend belongs to whoever opened it."""


class TeeDecoder:
    """`Decoder`. Chosen frames: the first and the last."""

    def __init__(self, tee: Tee, real: Decoder, plain: Decoder, frames: int) -> None:
        self._tee, self._real, self._plain, self._chosen = tee, real, plain, {0, frames - 1}
        self._pixels: list[np.ndarray] = []

    def next(self, latent: np.ndarray) -> np.ndarray:
        writing, self._tee.writing = self._tee.writing, len(self._pixels) in self._chosen
        self._plain.next(latent)
        self._tee.writing = writing  # of the clip that goes on
        self._pixels.append(np.array(self._real.next(latent)))
        self._tee.note_decoded(np.concatenate(self._pixels, axis=2))
        return self._pixels[-1]

    def close(self) -> None:
        for decoder in (self._real, self._plain):
            decoder.close()


class TeeClip:
    """`Clip`. Chosen passes: the first, the middle mask step of the first new frame, and the last; of the mask steps
    among them the head's calls too."""

    def __init__(self, tee: Tee, real: Clip, plain: Clip, plan: ClipPlan) -> None:
        self._tee, self._real, self._plain, self._plan = tee, real, plain, plan
        self._passes = self._samples = 0
        first = next(i for i, step in enumerate(plan.steps) if step.predicted)
        self._chosen = {0, first + len(plan.counts) // 2, len(plan.steps) - 1}

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
        self._tee.writing = self._passes in self._chosen
        for clip in (self._real, self._plain):
            clip.step(tokens, masked, predict, cos, sin, first, branches)
        self._tee.note_z(self._passes, self._real.z())
        self._passes += 1

    def sample(self, guidance: float, initial: np.ndarray, draws: np.ndarray, solver: str = ANCESTRAL) -> np.ndarray:
        tee, plan = self._tee, self._plan
        sampled = np.array(self._real.sample(guidance, initial, draws, solver))
        if tee.writing:  # as the pass just made
            tee.begin_diffusion(len(draws))
            self._plain.sample(guidance, initial, draws, solver)
            schedule = plan.schedules[len(draws), solver]
            feeds = {"z": self._plain.z(), "timesteps": schedule.timesteps, "coefficients": schedule.coefficients}
            feeds |= {"guidance": np.full(1, guidance, np.float32), "initial": initial, "draws": draws}
            tee.run(DIFFUSION_HEAD, feeds)
        tee.note_sampled(self._samples, sampled)
        self._samples += 1
        return sampled

    def keep(self) -> None:
        for clip in (self._real, self._plain):
            clip.keep()

    def close(self) -> None:
        for clip in (self._real, self._plain):
            clip.close()


class NotedNoise:
    """`schedule.Noise` that writes down what it gives, under recorded.py's names."""

    def __init__(self, noise: Noise, arrays: dict[str, np.ndarray]) -> None:
        self._noise, self._arrays = noise, arrays

    def order(self, frame: int, tokens: int) -> np.ndarray:
        return self._note(f"order/{frame}", self._noise.order(frame, tokens))

    def initial(self, frame: int, step: int, shape: tuple[int, int]) -> np.ndarray:
        return self._note(f"initial/{frame}/{step}", self._noise.initial(frame, step, shape))

    def steps(self, frame: int, step: int, shape: tuple[int, int, int]) -> np.ndarray:
        return self._note(f"steps/{frame}/{step}", self._noise.steps(frame, step, shape))

    def _note(self, name: str, value: np.ndarray) -> np.ndarray:
        self._arrays[name] = np.array(value)
        return value
