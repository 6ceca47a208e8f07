"""A golden pack as an object: what it says of itself, its calls and its clip as a side of a comparison.

Knows the pack's manifest. Knows nothing of how it is recorded or replayed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from videomar.artifacts import MANIFEST, Manifest, read_manifest, verify
from videomar.config import SamplingConfig
from videomar.errors import ArtifactError, ConfigError, InputError
from videomar.fields import FieldError, Fields
from videomar.graphs import GRAPHS, contract
from videomar.parity.cases import Case
from videomar.parity.packs.pack_checks import Misfit, check_calls, check_clip
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
        if type(version) is not int or version != VERSION:
            raise ArtifactError(
                f"{directory} is a pack of version {version!r:.20}, expected {VERSION}; record it again with this "
                "version, or replay it with the version that recorded it"
            )
        try:
            pack = _pack(directory, manifest, Fields(about, "pack"))
        except (TypeError, FieldError, ConfigError) as error:
            raise ArtifactError(f"{directory / MANIFEST}: {error!s:.200}; {MEND}") from None
        verify(directory, manifest, [CLIP, *(graph + end for graph in pack.graphs for end in (INPUTS, OUTPUTS))])
        pack.arrays.update(read_clip(directory))
        try:
            check_clip(manifest.config, pack.sampling, pack.arrays)
        except (Misfit, InputError) as error:
            raise ArtifactError(f"{directory / CLIP}: {error}; {MEND}") from None
        return pack

    def calls(self, graph: str) -> list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
        """(inputs, outputs) of the recorded calls of a graph, in the portable contract."""
        calls = read_calls(self.directory, graph)
        try:
            check_calls(contract(self.manifest.config, self.manifest.activations, in_place=False)[graph], calls)
        except Misfit as error:
            raise ArtifactError(f"{self.directory}: calls of {graph}: {error}; {MEND}") from None
        return calls

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
        why = f"what {self.manifest.extra['pack'].get('recorded_on', 'a backend')!s:.40} made of the recorded clip"
        return Subject(self.directory, self.manifest.config, self.precision, backend, words, self.manifest, why)

    def case(self) -> Case:
        """The recorded clip's inputs and noise."""
        return Case("recorded clip", self.arrays["given"], self.prompt, RecordedNoise(self.arrays))


def _pack(directory: Path, manifest: Manifest, about: Fields) -> Pack:
    """What a manifest says of its pack; raises FieldError, ConfigError or TypeError for what cannot be."""
    rows, sampling = about.fields("tolerances"), about.fields("sampling")
    tolerances = {name: rows.fields(name) for name in rows}
    graphs = tuple(about.texts("graphs"))
    if odd := [graph for graph in graphs if graph not in GRAPHS]:
        raise FieldError(f"'pack.graphs' holds {odd[0]!r:.40}, expected some of {', '.join(GRAPHS)}")
    return Pack(
        directory,
        manifest,
        manifest.precision,
        about.text("prompt"),
        SamplingConfig(**{name: sampling.plain(name) for name in sampling}),
        graphs,
        {name: {graph: row.number(graph, 0) for graph in row} for name, row in tolerances.items()},
        {},
    )
