"""What people type: slips are told with what was meant, and files that are no files are refused, none waited for."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from videomar.cli import main
from videomar.demo.look import outside
from videomar.demo.world import render, sample_scene
from videomar.runtime.media import write_picture

PROMPT = "a red circle falls"
LEAST = tuple("--frames 9 --mask-steps 1 --head-steps 1 --threads 1".split())


def refused(capfd: pytest.CaptureFixture[str], *argv: object) -> str:
    """The one line of a command that must be refused, its status lines aside."""
    try:
        code = main([str(word) for word in argv])
    except SystemExit as stop:
        code = int(stop.code or 0)
    printed = capfd.readouterr()
    lines = [line for line in printed.err.splitlines() if not line.startswith("backend ")]
    assert (code, printed.out, len(lines)) == (2, "", 1), printed
    return lines[0]


SLIPS = {
    (): "COMMAND",
    ("genrate",): "videomar: unknown command 'genrate'; did you mean generate?; see `videomar -h`",
    ("xyz",): "videomar: unknown command 'xyz'; see `videomar -h`",
    ("generate", "x", "--imgae", "y"): "unknown option --imgae; did you mean --image",
    ("generate", "x", "--mask-stpes=3"): "unknown option --mask-stpes; did you mean --mask-steps",
    ("inspect", ".", "--fast"): "videomar inspect: unknown option --fast; see `videomar inspect -h`",
    ("generate", "x", "--image", "https://host//a.png", "-o", "y"): "--image: is https://host//a.png, a URL",
    ("compare", "s3://bucket/a", "b"): "is s3://bucket/a, a URL, expected a path; download it",
    ("export", "x", "-o", "file:///tmp/out"): "is file:///tmp/out, a URL",
}


@pytest.mark.parametrize("argv", SLIPS, ids=" ".join)
def test_a_slip_is_told_with_what_was_meant(argv: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> None:
    line = refused(capfd, *argv)
    assert SLIPS[argv] in line and line.endswith("-h`")


def test_words_after_options_and_beginnings_of_options_stay_what_they_are(capfd: pytest.CaptureFixture[str]) -> None:
    assert "is neither" in refused(capfd, "inspect", "none", "--js")  # argparse takes a unique beginning
    assert "required: -o/--output" in refused(capfd, "generate", "x", "--prompt", "genrate --fast")


def test_the_version_is_that_of_the_package(capfd: pytest.CaptureFixture[str]) -> None:
    from importlib.metadata import version

    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert (stop.value.code, capfd.readouterr().out) == (0, f"videomar {version('videomar')}\n")


COMPLETED = {
    "videomar gen": ["generate"],
    "videomar generate --cont": ["--contact-sheet"],
    "videomar generate out --quality f": ["fast"],
    "videomar train tr": ["transformer"],
    "videomar generate out": [],  # a path: the shell's own completion goes on
}


@pytest.fixture(scope="module")
def completion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `eval "$(videomar --print-completion bash)"` evaluates."""
    pytest.importorskip("shtab")
    script = tmp_path_factory.mktemp("completion") / "complete.sh"
    command = [sys.executable, "-m", "videomar", "--print-completion", "bash"]
    script.write_text(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return script


@pytest.mark.parametrize("typed", COMPLETED)
def test_a_shell_completes_commands_and_options(completion: Path, typed: str) -> None:
    # As readline does: the function that the script has registered, given the words and which one is being typed.
    code = f"""
        . {completion}
        [[ $(complete -p videomar) =~ bashdefault.*" -F "([^ ]+) ]] || exit 3
        COMP_WORDS=({typed}) COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        ${{BASH_REMATCH[1]}}
        echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "--norc", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, COMPLETED[typed], "")


def test_completion_without_its_package_names_the_extra(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert "pip install 'videomar[completion]'" in refused(capfd, "--print-completion", "bash")


def test_calibrate_without_onnx_names_the_extra_that_has_all_it_needs_and_no_more(
    tiny_artifacts: Path, tmp_path: Path
) -> None:
    code = "import sys; sys.modules['onnx'] = None; from videomar.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "calibrate", tiny_artifacts, "-o", tmp_path / "int8", "--demo", "4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and done.stderr.endswith("pip install 'videomar[calibrate]'\n")


# Files that are none


KINDS: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "socket": lambda path: socket.socket(socket.AF_UNIX).bind(str(path)),
}
READ = {  # command with a file of each kind it reads, {file}
    "image": ("generate", "{artifacts}", "--image", "{file}", "--prompt", PROMPT, "-o", "{out}", *LEAST),
    "video": ("generate", "{artifacts}", "--video", "{file}", "--prompt", PROMPT, "-o", "{out}", *LEAST),
    "embedding": ("generate", "{artifacts}", "--image", "{picture}", "--text-embeddings", "{file}", "-o", "{out}"),
    "artifacts": ("inspect", "{file}"),
    "checkpoint": ("export", "{file}", "-o", "{out}"),
    "islands": ("export", "{checkpoint}", "-o", "{out}", "--precision", "fp16", "--islands", "{file}"),
    "clips": ("calibrate", "{artifacts}", "-o", "{out}", "--clips", "{file}"),
    "ranges": ("calibrate", "{artifacts}", "-o", "{out}", "--clips", "{list}", "--ranges", "{file}"),
    "layers": ("compare", "{artifacts}", "{artifacts}", "--layers", "{file}"),
    "pack": ("replay", "{file}", "{artifacts}"),
    "plan": ("plan", "{file}", "--device", "h200"),
    "keys": ("serve", "{artifacts}", "--directory", "{out}", "--api-key-file", "{file}"),
    "weights": ("import", "--transformer", "{file}", "--tokenizer", "x", "--text", "y", "-o", "{out}"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_has_no_end_is_refused_by_every_command_that_reads(
    kind: str, tiny_artifacts: Path, tiny_checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    places = {"artifacts": tiny_artifacts, "checkpoint": tiny_checkpoint, "out": tmp_path / "out"}
    places |= {"file": tmp_path / "given", "picture": tmp_path / "one.png", "list": tmp_path / "list.txt"}
    KINDS[kind](places["file"])
    write_picture(places["picture"], np.zeros((16, 24, 3), np.uint8))
    places["list"].write_text(f"one.png\t{PROMPT}\n")
    for what, command in READ.items():
        line = refused(capfd, *(str(word).format(**places) for word in command))
        assert "given" in line, (what, line)
    assert not places["out"].exists()


@pytest.mark.parametrize("name", ["manifest.json", "tokenizer.json", "transformer_step.onnx"])
def test_a_pipe_inside_of_artifacts_is_not_waited_for(
    name: str, tiny_artifacts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    artifacts = Path(shutil.copytree(tiny_artifacts, tmp_path / "artifacts"))
    (artifacts / name).unlink()
    os.mkfifo(artifacts / name)
    line = refused(capfd, "embed", artifacts, "--prompt", PROMPT, "-o", tmp_path / "a.npz")
    assert f"{artifacts / name} cannot be read (a pipe, socket or device" in line


def test_a_pictures_decoder_keeps_its_warnings_to_itself(
    tiny_artifacts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = bytearray(
        cv2.imencode(".png", np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))[1].tobytes()
    )
    data[1000] ^= 0xFF  # libpng: "IDAT: CRC error"
    (tmp_path / "bad.png").write_bytes(data)
    command = (
        "generate",
        tiny_artifacts,
        "--image",
        tmp_path / "bad.png",
        "--prompt",
        PROMPT,
        "-o",
        tmp_path / "o.mp4",
    )
    assert "bad.png is not a picture" in refused(capfd, *command, *LEAST)


def test_a_picture_given_as_a_video_is_told_the_option(
    tiny_artifacts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_picture(tmp_path / "one.png", np.zeros((16, 24, 3), np.uint8))
    command = (
        "generate",
        tiny_artifacts,
        "--video",
        tmp_path / "one.png",
        "--prompt",
        PROMPT,
        "-o",
        tmp_path / "o.mp4",
    )
    assert f"use --image {tmp_path / 'one.png'}" in refused(capfd, *command, *LEAST)


# Names of any bytes


def test_paths_of_any_bytes_work_and_are_shown_as_given_whatever_the_locale(
    tiny_artifacts: Path, tmp_path: Path
) -> None:
    place = os.path.join(os.fsencode(tmp_path), "f\u00fcr ".encode() + b"\xff")
    os.mkdir(place)
    os.symlink(os.fsencode(tiny_artifacts), os.path.join(place, b"artifacts"))
    shutil.copytree(tiny_artifacts, os.fsdecode(os.path.join(place, b"own")))
    picture = os.path.join(place, b"one.png")
    Path(os.fsdecode(picture)).write_bytes(cv2.imencode(".png", np.zeros((16, 24, 3), np.uint8))[1].tobytes())
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    base = [os.fsencode(sys.executable), b"-m", b"videomar", b"generate", os.path.join(place, b"own")]
    base += [b"--prompt", PROMPT.encode(), *(word.encode() for word in LEAST), b"--image"]
    for name in (b"clip.mp4", b"frames"):
        out = os.path.join(place, name)
        done = subprocess.run([*base, picture, b"-o", out], env=env, capture_output=True, timeout=120, check=False)
        assert (done.returncode, done.stdout) == (0, out + b"\n"), done.stderr
        assert os.path.exists(out)
    none = os.path.join(place, b"none.png")
    done = subprocess.run([*base, none, b"-o", out + b"2"], env=env, capture_output=True, timeout=120, check=False)
    assert done.returncode == 2 and none + b" cannot be read (No such file" in done.stderr


# The demo's world


def test_scenes_are_of_the_demos_world_and_photographs_are_not() -> None:
    for seed in range(20):
        assert not outside(render(sample_scene(np.random.default_rng(seed)), 9))
    rng = np.random.default_rng(0)
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(64), np.fft.fftfreq(64)))
    radius[0, 0] = 1
    spectrum = np.fft.fft2(rng.normal(size=(3, 64, 64))) / radius  # amplitudes of natural pictures fall with frequency
    photo = np.moveaxis(np.fft.ifft2(spectrum).real, 0, -1)
    photo = ((photo - photo.min()) / np.ptp(photo) * 255).astype(np.uint8)
    assert outside(photo[None])
