"""`export_checkpoint`: all or nothing, once, and everything said by name."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, numpy_helper
from safetensors.torch import load_file, save_file

from videomar.artifacts import read_manifest, verify
from videomar.config import ModelConfig
from videomar.errors import ArtifactError, InputError, ParityError, UserError
from videomar.export import export as exporting
from videomar.export.export import export_checkpoint
from videomar.graphs import DIFFUSION_HEAD, GRAPHS, TEXT_KEY_VALUES, TOLERANCE, TRANSFORMER_STEP, contract
from videomar.model.videomar import PARTS
from videomar.progress import Progress

Edit = Callable[[str, ModelProto], None]


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch, tiny_artifacts: Path) -> list[str]:
    """Graphs come from the session's artifacts instead of being traced; which ones were asked for."""
    return use_graphs(monkeypatch, tiny_artifacts)


def use_graphs(monkeypatch: pytest.MonkeyPatch, source: Path, edit: Edit = lambda name, model: None) -> list[str]:
    names: list[str] = []

    class Builder:
        wide: ClassVar[dict[str, int]] = {}

        def __init__(self, *args: Any) -> None: ...

        def build(self, name: str) -> ModelProto:
            names.append(name)
            model = onnx.load(source / f"{name}.onnx")
            edit(name, model)
            return model

    monkeypatch.setattr(exporting, "GraphBuilder", Builder)
    return names


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


@pytest.fixture
def out(tmp_path: Path, tiny_artifacts: Path) -> Path:
    """An earlier export, in a directory of its own."""
    return Path(shutil.copytree(tiny_artifacts, tmp_path / "out" / "tiny"))


def state(directory: Path) -> dict[str, tuple[int, int, bytes]]:
    """Of every file: inode, time, content."""
    files = [p for p in directory.rglob("*") if p.is_file()]
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns, p.read_bytes()) for p in files}


# ---- what is written


def test_export_writes_exactly_the_promised_files(tiny_artifacts: Path) -> None:
    promised = {"tokenizer.json", *(f"{name}.onnx" for name in GRAPHS)}
    manifest = read_manifest(tiny_artifacts)
    assert {p.name for p in tiny_artifacts.iterdir()} == promised | {"manifest.json"}
    assert set(manifest.files) == promised
    assert not list(tiny_artifacts.parent.glob(f".{tiny_artifacts.name}.*.tmp"))
    verify(tiny_artifacts, manifest)


def test_the_manifest_says_what_was_made_from_what(
    tiny_artifacts: Path, tiny_checkpoint: Path, tiny_config: ModelConfig
) -> None:
    manifest = read_manifest(tiny_artifacts)
    assert (manifest.kind, manifest.precision, manifest.emitter, manifest.opset) == ("onnx", "fp32", "portable", 18)
    assert manifest.config == tiny_config
    files = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in tiny_checkpoint.iterdir()}
    assert set(files) == {"config.json", "tokenizer.json", *(f"{part}.safetensors" for part in PARTS)}
    assert files.items() <= manifest.inputs.items()
    assert (manifest.inputs["precision"], manifest.inputs["emitter"]) == ("fp32", "portable")
    assert manifest.inputs["torch"] == torch.__version__
    assert manifest.made_by["onnxruntime"] == onnxruntime.__version__


def test_the_manifests_checks_hold_every_output_within_tolerance(
    tiny_artifacts: Path, tiny_config: ModelConfig
) -> None:
    checks = read_manifest(tiny_artifacts).checks
    assert list(checks) == list(GRAPHS)
    for name, spec in contract(tiny_config, "fp32", in_place=False).items():
        kinds = {t.name.rstrip("0123456789").rstrip("_") for t in spec.outputs}
        assert set(checks[name]) == kinds
        assert all(0 <= error <= TOLERANCE["fp32"][name] for error in checks[name].values())


def test_the_manifest_is_plain_json_without_paths_of_this_machine(tiny_artifacts: Path, tiny_checkpoint: Path) -> None:
    text = (tiny_artifacts / "manifest.json").read_text()
    assert isinstance(json.loads(text), dict)
    for path in (tiny_artifacts.parent, tiny_checkpoint.parent, Path.home(), Path(exporting.__file__).parent):
        assert str(path) not in text


def test_progress_names_every_graph_twice_and_ends_at_its_total(
    tmp_path: Path, tiny_checkpoint: Path, traced: list[str]
) -> None:
    told: list[tuple[str, float, float]] = []
    export_checkpoint(tiny_checkpoint, tmp_path / "out", progress=lambda *args: told.append(args))
    dones, totals = [done for _, done, _ in told], {total for _, _, total in told}
    assert dones[0] == 0 and dones == sorted(set(dones)) and totals == {dones[-1]}
    assert all(sum(name in stage.split() for stage, _, _ in told) == 2 for name in GRAPHS)
    assert traced == list(GRAPHS)


# Seconds of every stage of the demo's export on a shared core: loading, tracing and checking each graph, the manifest.
MEASURED = [
    0.11,
    20.18,
    0.25,
    9.79,
    0.12,
    88.15,
    1.5,
    64.2,
    1.85,
    31.09,
    0.33,
    17.57,
    0.39,
    0.58,
    0.27,
    0.54,
    0.48,
    0.09,
]


def test_the_time_left_of_an_export_is_within_30_percent_from_a_tenth_on() -> None:
    now, seconds = 0.0, MEASURED
    progress, ends = Progress(clock=lambda: now), np.cumsum(seconds)
    weights = [1, *(s for name in GRAPHS for s in exporting.SECONDS[name])]
    begins = np.cumsum([0, *weights])
    for index, (end, length) in enumerate(zip(ends, seconds, strict=True)):
        progress.at("a stage", begins[index], begins[-1])
        for now in np.linspace(end - length, end, 20, endpoint=False):
            if 0.1 * ends[-1] <= now <= 0.9 * ends[-1]:
                left = progress.left()
                assert left is not None and abs(left / (ends[-1] - now) - 1) < 0.3, (index, now, left)


# ---- once


def test_the_same_export_again_does_nothing(tiny_checkpoint: Path, out: Path, traced: list[str]) -> None:
    before = state(out)
    assert export_checkpoint(tiny_checkpoint, out) is False
    assert state(out) == before and not traced


def test_force_does_it_again(tiny_checkpoint: Path, out: Path, traced: list[str]) -> None:
    before = state(out)
    assert export_checkpoint(tiny_checkpoint, out, force=True) is True
    after = state(out)
    assert traced == list(GRAPHS)
    assert all(before[name][0] != after[name][0] for name in before)
    assert [p.name for p in out.parent.iterdir()] == [out.name]


def test_a_damaged_or_incomplete_export_is_made_again(tiny_checkpoint: Path, out: Path, traced: list[str]) -> None:
    whole = (out / "head_step.onnx").read_bytes()
    for spoil in (
        lambda f: f.unlink(),
        lambda f: f.write_bytes(whole[:-1]),
        lambda f: f.write_bytes(whole[:-1] + b"?"),
    ):
        spoil(out / "head_step.onnx")
        assert export_checkpoint(tiny_checkpoint, out) is True
        verify(out, read_manifest(out))


def test_another_checkpoint_is_exported_anew(checkpoint: Path, out: Path, traced: list[str]) -> None:
    file = checkpoint / "tokenizer.json"
    file.write_text(file.read_text() + "\n")
    assert export_checkpoint(checkpoint, out) is True
    assert (out / "tokenizer.json").read_bytes() == file.read_bytes()


@pytest.mark.parametrize("options", [{"precision": "fp16"}, {"emitter_name": "native"}])
def test_other_options_are_another_export(
    tiny_checkpoint: Path, out: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    class Traced(Exception): ...

    def build(self: Any, name: str) -> ModelProto:
        raise Traced

    monkeypatch.setattr(exporting.GraphBuilder, "build", build)
    before = state(out)
    with pytest.raises(Traced):
        export_checkpoint(tiny_checkpoint, out, **options)
    assert state(out) == before


def test_inputs_are_never_modified(tiny_checkpoint: Path, tmp_path: Path, traced: list[str]) -> None:
    before = state(tiny_checkpoint)
    export_checkpoint(tiny_checkpoint, tmp_path / "out")
    assert state(tiny_checkpoint) == before


@pytest.mark.parametrize("inside", [".", ".."])
def test_a_target_that_holds_the_checkpoint_is_refused_even_with_force(
    checkpoint: Path, traced: list[str], inside: str
) -> None:
    before = state(checkpoint)
    with pytest.raises(InputError, match=r"holds the checkpoint.* -o"):
        export_checkpoint(checkpoint, checkpoint / inside, force=True)
    assert state(checkpoint) == before


# ---- bad checkpoints


def refused(checkpoint: Path, out: Path, match: str, error: type[UserError] = ArtifactError) -> None:
    before = state(out)
    with pytest.raises(error, match=match) as caught:
        export_checkpoint(checkpoint, out)
    assert "\n" not in str(caught.value)
    assert state(out) == before and [p.name for p in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", *(f"{part}.safetensors" for part in PARTS)])
def test_a_missing_file_is_named(checkpoint: Path, out: Path, traced: list[str], name: str) -> None:
    (checkpoint / name).unlink()
    refused(checkpoint, out, f"checkpoint {checkpoint} lacks {name}; copy")


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda t: t.pop("z_proj.bias"), r"lacks the tensor 'z_proj.bias', shape \[32\]"),
        (lambda t: t.update(extra=torch.zeros(2)), "unknown tensor 'extra'"),
        (
            lambda t: t.update({"z_proj.weight": torch.zeros(32, 8)}),
            r"'z_proj.weight' is \[32, 8\], expected \[32, 16\]",
        ),
    ],
    ids=["missing", "unknown", "other shape"],
)
def test_a_tensor_that_does_not_fit_is_named(
    checkpoint: Path, out: Path, traced: list[str], spoil: Callable[[dict[str, torch.Tensor]], None], match: str
) -> None:
    file = checkpoint / "transformer.safetensors"
    tensors = load_file(file)
    spoil(tensors)
    save_file(tensors, file)
    refused(checkpoint, out, f"transformer.safetensors.*{match}")


def test_truncated_weights_a_bad_tokenizer_and_a_bad_config_are_named(
    checkpoint: Path, tiny_checkpoint: Path, out: Path, traced: list[str]
) -> None:
    for name, data in (
        ("diffusion_head.safetensors", (tiny_checkpoint / "diffusion_head.safetensors").read_bytes()[:-8]),
        ("tokenizer.json", b"{}"),
        ("config.json", b"{"),
    ):
        (checkpoint / name).write_bytes(data)
        refused(checkpoint, out, name.removesuffix(".json"), UserError)
        shutil.copy(tiny_checkpoint / name, checkpoint / name)


def test_unknown_options_are_named_before_anything_is_traced(
    tiny_checkpoint: Path, tmp_path: Path, traced: list[str]
) -> None:
    for options, match in (
        ({"precision": "int4"}, "precision is 'int4', expected one of fp32, fp16"),
        ({"emitter_name": "fast"}, "emitter is 'fast', expected one of portable, native"),
        ({"cache_tokens": 64}, "--emitter native"),
        ({"cache_tokens": 3, "emitter_name": "native"}, "cache tokens is 3, expected at least 64"),
    ):
        with pytest.raises(InputError, match=match):
            export_checkpoint(tiny_checkpoint, tmp_path / "out", **options)  # type: ignore[arg-type]
    assert not traced and not list(tmp_path.iterdir())


# ---- failing half-way


def scaled(wanted: str) -> Edit:
    def edit(name: str, model: ModelProto) -> None:
        if name == wanted:
            weight = max(model.graph.initializer, key=lambda t: np.prod(t.dims))
            weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.02), weight.name))

    return edit


@pytest.mark.parametrize("name", [TEXT_KEY_VALUES, TRANSFORMER_STEP, DIFFUSION_HEAD])
def test_a_graph_that_misses_its_tolerance_leaves_nothing_behind(
    tiny_checkpoint: Path, tiny_artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    use_graphs(monkeypatch, tiny_artifacts, scaled(name))
    with pytest.raises(ParityError, match=rf"graph {name}: '\w+' is .* away from PyTorch .* tolerance 1e-04"):
        export_checkpoint(tiny_checkpoint, tmp_path / "deep" / "out")
    assert not list((tmp_path / "deep").iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_whatever_interrupts_it_leaves_an_earlier_export_as_it_was(
    tiny_checkpoint: Path,
    tiny_artifacts: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
) -> None:
    def interrupt(name: str, model: ModelProto) -> None:
        if name == DIFFUSION_HEAD:
            raise error

    use_graphs(monkeypatch, tiny_artifacts, interrupt)
    before = state(out)
    with pytest.raises(error):
        export_checkpoint(tiny_checkpoint, out, force=True)
    assert state(out) == before and [p.name for p in out.parent.iterdir()] == [out.name]


def test_someone_elses_directory_is_left_alone_unless_forced(
    tiny_checkpoint: Path, tmp_path: Path, traced: list[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("months of work")
    with pytest.raises(ArtifactError, match=r"holds files but no videomar manifest.json.*--force"):
        export_checkpoint(tiny_checkpoint, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.txt"] and not traced
