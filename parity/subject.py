"""Whatever can be compared - a checkpoint, ONNX graphs, engines - opened behind one interface.

Knows which directory is what. Knows nothing of how two are compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from videomar.artifacts import MANIFEST, Manifest, read_manifest, require_graphs
from videomar.config import ModelConfig
from videomar.errors import InputError
from videomar.graphs import DIFFUSION_HEAD, HEAD_CONDITION, HEAD_STEP
from videomar.onnx_interface import verify_graphs
from videomar.runtime.backends.base import Backend
from videomar.runtime.backends.choose import choose
from videomar.runtime.pipeline import Pipeline
from videomar.runtime.prompt import PromptTokenizer


@dataclass(frozen=True)
class Subject:
    """One side of a comparison; close it, or use it as a context manager."""

    directory: Path
    config: ModelConfig
    precision: str  # "fp32", "fp16", "int8"
    backend: Backend
    tokenizer: PromptTokenizer
    manifest: Manifest | None  # none of a checkpoint
    why: str  # this backend, in a sentence

    @property
    def label(self) -> str:
        """Its name in tables: the directory's."""
        return self.directory.resolve().name

    @property
    def unrun_parts(self) -> bool | None:
        """Whether it holds the head in parts, as engines run it, beside the whole one that this backend runs; None
        where there is nothing of the kind: a checkpoint, or a backend that runs the parts."""
        has_graph = getattr(self.backend, "has_graph", None)
        if self.manifest is None or has_graph is None or not has_graph(DIFFUSION_HEAD):
            return None
        return bool(has_graph(HEAD_CONDITION) and has_graph(HEAD_STEP))

    def pipeline(self) -> Pipeline:
        """The public class over this backend."""
        return Pipeline(self.config, self.backend, self.tokenizer, self.why)

    def close(self) -> None:
        """Free the backend."""
        self.backend.close()

    def __enter__(self) -> Subject:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_subject(
    directory: Path, threads: int | None = None, backend: str = "auto", check_hashes: bool = True
) -> Subject:
    """Open a checkpoint (PyTorch, FP32, needs the extra `export`) or an artifact directory on a backend.

    Raises ArtifactError for what cannot be read, InputError for what is neither, UserError for an impossible backend.
    """
    if not directory.is_dir():
        got = "is a file" if directory.exists() else "does not exist"
        raise InputError(f"{directory} {got}, expected a checkpoint or an artifact directory")
    if (directory / MANIFEST).is_file():
        manifest = read_manifest(directory)
        require_graphs(directory, manifest)
        verify_graphs(directory, manifest, check_hashes)
        chosen, why = choose(directory, manifest, backend, threads)
        tokenizer = PromptTokenizer(directory / "tokenizer.json", manifest.config.text)
        return Subject(directory, manifest.config, manifest.precision, chosen, tokenizer, manifest, why)
    if not (directory / "config.json").is_file():
        raise InputError(f"{directory} holds neither {MANIFEST} nor config.json, expected artifacts or a checkpoint")
    return _checkpoint(directory, threads)


def _checkpoint(directory: Path, threads: int | None) -> Subject:
    try:
        import torch
    except ImportError:
        raise InputError(
            f"{directory} is a checkpoint, which PyTorch runs, and PyTorch is not installed; pip install "
            "'videomar[export]', or compare artifact directories"
        ) from None
    from videomar.model.videomar import load_checkpoint
    from videomar.parity.reference import TorchBackend

    if threads:
        torch.set_num_threads(threads)
    model = load_checkpoint(directory)
    tokenizer = PromptTokenizer(directory / "tokenizer.json", model.config.text)
    backend = TorchBackend(model, tokenizer.prefix)
    return Subject(directory, model.config, "fp32", backend, tokenizer, None, "PyTorch, the reference, on the CPU")


def require_comparable(subjects: list[Subject]) -> None:
    """Raise InputError unless all are the same model and read the same words."""
    first = subjects[0]
    for other in subjects[1:]:
        for part in ("tokenizer", "text", "transformer", "head"):
            got, expected = getattr(other.config, part), getattr(first.config, part)
            for key in vars(expected):
                if getattr(got, key) != getattr(expected, key):
                    raise InputError(
                        f"{other.directory} is another model than {first.directory}: {part}.{key} is "
                        f"{getattr(got, key)!r}, expected {getattr(expected, key)!r}; compare what was made from one "
                        "checkpoint"
                    )
