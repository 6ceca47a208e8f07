"""The command line: what it writes and prints, and that every mistake is one clear line, exit code 2, nothing left."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from io import BytesIO, TextIOWrapper
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from videomar.artifacts import read_manifest, write_manifest
from videomar.cli import RUNS, main
from videomar.demo.world import render, sample_scene
from videomar.graphs import GRAPHS, contract
from videomar.options import parser
from videomar.runtime.backends.ort_decoder import OrtDecoder
from videomar.runtime.media import write_pictures, write_video
from videomar.runtime.pipeline import Pipeline
from videomar.runtime.recording import load_clip
from videomar.runtime.resize import fit

PROMPT = "a red circle falls"
# The least work, and more than any test waits for.
LEAST = tuple("--frames 9 --mask-steps 1 --head-steps 1 --threads 1".split())
ENDLESS = tuple("--frames 2001 --mask-steps 64 --height 64 --width 64 --threads 1".split())
(SUBPARSERS,) = (a for a in parser(RUNS)._actions if isinstance(a, argparse._SubParsersAction))
COMMANDS = tuple(SUBPARSERS.choices)

Refused = Callable[..., str]


def run(*argv: object) -> int:
    """Exit code of one command in this process."""
    try:
        return main([str(a) for a in argv])
    except SystemExit as stop:
        assert isinstance(stop.code, int)
        return stop.code


def run_apart(*argv: object, code: str = "from videomar.cli import main") -> subprocess.CompletedProcess[str]:
    """One command in an interpreter of its own, after `code`."""
    code += "\nimport sys\nsys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *(str(a) for a in argv)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def default_size(artifacts: Path) -> tuple[int, int]:
    sampling = read_manifest(artifacts).config.sampling
    return sampling.height, sampling.width


def tree(directory: Path) -> dict[str, bytes | None]:
    """Everything in a directory, hidden files too: contents of files, None for directories."""
    paths = sorted(directory.rglob("*"))
    return {str(p.relative_to(directory)): p.read_bytes() if p.is_file() else None for p in paths}


def one_line(text: str, command: str) -> str:
    """The line without its end; fails unless it is one, and starts like all refusals."""
    assert text.endswith("\n") and text.count("\n") == 1 and "\r" not in text, text
    assert text.startswith(f"videomar {command}: "), text
    return text.rstrip("\n")


def without_status(text: str) -> str:
    """What is said besides the backend and, on a slow machine, progress."""
    return re.sub(r"^(backend .*|.* passed(, about .* left)?)\n", "", text, flags=re.MULTILINE)


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run a command that must be refused, with nothing changed on disk; returns its one line."""

    def refuse(*argv: object) -> str:
        before = tree(tmp_path)
        code, printed = run(*argv), capsys.readouterr()
        assert code == 2 and not printed.out
        assert tree(tmp_path) == before
        return one_line(without_status(printed.err), str(argv[0]))

    return refuse


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    file = tmp_path / "start.png"
    across, down = np.meshgrid(np.arange(64), np.arange(64))  # soft, as the demo's world is
    cv2.imwrite(str(file), np.stack([3 * across, 2 * down, across + down], axis=2).astype(np.uint8))
    return file


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """17 frames as PNGs."""
    write_pictures(tmp_path / "clip", render(sample_scene(np.random.default_rng(1)), 17))
    return tmp_path / "clip"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture
def artifacts(tiny_artifacts: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(tiny_artifacts, tmp_path / "artifacts"))


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount an empty tmpfs with these options; skips where that is not allowed."""
    place = tmp_path / "mounted"
    place.mkdir()
    mounted = []

    def do(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip("there is no mount command")
        if done.returncode:
            pytest.skip(f"a tmpfs cannot be mounted here ({done.stderr.strip()})")
        mounted.append(place)
        return place

    yield do
    for path in mounted:
        subprocess.run(["umount", str(path)], check=True)


# What generate writes and prints


def test_a_picture_and_a_sentence_become_an_h264_video(
    tiny_artifacts: Path, picture: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = out / "clip.mp4"
    assert run("generate", tiny_artifacts, "--image", picture, "--prompt", PROMPT, "-o", file, *LEAST) == 0
    assert [path.name for path in out.iterdir()] == ["clip.mp4"]
    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        height, width = default_size(tiny_artifacts)
        assert (context.name, context.pix_fmt, context.width, context.height) == ("h264", "yuv420p", width, height)
        assert stream.average_rate == read_manifest(tiny_artifacts).config.sampling.fps == 12
        assert sum(1 for _ in container.decode(stream)) == 9
    printed = capsys.readouterr()
    assert re.search(
        r"9 frames of \d+x\d+; first generated frame after \d+\.\d\d s, all after \d+\.\d\d s, \d+\.\d generated",
        printed.err,
    )
    assert re.search(r"time in .*transformer \d", printed.err) and "peak memory" in printed.err
    assert printed.out == f"{file}\n"


def test_fps_and_fit_are_options_of_one_generation(tiny_artifacts: Path, tmp_path: Path, out: Path) -> None:
    wide = np.zeros((64, 192, 3), np.uint8)
    wide[:, :64] = 255  # gone from a crop, the left third of a stretch
    cv2.imwrite(str(tmp_path / "wide.png"), wide)
    command = ("generate", tiny_artifacts, "--image", tmp_path / "wide.png", "--prompt", PROMPT, *LEAST, "--seed", 1)
    for name, options in {"plain": (), "crop": ("--fit", "crop"), "stretch": ("--fit", "stretch")}.items():
        assert run(*command, *options, "--fps", 29.97, "-o", out / f"{name}.mp4") == 0
    plain, crop, stretch = ((out / f"{name}.mp4").read_bytes() for name in ("plain", "crop", "stretch"))
    assert plain == crop != stretch
    with av.open(str(out / "plain.mp4")) as container:
        assert float(container.streams.video[0].average_rate or 0) == pytest.approx(29.97)


def test_a_name_without_suffix_gets_one_png_a_frame(tiny_artifacts: Path, picture: Path, out: Path) -> None:
    frames = out / "frames"
    assert run("generate", tiny_artifacts, "--image", picture, "--prompt", PROMPT, "-o", frames, *LEAST) == 0
    assert sorted(p.name for p in frames.iterdir()) == [f"frame_{i:04d}.png" for i in range(9)]
    assert load_clip(frames).shape == (9, *default_size(tiny_artifacts), 3)
    assert [path.name for path in out.iterdir()] == ["frames"]


@pytest.mark.parametrize("kind", ["mp4", "directory"])
def test_a_clip_is_continued_with_exactly_the_frames_of_the_pipeline(
    kind: str, tiny_artifacts: Path, clip: Path, out: Path
) -> None:
    given = clip
    if kind == "mp4":
        given = out.parent / "clip.mp4"
        write_video(given, load_clip(clip), 24)
    options = ("--frames", 17, "--mask-steps", 2, "--head-steps", 2, "--seed", 3, "--threads", 1)
    command = ("generate", tiny_artifacts, "--video", given, "--given", 9, "--prompt", PROMPT, *options)
    assert run(*command, "-o", out / "frames") == 0
    source = load_clip(given)
    last = source[::2] if kind == "mp4" else source[-9:]  # 24 a second for a model of 12; pictures have its rate
    with Pipeline.open(tiny_artifacts, threads=1) as pipe:
        frames = pipe.stream(last, PROMPT, frames=17, mask_steps=2, head_steps=2, seed=3)
        np.testing.assert_array_equal(load_clip(out / "frames"), np.stack(list(frames)))


def test_start_chooses_the_given_frames_and_join_puts_what_comes_before_them_in_front(
    tiny_artifacts: Path, clip: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_video(out.parent / "clip.mp4", load_clip(clip), 24)
    options = ("--frames", 17, "--mask-steps", 2, "--head-steps", 2, "--no-resample", "--start", 6 / 24)
    command = ("generate", tiny_artifacts, "--video", out.parent / "clip.mp4", "--prompt", PROMPT, *options)
    assert run(*command, "-o", out / "alone") == 0 == run(*command, "--join", "-o", out / "joined")
    alone, joined = load_clip(out / "alone"), load_clip(out / "joined")
    size = default_size(tiny_artifacts)
    np.testing.assert_array_equal(joined, np.concatenate([fit(load_clip(out.parent / "clip.mp4", 6), *size), alone]))
    assert "joined: 23 frames" in capsys.readouterr().err


def test_a_picture_comes_through_standard_input(
    tiny_artifacts: Path, picture: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, source in (("file", picture), ("piped", "-")):
        monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(picture.read_bytes())))
        command = ("generate", tiny_artifacts, "--image", source, "--prompt", PROMPT, *LEAST)
        assert run(*command, "-o", out / f"{name}.mp4") == 0
    assert (out / "file.mp4").read_bytes() == (out / "piped.mp4").read_bytes()


def test_the_same_seed_gives_the_same_video_and_another_seed_another(
    tiny_artifacts: Path, picture: Path, out: Path
) -> None:
    command = ("generate", tiny_artifacts, "--image", picture, "--prompt", PROMPT, *LEAST)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run(*command, "--seed", seed, "-o", out / f"{name}.mp4") == 0
    a, b, c = ((out / f"{name}.mp4").read_bytes() for name in "abc")
    assert a == b != c


def test_one_of_height_and_width_leaves_the_other_at_the_models_default(
    tiny_artifacts: Path, picture: Path, out: Path
) -> None:
    command = ("generate", tiny_artifacts, "--image", picture, "--prompt", PROMPT, *LEAST)
    assert run(*command, "--height", 32, "-o", out / "low") == 0
    assert run(*command, "--width", 40, "-o", out / "narrow") == 0
    height, width = default_size(tiny_artifacts)
    assert load_clip(out / "low").shape[1:3] == (32, width)
    assert load_clip(out / "narrow").shape[1:3] == (height, 40)


def test_an_earlier_video_is_replaced(tiny_artifacts: Path, picture: Path, out: Path) -> None:
    (out / "clip.mp4").write_text("an older one")
    command = ("generate", tiny_artifacts, "--image", picture, "--prompt", PROMPT, *LEAST)
    assert run(*command, "-o", out / "clip.mp4") == 0
    assert (out / "clip.mp4").stat().st_size > 1000


def test_a_prompt_that_is_too_long_is_cut_and_noted_in_one_line(
    tiny_artifacts: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("embed", tiny_artifacts, "--prompt", "a " * 9, "-o", out / "prompt.npz") == 0
    said = capsys.readouterr()
    assert said.err == "videomar embed: note: the prompt has 9 tokens, of which the model reads 8\n"
    assert "8 tokens of 16 numbers" in said.out


@pytest.mark.parametrize("shape", [(64, 64), (64, 64, 4), (64, 64, 1), (37, 101, 3), (1, 1, 3), (300, 20, 4)], ids=str)
def test_grey_transparent_and_other_size_pictures_are_accepted(
    shape: tuple[int, ...], tiny_artifacts: Path, tmp_path: Path, out: Path
) -> None:
    file = tmp_path / "picture.png"
    cv2.imwrite(str(file), np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    command = ("generate", tiny_artifacts, "--image", file, "--prompt", PROMPT, *LEAST)
    assert run(*command, "-o", out / "clip.mp4") == 0


def test_the_module_runs_as_a_command_without_a_bar_in_the_log(tiny_artifacts: Path, picture: Path, out: Path) -> None:
    command = ("generate", tiny_artifacts, "--image", picture, "--prompt", PROMPT, *LEAST, "-o", out / "clip.mp4")
    done = subprocess.run(
        [sys.executable, "-m", "videomar", *map(str, command)], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, f"{out / 'clip.mp4'}\n")
    assert "generated frames/s" in done.stderr and "%|" not in done.stderr and (out / "clip.mp4").is_file()


def test_a_prompt_embedded_elsewhere_gives_the_same_video(tiny_artifacts: Path, picture: Path, out: Path) -> None:
    assert run("embed", tiny_artifacts, "--prompt", PROMPT, "-o", out / "prompt.npz", "--threads", 1) == 0
    command = ("generate", tiny_artifacts, "--image", picture, *LEAST)
    assert run(*command, "--prompt", PROMPT, "-o", out / "a") == 0
    assert run(*command, "--text-embeddings", out / "prompt.npz", "-o", out / "b") == 0
    np.testing.assert_array_equal(load_clip(out / "a"), load_clip(out / "b"))


@pytest.mark.parametrize("options", [(), ("--prompt", PROMPT, "--text-embeddings", "prompt.npz")], ids=["none", "both"])
def test_a_prompt_comes_one_way_and_not_another(
    options: tuple[str, ...], tiny_artifacts: Path, picture: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("generate", tiny_artifacts, "--image", picture, "-o", out / "clip.mp4", *LEAST)
    assert run(*command, *options) == 2
    assert "give either --prompt (a sentence) or --text-embeddings" in capsys.readouterr().err


def test_a_window_changes_long_clips_and_two_passes_change_nothing(
    tiny_artifacts: Path, picture: Path, out: Path
) -> None:
    options = ("--frames", 41, "--mask-steps", 1, "--head-steps", 4, "--threads", 1, "--prompt", PROMPT)
    command = ("generate", tiny_artifacts, "--image", picture, *options)
    assert run(*command, "-o", out / "all") == 0
    assert run(*command, "--kv-window", 1, "-o", out / "window") == 0
    assert run(*command, "--guidance-passes", 2, "-o", out / "passes") == 0
    every, window, passes = (load_clip(out / name).astype(int) for name in ("all", "window", "passes"))
    assert np.array_equal(every[:17], window[:17]), "up to there every frame sees all before it"
    assert np.abs(every - window)[25:].max() > 2
    assert np.abs(every - passes).max() <= 1


# Where it writes


def test_an_mp4_goes_to_standard_output_alone_as_it_is_made(
    tiny_artifacts: Path, picture: Path, tmp_path: Path
) -> None:
    words = ("--image", picture, "--prompt", PROMPT, "-o", "-", *LEAST)
    command = [sys.executable, "-m", "videomar", "generate", *map(str, (tiny_artifacts, *words))]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, timeout=120, check=False)
    assert done.returncode == 0 and b"generated frames/s" in done.stderr
    with av.open(BytesIO(done.stdout)) as container:
        assert (container.format.name.split(",")[0], container.streams.video[0].codec_context.name) == ("mov", "h264")
        assert sum(1 for _ in container.decode(video=0)) == 9
    assert done.stdout[4:8] == b"ftyp" and done.stdout.count(b"moof") > 1
    assert {path.name for path in tmp_path.iterdir()} == {"start.png"}


def test_a_reader_that_closes_early_ends_the_clip_without_an_error(tiny_artifacts: Path, picture: Path) -> None:
    words = ("--image", picture, "--prompt", PROMPT, "-o", "-", *ENDLESS, "-q")
    command = [sys.executable, "-m", "videomar", "generate", *map(str, (tiny_artifacts, *words))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout and process.stderr and process.stdout.read(8)[4:] == b"ftyp"
    process.stdout.close()
    assert (process.stderr.read(), process.wait(120)) == (b"", 0)
    process.stderr.close()


@pytest.mark.parametrize("words", [("--json",), ()], ids=["json too", "a terminal"])
def test_standard_output_is_refused_where_it_holds_something_else(
    words: tuple[str, ...], tiny_artifacts: Path, picture: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not words:
        monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    line = refused("generate", tiny_artifacts, "--image", picture, "--prompt", PROMPT, "-o", "-", *words)
    assert "standard output" in line and "give" in line


@pytest.mark.parametrize(
    "command",
    [("export", "DIR", "-o", "-"), ("embed", "DIR", "--prompt", "a", "-o", "-"), ("evaluate", "DIR", "--json", "-")],
    ids=str,
)
def test_a_dash_is_no_place_for_the_other_commands(command: tuple[str, ...], refused: Refused) -> None:
    assert "is -, expected a path" in refused(*command)


@pytest.mark.parametrize(("suffix", "codec"), [(".webm", "vp9"), (".gif", "gif")])
def test_the_suffix_chooses_the_format(
    suffix: str, codec: str, tiny_artifacts: Path, picture: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("generate", tiny_artifacts, "--image", picture, "--prompt", PROMPT, *LEAST, "--quiet")
    assert run(*command, "-o", out / f"clip{suffix}") == 0
    assert capsys.readouterr() == (f"{out / 'clip'}{suffix}\n", "")
    with av.open(str(out / f"clip{suffix}")) as container:
        assert container.streams.video[0].codec_context.name == codec
        assert sum(1 for _ in container.decode(video=0)) == 9


def test_a_contact_sheet_holds_the_frames_in_rows(tiny_artifacts: Path, picture: Path, out: Path) -> None:
    command = ("generate", tiny_artifacts, "--image", picture, "--prompt", PROMPT, *LEAST, "-o", out / "frames")
    assert run(*command, "--contact-sheet", out / "sheet.png") == 0
    sheet, frames = cv2.imread(str(out / "sheet.png")), load_clip(out / "frames")
    assert sheet is not None
    (height, width), scale = default_size(tiny_artifacts), 8  # 1600 pixels of 8 frames of 24
    assert sheet.shape == (2 * height * scale + 2, 8 * (width * scale + 2) - 2, 3)
    row, column = height * scale + 2, width * scale + 2
    np.testing.assert_array_equal(
        sheet[: height * scale : scale, column : column + width * scale : scale, ::-1], frames[1]
    )
    np.testing.assert_array_equal(sheet[row::scale, : width * scale : scale, ::-1], frames[8])


@pytest.mark.parametrize("name", ["sheet.mp4", "none/sheet.png"])
def test_a_contact_sheet_that_cannot_be_is_refused_before_anything_is_generated(
    name: str, tiny_artifacts: Path, picture: Path, out: Path, refused: Refused
) -> None:
    command = ("generate", tiny_artifacts, "--image", picture, "--prompt", PROMPT, *ENDLESS, "-o", out / "clip.mp4")
    assert str(out / name) in refused(*command, "--contact-sheet", out / name)


def test_generate_says_as_json_what_it_made(
    tiny_artifacts: Path, picture: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("generate", tiny_artifacts, "--image", picture, "--prompt", PROMPT, *LEAST, "--seed", 5)
    assert run(*command, "-o", out / "clip.mp4", "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["output"], data["frames"], data["seed"]) == (str(out / "clip.mp4"), 9, 5)
    assert data["sampling"]["mask_steps"] == 1 and data["sampling"]["height"] == default_size(tiny_artifacts)[0]
    assert 0 < data["seconds"]["first_frame"] <= data["seconds"]["total"]
    assert sum(data["seconds"]["stages"].values()) <= data["seconds"]["total"]
    assert data["peak_memory_bytes"] > 1 << 20


def test_verbose_says_where_an_error_was_raised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", tmp_path / "none", "-v") == 2
    error = capsys.readouterr().err
    assert "Traceback" in error and error.splitlines()[-1].startswith("videomar inspect: ")
    assert run("inspect", tmp_path / "none") == 2
    one_line(capsys.readouterr().err, "inspect")


# The other commands


def test_inspect_shows_what_artifacts_hold(tiny_artifacts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", tiny_artifacts) == 0
    text = capsys.readouterr().out
    assert "onnx artifacts" in text and "fp32" in text and "portable" in text
    assert all(f"{graph}.onnx" in text for graph in GRAPHS)
    assert "past_key_0" not in text


def test_inspect_lists_every_tensor_of_the_contract(tiny_artifacts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", tiny_artifacts, "--tensors") == 0
    listed = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    specs = contract(read_manifest(tiny_artifacts).config, "fp32", in_place=False).values()
    for spec in specs:
        for side, tensors in (("in", spec.inputs), ("out", spec.outputs)):
            for tensor in tensors:
                assert any(line[:3] == [side, tensor.name, tensor.dtype] for line in listed), tensor


def test_inspect_shows_what_a_checkpoint_holds(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", tiny_checkpoint, "--tensors") == 0
    text = capsys.readouterr().out
    assert ": checkpoint, " in text and "million" in text
    assert "17 frames of 24x16, 12 a second, from a picture that is cropped to it" in text
    for file in tiny_checkpoint.glob("*.safetensors"):
        data = file.read_bytes()
        header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
        assert file.name in text and header
        assert all(re.search(rf"^  {re.escape(name)} ", text, re.MULTILINE) for name in header if name[0] != "_")


@pytest.mark.parametrize("which", ["tiny_checkpoint", "tiny_artifacts"])
def test_inspect_as_json_parses_and_holds_the_config(
    which: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("inspect", request.getfixturevalue(which), "--json") == 0
    description = json.loads(capsys.readouterr().out)
    assert description["config"]["transformer"]["depth"] > 0
    assert description["files"] and all(description["tensors"].values())


def test_evaluate_prints_its_figures_and_writes_them_as_json(
    tiny_artifacts: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("evaluate", tiny_artifacts, "--cases", 2, "--frames", 9, "--threads", 1)
    assert run(*command, "--json", out / "figures.json") == 0
    printed = capsys.readouterr()
    figures = json.loads((out / "figures.json").read_text())
    assert figures["cases"] == 2 and 0 <= figures["followed"] <= 1
    assert f"{figures['tokenizer_psnr_db']:.2f} dB PSNR" in printed.out
    assert f"{figures['centroid_error_mean']:.2%} of the width" in printed.out
    assert figures["chance"]["cases"] == 2 and 0 <= figures["chance"]["coherence"] <= 1
    assert set(figures["chance"]["distance"]["generated"]) == {"frames", "motion"}
    assert f"{figures['chance']['coherence']:.1%} of 2 clips" in printed.out
    assert [path.name for path in out.iterdir()] == ["figures.json"]
    # A place that cannot be written costs the file, not the figures.
    assert run(*command, "--json", out / "missing" / "figures.json") == 2
    printed = capsys.readouterr()
    assert f"{figures['psnr_mean']:.2f} dB" in printed.out
    assert "missing" in one_line(without_status(printed.err), "evaluate")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_works_without_any_third_party_package(command: str) -> None:
    hidden = ("torch", "onnx", "diffusers", "transformers", "onnxruntime", "tokenizers", "cv2", "av", "tqdm", "numpy")
    code = f"import sys\nsys.modules.update(dict.fromkeys({hidden}))\nfrom videomar.cli import main"
    done = run_apart(*filter(None, [command]), "-h", code=code)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: videomar {command}".rstrip())


def test_export_without_pytorch_names_the_extra_to_install(tiny_checkpoint: Path, out: Path) -> None:
    code = "import sys\nsys.modules['torch'] = None\nfrom videomar.cli import main"
    done = run_apart("export", tiny_checkpoint, "-o", out / "artifacts", code=code)
    assert done.returncode == 2
    assert "needs torch" in (line := one_line(done.stderr, "export")) and "pip install 'videomar[export]'" in line
    assert not list(out.iterdir())


# Options


OPTIONS = {
    "frames not 1 + 8k": (("--frames", 10), "frames is 10", "1 + 8k"),
    "no frames": (("--frames", 0), "--frames", "is 0", "at least 1"),
    "negative frames": (("--frames", -8), "--frames", "is -8"),
    "only the given frame": (("--frames", 1), "frames is 1", "such as 9"),
    "half a frame": (("--frames", "9.5"), "--frames", "'9.5'", "whole number"),
    "frames in words": (("--frames", "many"), "--frames", "'many'", "whole number"),
    "frames beyond any memory": (("--frames", 8 * 10**12 + 1), "frames is 8000000000001", "at most 1000000"),
    "no mask steps": (("--mask-steps", 0), "--mask-steps", "is 0"),
    "negative mask steps": (("--mask-steps", -1), "--mask-steps", "is -1"),
    "more mask steps than tokens": (("--mask-steps", 1000), "mask steps is 1000", "tokens of one frame"),
    "no head steps": (("--head-steps", 0), "--head-steps", "is 0"),
    "negative head steps": (("--head-steps", -3), "--head-steps", "is -3"),
    "more head steps than trained": (("--head-steps", 10**6), "head steps is 1000000", "expected 1 to"),
    "no height": (("--height", 0), "--height", "is 0"),
    "no width": (("--width", 0), "--width", "is 0"),
    "negative height": (("--height", -64), "--height", "is -64"),
    "height off the stride": (("--height", 60), "height is 60", "multiple of 8", "--height"),
    "width off the stride": (("--width", 61), "width is 61", "multiple of 8", "--width"),
    "width beyond any video": (("--width", 8 * 10**9), "--width", "16384"),
    "guidance not a number": (("--guidance-scale", "nan"), "--guidance-scale", "is nan", "0 to 1000"),
    "endless guidance": (("--guidance-scale", "inf"), "--guidance-scale", "is inf", "0 to 1000"),
    "negative guidance": (("--guidance-scale", -1), "--guidance-scale", "-1"),
    "guidance in words": (("--guidance-scale", "strong"), "--guidance-scale", "'strong'", "number"),
    "temperature not a number": (("--temperature", "nan"), "--temperature", "nan"),
    "endless temperature": (("--temperature", "inf"), "--temperature", "inf"),
    "negative temperature": (("--temperature", -0.5), "--temperature", "-0.5"),
    "negative seed": (("--seed", -1), "--seed", "is -1"),
    "huge seed": (("--seed", 2**63), "--seed", f"is {2**63}", f"{2**63 - 1}"),
    "no threads": (("--threads", 0), "--threads", "is 0"),
    "negative threads": (("--threads", -2), "--threads", "is -2"),
    "too many threads": (("--threads", 2**40), "--threads", "1024"),
    "no frames a second": (("--fps", 0), "--fps", "is 0", "0.1 to 1000"),
    "frames a second not a number": (("--fps", "nan"), "--fps", "nan"),
    "a fit that is none": (("--fit", "squash"), "--fit", "crop", "stretch"),
    "empty prompt": (("--prompt", ""), "prompt is empty"),
    "blank prompt": (("--prompt", " \t"), "prompt is empty"),
    "prompt of no words": (("--prompt", "..."), "holds no words"),
    "unknown word": (("--prompt", "a pink circle falls"), "pink", "knows", "purple"),
    "long prompt": (("--whole-prompt", "--prompt", "a " * 1000), "1000 tokens", "at most"),
    "prompt that is no text": (("--prompt", "a red \udcff circle"), "UTF-8"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_a_bad_option_is_one_line_that_names_it(
    case: str, tiny_artifacts: Path, picture: Path, out: Path, refused: Refused
) -> None:
    options, *words = OPTIONS[case]
    command = ("generate", tiny_artifacts, "--image", picture, "--prompt", PROMPT, *LEAST, "-o", out / "clip.mp4")
    line = refused(*command, *options)
    assert all(word in line for word in words), line


def test_numbers_that_overflow_are_one_line(
    tiny_artifacts: Path, picture: Path, out: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.full((1, 3, 8, 16, 24), np.nan, np.float32)
    monkeypatch.setattr(OrtDecoder, "next", lambda self, latent: pixels)
    command = ("generate", tiny_artifacts, "--image", picture, "--prompt", PROMPT, *LEAST)
    line = refused(*command, "-o", out / "clip.mp4")
    assert "overflowed" in line and "--guidance-scale" in line and "--precision fp32" in line


@pytest.mark.parametrize(
    ("command", "missing"),
    [(("generate", "DIR"), "--output"), (("embed", "DIR", "-o", "x.npz"), "--prompt"), (("plan",), "DIR")],
    ids=str,
)
def test_a_missing_option_is_named(command: tuple[str, ...], missing: str, refused: Refused) -> None:
    line = refused(*command)
    assert "required" in line and missing in line and f"videomar {command[0]} -h" in line


EVALUATE = {
    "no cases": (("--cases", 0), "--cases"),
    "negative seed": (("--seed", -1), "--seed"),
    "no frames": (("--frames", 0), "--frames"),
    "no size": (("--size", 0), "--size"),
    "a size no scene fits": (("--size", 8), "does not fit"),
    "negative given": (("--given", -7), "--given"),
    "no threads": (("--threads", 0), "--threads"),
}


@pytest.mark.parametrize("case", EVALUATE)
def test_a_bad_option_of_evaluate_is_one_line(case: str, tiny_artifacts: Path, out: Path, refused: Refused) -> None:
    options, word = EVALUATE[case]
    command = ("evaluate", tiny_artifacts, "--cases", 1, "--threads", 1, "--json", out / "figures.json")
    assert word in refused(*command, *options)


def test_evaluate_refuses_a_model_of_another_world(artifacts: Path, refused: Refused) -> None:
    manifest = read_manifest(artifacts)
    text = dataclasses.replace(manifest.config.text, vocab_size=151936)
    write_manifest(artifacts, dataclasses.replace(manifest, config=dataclasses.replace(manifest.config, text=text)))
    assert "demo world" in refused("evaluate", artifacts, "--cases", 1, "--threads", 1)


@pytest.mark.parametrize("option", ["--threads", "--steps", "--seed", "--minutes"])
def test_a_bad_option_of_train_is_refused_before_pytorch_is_loaded(option: str, out: Path, refused: Refused) -> None:
    assert option in refused("train", "tokenizer", "-o", out / "checkpoint", option, -1)


# Pictures and clips


def unreadable(directory: Path) -> Path:
    """A file that exists and cannot be read; root may read all, except where reading fails."""
    if os.geteuid() == 0:
        return Path("/proc/self/mem")
    file = directory / "secret.png"
    file.touch(mode=0)
    return file


PICTURES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing.png": (lambda file: None, "No such file"),
    "directory.png": (lambda file: file.mkdir(), "directory"),
    "text.png": (lambda file: file.write_text("not a picture"), "not a picture"),
    "empty.png": (lambda file: file.touch(), "not a picture"),
    "video.mp4": (lambda file: write_video(file, np.zeros((9, 64, 64, 3), np.uint8), 24), "use --video"),
    "picture.png/under.png": (lambda file: file.parent.touch(), "Not a directory"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_what_is_no_picture_is_refused_by_name(
    name: str, tiny_artifacts: Path, tmp_path: Path, out: Path, refused: Refused
) -> None:
    make, words = PICTURES[name]
    make(tmp_path / name)
    command = ("generate", tiny_artifacts, "--image", tmp_path / name, "--prompt", PROMPT, *LEAST)
    line = refused(*command, "-o", out / "clip.mp4")
    assert str(tmp_path / name) in line and words in line and "expected" in line


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or not Path("/proc/self/mem").exists(), reason="Linux has /proc/self/mem"
)
@pytest.mark.parametrize("option", ["--image", "--video"])
def test_an_unreadable_file_is_refused_by_name(
    option: str, tiny_artifacts: Path, tmp_path: Path, out: Path, refused: Refused
) -> None:
    file = unreadable(tmp_path)
    line = refused("generate", tiny_artifacts, option, file, "--prompt", PROMPT, *LEAST, "-o", out / "clip.mp4")
    assert f"{file} cannot be read" in line


CLIPS = {
    "given not 1 + 8k": (("--given", 5), "5", "1 + 8k"),
    "none given": (("--given", 0), "--given", "is 0"),
    "more given than there are": (("--given", 25, "--frames", 33), "holds 17 frames", "25"),
    "nothing left to generate": (("--given", 17), "frames is 17", "such as 25"),
    "both": (("--image", "start.png"), "--image", "--video"),
    "a start beyond its end": (("--start", 60), "60 s on", "expected"),
}


@pytest.mark.parametrize("case", CLIPS)
def test_a_clip_that_does_not_fit_is_one_line(
    case: str, tiny_artifacts: Path, clip: Path, out: Path, refused: Refused
) -> None:
    options, *words = CLIPS[case]
    command = ("generate", tiny_artifacts, "--video", clip, "--prompt", PROMPT, *LEAST, "--frames", 17)
    line = refused(*command, *options, "-o", out / "clip.mp4")
    assert all(word in line for word in words), line


def test_neither_picture_nor_clip_is_one_line(tiny_artifacts: Path, out: Path, refused: Refused) -> None:
    command = ("generate", tiny_artifacts, "--prompt", PROMPT, "-o", out / "clip.mp4")
    assert refused(*command).endswith(
        "there is neither --image nor --video, and tiny was not trained to make a clip's first frame from the sentence "
        "alone; give either --image (a picture) or --video (a clip whose end is continued)"
    )
    assert refused(*command, "--join").endswith(
        "--join, --start and --no-resample are for --video, got no --video; leave them away"
    )


def test_a_sentence_alone_becomes_a_clip_where_the_model_was_trained_for_it(
    tiny_artifacts: Path, from_text: Callable[[Path], Path], out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = from_text(tiny_artifacts)
    command = ("generate", directory, "--prompt", PROMPT, *LEAST, "--seed", 3)
    assert run(*command, "-o", out / "frames", "--json", "--contact-sheet", out / "sheet.png") == 0
    assert json.loads(capsys.readouterr().out)["frames"] == 9
    with Pipeline.open(directory, threads=1, backend="ort-cpu") as pipe:
        expected = pipe(None, PROMPT, seed=3, frames=9, mask_steps=1, head_steps=1).frames
    written = [cv2.imread(str(file))[..., ::-1] for file in sorted((out / "frames").iterdir())]
    np.testing.assert_array_equal(np.stack(written), expected)
    assert run(*command, "--frames", 1, "-o", out / "one.mp4") == 0
    assert len(load_clip(out / "one.mp4", 1)) == 1


@pytest.mark.parametrize("kind", ["missing", "text", "empty directory", "sizes"])
def test_what_is_no_clip_is_refused_by_name(
    kind: str, tiny_artifacts: Path, tmp_path: Path, clip: Path, out: Path, refused: Refused
) -> None:
    path = tmp_path / "input"
    if kind == "text":
        path.write_text("not a video")
    elif kind == "empty directory":
        path.mkdir()
    elif kind == "sizes":
        path = clip
        cv2.imwrite(str(clip / "frame_0003.png"), np.zeros((32, 64, 3), np.uint8))
    command = ("generate", tiny_artifacts, "--video", path, "--prompt", PROMPT, *LEAST, "--frames", 17)
    line = refused(*command, "-o", out / "clip.mp4")
    assert str(path) in line and "expected" in line


# Outputs


OUTPUTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "clip.avi": (lambda path: None, "expected .mp4, .webm, .gif, .webp for a video (or a directory"),
    "clip.png": (lambda path: None, "expected .mp4, .webm, .gif, .webp for a video (or a directory"),
    "missing/clip.mp4": (lambda path: None, "No such file or directory"),
    "missing/frames": (lambda path: None, "No such file or directory"),
    "directory.mp4": (lambda path: path.mkdir(), "is a directory"),
    "full": (lambda path: (path.mkdir(), (path / "mine.txt").touch()), "holds files already"),
    "file": (lambda path: path.touch(), "is a file"),
    "file/clip.mp4": (lambda path: path.parent.touch(), "Not a directory"),
    "n" * 300 + ".mp4": (lambda path: None, "File name too long"),
    "n" * 300: (lambda path: None, "File name too long"),
}


@pytest.mark.parametrize("name", OUTPUTS, ids=lambda name: name[:20])
def test_an_output_that_cannot_be_is_refused_before_a_model_is_looked_for(
    name: str, picture: Path, out: Path, refused: Refused
) -> None:
    make, words = OUTPUTS[name]
    make(out / name)
    command = ("generate", out / "no model", "--image", picture, "--prompt", PROMPT, *LEAST)
    line = refused(*command, "-o", out / name)
    assert str(out / name) in line and words in line


@pytest.mark.parametrize("name", ["clip.mp4", "frames"])
def test_an_unwritable_directory_is_one_line(
    name: str, tiny_artifacts: Path, picture: Path, tmp_path: Path, request: pytest.FixtureRequest, refused: Refused
) -> None:
    if os.geteuid() == 0:  # root may write everywhere but to what is mounted read-only
        place = request.getfixturevalue("mount")("ro")
    else:
        place = tmp_path / "locked"
        place.mkdir(mode=0o500)
    line = refused("generate", tiny_artifacts, "--image", picture, "--prompt", PROMPT, *LEAST, "-o", place / name)
    assert f"{place / name} cannot be written" in line and "name another output" in line


@pytest.mark.parametrize("name", ["clip.mp4", "frames"])
def test_a_full_disk_is_one_line_and_leaves_the_disk_empty(
    name: str, tiny_artifacts: Path, picture: Path, mount: Callable[[str], Path], refused: Refused
) -> None:
    place = mount("size=4k")
    command = ("generate", tiny_artifacts, "--image", picture, "--prompt", PROMPT, *LEAST)
    line = refused(*command, "--height", 64, "--width", 64, "-o", place / name)
    assert f"{place / name} cannot be written ({os.strerror(errno.ENOSPC)})" in line
    assert not list(place.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has /dev/full")
def test_standard_output_on_a_full_disk_is_one_line(tiny_artifacts: Path) -> None:
    for options in ((), ("--tensors", "--json")):  # below and above what is buffered
        with open("/dev/full", "w") as full:
            command = [sys.executable, "-m", "videomar", "inspect", str(tiny_artifacts), *options]
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
        assert done.returncode == 2
        assert "No space left" in one_line(done.stderr, "inspect")


def test_a_reader_that_has_seen_enough_is_no_error(tiny_artifacts: Path) -> None:
    for options in ((), ("--tensors", "--json")):
        command = [sys.executable, "-m", "videomar", "inspect", str(tiny_artifacts), *options]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout and process.stderr
        process.stdout.close()
        assert (process.stderr.read(), process.wait(120)) == ("", 0)
        process.stderr.close()


# Directories


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("command", ["generate", "inspect", "evaluate"])
@pytest.mark.parametrize("name", ["transformer_step.onnx", "tokenizer.json"])
@pytest.mark.parametrize("damage", [Path.unlink, truncate, flip], ids=["missing", "truncated", "altered"])
def test_a_damaged_file_is_named_with_what_mends_it(
    damage: Callable[[Path], None], name: str, command: str, artifacts: Path, picture: Path, out: Path, refused: Refused
) -> None:
    damage(artifacts / name)
    options: tuple[object, ...] = ()
    if command == "generate":
        options = ("--image", picture, "--prompt", PROMPT, *LEAST, "-o", out / "clip.mp4")
    line = refused(command, artifacts, *options)
    assert str(artifacts / name) in line and "videomar export" in line


@pytest.mark.parametrize("name", ["transformer_step.onnx", "tokenizer.json"])
def test_a_file_that_is_what_the_maker_wrote_and_yet_rubbish_is_named(
    name: str, artifacts: Path, picture: Path, out: Path, refused: Refused
) -> None:
    (artifacts / name).write_text("rubbish\nin two lines")
    write_manifest(artifacts, read_manifest(artifacts))
    command = ("generate", artifacts, "--image", picture, "--prompt", PROMPT, *LEAST)
    line = refused(*command, "-o", out / "clip.mp4")
    assert name in line and "export" in line


MANIFESTS: dict[str, tuple[Callable[[str], str], str]] = {
    "an older version": (lambda text: text.replace('"format": 3', '"format": 1', 1), "format 1"),
    "truncated": (lambda text: text[:200], "truncated"),
    "empty": (lambda text: "", "truncated"),
    "not JSON": (lambda text: "hello", "not JSON"),
    "a list": (lambda text: "[]", "expected an object"),
    "lacking a key": (lambda text: text.replace('"opset"', '"opsets"', 1), "opset"),
    "a model that cannot be": (lambda text: text.replace('"heads": 2', '"heads": 3'), "width"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_manifest_that_cannot_be_used_says_why(
    case: str, artifacts: Path, picture: Path, out: Path, refused: Refused
) -> None:
    change, words = MANIFESTS[case]
    file = artifacts / "manifest.json"
    file.write_text(change(file.read_text()))
    command = ("generate", artifacts, "--image", picture, "--prompt", PROMPT, *LEAST)
    line = refused(*command, "-o", out / "clip.mp4")
    assert str(file) in line and words in line and "export" in line


@pytest.mark.parametrize("command", ["generate", "export", "inspect", "evaluate"])
@pytest.mark.parametrize("kind", ["missing", "file", "empty"])
def test_a_directory_that_is_none_of_ours_is_named(
    kind: str, command: str, tmp_path: Path, picture: Path, out: Path, refused: Refused
) -> None:
    directory = tmp_path / "directory"
    if kind == "file":
        directory.write_text("a file")
    elif kind == "empty":
        directory.mkdir()
    options: tuple[object, ...] = ()
    if command == "generate":
        options = ("--image", picture, "--prompt", PROMPT, "-o", out / "clip.mp4")
    elif command == "export":
        options = ("-o", out / "artifacts")
    assert str(directory) in refused(command, directory, *options)


def test_a_checkpoint_given_to_generate_is_told_apart_and_how_to_export_it(
    tiny_checkpoint: Path, picture: Path, out: Path, refused: Refused
) -> None:
    line = refused("generate", tiny_checkpoint, "--image", picture, "--prompt", PROMPT, "-o", out / "clip.mp4")
    assert "is a checkpoint" in line and f"videomar export {tiny_checkpoint} -o" in line


def test_artifacts_given_to_export_are_told_apart(tiny_artifacts: Path, out: Path, refused: Refused) -> None:
    line = refused("export", tiny_artifacts, "-o", out / "artifacts")
    assert f"{tiny_artifacts} is an artifact directory, expected a checkpoint" in line


@pytest.mark.parametrize("output", ["checkpoint", "."])
def test_export_never_replaces_its_own_checkpoint(
    output: str, tiny_checkpoint: Path, tmp_path: Path, refused: Refused
) -> None:
    checkpoint = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    line = refused("export", checkpoint, "-o", tmp_path / output, "--force")
    assert "never replaced" in line and "-o" in line


CHECKPOINTS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "truncated weights": ("transformer.safetensors", truncate),
    "weights of no size": ("transformer.safetensors", lambda file: file.write_bytes(b"")),
    "weights without a table": ("transformer.safetensors", lambda file: file.write_bytes(b"\2" + bytes(7) + b"[]")),
    "tensors without shapes": (
        "transformer.safetensors",
        lambda file: file.write_bytes(struct.pack("<Q", 8) + b'{"a":{}}'),
    ),
    "a config that is not JSON": ("config.json", truncate),
    "a config that is no text": ("config.json", lambda file: file.write_bytes(b"\xff\xfe{}")),
    "a config of another model": ("config.json", lambda file: file.write_text("{}")),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_inspect_names_the_damaged_file_of_a_checkpoint(
    case: str, tiny_checkpoint: Path, tmp_path: Path, refused: Refused
) -> None:
    checkpoint = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    name, damage = CHECKPOINTS[case]
    damage(checkpoint / name)
    line = refused("inspect", checkpoint)
    assert str(checkpoint / name) in line and "copy it again" in line
