"""`videomar train` as people type it."""

from __future__ import annotations

import csv
import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from videomar.cli import main
from videomar.config import ModelConfig
from videomar.model.videomar import load_checkpoint
from videomar.training import command, transformer, unfinished_run
from videomar.training.loop import Trainer

STAGES = """
[[stage]]
frames = 9
size = "32x32"
steps = 6
batch = 4
learning_rate = 3e-3

[[stage]]
frames = 17
size = "32x48"
steps = 6
batch = 4
accumulate = 2
learning_rate = 3e-3
"""
PARTS = ("transformer", "diffusion_head", "text_encoder", "video_tokenizer")


@pytest.fixture
def stages(tmp_path: Path) -> str:
    file = tmp_path / "stages.toml"
    file.write_text(STAGES)
    return str(file)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def call(*words: object) -> tuple[int, str]:
        code = main(["train", *map(str, words), "--device", "cpu", "--threads", "1"])
        return code, capsys.readouterr().err

    return call


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "training.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@contextmanager
def stopping(monkeypatch: pytest.MonkeyPatch, after: int) -> Iterator[None]:
    """Ctrl-C comes after so many steps."""
    step = Trainer._step

    def stops(self: Trainer, *given: object) -> float:
        if self.mark.step == after:
            raise KeyboardInterrupt
        return step(self, *given)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", stops)
        yield


def one_stage(tmp_path: Path, steps: int) -> Path:
    file = tmp_path / "one.toml"
    file.write_text(f'[[stage]]\nframes = 17\nsize = "32x32"\nsteps = {steps}\nbatch = 4\nlearning_rate = 3e-3\n')
    return file


def test_own_clips_of_any_format_are_learnt(
    run: Callable[..., tuple[int, str]],
    tiny_config: ModelConfig,
    tiny_checkpoint: Path,
    own_clips: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From nothing but a video tokenizer: the loss of clips that training never saw falls."""
    for module in (command, transformer):
        monkeypatch.setattr(module, "PRESETS", {"demo": tiny_config})
    out, name = tmp_path / "out", "video_tokenizer.safetensors"
    out.mkdir()
    shutil.copy(tiny_checkpoint / name, out / name)
    code, error = run("transformer", *own_clips, "-o", out, "--stages", one_stage(tmp_path, 80))
    assert code == 0 and "latent scale" in error, error
    first, last = (float(rows(out)[i]["held_out"]) for i in (0, -1))
    assert last < 0.5 * first
    assert "<svg" in (out / "training.svg").read_text()


def test_what_comes_out_is_a_checkpoint_like_the_one_it_went_on_from(
    run: Callable[..., tuple[int, str]], tiny_checkpoint: Path, own_clips: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ("--from", tiny_checkpoint, *own_clips, "-o", out, "--stages", one_stage(tmp_path, 2))
    assert run("transformer", *words)[0] == 0
    was, now = load_checkpoint(tiny_checkpoint), load_checkpoint(out)
    assert {n: p.shape for n, p in was.named_parameters()} == {n: p.shape for n, p in now.named_parameters()}
    assert not torch.equal(was.transformer.mask_token, now.transformer.mask_token)
    sampling = was.config.sampling.but(frames=17, height=32, width=32)
    assert now.config == dataclasses.replace(was.config, sampling=sampling)
    for part in ("text_encoder", "video_tokenizer"):
        assert (out / f"{part}.safetensors").read_bytes() == (tiny_checkpoint / f"{part}.safetensors").read_bytes()
    assert (out / "tokenizer.json").read_bytes() == (tiny_checkpoint / "tokenizer.json").read_bytes()


def test_a_run_that_is_killed_goes_on_to_the_same_bytes(
    run: Callable[..., tuple[int, str]],
    tiny_checkpoint: Path,
    own_clips: list[str],
    stages: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = ["--from", tiny_checkpoint, *own_clips, "--stages", stages, "--seed", 2, "--cache", tmp_path / "cache"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run("transformer", "-o", whole, *options)[0] == 0
    words = ["train", "transformer", "-o", killed, *options, "--device", "cpu", "--threads", 1, "--save-every", 0]
    process = subprocess.Popen([sys.executable, "-m", "videomar", *map(str, words)], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 240
    while not unfinished_run.exists(killed) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was killed while it was training"
    monkeypatch.chdir(tmp_path)
    code, error = run("transformer", "-o", "killed", "--resume")
    assert code == 0 and re.search(r"going on after step [1-9]", error), error
    for part in PARTS:
        assert (killed / f"{part}.safetensors").read_bytes() == (whole / f"{part}.safetensors").read_bytes(), part
    assert not (killed / "training").exists() and not list(killed.glob(".*"))
    assert [r | {"minutes": ""} for r in rows(killed)] == [r | {"minutes": ""} for r in rows(whole)]


def test_a_stage_that_learns_the_first_frame_makes_a_checkpoint_that_needs_no_picture(
    run: Callable[..., tuple[int, str]], tiny_checkpoint: Path, own_clips: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "first.toml"
    words = ("--from", tiny_checkpoint, *own_clips, "-o", tmp_path / "out", "--stages", file)
    for said, expected in (("", False), ("first_frame = true\n", True)):
        file.write_text(f'[[stage]]\nframes = 9\nsize = "32x32"\nsteps = 2\nbatch = 2\n{said}')
        assert run("transformer", *words, "--force")[0] == 0
        assert load_checkpoint(tmp_path / "out").config.from_text is expected


def test_low_rank_updates_come_out_merged(
    run: Callable[..., tuple[int, str]], tiny_checkpoint: Path, own_clips: list[str], stages: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ("--from", tiny_checkpoint, *own_clips, "-o", out, "--stages", stages, "--lora", 2)
    assert run("transformer", *words)[0] == 0
    was, now = (load_file(place / "transformer.safetensors") for place in (tiny_checkpoint, out))
    changed = [name for name in was if not torch.equal(was[name], now[name])]
    assert was.keys() == now.keys() and changed and all(was[name].ndim == 2 for name in changed)
    assert all(int(torch.linalg.matrix_rank(now[n] - was[n], rtol=1e-2)) <= 2 for n in changed)


def test_low_rank_updates_are_gone_on_with(
    run: Callable[..., tuple[int, str]],
    tiny_checkpoint: Path,
    own_clips: list[str],
    stages: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    words = ("--from", tiny_checkpoint, *own_clips, "--stages", stages, "--lora", 2, "--cache", tmp_path / "cache")
    assert run("transformer", "-o", whole, *words)[0] == 0
    with stopping(monkeypatch, 8):
        assert run("transformer", "-o", broken, *words, "--save-every", 0)[0] == 130
    assert run("transformer", "-o", broken, "--resume")[0] == 0
    for name in ("config.json", *(f"{part}.safetensors" for part in PARTS)):
        assert (broken / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_run_that_stops_before_it_keeps_anything_leaves_all_as_it_was(
    run: Callable[..., tuple[int, str]],
    tiny_checkpoint: Path,
    own_clips: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    new, old = tmp_path / "folder" / "new", tmp_path / "old"
    shutil.copytree(tiny_checkpoint, old)
    (old / "tokenizer.json").write_text("other words")
    (old / "text_encoder.safetensors").write_text("another encoder")
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    words = ("--from", tiny_checkpoint, *own_clips, "--stages", one_stage(tmp_path, 9), "--cache", tmp_path / "cache")
    for out in (new, old):
        with stopping(monkeypatch, 2):
            code, error = run("transformer", "-o", out, *words, "--force")
        assert code == 130 and error.endswith("videomar train: stopped; nothing half-written is left\n"), error
    assert not new.parent.exists()
    assert {path.name: path.read_bytes() for path in old.iterdir()} == before


def test_an_unfinished_run_is_not_lost_by_a_second_start(
    run: Callable[..., tuple[int, str]],
    tiny_checkpoint: Path,
    own_clips: list[str],
    stages: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"

    words = ("transformer", "--from", tiny_checkpoint, *own_clips, "-o", out, "--stages", stages)
    with stopping(monkeypatch, 3):
        code, error = run(*words, "--save-every", 0)
    assert code == 130 and f"{out} keeps step 3; --resume goes on from there" in error
    code, error = run(*words)
    assert code == 2 and "3 steps long; --resume goes on with it, --force begins anew" in error
    (mark,) = out.glob("training/*/mark.json")
    good = mark.read_text()
    mark.write_text(good.replace('"stage": 0', '"stage": 7'))
    code, error = run("transformer", "-o", out, "--resume")
    assert code == 2 and "stage is 7, expected less than 2" in error and "begin anew with --force" in error
    mark.write_text(good)
    code, error = run("transformer", "-o", out, "--resume", "--steps", 9)
    assert code == 2 and "got --steps" in error
    assert run("transformer", "-o", out, "--resume")[0] == 0
    code, error = run("transformer", "-o", out, "--resume")
    assert code == 2 and "holds no unfinished run" in error


@pytest.mark.parametrize("part", ["tokenizer", "transformer"])
def test_what_was_trained_is_replaced_on_demand_only(
    part: str, run: Callable[..., tuple[int, str]], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "trained"
    shutil.copytree(tiny_checkpoint, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    code, error = run(part, "--from", tiny_checkpoint, "-o", out, "--steps", 1)
    name = {"tokenizer": "video_tokenizer.safetensors"}.get(part, "transformer.safetensors")
    assert code == 2 and f"{out / name} is there, expected no trained one; name another -o, or --force" in error
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_an_unfinished_run_stays_until_the_one_that_begins_anew_keeps_something(
    run: Callable[..., tuple[int, str]],
    tiny_checkpoint: Path,
    own_clips: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    words = ("--from", tiny_checkpoint, *own_clips, "-o", out, "--stages", one_stage(tmp_path, 9))
    with stopping(monkeypatch, 4):
        assert run("transformer", *words, "--save-every", 0)[0] == 130
    with stopping(monkeypatch, 2):
        assert run("transformer", *words, "--force")[0] == 130
    code, error = run("transformer", "-o", out, "--resume")
    assert code == 0 and "going on after step 4" in error, error


WRONG = {
    "clips without captions": (("transformer", "--clips", "{films}", "--from", "{start}"), "go together"),
    "no tokenizer": (("transformer",), "videomar train tokenizer -o"),
    "low rank from nothing": (("transformer", "--lora", "4"), "--from"),
    "another preset": (("transformer", "--preset", "big"), "expected one of demo"),
    "over its start": (("transformer", "--from", "{out}", "{own}", "-o", "{out}"), "another output"),
    "stages that are not there": (("transformer", "--from", "{start}", "--stages", "none.toml"), "none.toml"),
    "a tokenizer on with its run": (("tokenizer", "--resume"), "--resume is for the transformer"),
    "a tokenizer of layers": (("tokenizer", "--layers", "*"), "--layers is for the transformer"),
    "a tokenizer of no clips": (("tokenizer", "--clips", "{empty}"), "holds 0 videos"),
    "clips that are no folder": (("tokenizer", "--clips", "{start}/config.json"), "is no folder"),
    "layers that are not there": (("transformer", "--from", "{start}", "--layers", "nothing"), "matches no parameter"),
    "no such start": (("transformer", "--from", "{empty}"), "{empty}"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_go_together_is_refused_before_anything_is_written(
    case: str,
    run: Callable[..., tuple[int, str]],
    films: Path,
    own_clips: list[str],
    tiny_checkpoint: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "empty").mkdir()
    out, words = tmp_path / "out", list[str]()
    names = {"films": films, "start": tiny_checkpoint, "out": out, "empty": tmp_path / "empty"}
    for word in WRONG[case][0]:
        words += own_clips if word == "{own}" else [word.format(**names)]
    code, error = run(*words, *([] if "-o" in words else ["-o", out]))
    assert code == 2 and WRONG[case][1].format(**names) in error and error.count("\n") == 1
    assert not out.exists() or not list(out.iterdir())


def test_a_tokenizer_of_own_clips_is_trained_and_a_transformer_on_it(
    run: Callable[..., tuple[int, str]],
    own_clips: list[str],
    tiny_config: ModelConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From nothing, without the demo world: its words are those of the captions."""
    for module in (command, transformer):
        monkeypatch.setattr(module, "PRESETS", {"demo": tiny_config})
    out, size = tmp_path / "out", tmp_path / "one.toml"
    size.write_text('[[stage]]\nframes = 9\nsize = "32x32"\nsteps = 3\nbatch = 2\n')
    code, error = run("tokenizer", *own_clips[:2], "-o", out, "--stages", size, "--steps", 3)
    assert code == 0, error
    code, error = run("transformer", *own_clips, "-o", out, "--stages", size)
    assert code == 0 and "latent scale" in error
    assert load_checkpoint(out).config.tokenizer.latent_scale != tiny_config.tokenizer.latent_scale
