"""`videomar bisect` on real artifacts of the tiny model: planted faults, clean pairs, rubbish."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from videomar.artifacts import read_manifest, write_manifest
from videomar.cli import main
from videomar.config import ModelConfig
from videomar.export.islands import keep_fp32
from videomar.graphs import DIFFUSION_HEAD, TEXT_KEY_VALUES, TRANSFORMER_STEP
from videomar.parity.bisecting.bisect import LAYER_GATE, Finding, Place, Search, sides
from videomar.parity.bisecting.conclusion import conclude
from videomar.parity.bisecting.deviation import Deviation, first_deviation
from videomar.parity.cases import make_cases
from videomar.parity.subject import open_subject

Edit = Callable[[onnx.ModelProto], None]


def planted(source: Path, target: Path, graph: str, edit: Edit) -> Path:
    """A copy of an artifact directory with one graph edited."""
    target.mkdir()
    for file in source.iterdir():
        if file.name not in ("manifest.json", f"{graph}.onnx"):
            os.link(file, target / file.name)
    model = onnx.load(source / f"{graph}.onnx")
    edit(model)
    onnx.save(model, target / f"{graph}.onnx")
    write_manifest(target, read_manifest(source))
    return target


def weight(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.name == name)
        values = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(change(values).astype(values.dtype), name))

    return edit


def bisect(a: Path, b: Path, *more: str, folder: Path) -> tuple[int, dict[str, Any]]:
    file = folder / "layers.json"
    options = ["--frames", "17", "--cases", "1", "--prompt", "a red circle falls", "--threads", "1"]
    code = main(["bisect", str(a), str(b), *options, "--backend", "ort-cpu", "--json", str(file), *more])
    return code, json.loads(file.read_text())


def test_clean_pairs_of_every_kind_are_cleared(
    tiny_checkpoint: Path, tiny_artifacts: Path, tiny_native: Path, tiny_half: Path, tiny_fixed: Path, tmp_path: Path
) -> None:
    for a, b in (
        (tiny_checkpoint, tiny_native),
        (tiny_artifacts, tiny_half),  # FP16's rounding is no fault
        (tiny_fixed, tiny_checkpoint),  # the checkpoint is what is compared with, wherever it stands
    ):
        code, data = bisect(a, b, folder=tmp_path)
        assert (code, data["kind"], data["deviation"]) == (0, "none", None), data["verdict"]
        assert len(data["layers"]) > 30 and not any(layer["guilty"] for layer in data["layers"])
        precise = read_manifest(b).precision == "fp32" if b != tiny_checkpoint else True
        assert max(layer["added"] for layer in data["layers"]) < (LAYER_GATE["fp32"] / 5 if precise else 0.1)


def test_a_wrong_scale_is_named_with_its_weight(
    tiny_artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "decoder_blocks.1.ff.net.2.weight"
    bad = planted(tiny_artifacts, tmp_path / "bad", TRANSFORMER_STEP, weight(name, lambda w: w * 1.2))
    code, data = bisect(tiny_artifacts, bad, folder=tmp_path)
    assert code == 1 and data["kind"] == "fault"
    assert data["place"] == {
        "part": TRANSFORMER_STEP,
        "frame": 0,
        "step": 0,
        "head_step": -1,
        "module": "decoder_blocks.1.ff.net.2",
    }
    assert data["weights"] == {name: pytest.approx(0.2, rel=1e-3)}
    assert data["remains"] < 1e-6 and data["keep_in_fp32"] == []
    assert name in data["mend"] and "no precision mends it" in data["mend"]
    assert "<- over 1.0e-05" in capsys.readouterr().out
    # behind it everything is off, and nobody else is blamed
    behind = [layer for layer in data["layers"] if layer["error"] > 1e-3]
    assert len(behind) >= 2 and [layer["tensor"] for layer in data["layers"] if layer["guilty"]] == [data["tensor"]]


def test_a_checkpoint_tells_the_layer_of_either_emitter(
    tiny_checkpoint: Path, tiny_artifacts: Path, tiny_native: Path, tmp_path: Path
) -> None:
    def roll(w: np.ndarray) -> np.ndarray:
        return np.roll(w, 16, axis=0)  # one head's rows take the other's place

    for i, source in enumerate((tiny_artifacts, tiny_native)):
        edit = weight("decoder_blocks.0.attn1.wo.weight", roll)
        code, data = bisect(
            tiny_checkpoint, planted(source, tmp_path / f"{i}", TRANSFORMER_STEP, edit), folder=tmp_path
        )
        assert (code, data["tensor"]) == (1, "decoder_blocks.0.attn1.wo")
        assert data["peak"]["tensors"] <= 25  # PyTorch runs through in one go, and what it tells is not piled up


def test_swapped_caches_are_named_at_the_frame_that_reads_them(tiny_artifacts: Path, tmp_path: Path) -> None:
    def swap(model: onnx.ModelProto) -> None:
        nodes = {n.output[0]: n for n in model.graph.node}
        key, value = nodes["present_key_1"], nodes["present_value_1"]
        key.input[0], value.input[0] = value.input[0], key.input[0]

    code, data = bisect(
        tiny_artifacts, planted(tiny_artifacts, tmp_path / "bad", TRANSFORMER_STEP, swap), folder=tmp_path
    )
    assert (code, data["tensor"]) == (1, "present_key_1")
    assert (data["place"]["frame"], data["place"]["step"]) == (1, 0)  # frame 0 has no past
    assert "K/V cache" in data["mend"]


def test_the_texts_swapped_keys_are_named_in_their_own_graph(tiny_artifacts: Path, tmp_path: Path) -> None:
    def rows(w: np.ndarray) -> np.ndarray:
        return w.reshape(-1, 2, 2, 16)[:, :, ::-1].reshape(w.shape)

    edit = weight("attentions.1.wkv.weight", rows)
    code, data = bisect(
        tiny_artifacts, planted(tiny_artifacts, tmp_path / "bad", TEXT_KEY_VALUES, edit), folder=tmp_path
    )
    assert (code, data["place"]["part"], data["tensor"]) == (1, TEXT_KEY_VALUES, "attentions.1.wkv")
    assert data["deviation"]["kind"] == "z"


def test_not_a_number_is_named_at_its_frame_and_mask_step(tiny_artifacts: Path, tmp_path: Path) -> None:
    """In the second step of frame 1, told by its number of masked tokens: 6, then 5 of them."""

    def poison(model: onnx.ModelProto) -> None:
        graph = model.graph
        at = next(i for i, n in enumerate(graph.node) if n.output[0] == "decoder_blocks.1.norm2")
        graph.node[at].output[0] = "was"
        for name, array in (("nan", np.float32(np.nan)), ("five", np.int64(5)), ("zero", np.int64(0))):
            graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
        nodes = [
            helper.make_node("Cast", ["masked"], ["number"], to=onnx.TensorProto.INT64),
            helper.make_node("ReduceSum", ["number"], ["left"], keepdims=0),
            helper.make_node("Equal", ["left", "five"], ["now"]),
            helper.make_node("Where", ["now", "nan", "was"], ["decoder_blocks.1.norm2"]),
        ]
        for node in reversed(nodes):
            graph.node.insert(at + 1, node)

    code, data = bisect(
        tiny_artifacts, planted(tiny_artifacts, tmp_path / "bad", TRANSFORMER_STEP, poison), folder=tmp_path
    )
    assert (code, data["tensor"]) == (1, "decoder_blocks.1.norm2")
    assert (data["place"]["frame"], data["place"]["step"]) == (1, 1)
    assert data["deviation"]["got"] is None and data["remains"] < 1e-6


def test_a_transposed_matrix_of_the_head_is_named_at_its_first_step(tiny_artifacts: Path, tmp_path: Path) -> None:
    edit = weight("step_res_blocks.1.mlp.2.weight", np.transpose)
    code, data = bisect(
        tiny_artifacts, planted(tiny_artifacts, tmp_path / "bad", DIFFUSION_HEAD, edit), folder=tmp_path
    )
    assert (code, data["deviation"]["kind"]) == (1, "head")
    assert data["place"] == {"part": "head_step", "frame": 1, "step": 0, "head_step": 0, "module": "res_blocks.1.mlp.2"}


def test_an_fp16_overflow_is_mended_in_fp32_and_proved(tiny_artifacts: Path, tiny_half: Path, tmp_path: Path) -> None:
    """Queries of the text times 2^15: their norm takes it out again, exactly, unless FP16 ends before."""
    edit = weight("decoder_blocks.0.attn2.wq.weight", lambda w: w * 2.0**15)
    full = planted(tiny_artifacts, tmp_path / "full", TRANSFORMER_STEP, edit)
    half = planted(tiny_half, tmp_path / "half", TRANSFORMER_STEP, edit)
    assert (
        bisect(tiny_artifacts, full, folder=tmp_path)[1]["tensor"] == "decoder_blocks.0.attn2.wq"
    )  # another tensor...
    code, data = bisect(full, half, folder=tmp_path)
    assert (code, data["kind"], data["tensor"]) == (1, "overflow", "decoder_blocks.0.attn2.wq")
    assert data["keep_in_fp32"][0] == "decoder_blocks.0.attn2.wq"
    assert all(name.startswith("decoder_blocks.0.attn2") for name in data["keep_in_fp32"])
    assert data["remains"] < 5e-3
    assert "Keep in FP32: decoder_blocks.0.attn2.wq" in data["mend"]
    assert "--fp32 transformer_step:decoder_blocks.0.attn2.wq" in data["mend"]
    islands = partial(keep_fp32, tensors=data["keep_in_fp32"])
    mended = planted(half, tmp_path / "mended", TRANSFORMER_STEP, islands)
    assert bisect(full, mended, folder=tmp_path)[0] == 0, "and doing so mends it"


def test_norms_that_absorbed_a_smoothing_are_not_compared_and_their_linears_are(
    tiny_artifacts: Path, tmp_path: Path
) -> None:
    """What calibration does before it quantizes: a norm's result divided by powers of two, the matrix multiplied."""
    powers = 2.0 ** np.random.default_rng(0).integers(-2, 3, 32)
    block = "decoder_blocks.0"

    def smooth(model: onnx.ModelProto, wrong: float = 1.0) -> None:
        for name in ("norm1.weight", "norm1.bias"):
            weight(f"{block}.{name}", lambda v: v / powers)(model)
        weight(f"{block}.attn1.wqkv.weight", lambda w: w * powers[:, None] * wrong)(model)

    def as_int8(name: str, wrong: float) -> Path:
        edit = lambda model: smooth(model, wrong)  # noqa: E731
        directory = planted(tiny_artifacts, tmp_path / name, TRANSFORMER_STEP, edit)
        manifest = read_manifest(directory)
        extra = {**manifest.extra, "activations": "fp32"}
        (directory / "manifest.json").unlink()
        write_manifest(directory, dataclasses.replace(manifest, precision="int8", extra=extra))
        return directory

    code, data = bisect(tiny_artifacts, as_int8("right", 1.0), folder=tmp_path)
    assert code == 0 and f"{block}.norm1" not in {layer["tensor"] for layer in data["layers"]}
    assert "decoder_blocks.1.norm1" in {layer["tensor"] for layer in data["layers"]}
    code, data = bisect(tiny_artifacts, as_int8("wrong", 3.0), folder=tmp_path)
    assert (code, data["kind"], data["place"]["module"]) == (1, "fault", f"{block}.attn1.wqkv")


@pytest.fixture
def search(tiny_artifacts: Path, tiny_native: Path) -> Callable[..., Finding]:
    """Search with the notes of a clean run, but told of a deviation that no graph explains."""

    def run(deviation: Deviation) -> Finding:
        with open_subject(tiny_artifacts, 1) as a, open_subject(tiny_native, 1) as b:
            cases = make_cases(a.config, [], ["a red circle falls"], 1, 0, 17, 16, 24)
            found, notes = first_deviation(a, b, cases[0], a.config.sampling)
            assert found is None
            first, second = sides(a, b, 1)
            return Search(first, second, notes, LAYER_GATE["fp32"], lambda doing: None).run(deviation, "case")

    return run


def test_where_the_graphs_are_innocent_what_runs_them_is_suspected(search: Callable[..., Finding]) -> None:
    finding = search(Deviation("z", 2, 1, "relative_l2", 0.3, "relative_l2 <= 1e-05"))
    conclusion = conclude(finding, "fp32")
    assert finding.found and conclusion.kind == "inputs"
    assert finding.place == Place(TRANSFORMER_STEP, 2, 2)  # the last pass that was noted
    assert "K/V" in conclusion.mend


def test_engines_are_placed_in_the_loop_only() -> None:
    deviation = Deviation("z", 1, 3, "cosine", 0.4, "cosine >= 0.9999")
    conclusion = conclude(Finding(deviation, "scene 0", 5e-3, visible=False), "fp16")
    assert conclusion.kind == "engine" and "latent frame 1, mask step 3" in conclusion.verdict
    assert "ONNX artifacts" in conclusion.mend and "polygraphy" in conclusion.mend


def test_two_checkpoints_another_model_and_no_place_to_write_are_refused(
    tiny_checkpoint: Path, tiny_artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in tiny_artifacts.iterdir():
        os.link(file, other / file.name)
    manifest = read_manifest(tiny_artifacts)
    head = dataclasses.replace(manifest.config.head, train_steps=21)
    config: ModelConfig = dataclasses.replace(manifest.config, head=head)
    (other / "manifest.json").unlink()
    write_manifest(other, dataclasses.replace(manifest, config=config))
    for arguments, words in (
        ([tiny_checkpoint, tiny_checkpoint], "both checkpoints"),
        ([tiny_artifacts, other], "head.train_steps is 21, expected 20"),
        ([tiny_artifacts, tmp_path / "none"], "does not exist"),
        ([tiny_artifacts, tiny_artifacts, "--json", tmp_path / "no" / "file"], "cannot be written"),
        ([tiny_artifacts, tiny_artifacts, "--frames", "10"], "expected 1 + 8k"),
        ([tiny_artifacts, tiny_artifacts, "--mask-steps", "99"], "mask steps is 99"),
    ):
        assert main(["bisect", *map(str, arguments), "--prompt", "a red circle falls", "--threads", "1"]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\nvideomar ") + error.startswith("videomar ") == 1, error
