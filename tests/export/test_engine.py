"""Building engines, with a fake TensorRT of every version driven by the real build code and its worker processes."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from videomar.artifacts import Manifest, read_manifest, verify, write_directory, write_manifest
from videomar.capabilities import TABLE
from videomar.cli import main
from videomar.config import DEMO, ModelConfig
from videomar.demo.words import write_tokenizer
from videomar.errors import ArtifactError, BuildError, InputError
from videomar.export import engine, sources
from videomar.export.engine import build_engines
from videomar.export.profiles import ENGINES
from videomar.export.sources import BuildOptions, open_source, trtexec_commands
from videomar.export.workers import failure, smallest_change
from videomar.fingerprint import NO_GPU, Machine, check_fingerprint
from videomar.graphs import HEAD_STEP, TRANSFORMER_STEP, GraphSpec, contract

FAKE = Path(__file__).parent / "fake_tensorrt"
GIB, MIB = 1 << 30, 1 << 20
ORIN = Machine("TensorRT", "10.3.0.26", "12.6", "Orin", "87", "L4T 36.4.3")
CONFIG = dataclasses.replace(
    DEMO, transformer=dataclasses.replace(DEMO.transformer, width=128, depth=1, heads=2), name="fake"
)
Fake = Callable[..., Machine]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Make `tensorrt` in worker processes the fake of a version; the machine that goes with it."""
    monkeypatch.setenv("PYTHONPATH", str(FAKE))

    def choose(version: str = ORIN.tensorrt, behaviour: str = "") -> Machine:
        monkeypatch.setenv("FAKE_TRT_VERSION", version)
        monkeypatch.setenv("FAKE_TRT_BEHAVIOUR", behaviour)
        return dataclasses.replace(ORIN, tensorrt=version)

    return choose


@pytest.fixture
def two_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Build two graphs instead of seven: a worker process each costs a second."""
    for module in (engine, sources):
        monkeypatch.setattr(module, "ENGINES", (TRANSFORMER_STEP, HEAD_STEP))


@pytest.fixture(scope="module")
def portable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifacts(tmp_path_factory.mktemp("portable") / "onnx", "portable")


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifacts(tmp_path_factory.mktemp("native") / "onnx", "native", 192)


def artifacts(out: Path, emitter: str, cache_tokens: int | None = None, config: ModelConfig = CONFIG) -> Path:
    """An artifact directory with the contract's tensors and no arithmetic to speak of."""
    specs = contract(config, "fp16", emitter == "native", cache_tokens)
    with write_directory(out) as directory:
        write_tokenizer(directory / "tokenizer.json")
        for name in ENGINES:
            onnx.save(hollow(specs[name], emitter), directory / f"{name}.onnx")
        opset = 24 if emitter == "native" else 18
        extra = {"cache_tokens": cache_tokens, "lint": {}}
        write_manifest(directory, Manifest("onnx", "fp16", emitter, opset, config, extra=extra))
    return out


def hollow(spec: GraphSpec, emitter: str) -> onnx.ModelProto:
    """A graph with the contract's tensors; the native transformer has operators that versions disagree on."""
    kinds = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "int64": TensorProto.INT64}
    kinds["bool"] = TensorProto.BOOL

    def infos(tensors: tuple) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(t.name, kinds[t.dtype], list(t.axes)) for t in tensors]

    nodes = [helper.make_node("Identity", [spec.inputs[0].name], [t.name]) for t in spec.outputs]
    if emitter == "native" and spec.name == TRANSFORMER_STEP:
        cache = [helper.make_node("TensorScatter", ["past_key_0", "text_key_0", "start"], ["cache"], "scatter", axis=2)]
        nodes += [*cache, helper.make_node("Attention", ["text_key_0", "past_key_0", "past_value_0"], ["y"], "attend")]
    graph = helper.make_graph(nodes, spec.name, infos(spec.inputs), infos(spec.outputs))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24 if emitter == "native" else 18)])


def plan_of(out: Path, name: str) -> dict:
    return json.loads((out / f"{name}.engine").read_bytes())


def test_a_clip_longer_than_the_cache_is_refused_with_the_length_to_export(native: Path) -> None:
    with pytest.raises(InputError, match=r"K/V of 256 tokens, these artifacts hold 192.*--cache-tokens 256"):
        open_source(native, BuildOptions({"frames": 25}))


def test_native_graphs_without_a_fixed_cache_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="TensorRT wants a fixed one"):
        open_source(artifacts(tmp_path / "onnx", "native"), BuildOptions())


# --- every version ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
@pytest.mark.usefixtures("two_graphs")
def test_every_version_builds_what_the_table_says(
    row: object, fake: Fake, portable: Path, native: Path, tmp_path: Path
) -> None:
    version = ".".join(map(str, row.version)) + ".1"  # type: ignore[attr-defined]
    machine = fake(version)
    builder = "tensorrt"
    if row.rtx:  # type: ignore[attr-defined]
        builder, machine = "tensorrt-rtx", dataclasses.replace(machine, flavour="TensorRT-RTX", gpu=NO_GPU, sm="")
    options = BuildOptions(builder=builder, timing_cache=tmp_path / "cache")
    if row.emitters["native"]:  # type: ignore[attr-defined]
        assert build_engines(portable, tmp_path / "out", options, machine=machine) is not None
        with pytest.raises(InputError, match=r"cannot build native graphs.*--emitter portable"):
            build_engines(native, tmp_path / "native", options, machine=machine)
    else:
        assert build_engines(native, tmp_path / "out", options, machine=machine) is not None
    plan = plan_of(tmp_path / "out", TRANSFORMER_STEP)
    assert plan["pools"]["WORKSPACE"] == 2 * GIB and plan["pools"]["TACTIC_DRAM"] > 0
    assert plan["profiles"] == [read_manifest(tmp_path / "out").extra["fingerprint"]["profiles"][TRANSFORMER_STEP]]
    assert plan["cached"] == (not row.rtx)  # type: ignore[attr-defined]


@pytest.mark.usefixtures("two_graphs")
def test_an_operator_the_version_lacks_is_named(fake: Fake, native: Path, tmp_path: Path) -> None:
    machine = dataclasses.replace(fake("10.13.0"), tensorrt="10.16.0")  # the table lets it through, the parser does not
    with pytest.raises(
        BuildError, match=r"transformer_step cannot be read by TensorRT at TensorScatter scatter: No imp"
    ):
        build_engines(native, tmp_path / "out", BuildOptions(), machine=machine)
    assert "No importer" not in (tmp_path / "out.transformer_step.log").read_text()
    assert not (tmp_path / "out").exists()


def test_all_seven_graphs_are_built_and_nothing_else(fake: Fake, portable: Path, tmp_path: Path) -> None:
    said: list[tuple[str, float]] = []
    manifest = build_engines(
        portable, tmp_path / "out", BuildOptions(), progress=lambda s, d, n: said.append((s, d / n)), machine=fake()
    )
    assert manifest is not None and manifest.kind == "engine"
    wanted = {f"{name}.{end}" for name in ENGINES for end in ("engine", "log")} | {"tokenizer.json"}
    assert set(manifest.files) == wanted
    parts = [part for _, part in said]
    assert parts == sorted(parts) and parts[-1] == 1
    assert any("building engine" in stage for stage, _ in said)
    check_fingerprint(manifest, ORIN)
    with pytest.raises(ArtifactError, match=r"run `videomar build \S+/onnx -o \S+/out --frames 17 .*` here"):
        check_fingerprint(manifest, dataclasses.replace(ORIN, tensorrt="10.7.0"))


# --- engines belong to one machine ------------------------------------------------------------------------------


@pytest.mark.usefixtures("two_graphs")
def test_a_second_build_is_a_no_op_until_something_changes(fake: Fake, portable: Path, tmp_path: Path) -> None:
    out, options = tmp_path / "out", BuildOptions(timing_cache=tmp_path / "cache")
    machine = fake()
    assert build_engines(portable, out, options, machine=machine) is not None
    before = (out / "manifest.json").stat().st_mtime_ns
    assert build_engines(portable, out, options, machine=machine) is None
    assert (out / "manifest.json").stat().st_mtime_ns == before
    assert build_engines(portable, out, dataclasses.replace(options, workspace=64), machine=machine) is not None
    log = plan_of(out, HEAD_STEP)["timed"]
    assert log == "timed " * 3  # the cache of the first build's two graphs and this one's first


def test_a_timing_cache_of_another_device_is_replaced(
    fake: Fake, portable: Path, tmp_path: Path, two_graphs: None
) -> None:
    (tmp_path / "cache").write_bytes(b"other")
    options = BuildOptions(timing_cache=tmp_path / "cache")
    assert build_engines(portable, tmp_path / "out", options, machine=fake()) is not None
    assert (tmp_path / "cache").read_bytes() == b"timed timed "


# --- failures ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("two_graphs")
def test_a_killed_worker_leaves_nothing_and_says_memory(fake: Fake, portable: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"SIGKILL.*Weights .* MiB, workspace limit 2.0 GiB, free memory at the start"):
        build_engines(portable, tmp_path / "out", BuildOptions(), machine=fake(behaviour="kill"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.transformer_step.log"]


@pytest.mark.parametrize(
    "words", ["CUDA error: out of memory", "Could not find any implementation for node {ForeignNode}"]
)
@pytest.mark.usefixtures("two_graphs")
def test_memory_under_another_name_is_called_by_its_name(
    fake: Fake, portable: Path, tmp_path: Path, words: str
) -> None:
    with pytest.raises(BuildError, match=r"ran out of memory: .*Try --workspace 1024, then a smaller clip"):
        build_engines(portable, tmp_path / "out", BuildOptions(), machine=fake(behaviour=f"fail {words}"))


@pytest.mark.usefixtures("two_graphs")
def test_another_failure_is_told_with_tensorrts_words_and_the_log(fake: Fake, portable: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"transformer_step cannot be built: weird node; the log is .*out.trans.*log"):
        build_engines(portable, tmp_path / "out", BuildOptions(), machine=fake(behaviour="fail weird node"))
    assert "weird node" in (tmp_path / "out.transformer_step.log").read_text()


@pytest.mark.usefixtures("two_graphs")
def test_an_engine_that_does_not_load_is_not_kept(fake: Fake, portable: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="the written engine does not load: Serialization assertion failed"):
        build_engines(portable, tmp_path / "out", BuildOptions(), machine=fake(behaviour="unloadable"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("weights", "workspace", "free", "change"),
    [
        (100 * MIB, 4 * GIB, 2 * GIB, "besides the workspace: try --workspace 1664"),
        (3 * GIB, 1 * GIB, 7 * GIB, "so 2.9 GiB more must be free: close other programs"),
        (100 * MIB, 1 * GIB, 8 * GIB, "Try --workspace 512, then a smaller clip"),
    ],
)
def test_the_smallest_change_that_fits_is_named(weights: int, workspace: int, free: int, change: str) -> None:
    assert change in smallest_change(weights, workspace, free)


def test_a_crash_is_told_from_a_refusal(tmp_path: Path) -> None:
    outcome = {"stage": "build", "error": "", "node": "", "signal": "SIGSEGV"}
    assert "was ended by SIGSEGV" in str(failure("head_step", outcome, 1, 1, 1, tmp_path / "log"))


@pytest.mark.usefixtures("two_graphs")
def test_a_file_that_changes_after_the_worker_is_noticed(
    fake: Fake, portable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = engine.run_job

    def truncating(job: dict, *args: object) -> dict:
        result = real(job, *args)  # type: ignore[arg-type]
        if "engine" in job:
            os.truncate(job["engine"], 10)
        return result

    fake("1.7.1")
    monkeypatch.setattr(engine, "run_job", truncating)
    assert main(["build", str(portable), "-o", str(tmp_path / "out"), "--builder", "tensorrt-rtx"]) == 2
    told = capsys.readouterr()
    assert "is not what was built" in told.err and "completed" not in told.out
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("two_graphs")
def test_completed_is_said_when_the_directory_verifies(
    fake: Fake, portable: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake("1.7.1")
    arguments = ["build", str(portable), "-o", str(tmp_path / "out"), "--builder", "tensorrt-rtx"]
    assert main(arguments) == 0
    assert "completed" in capsys.readouterr().out
    assert main(arguments) == 0
    assert "is up to date" in capsys.readouterr().out
    os.truncate(tmp_path / "out" / "head_step.engine", 10)
    with pytest.raises(ArtifactError, match=r"head_step.engine has 10 bytes.*run `videomar build ONNX_DIR -o"):
        verify(tmp_path / "out", read_manifest(tmp_path / "out"))
    assert main(arguments) == 0
    assert "completed" in capsys.readouterr().out


def test_a_killed_build_leaves_nothing_that_loads_and_no_worker(fake: Fake, portable: Path, tmp_path: Path) -> None:
    fake("1.7.1", "sleep")
    command = [sys.executable, "-m", "videomar", "build", str(portable), "-o", str(tmp_path / "out")]
    process = subprocess.Popen([*command, "--builder", "tensorrt-rtx"], stderr=subprocess.DEVNULL)
    log = wait_for(lambda: next(tmp_path.glob(".out.*.tmp/text_encoder.log"), None))
    wait_for(lambda: "building" in log.read_text() or None)
    (worker,) = [int(p) for p in children(process.pid)]
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: not alive(worker) or None)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ArtifactError):
        read_manifest(tmp_path / "out")
    with write_directory(tmp_path / "out") as target:  # the next writer sweeps
        assert [p.name for p in tmp_path.iterdir()] == [target.name]
        write_manifest(target, read_manifest(portable))


def wait_for(what: Callable, seconds: float = 60) -> object:
    end = time.monotonic() + seconds
    while (got := what()) is None:
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)
    return got


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def alive(pid: int) -> bool:
    try:
        return not re.search(r"^State:\s+Z", Path(f"/proc/{pid}/status").read_text(), re.M)
    except OSError:
        return False


# --- what is not TensorRT's business ----------------------------------------------------------------------------


def test_no_tensorrt_at_all_is_one_line(portable: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec("tensorrt"):
        pytest.skip("a TensorRT is installed here")
    assert main(["build", str(portable), "-o", str(tmp_path / "out"), "--builder", "tensorrt"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "needs TensorRT, which cannot be loaded" in told


def test_tensorrt_without_a_gpu_is_refused(fake: Fake, portable: Path, tmp_path: Path) -> None:
    machine = dataclasses.replace(fake(), gpu=NO_GPU, sm="")
    with pytest.raises(InputError, match="no GPU was found, and TensorRT builds on the one that runs"):
        build_engines(portable, tmp_path / "out", BuildOptions(), machine=machine)


def test_engines_are_not_built_from_engines(tmp_path: Path) -> None:
    with write_directory(tmp_path / "engines") as directory:
        write_manifest(directory, Manifest("engine", "fp16", "portable", 18, CONFIG))
    with pytest.raises(ArtifactError, match="holds engines, expected the ONNX graphs"):
        open_source(tmp_path / "engines", BuildOptions())


def test_an_older_export_is_refused_by_name(tmp_path: Path, portable: Path) -> None:
    with write_directory(tmp_path / "old") as directory:
        write_manifest(directory, read_manifest(portable))
    with pytest.raises(ArtifactError, match=r"lacks text_encoder.onnx.*; export the checkpoint again"):
        open_source(tmp_path / "old", BuildOptions())


def test_without_the_onnx_package_recorded_findings_count(
    fake: Fake, portable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, notes = open_source(portable, BuildOptions()), []
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.delitem(sys.modules, "videomar.export.linter", raising=False)
    engine.check_lint(source, 24, notes.append)
    assert notes == []
    found = dataclasses.replace(source.manifest, extra={"lint": {HEAD_STEP: ["graph head_step: bad"]}})
    with pytest.raises(ArtifactError, match="graph head_step: bad"):
        engine.check_lint(dataclasses.replace(source, manifest=found), 24, notes.append)
    older = dataclasses.replace(source, manifest=dataclasses.replace(source.manifest, extra={}))
    engine.check_lint(older, 24, notes.append)
    assert len(notes) == 1 and "not linted" in notes[0]


def test_trtexec_commands_have_every_shape(portable: Path) -> None:
    commands = trtexec_commands(open_source(portable, BuildOptions()), Path("out"), BuildOptions())
    assert len(commands) == len(ENGINES)
    head = commands[-1]
    assert "--stronglyTyped" in head and "--fp16" not in head and "--maxShapes=x:4x16,draw:4x16" in head


def test_trtexec_commands_are_printed_without_a_place_for_engines(
    portable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["build", str(portable), "--print-trtexec"]) == 0
    printed = capsys.readouterr().out
    words = [shlex.split(line) for line in printed.splitlines()]
    assert [line[:3] for line in words] == [
        ["trtexec", f"--onnx={portable / name}.onnx", f"--saveEngine=ENGINES/{name}.engine"] for name in ENGINES
    ]
    assert list(tmp_path.iterdir()) == []  # nothing was built
    assert main(["build", str(portable), "--print-trtexec", "-o", "ENGINES"]) == 0
    assert capsys.readouterr().out == printed
    assert main(["build", str(portable)]) == 2
    assert "-o ENGINES" in capsys.readouterr().err
