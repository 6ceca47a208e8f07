"""A whole VideoMAR small enough to export and run in tests: config, checkpoint, artifacts, one file a graph.

Tracing is what costs (seconds a graph, whatever its widths), so nothing is traced twice in a session, whichever of
its processes asks first, and a graph that several artifact directories share is traced once. A process that would
wait for another's directory traces some of its graphs instead. PyTorch is imported only when a fixture needs it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import gc
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from videomar.artifacts import read_manifest, write_directory, write_manifest
from videomar.config import HeadConfig, ModelConfig, SamplingConfig, TextConfig, TokenizerConfig, TransformerConfig
from videomar.graphs import GRAPHS, TRANSFORMER_STEP, contract
from videomar.unfinished import folder

if TYPE_CHECKING:
    import onnx

    from videomar.export.build import GraphBuilder
    from videomar.model.videomar import VideoMAR

gc.set_threshold(20_000, 20, 50)  # small objects by the million, and little in cycles: looking often finds nothing
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models gain nothing from more, and the processes share the cores
KEPT = 24 * 3600.0  # seconds that what earlier sources made stays
CACHE_TOKENS = 64  # of the artifacts with a cache of fixed length
MadeOnce = Callable[[str, Callable[[Path], None]], Path]


class GraphFile(Protocol):
    def __call__(
        self, name: str, precision: str = "fp32", emitter: str = "portable", cache_tokens: int | None = None
    ) -> Path: ...


def pytest_collection_finish() -> None:
    settle()


def settle() -> None:
    """What is imported, and cached by the tracer, by now stays: the collector need not look through it any more."""
    gc.collect()
    gc.freeze()


def ours(home: Path) -> dict[Path, int]:
    """What is of this program in a home: its name in a path, two folders deep, and when it was changed."""
    places = (home, *(home / name for name in (".cache", ".config", ".local/share", ".local/state")))
    found = (path for place in places if place.is_dir() for path in place.iterdir() if "videomar" in path.name.lower())
    return {path: path.stat().st_mtime_ns for top in found for path in (top, *top.rglob("*"))}


@pytest.fixture(scope="session", autouse=True)
def home_untouched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Caches go to a folder of the session's; what appears in the real home all the same is a failure."""
    home = Path.home()
    before, told = ours(home), os.environ.get("XDG_CACHE_HOME")
    # pip's and the browser's stay: they are not ours, and to fetch all again takes minutes.
    os.environ.setdefault("PIP_CACHE_DIR", str(Path(told or home / ".cache") / "pip"))
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if told is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = told
    appeared = sorted(str(path) for path, changed in ours(home).items() if before.get(path) != changed)
    assert not appeared, f"tests wrote into the real home: {', '.join(appeared)}"


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    """Strides of the demo, everything else as small as it goes; with a system prompt of four words."""
    return ModelConfig(
        name="tiny",
        tokenizer=TokenizerConfig(
            encoder_channels=(8, 8, 8, 8),
            decoder_channels=(8, 8, 8, 8),
            layers_per_block=0,
            attention_resolutions=(),
            resolution=64,
            spatial_stride=8,
            latent_scale=1.5,
        ),
        text=TextConfig(
            vocab_size=32,
            width=16,
            depth=1,
            heads=2,
            kv_heads=1,
            mlp_width=16,
            rope_theta=1e4,
            max_positions=64,
            max_tokens=8,
            system_prompt="still a white square ",
            system_tokens=4,
        ),
        transformer=TransformerConfig(width=32, depth=2, heads=2, head_dim=16, rope_split=(8, 4, 4)),
        head=HeadConfig(width=128, depth=2, time_features=32, train_steps=20),
        sampling=SamplingConfig(
            frames=17, height=16, width=24, mask_steps=3, head_steps=4, token_clip=1.0, max_beta=0.5
        ),
    )


@pytest.fixture(scope="session")
def shared(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where what takes long is made once for all test processes, and kept by pytest for runs of the same sources."""
    cache = getattr(pytestconfig, "cache", None)
    if cache is None:  # -p no:cacheprovider
        base = tmp_path_factory.getbasetemp()
        return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    place = Path(cache.mkdir("videomar")) / sources()
    for other in place.parent.iterdir():
        if other != place and time.time() - other.stat().st_mtime > KEPT:
            shutil.rmtree(other, ignore_errors=True)
    place.mkdir(exist_ok=True)
    return place


def sources() -> str:
    """A hash of all that the tiny model's files come from."""
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    ours = ("export/**/*.py", "videomar/**/*.py", "runtime/prompt.py")
    for pattern in (*ours, "tests/conftest.py", "tests/naive.py", "tests/export/*.py"):
        for file in sorted(root.glob(pattern)):
            digest.update(f"{file.relative_to(root)}\n".encode() + file.read_bytes())
    made_by = "diffusers numpy onnx onnx-ir onnxruntime onnxscript tokenizers torch transformers".split()
    digest.update(f"{sys.version} {[version(name) for name in made_by]}".encode())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def making(place: Path, wait: bool = True) -> Iterator[bool]:
    """Whether `place` is still to be made; other processes that ask wait until it is, or are told that it is not."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with open(place.parent / f".{place.name}.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield not place.exists()


@pytest.fixture(scope="session")
def made_once(shared: Path) -> MadeOnce:
    """(name, what fills a directory) -> the directory, filled by the process that asks first."""

    def place(name: str, fill: Callable[[Path], None]) -> Path:
        directory = shared / name
        with making(directory) as needed:
            if needed:
                with folder(directory) as temporary:
                    fill(temporary)
                    os.replace(temporary, directory)
        return directory

    return place


@pytest.fixture(scope="session")
def tiny_checkpoint(made_once: MadeOnce, tiny_config: ModelConfig) -> Path:
    """Seeded random weights whose tokens and pixels stay near one."""
    from videomar.demo.words import write_tokenizer
    from videomar.model.random_parts import calm
    from videomar.model.videomar import VideoMAR, save_checkpoint

    def fill(directory: Path) -> None:
        model = VideoMAR(tiny_config).randomize(0)
        calm(model.diffusion_head)
        for p in model.video_tokenizer.vae.decoder.conv_out.conv_t.parameters():
            p.data.mul_(0.15)  # or most pixels are cut at -1 and 1
        save_checkpoint(model, directory)
        write_tokenizer(directory / "tokenizer.json")

    return made_once("checkpoint", fill)


@pytest.fixture(scope="session")
def tiny_model(tiny_checkpoint: Path) -> VideoMAR:
    """The PyTorch reference of every tiny graph."""
    from videomar.model.videomar import load_checkpoint

    return load_checkpoint(tiny_checkpoint)


@pytest.fixture(scope="session")
def tiny_prefix(tiny_config: ModelConfig) -> int:
    """Ids of the system prompt, counted by hand."""
    return len(tiny_config.text.system_prompt.split())


class Tracer:
    """Graphs of the tiny model, each traced by the process that comes first."""

    def __init__(self, folder: Path, model: VideoMAR, prefix: int) -> None:
        self.folder, self.model, self.prefix = folder, model, prefix
        self.builder = functools.cache(self._builder)

    def _builder(self, precision: str, emitter: str, cache_tokens: int | None) -> GraphBuilder:
        from videomar.export.build import GraphBuilder
        from videomar.export.emitters import EMITTERS
        from videomar.export.export import DTYPES

        specs = contract(self.model.config, precision, EMITTERS[emitter].in_place, cache_tokens)
        return GraphBuilder(self.model, specs, EMITTERS[emitter], DTYPES[precision], self.prefix)

    def file(
        self,
        name: str,
        precision: str,
        emitter: str,
        cache_tokens: int | None,
        build: Callable[[str], onnx.ModelProto] | None = None,
        wait: bool = True,
    ) -> Path:
        """Where the graph is, if `wait`; else where it will be, made by now unless another process is at it."""
        import torch

        from videomar.export.onnx_files import save

        if name != TRANSFORMER_STEP:  # only its graph differs between emitters
            emitter, cache_tokens = "portable", None
        path = self.folder / f"{precision}-{emitter}-{cache_tokens}-{name}.onnx"
        with making(path, wait) as needed:
            if needed:
                with torch.inference_mode(), folder(path) as temporary:
                    save((build or self.builder(precision, emitter, cache_tokens).build)(name), temporary / path.name)
                    os.replace(temporary / path.name, path)
        return path

    def help(self, precision: str, emitter: str, cache_tokens: int | None) -> None:
        """Trace what no other process has or is at, from the end: one that exports comes from the beginning."""
        for name in reversed(GRAPHS):
            self.file(name, precision, emitter, cache_tokens, wait=False)


@pytest.fixture(scope="session")
def tracer(shared: Path, tiny_model: VideoMAR, tiny_prefix: int) -> Tracer:
    return Tracer(shared / "graphs", tiny_model, tiny_prefix)


@pytest.fixture(scope="session")
def tiny_artifacts(shared: Path, tiny_checkpoint: Path, tracer: Tracer) -> Path:
    """All that `videomar export` writes: FP32, portable."""
    import onnx

    from videomar.export import export
    from videomar.export.build import GraphBuilder

    class Builder(GraphBuilder):
        """The exporter's own, which takes what another process has traced meanwhile."""

        def build(self, name: str) -> onnx.ModelProto:
            return onnx.load(tracer.file(name, "fp32", "portable", None, super().build))

    out = shared / "portable"
    for wait in (False, True):
        with making(out, wait) as needed:
            if needed:
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(export, "GraphBuilder", Builder)
                    export.export_checkpoint(tiny_checkpoint, out)
        if not out.exists():
            tracer.help("fp32", "portable", None)
    settle()
    return out


@pytest.fixture(scope="session")
def tiny_graph(tiny_artifacts: Path, tracer: Tracer) -> GraphFile:
    """(graph, precision, emitter, cache tokens) -> its file; only the transformer's differs between emitters."""

    def file(name: str, precision: str = "fp32", emitter: str = "portable", cache_tokens: int | None = None) -> Path:
        if precision == "fp32" and (emitter == "portable" or name != TRANSFORMER_STEP):
            return tiny_artifacts / f"{name}.onnx"
        return tracer.file(name, precision, emitter, cache_tokens)

    return file


@pytest.fixture(scope="session")
def tiny_native(shared: Path, tiny_artifacts: Path, tracer: Tracer) -> Path:
    """Artifacts of the native emitter, FP32: K/V written in place into a cache that grows with the clip."""
    return _variant(shared / "native", tiny_artifacts, tracer, "fp32", "native", None)


@pytest.fixture(scope="session")
def tiny_fixed(shared: Path, tiny_artifacts: Path, tracer: Tracer) -> Path:
    """Artifacts of the native emitter, FP32, with a cache of CACHE_TOKENS tokens."""
    return _variant(shared / "fixed", tiny_artifacts, tracer, "fp32", "native", CACHE_TOKENS)


@pytest.fixture(scope="session")
def tiny_half(shared: Path, tiny_artifacts: Path, tracer: Tracer) -> Path:
    """Artifacts of the portable emitter, FP16."""
    return _variant(shared / "half", tiny_artifacts, tracer, "fp16", "portable", None)


@pytest.fixture(scope="session")
def tiny_half_fixed(shared: Path, tiny_artifacts: Path, tracer: Tracer) -> Path:
    """Artifacts of the native emitter, FP16, with a cache of CACHE_TOKENS tokens: what TensorRT has kernels for."""
    return _variant(shared / "half-fixed", tiny_artifacts, tracer, "fp16", "native", CACHE_TOKENS)


@pytest.fixture(scope="session")
def from_text(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """(checkpoint or artifacts) -> the same, said to be trained for clips without a picture."""

    @functools.cache
    def trained(directory: Path) -> Path:
        out = tmp_path_factory.mktemp("from-text") / directory.name
        if (config := directory / "config.json").is_file():
            shutil.copytree(directory, out)
            sentence = dataclasses.replace(ModelConfig.from_json(config.read_bytes()), from_text=True)
            (out / "config.json").write_text(sentence.to_json())
            return out
        manifest = read_manifest(directory)
        with write_directory(out) as folder:
            for name in manifest.files:
                os.link(directory / name, folder / name)
            write_manifest(
                folder, dataclasses.replace(manifest, config=dataclasses.replace(manifest.config, from_text=True))
            )
        return out

    return trained


def _variant(out: Path, portable: Path, tracer: Tracer, precision: str, emitter: str, cache_tokens: int | None) -> Path:
    """The directory that export would write, from graphs already traced."""
    from videomar.export.emitters import EMITTERS

    changes: dict[str, Any] = {"precision": precision, "emitter": emitter, "opset": EMITTERS[emitter].opset}
    changes |= {"extra": {"cache_tokens": cache_tokens}, "checks": {}}
    if not out.exists():
        tracer.help(precision, emitter, cache_tokens)
    with making(out) as needed:
        if needed:
            with write_directory(out) as directory:
                os.link(portable / "tokenizer.json", directory / "tokenizer.json")
                for name in GRAPHS:
                    os.link(tracer.file(name, precision, emitter, cache_tokens), directory / f"{name}.onnx")
                write_manifest(directory, dataclasses.replace(read_manifest(portable), **changes))
    return out
