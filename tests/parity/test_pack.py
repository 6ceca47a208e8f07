"""Golden packs: recorded once, replayed on every kind of artifacts, refused when they are not whole or not ours."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from videomar.artifacts import MANIFEST, Manifest, read_manifest, write_manifest
from videomar.cli import main
from videomar.errors import ArtifactError, InputError
from videomar.graphs import GRAPHS, HEAD_STEP, TRANSFORMER_STEP, contract
from videomar.parity.packs.pack import Pack
from videomar.parity.packs.pack_files import CLIP, read_calls, write_calls
from videomar.runtime.backends.ort_session import open_session

RECORD = "--frames 17 --threads 1 --backend ort-cpu --seed 3 --prompt".split() + ["a red circle falls"]


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import cv2

    file = tmp_path_factory.mktemp("picture") / "start.png"
    cv2.imwrite(str(file), np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8))
    return file


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory, tiny_artifacts: Path, picture: Path) -> Path:
    out = tmp_path_factory.mktemp("pack") / "pack"
    assert main(["record", str(tiny_artifacts), "-o", str(out), "--image", str(picture), *RECORD]) == 0
    return out


def replay(pack: Path, directory: Path, *options: str) -> int:
    return main(["replay", str(pack), str(directory), "--threads", "1", "--backend", "ort-cpu", *options])


# ---- what is in it


def test_every_graph_of_the_contract_is_in_it_with_the_contracts_tensors(pack: Path) -> None:
    manifest = read_manifest(pack)
    specs = contract(manifest.config, "fp32", in_place=False)
    assert set(Pack.read(pack).graphs) == set(GRAPHS) == set(specs)
    for graph, spec in specs.items():
        for feeds, made in read_calls(pack, graph):
            for tensors, arrays in ((spec.inputs, feeds), (spec.outputs, made)):
                assert {t.name: t.dtype for t in tensors} == {n: str(a.dtype) for n, a in arrays.items()}
                assert all(a.ndim == len(t.axes) for t, a in zip(tensors, arrays.values(), strict=True))


def test_the_transformer_is_recorded_at_the_start_in_the_middle_and_at_the_end(pack: Path) -> None:
    calls = read_calls(pack, TRANSFORMER_STEP)
    assert [feeds["past_key_0"].shape[2] for feeds, _ in calls] == [0, 6, 12]
    assert [int(feeds["masked"].sum()) for feeds, _ in calls] == [0, 5, 3]


def test_the_head_is_recorded_at_its_first_middle_and_last_step(pack: Path) -> None:
    calls = read_calls(pack, HEAD_STEP)
    assert len(calls) == 6
    assert [float(np.abs(feeds["draw"]).sum()) == 0 for feeds, _ in calls] == [False, False, True] * 2


def test_recorded_calls_are_what_the_graphs_say(pack: Path, tiny_artifacts: Path) -> None:
    """Each graph alone in ONNX Runtime: another path than the one that recorded."""
    for graph in GRAPHS:
        session = open_session(tiny_artifacts / f"{graph}.onnx")
        for feeds, made in read_calls(pack, graph):
            for name, value in zip(made, session.run(list(made), feeds), strict=True):
                np.testing.assert_allclose(value, made[name], rtol=1e-5, atol=1e-5)


def test_polygraphy_reads_inputs_and_outputs_as_they_were_written(pack: Path) -> None:
    comparator = pytest.importorskip("polygraphy.comparator")
    load_json = pytest.importorskip("polygraphy.json").load_json
    for graph in GRAPHS:
        calls = read_calls(pack, graph)
        inputs = load_json(str(pack / f"{graph}.inputs.json"))
        results = comparator.RunResults.load(str(pack / f"{graph}.outputs.json"))
        (iterations,) = [results[name] for name in results.keys()]
        assert len(inputs) == len(iterations) == len(calls)
        for (feeds, made), given, got in zip(calls, inputs, iterations, strict=True):
            assert feeds.keys() == given.keys() and made.keys() == set(got.keys())
            assert all(np.array_equal(feeds[n], given[n]) and feeds[n].dtype == given[n].dtype for n in feeds)
            assert all(np.array_equal(made[n], got[n]) for n in made)


def test_calls_come_back_as_they_were_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    calls: list[Any] = [
        (
            {"a": rng.standard_normal((2, 0, 3)).astype(np.float16), "b": np.array([True])},
            {"c": np.array([[np.nan, np.inf]])},
        )
    ]
    write_calls(tmp_path, "graph", calls)
    ((feeds, made),) = read_calls(tmp_path, "graph")
    for before, after in ((calls[0][0], feeds), (calls[0][1], made)):
        assert all(np.array_equal(before[n], after[n], equal_nan=n == "c") for n in before)
        assert all(before[n].dtype == after[n].dtype and before[n].shape == after[n].shape for n in before)


def test_the_manifest_tells_what_was_recorded_and_how_far_a_replay_may_be(pack: Path, tiny_artifacts: Path) -> None:
    about = read_manifest(pack).extra["pack"]
    assert about["recorded"] == {n: e.sha256 for n, e in read_manifest(tiny_artifacts).files.items()}
    assert set(about["tolerances"]) == {"fp32", "fp16", "int8"}
    assert all(set(row) == set(GRAPHS) for row in about["tolerances"].values())


def test_recording_again_does_nothing_and_other_options_do(
    pack: Path, tiny_artifacts: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = Path(shutil.copytree(pack, tmp_path / "again"))
    command = ["record", str(tiny_artifacts), "-o", str(again), "--image", str(picture), *RECORD]
    assert main(command) == 0
    assert "is up to date" in capsys.readouterr().out
    assert main([*command, "--head-steps", "2"]) == 0
    assert "wrote" in capsys.readouterr().out
    assert Pack.read(again).sampling.head_steps == 2


# ---- replay


def test_the_artifacts_that_were_recorded_give_the_same_numbers(
    pack: Path, tiny_artifacts: Path, tmp_path: Path
) -> None:
    assert replay(pack, tiny_artifacts, "--json", str(tmp_path / "out.json")) == 0
    (candidate,) = json.loads((tmp_path / "out.json").read_text())["candidates"]
    assert [f["rung"] for f in candidate["findings"][: len(GRAPHS)]] == list(GRAPHS)
    assert all(f["passed"] and f["got"] < 1e-6 for f in candidate["findings"][: len(GRAPHS)])
    assert candidate["rungs"]["sampled"]["measures"]["relative_l2"]["worst"] == 0


@pytest.mark.parametrize("flavour", ["tiny_native", "tiny_fixed", "tiny_half"])
def test_every_other_export_replays_it(
    pack: Path, flavour: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay(pack, request.getfixturevalue(flavour)) == 0
    assert "is still the model" in capsys.readouterr().out


def test_a_pack_of_a_cache_in_place_tells_the_portable_contract(
    tiny_native: Path, picture: Path, pack: Path, tmp_path: Path
) -> None:
    out = tmp_path / "native"
    assert main(["record", str(tiny_native), "-o", str(out), "--image", str(picture), *RECORD]) == 0
    for (a, x), (b, y) in zip(read_calls(pack, TRANSFORMER_STEP), read_calls(out, TRANSFORMER_STEP), strict=True):
        assert a.keys() == b.keys() and x.keys() == y.keys()
        assert all(np.allclose(a[n], b[n], rtol=1e-4, atol=1e-4) for n in a)
        assert all(np.allclose(x[n], y[n], rtol=1e-4, atol=1e-4) for n in x)


def altered(source: Path, target: Path, graph: str, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    """A copy whose graph has another largest matrix, and whose manifest agrees."""
    shutil.copytree(source, target)
    file = target / f"{graph}.onnx"
    model = onnx.load(file)
    matrices = [w for w in model.graph.initializer if len(w.dims) == 2 and w.data_type == onnx.TensorProto.FLOAT]
    weight = max(matrices, key=lambda w: np.prod(w.dims))
    weight.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(weight).copy()), weight.name))
    file.unlink()
    onnx.save(model, file)
    write_manifest(target, read_manifest(target))
    return target


def test_an_altered_graph_is_the_first_that_is_missed(
    pack: Path, tiny_artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = altered(tiny_artifacts, tmp_path / "bad", TRANSFORMER_STEP, lambda w: w[::-1].copy())
    assert replay(pack, bad) == 1
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith(f"bad misses rung {TRANSFORMER_STEP}: relative_l2 is ") and "expected <= 0.0001" in last


def test_a_backend_that_loses_k_v_is_missed_though_every_graph_is_right(
    pack: Path, tiny_artifacts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What only the whole clip can show."""
    from videomar.runtime.backends.ort import OrtClip

    step, keep = OrtClip.step, OrtClip.keep
    last: list[tuple[np.ndarray, ...]] = []
    kept: list[int] = []

    def noted(self: OrtClip, *args: np.ndarray) -> None:
        last[:] = [args]
        step(self, *args)

    def forgets_the_second(self: OrtClip) -> None:
        kept.append(1)
        if len(kept) == 2:
            tokens, *rest = last[0]
            step(self, np.zeros_like(tokens), *rest)
        keep(self)

    monkeypatch.setattr(OrtClip, "step", noted)
    monkeypatch.setattr(OrtClip, "keep", forgets_the_second)
    assert replay(pack, tiny_artifacts) == 1
    line = capsys.readouterr().out.strip().splitlines()[-1]
    assert "misses rung z" in line and "latent frame 2, mask step" in line


def test_replay_needs_neither_pytorch_nor_onnx_nor_the_checkpoint(pack: Path, tiny_artifacts: Path) -> None:
    code = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "onnx", "diffusers", "transformers", "safetensors", "polygraphy"):
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Blocker())
from videomar.cli import main
sys.exit(main(sys.argv[1:]))
"""
    command = [sys.executable, "-c", code, "replay", str(pack), str(tiny_artifacts), "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "is still the model" in done.stdout


# ---- packs that are refused


@pytest.fixture
def copy(pack: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pack, tmp_path / "copy"))


def refused(pack: Path, directory: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert replay(pack, directory) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error.rpartition("videomar replay: ")[2]
    return error


@pytest.mark.parametrize("name", [CLIP, f"{TRANSFORMER_STEP}.inputs.json", f"{HEAD_STEP}.outputs.json"])
@pytest.mark.parametrize("how", ["truncated", "altered", "missing"])
def test_a_pack_that_is_not_whole_is_refused(
    copy: Path, tiny_artifacts: Path, capsys: pytest.CaptureFixture[str], name: str, how: str
) -> None:
    file = copy / name
    data = bytearray(file.read_bytes())
    if how == "missing":
        file.unlink()
    elif how == "truncated":
        file.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    error = refused(copy, tiny_artifacts, capsys)
    assert name in error and ("videomar record" in error or "copy" in error)


def test_a_truncated_manifest_is_refused(copy: Path, tiny_artifacts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (copy / MANIFEST).read_text()
    (copy / MANIFEST).write_text(text[: len(text) // 2])
    assert "truncated or altered" in refused(copy, tiny_artifacts, capsys)


def changed(copy: Path, change: Callable[[Manifest], Manifest]) -> None:
    write_manifest(copy, change(read_manifest(copy)))


def with_pack(**changes: Any) -> Callable[[Manifest], Manifest]:
    return lambda m: dataclasses.replace(m, extra=m.extra | {"pack": m.extra["pack"] | changes})


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_a_pack_of_another_version_is_refused(
    copy: Path, tiny_artifacts: Path, capsys: pytest.CaptureFixture[str], version: Any
) -> None:
    changed(copy, with_pack(version=version))
    error = refused(copy, tiny_artifacts, capsys)
    assert f"is a pack of version {version!r}, expected 1" in error


@pytest.mark.parametrize(
    "changes",
    [
        {"sampling": {"frames": 0}},
        {"sampling": 3},
        {"graphs": 7},
        {"tolerances": []},
        {"tolerances": {"fp32": {"a": "b"}}},
    ],
)
def test_a_manifest_that_cannot_be_is_refused(
    copy: Path, tiny_artifacts: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any]
) -> None:
    changed(copy, with_pack(**changes))
    assert "videomar record" in refused(copy, tiny_artifacts, capsys)


def test_an_unknown_graph_is_refused_by_name(copy: Path, tiny_artifacts: Path) -> None:
    for end in ("inputs", "outputs"):
        shutil.copy(copy / f"{HEAD_STEP}.{end}.json", copy / f"dreamer.{end}.json")
    changed(copy, with_pack(graphs=["dreamer"], tolerances={"fp32": {"dreamer": 1.0}}))
    with pytest.raises(ArtifactError, match=r"'pack\.graphs' holds 'dreamer', expected some of text_encoder"):
        Pack.read(copy)


def test_a_pack_of_another_model_is_refused(
    copy: Path, tiny_artifacts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def deeper(manifest: Manifest) -> Manifest:
        transformer = dataclasses.replace(manifest.config.transformer, depth=3)
        return dataclasses.replace(manifest, config=dataclasses.replace(manifest.config, transformer=transformer))

    changed(copy, deeper)
    error = refused(copy, tiny_artifacts, capsys)
    assert "another model" in error and "transformer.depth" in error


def test_a_clip_without_what_it_should_hold_is_refused(
    copy: Path, tiny_artifacts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = Pack.read(copy).arrays
    np.savez(copy / CLIP, given=np.zeros(3))
    changed(copy, lambda m: m)
    assert f"{CLIP}: 'given' is float64 [3], expected uint8 [given, height" in refused(copy, tiny_artifacts, capsys)
    whole = dict(arrays)
    for name, value, said in (
        ("z/1", None, "lacks 'z/1'"),
        ("sampled/0", whole["sampled/0"][:, :3], "'sampled/0' is float32"),
        ("ids", whole["ids"].astype(np.int32), "'ids' is int32"),
        ("order/1", whole["order/1"] * 0, "'order/1' is no order"),
        ("states", whole["states"][:, :0], "'states' has 0 tokens, expected 1 to 8"),
    ):
        np.savez(copy / CLIP, **{n: v for n, v in (whole | {name: value}).items() if v is not None})
        changed(copy, lambda m: m)
        assert said in refused(copy, tiny_artifacts, capsys)


def test_calls_that_are_no_calls_are_refused(tmp_path: Path) -> None:
    write_calls(tmp_path, "graph", [({"a": np.zeros(1)}, {"b": np.zeros(1)})])
    good = (tmp_path / "graph.inputs.json").read_text()
    for text in ("", "[1]", '[{"a": {"array": "AAAA"}}]', '{"a": 1}', "null", good[:-9], "[]"):
        (tmp_path / "graph.inputs.json").write_text(text)
        with pytest.raises(ArtifactError, match=r"graph\.(in|out)puts\.json"):
            read_calls(tmp_path, "graph")


def test_other_directories_are_no_packs_and_a_pack_is_no_other_directory(
    pack: Path, tiny_artifacts: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "expected a golden pack" in refused(tiny_artifacts, tiny_artifacts, capsys)
    assert "is a golden pack, expected graphs or engines" in refused(pack, pack, capsys)
    assert "is a checkpoint, expected engines or artifacts" in refused(pack, tiny_checkpoint, capsys)
    for command in (
        ["compare", str(pack), str(tiny_artifacts)],
        ["generate", str(pack), "--image", "a.png", "--prompt", "a", "-o", str(tmp_path / "a.mp4")],
        ["record", str(pack), "-o", str(tmp_path / "b")],
    ):
        assert main(command) == 2
        assert "is a golden pack" in capsys.readouterr().err
    assert main(["record", str(tiny_checkpoint), "-o", str(tmp_path / "b")]) == 2
    assert "is a checkpoint" in capsys.readouterr().err
    assert main(["record", str(tiny_artifacts), "-o", str(tiny_artifacts)]) == 2
    assert "is what is recorded" in capsys.readouterr().err


def test_nothing_is_left_of_a_recording_that_fails(
    tiny_artifacts: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import videomar.parity.packs.record as record

    def fails(*_: Any) -> None:
        raise InputError("in the middle")

    monkeypatch.setattr(record, "write_calls", fails)
    out = tmp_path / "out"
    assert main(["record", str(tiny_artifacts), "-o", str(out), "--image", str(picture), *RECORD]) == 2
    assert list(tmp_path.iterdir()) == []
