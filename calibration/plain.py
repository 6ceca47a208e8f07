"""The graphs of an artifact directory as functions on named arrays. Knows nothing of loops."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnxruntime as ort

from videomar.errors import ArtifactError
from videomar.graphs import (
    HEAD_CONDITION,
    HEAD_STEP,
    TEXT_ENCODER,
    TEXT_KEY_VALUES,
    TOKENIZER_DECODER,
    TOKENIZER_ENCODER,
    TRANSFORMER_STEP,
)
from videomar.runtime.backends.ort_session import open_session
from videomar.runtime.backends.plain import Arrays, PlainBackend, Run

__all__ = ["USED", "Arrays", "Graphs", "PlainBackend", "Run", "open_graph"]

USED = (
    TEXT_ENCODER,
    TEXT_KEY_VALUES,
    TOKENIZER_ENCODER,
    TOKENIZER_DECODER,
    TRANSFORMER_STEP,
    HEAD_CONDITION,
    HEAD_STEP,
)


def open_graph(file: Path, threads: int | None = None) -> ort.InferenceSession:
    """One graph on the CPU; raises ArtifactError when ONNX Runtime cannot load it."""
    try:
        return open_session(file, threads)
    except Exception as error:  # ONNX Runtime's own exception types are not public
        why = str(error).splitlines()[0]
        raise ArtifactError(
            f"{file} cannot be loaded by ONNX Runtime ({why:.200}); export the checkpoint again"
        ) from None


class Graphs:
    """The graphs of an artifact directory as a `Run`, opened when first used; `files` stand for some of them."""

    def __init__(self, directory: Path, threads: int | None = None, files: Mapping[str, Path] | None = None) -> None:
        self._directory, self._threads, self._files = directory, threads, dict(files or {})
        self._sessions: dict[str, ort.InferenceSession] = {}

    def __call__(self, graph: str, feeds: Arrays) -> Arrays:
        if graph not in self._sessions:
            file = self._files.get(graph, self._directory / f"{graph}.onnx")
            self._sessions[graph] = open_graph(file, self._threads)
        session = self._sessions[graph]
        return dict(zip((o.name for o in session.get_outputs()), session.run(None, feeds), strict=True))
