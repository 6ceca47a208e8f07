"""`videomar compare` on real artifacts of the tiny model, from the command line to the files it writes."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from videomar.artifacts import read_manifest, write_directory, write_manifest
from videomar.cli import main
from videomar.graphs import GRAPHS, TOKENIZER_DECODER, TRANSFORMER_STEP

OPTIONS = "--frames 17 --threads 1 --backend ort-cpu --prompt".split() + ["a red circle falls"]


def compare(*directories: Path, **files: Path) -> int:
    options = [part for name, path in files.items() for part in (f"--{name}", str(path))]
    return main(["compare", *map(str, directories), *OPTIONS, "--cases", "2", *options])


@pytest.fixture(scope="module")
def outputs(
    tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, tiny_artifacts: Path, tiny_half: Path
) -> Path:
    """What one comparison of the checkpoint with FP32 and FP16 writes."""
    folder = tmp_path_factory.mktemp("compare")
    half = Path(shutil.copytree(tiny_half, folder / "half"))
    files = {kind: folder / f"out.{kind}" for kind in ("json", "html", "png")}
    code = compare(tiny_checkpoint, tiny_artifacts, half, **files)
    (folder / "code").write_text(str(code))
    return folder


def test_exports_are_still_the_model(outputs: Path) -> None:
    assert (outputs / "code").read_text() == "0"
    data = json.loads((outputs / "out.json").read_text())
    assert data["passed"] and [c["precision"] for c in data["candidates"]] == ["fp32", "fp16"]
    assert [c["tolerances"] for c in data["candidates"]] == ["fp32", "fp16"]
    full, half = (c["rungs"]["sampled"]["measures"]["relative_l2"]["worst"] for c in data["candidates"])
    assert 0 < 20 * full < half < 1e-2
    assert data["environment"]["command"].startswith("videomar ")
    assert {"config.json", "transformer.safetensors"} <= data["reference"]["hashes"].keys()


class Page(HTMLParser):
    """Checks that every element is closed in order, and keeps tags, addresses and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href", "action")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def page(outputs: Path) -> Page:
    parsed = Page()
    parsed.feed((outputs / "out.html").read_text())
    return parsed


def test_the_page_is_well_formed_and_has_every_part(page: Page) -> None:
    assert not page.open
    assert page.tags.count("table") == 2 and page.tags.count("svg") == 10
    assert "script" not in page.tags


def test_the_page_needs_nothing_from_outside(page: Page, outputs: Path) -> None:
    assert page.addresses and all(address.startswith("data:image/png;base64,") for address in page.addresses)
    text = (outputs / "out.html").read_text()
    for outside in ("http:", "https:", "@import", "url(", "<script", "<link", "<iframe"):
        assert outside not in text


def test_the_page_holds_every_number_of_the_json(page: Page, outputs: Path) -> None:
    whole = "".join(page.text)
    inside = json.loads(whole[whole.index('{\n "format"') : whole.rindex("}") + 1])
    assert inside == json.loads((outputs / "out.json").read_text())


def test_the_page_says_the_verdict_before_anything_else(page: Page) -> None:
    whole = "".join(page.text)
    assert whole.index("is still the model") < whole.index("text states")


def test_the_picture_is_a_picture(outputs: Path) -> None:
    picture = cv2.imread(str(outputs / "out.png"))
    assert picture is not None and picture.shape[1] > 1000 and picture.shape[0] > 1000
    assert len(np.unique(picture[..., 0])) > 50  # text, colours and frames


# ---- planted faults


def spoiled(source: Path, target: Path, graph: str, tensor: str, change: str) -> Path:
    """A copy of artifacts whose manifest agrees with one altered weight."""
    shutil.copytree(source, target)
    file = target / f"{graph}.onnx"
    model = onnx.load(file)
    (weight,) = [w for w in model.graph.initializer if w.name == tensor]
    value = numpy_helper.to_array(weight).copy()
    if change == "scaled":
        value = (value * 1.1).astype(value.dtype)
    elif change == "transposed":
        value = np.ascontiguousarray(value.reshape(value.shape[::-1]).T)
    else:
        value.flat[0] = np.nan
    weight.CopyFrom(numpy_helper.from_array(value, weight.name))
    file.unlink()
    onnx.save(model, file)
    write_manifest(target, read_manifest(target))
    return target


def weights(directory: Path, graph: str, ndim: int) -> list[str]:
    model = onnx.load(directory / f"{graph}.onnx")
    return [w.name for w in model.graph.initializer if len(w.dims) == ndim and np.prod(w.dims) > 200]


@pytest.mark.parametrize("change", ["scaled", "transposed", "nan"])
def test_an_altered_weight_of_the_transformer_is_missed_at_z(
    tiny_artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    name = weights(tiny_artifacts, TRANSFORMER_STEP, 2)[1]
    bad = spoiled(tiny_artifacts, tmp_path / "bad", TRANSFORMER_STEP, name, change)
    assert compare(tiny_artifacts, bad) == 1
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith("bad misses rung z: ") and "latent frame" in last
    assert f"videomar bisect {tiny_artifacts} {bad} finds the layer" in last


def test_an_altered_decoder_is_missed_at_the_pixels(
    tiny_artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = weights(tiny_artifacts, TOKENIZER_DECODER, 5)[-1]
    bad = spoiled(tiny_artifacts, tmp_path / "bad", TOKENIZER_DECODER, name, "scaled")
    files = {kind: tmp_path / f"miss.{kind}" for kind in ("json", "html", "png")}
    assert compare(tiny_artifacts, bad, **files) == 1
    assert "bad misses rung decoded" in capsys.readouterr().out
    data = json.loads(files["json"].read_text())
    assert not data["passed"] and not data["candidates"][0]["passed"]
    assert "missed" in files["html"].read_text() and files["png"].stat().st_size > 1000


RUNG_OF = {  # graph -> the first rung that its fault is missed at
    "text_encoder": "text",
    "text_key_values": "z",
    "tokenizer_encoder": "encoded",
    "tokenizer_decoder": "decoded",
    "transformer_step": "z",
    "diffusion_head": "head",
    "head_condition": "head_step",
    "head_step": "head_step",
}


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_fault_in_any_graph_of_a_directory_is_missed(
    tiny_artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], graph: str
) -> None:
    matrices = weights(tiny_artifacts, graph, 5 if graph.startswith("tokenizer") else 2)
    bad = spoiled(tiny_artifacts, tmp_path / "bad", graph, matrices[-1], "scaled")
    assert compare(tiny_artifacts, bad) == 1
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith(f"bad misses rung {RUNG_OF[graph]}: ")
    assert ("videomar bisect" in last) == (RUNG_OF[graph] != "head_step"), "bisect looks into the head that is run"


def test_what_a_directory_does_not_hold_is_said(
    tiny_artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with write_directory(tmp_path / "few") as few:
        for file in tiny_artifacts.iterdir():
            if file.stem not in ("head_step", "manifest"):
                (few / file.name).hardlink_to(file)
        write_manifest(few, read_manifest(tiny_artifacts))
    assert compare(tiny_artifacts, tmp_path / "few") == 0
    said = capsys.readouterr().out
    assert "not judged (head_condition and head_step are not in this directory)" in said


# ---- what cannot be done


@pytest.mark.parametrize("kind", ["json", "html", "png"])
def test_a_file_that_cannot_be_written_is_refused_before_the_work(
    tiny_artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    for target, why in ((tmp_path, "is a directory"), (tmp_path / "no" / "such.file", "cannot be written")):
        assert compare(tmp_path / "missing", tiny_artifacts, **{kind: target}) == 2  # the work would fail at once
        error = capsys.readouterr().err.strip()
        assert why in error and "\n" not in error


def test_one_file_for_two_outputs_is_refused(
    tiny_artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(tiny_artifacts, tiny_artifacts, json=tmp_path / "a", html=tmp_path / "a") == 2
    assert "asked for twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--size", "15x24"], "height is 15, expected a multiple of 8"),
        (["--frames", "16"], "frames is 16, expected 1 + 8k"),
        (["--mask-steps", "9"], "mask steps is 9, expected 1 to 6"),
        (["--layers", "nowhere.json"], "--layers nowhere.json cannot be read"),
        (["--image", "nowhere.png"], "nowhere.png cannot be read"),
    ],
)
def test_options_that_do_not_fit_are_one_line(
    tiny_artifacts: Path, capsys: pytest.CaptureFixture[str], options: list[str], match: str
) -> None:
    assert main(["compare", str(tiny_artifacts), str(tiny_artifacts), *OPTIONS, *options]) == 2
    error = capsys.readouterr().err.strip()
    assert match in error and "\n" not in error.rpartition("videomar compare: ")[2].strip()


@pytest.mark.parametrize("size", ["0", "a", "64x", "x64", "64x0", "64x64x64", "-8"])
def test_a_size_that_is_none_is_refused_before_anything_is_opened(
    capsys: pytest.CaptureFixture[str], size: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["compare", "a", "b", f"--size={size}"])
    error = capsys.readouterr().err.strip()
    assert caught.value.code == 2 and "--size" in error and "\n" not in error


def test_a_directory_given_twice_as_candidate_is_refused(
    tiny_artifacts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(tiny_artifacts, tiny_artifacts, tiny_artifacts) == 2
    assert "is given twice" in capsys.readouterr().err


def test_what_is_neither_checkpoint_nor_artifacts_is_refused(
    tiny_artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for other, match in ((tmp_path, "holds neither"), (tmp_path / "no", "does not exist")):
        assert compare(tiny_artifacts, other) == 2
        assert match in capsys.readouterr().err


@pytest.mark.parametrize("what", ["layers", "sensitivity"])
@pytest.mark.parametrize("content", ["no json", "[]", '{"else": 1}'])
def test_files_of_other_commands_are_checked_before_the_work(
    tiny_artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str, content: str
) -> None:
    (tmp_path / "file").write_text(content)
    assert compare(tmp_path / "missing", tiny_artifacts, **{what: tmp_path / "file"}) == 2
    error = capsys.readouterr().err.strip()
    assert f"--{what}" in error and "\n" not in error
