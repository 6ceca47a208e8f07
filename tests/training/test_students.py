"""Students of the diffusion head: what they learn from, what becomes of them, and who is refused."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from videomar.cli import main
from videomar.config import DDIM, ModelConfig
from videomar.errors import ArtifactError, InputError
from videomar.model.generate import generate
from videomar.model.videomar import VideoMAR, load_checkpoint, save_checkpoint
from videomar.runtime.prompt import PromptTokenizer
from videomar.schedule import DiffusionSchedule, SeededNoise
from videomar.steps import ClipSteps
from videomar.training import paths, students
from videomar.training.paths import collect, conditions, follow
from videomar.training.students import train_head

torch.set_num_threads(1)


def test_a_path_ends_at_the_token_that_the_reference_loop_draws(tiny_model: VideoMAR, tiny_prefix: int) -> None:
    """Every mask step of every new frame: the clip that the loop made is what is known."""
    config, noise = tiny_model.config, SeededNoise(3)
    sampling = config.sampling.but(head_solver=DDIM, head_steps=5, temperature=0.7, token_clip=None)
    pixels = torch.rand(1, 3, 1, sampling.height, sampling.width, generator=torch.Generator().manual_seed(1)) * 2 - 1
    ids = torch.arange(tiny_prefix + 3)[None]
    latents = generate(tiny_model, pixels, ids, tiny_prefix, sampling, noise)[0][0].clone()
    clip = ClipSteps.of(config, sampling, 1)
    drawing = [step for step in clip.steps if step.predicted]
    assert len(drawing) == 2 * sampling.mask_steps
    for step in drawing:
        order = noise.order(step.frame, clip.shape.tokens)
        z = conditions(tiny_model, latents, ids, step, order).transpose(0, 1)
        # Of the masked positions, in the frame's own order, those that this step draws.
        drawn, masked = order[step.slots], np.sort(order[step.known :])
        rows = torch.from_numpy(np.searchsorted(masked, drawn))
        start = noise.initial(step.frame, step.index, (step.predicted, latents.shape[0])) * np.float32(0.7)
        scale = torch.full((len(rows),), step.guidance)
        points = follow(
            tiny_model.diffusion_head, z[rows], scale, torch.from_numpy(start), clip.schedules[step.diffusion]
        )
        expected = latents[:, step.frame].flatten(1).T[torch.from_numpy(drawn.copy())]
        assert torch.equal(points[:, 0], torch.from_numpy(start))
        torch.testing.assert_close(points[:, -1], expected, rtol=1e-4, atol=1e-4)


def test_a_students_points_are_among_its_teachers(tiny_checkpoint: Path, tiny_model: VideoMAR) -> None:
    """With as many steps as it was trained for, the teacher comes by the same noise levels more often."""
    torch.manual_seed(0)
    words = PromptTokenizer(tiny_checkpoint / "tokenizer.json", tiny_model.config.text)
    found = collect(tiny_model, words, 5, 40, np.random.default_rng(0))
    assert found.points.shape == (40, 6, tiny_model.config.transformer.token_channels) and len(found) == 40
    config = tiny_model.config
    many = DiffusionSchedule.ddim(config.head.train_steps, 20, config.sampling.max_beta)
    path = follow(tiny_model.diffusion_head, found.z, found.scale, found.points[:, 0], many)
    torch.testing.assert_close(found.points, path[:, ::4])
    few = DiffusionSchedule.ddim(config.head.train_steps, 5, config.sampling.max_beta)
    assert np.array_equal(few.timesteps, many.timesteps[::4])


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little to learn from, so that a test takes seconds."""
    monkeypatch.setattr(students, "HELD_OUT", 64)
    monkeypatch.setattr(students, "BATCH", 64)
    monkeypatch.setattr(students, "WARM_UP", 5)
    monkeypatch.setattr(paths, "CLIPS", 2)


@pytest.mark.usefixtures("few")
def test_a_student_comes_nearer_to_its_teacher_and_changes_nothing_but_the_head(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "student"
    before, after = train_head(out, tiny_checkpoint, 2, steps=60, paths=256, learning_rate=2e-3)
    assert after < 0.9 * before
    teacher, student = load_checkpoint(tiny_checkpoint), load_checkpoint(out)
    own = teacher.config.sampling
    assert student.config == dataclasses.replace(teacher.config, sampling=own.but(head_solver="ddim", head_steps=2))
    names = {path.name for path in tiny_checkpoint.iterdir()}
    assert {path.name for path in out.iterdir()} == names
    for name in names - {"config.json", "diffusion_head.safetensors"}:
        assert (out / name).read_bytes() == (tiny_checkpoint / name).read_bytes()
    changed = [
        not torch.equal(a, b)
        for a, b in zip(teacher.diffusion_head.parameters(), student.diffusion_head.parameters(), strict=True)
    ]
    assert any(changed) and len(teacher.diffusion_head.state_dict()) == len(student.diffusion_head.state_dict())


@pytest.mark.usefixtures("few")
def test_a_student_that_absorbs_guidance_learns_where_guided_paths_end_and_samples_without(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    before, after = train_head(
        tmp_path / "s", tiny_checkpoint, 2, steps=60, paths=256, learning_rate=2e-3, absorb_guidance=True
    )
    assert after < 0.9 * before
    student = load_checkpoint(tmp_path / "s").config
    assert student.sampling.branches == 1
    assert all(step.branches == 1 for step in ClipSteps.of(student, student.sampling, 1).steps)


@pytest.mark.usefixtures("few")
def test_no_time_at_all_still_writes_a_whole_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> None:
    train_head(tmp_path / "student", tiny_checkpoint, 3, minutes=0.0, paths=64)
    assert load_checkpoint(tmp_path / "student").config.sampling.head_steps == 3


@pytest.mark.parametrize("head_steps", [0, 11, 13])
def test_steps_that_are_no_students_are_refused(head_steps: int, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The tiny model was trained for 20."""
    with pytest.raises(InputError, match=rf"head steps is {head_steps}, expected 1 to 10 for a student; change"):
        train_head(tmp_path / "student", tiny_checkpoint, head_steps)
    assert not any(tmp_path.iterdir())


def altered(config: ModelConfig, tiny_model: VideoMAR, directory: Path) -> Path:
    model = VideoMAR(config)
    model.load_state_dict(tiny_model.state_dict(), strict=False)
    save_checkpoint(model, directory)
    return directory


def test_a_student_is_no_teacher(tiny_model: VideoMAR, tmp_path: Path) -> None:
    own = tiny_model.config
    student = dataclasses.replace(own, sampling=own.sampling.but(head_solver=DDIM, head_steps=4))
    with pytest.raises(InputError, match="takes 4 diffusion steps, so it is a student itself"):
        train_head(tmp_path / "student", altered(student, tiny_model, tmp_path / "start"), 2)


def test_a_model_of_another_world_is_no_teacher(tiny_config: ModelConfig, tmp_path: Path) -> None:
    other = dataclasses.replace(tiny_config, text=dataclasses.replace(tiny_config.text, vocab_size=5000))
    with pytest.raises(InputError, match="expected a model of the demo world"):
        students.student_config(other, 4, False, tmp_path)


def test_what_is_there_stays_without_force(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds the teacher"):
        train_head(tiny_checkpoint, tiny_checkpoint, 4, force=True)
    (tmp_path / "config.json").write_text("mine")
    with pytest.raises(ArtifactError, match="is not empty"):
        train_head(tmp_path, tiny_checkpoint, 4)
    (tmp_path / "letters.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"letters\.txt, which is no file of a checkpoint"):
        train_head(tmp_path, tiny_checkpoint, 4, force=True)


@pytest.mark.usefixtures("few")
def test_a_run_that_fails_leaves_nothing(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(students, "save_part", stop)
    with pytest.raises(KeyboardInterrupt):
        train_head(tmp_path / "student", tiny_checkpoint, 2, steps=1, paths=64)
    assert not any(tmp_path.iterdir())


def test_the_distance_of_a_student_from_itself_is_none(tiny_checkpoint: Path, tiny_model: VideoMAR) -> None:
    words, config = PromptTokenizer(tiny_checkpoint / "tokenizer.json", tiny_model.config.text), tiny_model.config
    found = collect(tiny_model, words, 4, 20, np.random.default_rng(0))
    few = DiffusionSchedule.ddim(config.head.train_steps, 4, config.sampling.max_beta)
    own = follow(tiny_model.diffusion_head, found.z, found.scale, found.points[:, 0], few)
    itself = dataclasses.replace(found, points=own)
    assert students.error(tiny_model.diffusion_head, itself, few) == 0.0
    own[:, -1] += 0.5
    assert math.isclose(students.error(tiny_model.diffusion_head, itself, few), 0.5, rel_tol=1e-5)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("head",), "train head has no teacher, expected the checkpoint that holds it; add --from"),
        (("head", "--from", "nowhere"), "no checkpoint at nowhere"),
        (("head", "--from", "nowhere", "--head-steps", "0"), "--head-steps"),
        (("transformer", "--head-steps", "4"), "are for `train head`, got one with transformer"),
        (("tokenizer", "--absorb-guidance"), "are for `train head`, got one with tokenizer"),
        (("head", "--from", "nowhere", "--lora", "4"), "on the demo world, got --lora; leave it out"),
    ],
)
def test_wrong_options_are_one_line_and_exit_code_2(
    options: tuple[str, ...], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "student"
    try:
        code = main(["train", *options, "-o", str(out)])
    except SystemExit as stop:  # of the parser
        code = int(stop.code or 0)
    assert code == 2 and not out.exists()
    error = capsys.readouterr().err
    assert why in error and error.count("\n") == 1
