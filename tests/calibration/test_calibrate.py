"""The command's stages on the tiny model: what is written, what is refused, what a killed run leaves."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from videomar.artifacts import read_manifest, write_manifest
from videomar.calibration import collect as collecting
from videomar.calibration import qdq, trials, writing
from videomar.calibration.calibrate import calibrate
from videomar.calibration.clips import CalibrationClip, demo_clips, read_list
from videomar.calibration.collect import collect, linears_of, model_id
from videomar.calibration.observe import LARGEST, float_tensors, watched_copy
from videomar.calibration.options import RANGES, REPORT, Options
from videomar.calibration.pays import Timing, advice, elsewhere, multiplied_by
from videomar.calibration.plain import Graphs, PlainBackend, open_graph
from videomar.calibration.probe import Probe
from videomar.calibration.ranges import Ranges
from videomar.calibration.trials import measure, record
from videomar.cli import main
from videomar.errors import ArtifactError, InputError, ParityError
from videomar.export.linter import lint_file
from videomar.graphs import TRANSFORMER_STEP
from videomar.inspect import describe
from videomar.runtime.backends.ort import OrtBackend
from videomar.runtime.pipeline import Pipeline
from videomar.runtime.prompt import PromptTokenizer
from videomar.runtime.system import System

FILE = f"{TRANSFORMER_STEP}.onnx"
OPTIONS = Options(threads=1, sensitivity=False, target=0.9, method="mse", alpha="off")


@pytest.fixture(scope="session")
def clips() -> list[CalibrationClip]:
    rng = np.random.default_rng(0)
    prompts = [
        "a red circle falls",
        "a blue square bounces",
        "a white diamond moves left slowly",
        "a green circle grows",
    ]
    return [CalibrationClip(p, rng.integers(0, 256, (1, 16, 24, 3), np.uint8), p, i) for i, p in enumerate(prompts)]


@pytest.fixture(scope="session")
def int8(tmp_path_factory: pytest.TempPathFactory, tiny_artifacts: Path, clips: list[CalibrationClip]) -> Path:
    """The tiny model in INT8, everything measured."""
    out = tmp_path_factory.mktemp("int8") / "out"
    outcome = calibrate(tiny_artifacts, out, clips, options=Options(threads=1, target=0.9))
    assert outcome is not None and outcome.written
    return out


@pytest.fixture(scope="session")
def ranges(int8: Path) -> Ranges:
    return Ranges.load(int8 / RANGES)


def test_only_linears_are_quantized_and_only_they_read_what_is(int8: Path) -> None:
    model = onnx.load(int8 / FILE)
    assert lint_file(int8 / FILE) == []
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    quantizers = [n for n in model.graph.node if n.op_type == "QuantizeLinear"]
    for node in quantizers:
        [dequantizer] = users[node.output[0]]
        [product] = users[dequantizer.output[0]]
        assert (dequantizer.op_type, product.op_type) == ("DequantizeLinear", "MatMul")
    # Two blocks: wqkv, wo, wq, wo, proj, ff.2 in the first; the last one has wq and wkv apart.
    assert len(quantizers) == 6 + 7
    weights = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 2]
    assert len(weights) == 6 + 7
    scales = {t.name: t for t in model.graph.initializer if t.name.endswith(".weight_scale")}
    for weight in weights:
        assert scales[weight.name.replace("_quantized", "_scale")].dims == [weight.dims[1]]


def test_a_quantized_linear_computes_what_numpy_computes(
    int8: Path, tiny_artifacts: Path, clips: list[CalibrationClip], tmp_path: Path
) -> None:
    names = ["decoder_blocks.0.attn1.wqkv", "decoder_blocks.1.ff.net.2"]
    inputs = {linear.name: linear.source for linear in linears_of(tiny_artifacts)}
    [trial, *_] = record(tiny_artifacts, read_manifest(tiny_artifacts), clips[:1], {}, 1)
    session = open_graph(watched_copy(int8 / FILE, tmp_path, [*names, *inputs.values()]), 1)
    results = dict(zip((o.name for o in session.get_outputs()), session.run(None, trial.feeds), strict=True))
    tensors = {t.name: numpy_helper.to_array(t) for t in onnx.load(int8 / FILE).graph.initializer}
    for name in names:
        scale = tensors[f"{name}.input_scale"]
        x = np.clip(np.rint(results[inputs[name]].astype(np.float64) / scale), -128, 127)
        expected = x @ tensors[f"{name}.weight_quantized"].astype(np.float64) * scale * tensors[f"{name}.weight_scale"]
        np.testing.assert_allclose(results[name], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_what_is_written_errs_as_the_probe_foresaw_and_as_the_manifest_says(
    int8: Path, tiny_artifacts: Path, clips: list[CalibrationClip]
) -> None:
    report = json.loads((int8 / REPORT).read_text())
    held_out = record(tiny_artifacts, read_manifest(tiny_artifacts), clips[3:], {}, 1)
    assert len(held_out) == report["trials"] > 3
    written = Graphs(int8, 1)
    errors = measure(held_out, lambda feeds: written(TRANSFORMER_STEP, feeds)["z"], Graphs(tiny_artifacts, 1))
    assert errors.as_data() == pytest.approx(report["errors"])
    assert read_manifest(int8).extra["calibration"]["errors"] == report["errors"]
    assert 0.99 < errors.cosine < 1
    assert report["plans"][report["plan"]]["z_relative"] == pytest.approx(errors.relative, rel=0.05)
    assert report["plans"][report["plan"]]["z_relative"] == min(p["z_relative"] for p in report["plans"].values())


def test_large_inputs_kept_in_files_are_what_they_were(
    tiny_artifacts: Path, clips: list[CalibrationClip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, graphs = read_manifest(tiny_artifacts), Graphs(tiny_artifacts, 1)
    in_memory = record(tiny_artifacts, manifest, clips[:1], {}, 1)
    monkeypatch.setattr(trials, "LARGE", 1)
    in_files = record(tiny_artifacts, manifest, clips[:1], {}, 1, tmp_path)
    assert len(in_memory) == len(in_files) == 6  # all there are: two frames of three mask steps
    for one, other in zip(in_memory, in_files, strict=True):
        assert isinstance(other.feeds["past_key_0"], np.memmap)
        for name, value in one.feeds.items():
            np.testing.assert_array_equal(other.feeds[name], value)
        np.testing.assert_array_equal(graphs(TRANSFORMER_STEP, other.feeds)["z"], one.z)
        np.testing.assert_array_equal(trials.sample(graphs, other, other.z), one.sampled)


def test_one_linear_alone_errs_less_than_its_family_and_that_less_than_all(int8: Path) -> None:
    report = json.loads((int8 / REPORT).read_text())
    alone = {name: row["alone"]["z_relative"] for name, row in report["linears"].items()}
    assert set(report["families"]) == {name.split(".", 2)[2] for name in alone}
    assert 0 < max(alone.values()) < report["errors"]["z_relative"]
    for row in report["families"].values():
        assert 0 < row["z_relative"] < 1.2 * report["errors"]["z_relative"]
    assert all(row["alone"]["sampled_relative"] > 0 for row in report["linears"].values())


def test_folding_smoothing_into_the_norms_changes_no_number(
    tiny_artifacts: Path, clips: list[CalibrationClip], tmp_path: Path
) -> None:
    linears = linears_of(tiny_artifacts)
    norms = {linear.norm for linear in linears if linear.norm}
    assert norms == {f"decoder_blocks.{i}.norm{k}" for i in (0, 1) for k in (1, 2)}
    rng = np.random.default_rng(0)
    divisors = {norm: np.exp2(rng.integers(-3, 4, 32)).astype(np.float32) for norm in norms}
    qdq.quantize(tiny_artifacts / FILE, tmp_path / FILE, linears, {}, divisors)
    folded = Graphs(tmp_path, 1)
    for trial in record(tiny_artifacts, read_manifest(tiny_artifacts), clips[:1], {}, 1):
        np.testing.assert_array_equal(folded(TRANSFORMER_STEP, trial.feeds)["z"], trial.z)
        weight = Probe(tiny_artifacts / FILE, linears, 1)
        weight.configure({}, divisors)
        np.testing.assert_array_equal(weight(trial.feeds), trial.z)


def test_half_precision_graphs_are_quantized_too(tiny_half: Path, ranges: Ranges, tmp_path: Path, clips: Any) -> None:
    ranges.save(tmp_path / RANGES)  # seen with the FP32 export of the same checkpoint
    outcome = calibrate(tiny_half, tmp_path / "out", clips[:1], [tmp_path / RANGES], OPTIONS)
    assert outcome is not None
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.precision, manifest.activations, manifest.opset) == ("int8", "fp16", 19)
    assert lint_file(tmp_path / "out" / FILE) == []
    model = onnx.load(tmp_path / "out" / FILE)
    assert {t.data_type for t in model.graph.initializer if t.name.endswith("_scale")} == {onnx.TensorProto.FLOAT16}
    assert outcome.report["errors"]["z_cosine"] > 0.99


def test_the_directory_generates_video_on_the_runtimes_own_backend(int8: Path, clips: list[CalibrationClip]) -> None:
    with Pipeline.open(int8, threads=1, backend="ort-cpu") as pipe:
        video = pipe(clips[0].given, clips[0].prompt, seed=3)
    with Pipeline.open(int8, threads=1, backend="ort-cpu") as pipe:
        again = pipe(clips[0].given, clips[0].prompt, seed=3)
    assert video.frames.shape == (17, 16, 24, 3)
    np.testing.assert_array_equal(video.frames, again.frames)


@pytest.mark.parametrize("kind", ["tiny_artifacts", "tiny_native", "tiny_fixed"])
def test_the_observed_loop_is_the_real_one(kind: str, request: pytest.FixtureRequest, clips: Any) -> None:
    directory = request.getfixturevalue(kind)
    manifest = read_manifest(directory)
    tokenizer = PromptTokenizer(directory / "tokenizer.json", manifest.config.text)
    knobs = {"seed": 5, "frames": 17}
    plain = Pipeline(manifest.config, PlainBackend(manifest, Graphs(directory, 1)), tokenizer)
    real = Pipeline(manifest.config, OrtBackend(directory, manifest, 1), tokenizer)
    one, other = (pipe(clips[0].given, clips[0].prompt, **knobs).latents for pipe in (plain, real))
    np.testing.assert_allclose(one, other, atol=1e-4 * np.abs(other).max())


def test_the_largest_values_are_those_of_the_whole_tensors_but_for_masks(
    tiny_artifacts: Path, clips: list[CalibrationClip], tmp_path: Path
) -> None:
    [trial, *_] = record(tiny_artifacts, read_manifest(tiny_artifacts), clips[:1], {}, 1)
    model = onnx.load(tiny_artifacts / FILE)
    names = [name for name, _ in float_tensors(model)]
    assert {"z_proj", "decoder_blocks.0.attn1.wqkv", "decoder_blocks.1/add", "z"} <= set(names)
    (tmp_path / "a").mkdir()
    session = open_graph(watched_copy(tiny_artifacts / FILE, tmp_path / "a", names, largest=True), 1)
    results = dict(zip((o.name for o in session.get_outputs()), session.run(None, trial.feeds), strict=True))
    for name in names:
        assert results[name + LARGEST] == np.abs(results[name]).max(), name
    # A mask's fill, also with a score added, is no value; an overflow to minus infinity is.
    lowest = np.finfo(np.float32).min
    for values, expected in (([1.0, lowest, -3.0], 3.0), ([0.5, lowest * 0.995], 0.5), ([1.0, -np.inf], np.inf)):
        node = onnx.helper.make_node("Neg", ["x"], ["y"])
        x, y = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["n"]) for n in "xy")
        graph = onnx.helper.make_graph([node], "g", [x], [y])
        opset = [onnx.helper.make_opsetid("", 18)]
        onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "neg.onnx")
        run = open_graph(watched_copy(tmp_path / "neg.onnx", tmp_path / "a", largest=True), 1)
        assert run.run([f"y{LARGEST}"], {"x": -np.array(values, np.float32)})[0] == expected


def test_the_same_inputs_again_do_nothing(int8: Path, tiny_artifacts: Path, clips: list[CalibrationClip]) -> None:
    before = (int8 / "manifest.json").stat().st_mtime_ns
    assert calibrate(tiny_artifacts, int8, clips, options=Options(threads=1, target=0.9)) is None
    assert (int8 / "manifest.json").stat().st_mtime_ns == before


def test_a_killed_run_goes_on_where_it_was_and_ends_the_same(
    tiny_artifacts: Path, ranges: Ranges, clips: list[CalibrationClip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, state = read_manifest(tiny_artifacts), tmp_path / "state.npz"
    started: list[str] = []
    generate = collecting.generate

    def counted(pipe: Pipeline, clip: CalibrationClip, *rest: Any) -> None:
        started.append(clip.name)
        generate(pipe, clip, *rest)

    def kill(what: str, done: int, of: int) -> None:
        if done == of // 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(collecting, "generate", counted)
    with pytest.raises(KeyboardInterrupt):
        collect(tiny_artifacts, manifest, clips[:3], {}, state, 1, progress=kill)
    assert started == [clips[0].name, clips[1].name]
    started.clear()
    # A few linears at a time, too: the clips are run once a group, and nothing is lost between groups.
    done = collect(tiny_artifacts, manifest, clips[:3], {}, state, 1)
    assert started == [clips[1].name, clips[2].name]
    _assert_equal(done, ranges)
    in_groups = collect(tiny_artifacts, manifest, clips[:3], {}, tmp_path / "groups.npz", 1, memory=10000)
    assert len(started) > 2 + 3
    _assert_equal(in_groups, ranges)


def _assert_equal(one: Ranges, other: Ranges) -> None:
    assert (one.model, one.clips, one.parts) == (other.model, other.clips, [])
    assert one.inputs.keys() == other.inputs.keys()
    for name, seen in one.inputs.items():
        assert (seen.count, seen.least, seen.most) == pytest.approx(
            (other.inputs[name].count, other.inputs[name].least, other.inputs[name].most)
        )
        moved = np.abs(seen.histogram.astype(int) - other.inputs[name].histogram.astype(int)).sum()
        assert moved < 1e-3 * seen.count  # a value on an edge: graphs with other outputs are fused otherwise
    for graph, tensors in one.largest.items():
        assert tensors == pytest.approx(other.largest[graph], rel=1e-4)


def test_where_int8_is_slower_the_command_says_so_and_writes_only_if_it_may(
    tiny_artifacts: Path, ranges: Ranges, clips: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "time_steps", lambda *args: Timing(1.0, 2.0))
    ranges.save(tmp_path / RANGES)
    for only, out in ((True, tmp_path / "no"), (False, tmp_path / "yes")):
        options = dataclasses.replace(OPTIONS, only_if_faster=only)
        outcome = calibrate(tiny_artifacts, out, clips[:1], [tmp_path / RANGES], options)
        assert outcome is not None and outcome.written is not only
        assert outcome.report["timing"]["recommended"] == "fp32"
        assert out.exists() is not only
        assert advice(outcome.report["timing"], "fp32").endswith("use the fp32 artifacts")


AVX2 = {"name": "AVX2 without VNNI", "dot_product": False}
VNNI = {"name": "AVX-512 VNNI", "dot_product": True}


@pytest.mark.parametrize(
    ("speed", "arithmetic", "said"),
    [
        (1.2, AVX2, ""),
        (0.8, AVX2, "on ort-cpu (AVX2 without VNNI: int8 is widened to 16 bits to be exact); use the fp32 artifacts"),
        (0.8, VNNI, "10.00 ms a step against 8.00 ms on ort-cpu; use the fp32 artifacts"),
        (0.8, None, "on ort-cpu; use the fp32 artifacts"),
    ],
)
def test_advice_against_int8_says_why(speed: float, arithmetic: Any, said: str) -> None:
    timing = {"speed": speed, "int8_ms": 10.0, "source_ms": 10 * speed, "backend": "ort-cpu", "arithmetic": arithmetic}
    made = advice(timing, "fp32")
    assert made.endswith(said) and bool(made) is bool(said)


def test_times_of_another_kind_of_cpu_are_told_from_those_of_this_one() -> None:
    class Haswell(System):
        def read(self, path: str) -> str | None:
            return "flags\t\t: sse2 avx2\n"

    assert multiplied_by("ort-cpu", Haswell()) == AVX2 and multiplied_by("ort-cuda", Haswell()) is None
    timing = {"backend": "ort-cpu", "arithmetic": VNNI}
    assert "taken with AVX-512 VNNI, this CPU has AVX2 without VNNI: calibrate with --force" in elsewhere(
        timing, Haswell()
    )
    assert elsewhere({**timing, "arithmetic": AVX2}, Haswell()) == elsewhere({"backend": "trt"}, Haswell()) == ""


def test_onnx_runtimes_quantizer_multiplies_nothing_itself(
    tiny_artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would with sessions of its own, whose integers depend on the CPU."""

    def opened(*_: Any, **__: Any) -> None:
        raise AssertionError("the quantizer opened a session")

    monkeypatch.setattr(onnxruntime.InferenceSession, "__init__", opened)
    linears = linears_of(tiny_artifacts)
    qdq.quantize(tiny_artifacts / FILE, tmp_path / FILE, linears, {linear.name: 1.0 for linear in linears}, {})
    assert lint_file(tmp_path / FILE) == []


def test_kept_linears_stay_in_floating_point(tiny_artifacts: Path, ranges: Ranges, clips: Any, tmp_path: Path) -> None:
    ranges.save(tmp_path / RANGES)
    options = dataclasses.replace(OPTIONS, keep=("ff.net.2", "decoder_blocks.0.attn1.wqkv"), method="mse", alpha="0.5")
    calibrate(tiny_artifacts, tmp_path / "out", clips[:1], [tmp_path / RANGES], options)
    kept = {"decoder_blocks.0.attn1.wqkv", "decoder_blocks.0.ff.net.2", "decoder_blocks.1.ff.net.2"}
    assert set(read_manifest(tmp_path / "out").extra["calibration"]["kept"]) == kept
    dtypes = {t.name: t.data_type for t in onnx.load(tmp_path / "out" / FILE).graph.initializer}
    assert all(dtypes[f"{name}.weight"] == onnx.TensorProto.FLOAT for name in kept)
    assert sum(name.endswith(".weight_quantized") for name in dtypes) == 13 - 3


def test_broken_activations_are_refused_by_name(tiny_artifacts: Path, clips: Any, tmp_path: Path) -> None:
    name = "decoder_blocks.0.norm2"
    for value, message in ((np.nan, "NaN or infinite"), (0.0, "everywhere")):
        broken = tmp_path / f"broken-{value}"
        shutil.copytree(tiny_artifacts, broken)
        model = onnx.load(broken / FILE)
        for tensor in model.graph.initializer:
            if tensor.name in (f"{name}.weight", f"{name}.bias"):
                values = np.full(tensor.dims, value, np.float32)
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        onnx.save(model, broken / FILE)
        write_manifest(broken, read_manifest(broken))
        with pytest.raises(InputError, match=message) as error:
            calibrate(broken, tmp_path / "out", clips, options=OPTIONS)
        assert "decoder_blocks.0.ff.net.0.proj" in str(error.value)
        assert not (tmp_path / "out").exists()


def test_what_cannot_be_calibrated_is_refused_in_one_line(
    tiny_artifacts: Path, int8: Path, ranges: Ranges, clips: list[CalibrationClip], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match="3 calibration clips are given, expected at least 4"):
        calibrate(tiny_artifacts, out, clips[:3], options=OPTIONS)
    with pytest.raises(InputError, match="expected at least 4 different ones"):
        calibrate(tiny_artifacts, out, [clips[0]] * 4, options=OPTIONS)
    with pytest.raises(ArtifactError, match="expected ONNX graphs in floating point"):
        calibrate(int8, out, clips, options=OPTIONS)
    with pytest.raises(InputError, match="--keep is 'attn3', expected a linear such as decoder_blocks"):
        calibrate(tiny_artifacts, out, clips, options=dataclasses.replace(OPTIONS, keep=("attn3",)))
    Ranges("another", ranges.inputs).save(tmp_path / "other.npz")
    with pytest.raises(InputError, match="collected with another checkpoint"):
        calibrate(tiny_artifacts, out, clips[:1], [tmp_path / "other.npz"], OPTIONS)
    Ranges(model_id(read_manifest(tiny_artifacts))).save(tmp_path / "empty.npz")
    with pytest.raises(InputError, match="hold nothing of decoder_blocks"):
        calibrate(tiny_artifacts, out, clips[:1], [tmp_path / "empty.npz"], OPTIONS)
    assert not out.exists()
    for place in (tiny_artifacts, tiny_artifacts.parent):
        with pytest.raises(InputError, match="holds the graphs to be quantized"):
            calibrate(tiny_artifacts, place, clips, options=OPTIONS)


def test_an_int8_graph_that_is_not_the_model_any_more_is_not_written(
    tiny_artifacts: Path, ranges: Ranges, clips: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranges.save(tmp_path / RANGES)
    quantize = qdq.quantize

    def wrong(source: Path, target: Path, linears: Any, thresholds: dict[str, float], divisors: Any) -> int:
        return quantize(source, target, linears, {name: t / 10 for name, t in thresholds.items()}, divisors)

    monkeypatch.setattr(qdq, "quantize", wrong)
    with pytest.raises(ParityError, match="cosine of 0"):
        calibrate(tiny_artifacts, tmp_path / "out", clips[:1], [tmp_path / RANGES], OPTIONS)
    assert not (tmp_path / "out").exists()


def test_a_list_of_clips_is_read_and_its_bad_lines_are_named(tmp_path: Path) -> None:
    picture = np.full((20, 30, 3), 128, np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    (tmp_path / "frames").mkdir()
    for i in range(9):
        cv2.imwrite(str(tmp_path / "frames" / f"{i}.png"), picture)
    listed = tmp_path / "clips.txt"
    listed.write_text("# two clips\na.png\ta red circle falls\n\nframes\ta blue square grows\n")
    one, other = read_list(listed, 9)
    assert (one.name, one.given.shape, one.prompt) == ("a.png", (1, 20, 30, 3), "a red circle falls")
    assert (other.name, other.given.shape) == ("frames", (9, 20, 30, 3))
    assert one.key != other.key
    for line, message in (
        ("a.png a red circle falls", "line 1 is 'a.png a red circle falls', expected clip<TAB>prompt"),
        ("a.png\t", "expected clip<TAB>prompt"),
        ("none.png\ta red circle falls", "line 1: .*none.png"),
        ("clips.txt\ta red circle falls", "line 1: .*clips.txt"),
        ("frames\ta red circle falls", None),
    ):
        listed.write_text(line)
        if message:
            with pytest.raises(InputError, match=message):
                read_list(listed, 9)
        else:
            with pytest.raises(InputError, match="holds 9 frames, expected at least 17"):
                read_list(listed, 17)
    with pytest.raises(InputError, match=r"none.txt cannot be read"):
        read_list(tmp_path / "none.txt", 1)


def test_demo_clips_are_scenes_that_neither_training_nor_the_evaluation_sees() -> None:
    from videomar.demo.evaluate import SEED
    from videomar.demo.world import MOTIONS, render, sample_scene

    clips = demo_clips(13, 1, 64, 64)
    assert len({clip.key for clip in clips}) == 13
    shown = [render(sample_scene(np.random.default_rng([SEED, i]), MOTIONS[i]), 1) for i in range(13)]
    assert not any(np.array_equal(clip.given, other) for clip in clips for other in shown)


def test_the_command_prints_the_figures_and_refuses_with_code_2(
    tiny_artifacts: Path, int8: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8))
    (tmp_path / "clips.txt").write_text("a.png\ta red circle falls\n")
    command = ["calibrate", str(tiny_artifacts), "-o", str(tmp_path / "out"), "--threads", "1", "--target", "0.9"]
    clips = ["--clips", str(tmp_path / "clips.txt"), "--no-sensitivity"]
    assert main([*command, *clips, "--ranges", str(int8 / RANGES)]) == 0
    printed = capsys.readouterr().out
    for word in ("z cosine 0.99", "13 of 13 linears in INT8", "% of FP32's", "ms a transformer step", "FP16's end"):
        assert word in printed
    assert main([*command, *clips, "--ranges", str(int8 / RANGES)]) == 0
    assert "up to date" in capsys.readouterr().out
    for wrong in (["--alpha", "2"], ["--ranges", str(tmp_path / "clips.txt")], []):
        assert main([*command, *clips, *wrong]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_the_command_says_as_json_what_it_wrote(
    tiny_artifacts: Path, int8: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8))
    (tmp_path / "clips.txt").write_text("a.png\ta red circle falls\n")
    command = ["calibrate", str(tiny_artifacts), "-o", str(tmp_path / "out"), "--threads", "1", "--target", "0.9"]
    command += ["--clips", str(tmp_path / "clips.txt"), "--no-sensitivity", "--ranges", str(int8 / RANGES), "--json"]
    for wrote in (True, False):
        assert main(command) == 0
        said = json.loads(capsys.readouterr().out)
        report = json.loads((tmp_path / "out" / REPORT).read_text())
        assert said == {"output": str(tmp_path / "out"), "wrote": wrote} | report
    assert said["errors"] == read_manifest(tmp_path / "out").extra["calibration"]["errors"]
    assert sum(row["quantized"] for row in said["linears"].values()) == 13


def test_inspect_shows_what_was_measured_and_what_was_seen(int8: Path, tmp_path: Path) -> None:
    facts = describe(int8)["facts"]
    assert (facts["precision"], facts["between"]) == ("int8", "fp32 between graphs")
    assert "z cosine 0.99" in facts["held out"] and "kept in floating point: nothing" in facts["ranges"]
    shown = describe(int8 / RANGES)
    assert shown["facts"] == {"clips": "3"}
    rows, largest = shown["tensors"].values()
    assert len(rows) == 13 and rows[0].startswith("decoder_blocks.0.attn1.wqkv ")
    assert len(largest) > 500
    (tmp_path / "r.npz").write_bytes(b"rubbish")
    with pytest.raises(ArtifactError, match="not a file of ranges"):
        describe(tmp_path / "r.npz")


def test_calibration_needs_no_pytorch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import videomar.calibration.command\n"
        "print(sorted({'torch', 'diffusers', 'transformers'} & {m for m in sys.modules if sys.modules[m]}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
