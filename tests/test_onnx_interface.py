"""What a graph takes and gives is read as the onnx package reads it, and held against the configuration on opening."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from videomar.artifacts import read_manifest, write_directory, write_manifest
from videomar.calibration.calibrate import calibrate
from videomar.cli import main
from videomar.errors import ArtifactError
from videomar.graphs import GRAPHS, TensorSpec
from videomar.onnx_interface import check_graph, read_interface, verify_graphs
from videomar.runtime.pipeline import Pipeline


@pytest.mark.parametrize("name", GRAPHS)
def test_the_interface_is_the_one_that_onnx_reads(tiny_artifacts: Path, name: str) -> None:
    graph = onnx.load(tiny_artifacts / f"{name}.onnx").graph
    found = read_interface(tiny_artifacts / f"{name}.onnx")
    for ours, theirs in ((found.inputs, graph.input), (found.outputs, graph.output)):
        assert [t.name for t in ours] == [t.name for t in theirs]
        for mine, its in zip(ours, theirs, strict=True):
            kind = its.type.tensor_type
            assert mine.dtype == helper.tensor_dtype_to_np_dtype(kind.elem_type).name
            assert list(mine.axes) == [d.dim_param or d.dim_value for d in kind.shape.dim]


def test_large_numbers_unknown_types_and_axes_without_a_name_are_told(tmp_path: Path) -> None:
    given = helper.make_tensor_value_info("x", TensorProto.DOUBLE, [2**40, None, "längs"])
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, [])
    graph = helper.make_graph([helper.make_node("Cast", ["x"], ["y"], to=1)], "g", [given], [made])
    onnx.save(helper.make_model(graph), tmp_path / "g.onnx")
    found = read_interface(tmp_path / "g.onnx")
    assert found.inputs == (TensorSpec("x", "element type 11", (2**40, "?", "längs")),)
    assert found.outputs == (TensorSpec("y", "float32", ()),)


@pytest.mark.parametrize("data", [b"", b"hello", b"\xff" * 100, b"\x3a\x7f", b"\x3a\x02\x5a\x7f", b"\x0b"])
def test_what_is_no_graph_is_one_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "g.onnx").write_bytes(data)
    with pytest.raises(ArtifactError, match=r"g\.onnx is no ONNX graph \(.*\); export"):
        read_interface(tmp_path / "g.onnx")
    with pytest.raises(ArtifactError, match=r"none\.onnx cannot be read \(No such file"):
        read_interface(tmp_path / "none.onnx")


def test_what_export_wrote_is_the_contract(
    tiny_artifacts: Path, tiny_native: Path, tiny_fixed: Path, tiny_half: Path
) -> None:
    for directory in (tiny_artifacts, tiny_native, tiny_fixed, tiny_half):
        verify_graphs(directory, read_manifest(directory))


def altered(source: Path, target: Path, change: Any) -> Path:
    """A copy whose manifest was edited, and whose hashes are right."""
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).hardlink_to(file) if file.name != "manifest.json" else None
    tree = json.loads((source / "manifest.json").read_text())
    change(tree)
    (target / "manifest.json").write_text(json.dumps(tree))
    return target


CHANGES = {  # what is changed -> the first tensor that does not fit
    "decoder channels": (
        lambda m: m["config"]["tokenizer"].update(decoder_channels=[8, 8, 8, 16]),
        r"tokenizer_decoder\.onnx: input 2 is 'past_frames_0' float32 \[1, 8, 2, h, w\], expected 'past_frames_0' "
        r"float32 \[1, 16, 2, h, w\]",
    ),
    "a level of the decoder dropped": (
        lambda m: m["config"]["tokenizer"].update(decoder_channels=[8, 8, 8]),
        r"levels behind patches of 4 make strides",
    ),
    "a layer": (
        lambda m: m["config"]["transformer"].update(depth=3),
        r"text_key_values\.onnx: output 4 is missing, expected 'text_key_2'",
    ),
    "heads": (
        lambda m: m["config"]["transformer"].update(heads=1, head_dim=32, rope_split=[16, 8, 8]),
        r"text_key_values\.onnx: output 0",
    ),
    "the head's depth": (lambda m: m["config"]["head"].update(depth=3), r"head_condition\.onnx: output 8 is missing"),
    "the text's width": (lambda m: m["config"]["text"].update(width=32), r"text_encoder\.onnx: output 0 is 'states'"),
    "the precision": (lambda m: m.update(precision="fp16"), r"float32 .*, expected .* float16"),
    "the emitter": (lambda m: m.update(emitter="native"), r"transformer_step\.onnx: input"),
    "a cache in words": (
        lambda m: m["extra"].update(cache_tokens="64"),
        "'extra.cache_tokens' is '64', expected a w",
    ),
    "a cache of nothing": (lambda m: m["extra"].update(cache_tokens=0), "'extra.cache_tokens' is 0"),
    "a cache that is not written": (lambda m: m["extra"].update(cache_tokens=64), "needs K/V written in place"),
    "an endless cache": (lambda m: m["extra"].update(cache_tokens=2**40), "'extra.cache_tokens' is 1099511627776"),
    "notes that are none": (lambda m: m["extra"].update(lint=["x"]), r"extra\.lint is a list"),
    "no opset": (lambda m: m.update(opset=0), "'opset' is 0"),
    "a size below nothing": (lambda m: m["files"]["tokenizer.json"].update(size=-1), r"tokenizer\.json\.size' is -1"),
    "a name that cannot be printed": (lambda m: m["made_by"].update(host="\ud800"), "no Unicode text"),
    "a name with an end in it": (lambda m: m["files"].update({"a\0b": {"size": 0, "sha256": ""}}), "path inside"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_manifest_that_does_not_fit_its_graphs_is_refused_before_a_session(
    tiny_artifacts: Path, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, message = CHANGES[what]
    directory = altered(tiny_artifacts, tmp_path / "a", change)
    monkeypatch.setattr("videomar.runtime.backends.ort.open_session", lambda *_, **__: pytest.fail("a session"))
    with pytest.raises(ArtifactError, match=message) as caught:
        Pipeline.open(directory)
    assert "\n" not in str(caught.value) and str(directory) in str(caught.value)


def test_every_command_that_opens_artifacts_refuses_them(
    tiny_artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = str(altered(tiny_artifacts, tmp_path / "a", CHANGES["decoder channels"][0]))
    good, out = str(tiny_artifacts), str(tmp_path / "out")
    for command in (
        ["inspect", a],
        ["embed", a, "--prompt", "a red circle moves right", "-o", out],
        ["compare", good, a],
        ["record", a, "-o", out],
        ["build", a, "-o", out],
    ):
        assert main(command) == 2, command
        assert "expected 'past_frames_0' float32 [1, 16, 2, h, w]" in capsys.readouterr().err, command
    with pytest.raises(ArtifactError, match="past_frames_0"):
        calibrate(Path(a), Path(out), ())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


def test_another_graph_under_a_graphs_name_is_refused(tiny_artifacts: Path, tmp_path: Path) -> None:
    with write_directory(tmp_path / "a") as directory:
        for file in tiny_artifacts.iterdir():
            (directory / file.name).hardlink_to(file)
        (directory / "manifest.json").unlink()
        (directory / "head_step.onnx").unlink()
        (directory / "head_step.onnx").hardlink_to(tiny_artifacts / "diffusion_head.onnx")
        write_manifest(directory, read_manifest(tiny_artifacts))
    with pytest.raises(ArtifactError, match=r"head_step\.onnx: input 0 is 'z'.*expected 'x'"):
        verify_graphs(tmp_path / "a", read_manifest(tmp_path / "a"))
    spec = read_interface(tiny_artifacts / "diffusion_head.onnx")
    check_graph(tiny_artifacts / "diffusion_head.onnx", spec, "")
