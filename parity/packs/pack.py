"""A golden pack as an object: what it says of itself, its calls and its clip as a side of a comparison.

Knows the pack's manifest. Knows nothing of how it is recorded or replayed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from videomar.artifacts import Manifest, read_manifest, verify
from videomar.config import SamplingConfig
from videomar.errors import ArtifactError, ConfigError
from videomar.parity.cases import Case
from videomar.parity.packs.pack_files import CLIP, INPUTS, MEND, OUTPUTS, read_calls, read_clip
from videomar.parity.packs.recorded import RecordedBackend, RecordedNoise, RecordedWords
from videomar.parity.subject import Subject
from videomar.tolerances import coarser

VERSION = 1


@dataclass(frozen=True)
class Pack:
    """One directory of `videomar record`."""

    directory: Path
    manifest: Manifest
    precision: str  # of the expected values
    prompt: str
    sampling: SamplingConfig
    graphs: tuple[str, ...]
    tolerances: dict[str, dict[str, float]]  # candidate precision -> graph -> relative L2
    arrays: dict[str, np.ndarray]

    @staticmethod
    def read(directory: Path) -> Pack:
        """Read and verify a pack; raises ArtifactError for anything else, truncated and altered ones included."""
        manifest = read_manifest(directory)
        if manifest.kind != "pack":
            raise ArtifactError(
                f"{directory} holds {manifest.kind} artifacts, expected a golden pack; run `videomar record DIR -o "
                "PACK` and give that"
            )
        about = manifest.extra.get("pack")
        version = about.get("version") if isinstance(about, dict) else None
        if version != VERSION:
            raise ArtifactError(
                f"{directory} is a pack of version {version!r:.20}, expected {VERSION}; record it again with this "
                "version, or replay it with the version that recorded it"
            )
        assert isinstance(about, dict)
        try:
            graphs = tuple(str(graph) for graph in about["graphs"])
            pack = Pack(
                directory,
                manifest,
                manifest.precision,
                about["prompt"],
                SamplingConfig(**about["sampling"]),
                graphs,
                {p: {g: float(v) for g, v in row.items()} for p, row in about["tolerances"].items()},
                {},
            )
        except (LookupError, TypeError, ValueError, AttributeError, ConfigError) as error:
            raise ArtifactError(f"{directory}: the manifest's 'pack' cannot be ({error!s:.80}); {MEND}") from None
        verify(directory, manifest, [CLIP, *(graph + end for graph in graphs for end in (INPUTS, OUTPUTS))])
        pack.arrays.update(read_clip(directory))
        for name in ("given", "ids", "states", "encoded", "decoded", "z/0", "sampled/0"):
            if name not in pack.arrays:
                raise ArtifactError(f"{directory / CLIP} lacks {name!r}; {MEND}")
        return pack

    def calls(self, graph: str) -> list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
        """(inputs, outputs) of the recorded calls of a graph, in the portable contract."""
        return read_calls(self.directory, graph)

    def tolerance(self, precision: str, graph: str) -> float:
        """Largest relative L2 error of any output of a graph, for engines of a precision."""
        try:
            return self.tolerances[coarser(precision, self.precision)][graph]
        except KeyError:
            raise ArtifactError(f"{self.directory} has no tolerance of {precision} for {graph}; {MEND}") from None

    def subject(self) -> Subject:
        """The recorded clip as the reference of a comparison."""
        words: Any = RecordedWords(self.arrays["ids"])
        backend = RecordedBackend(self.arrays)
        why = f"what {self.manifest.extra['pack'].get('recorded_on', 'a backend')} made of the recorded clip"
        return Subject(self.directory, self.manifest.config, self.precision, backend, words, self.manifest, why)

    def case(self) -> Case:
        """The recorded clip's inputs and noise."""
        return Case("recorded clip", self.arrays["given"], self.prompt, RecordedNoise(self.arrays))
