"""Two processes, really started, of PyTorch's own launcher."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from videomar.model.videomar import load_checkpoint
from videomar.training.loop import chosen_frame
from videomar.training.loss import TrainingLoss
from videomar.training.optimizers import Optimizers
from videomar.training.ranks import Ranks
from videomar.training.recipe import Recipe, Stage
from videomar.training.transformer import _source, choose_layers

STAGE = Stage(9, 32, 32, steps=1, batch=3, learning_rate=0.05)


@pytest.fixture(scope="module")
def trained(tiny_checkpoint: Path, own_clips: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One step of two processes."""
    place = tmp_path_factory.mktemp("ranks")
    (place / "stages.toml").write_text(
        f'[[stage]]\nframes = {STAGE.frames}\nsize = "32x32"\nsteps = 1\nbatch = {STAGE.batch}\nlearning_rate = 0.05\n'
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = ["-m", "videomar", "train", "transformer", "--from", tiny_checkpoint, "-o", place / "out", *own_clips]
    words += ["--stages", place / "stages.toml", "--seed", "5", "--device", "cpu", "--threads", "1"]
    done = subprocess.run([*launcher, *map(str, words)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(str(place / "out")) == 1, "one of them speaks"
    return place / "out"


def test_two_processes_take_the_step_of_both_their_batches(
    trained: Path, tiny_checkpoint: Path, films: Path, tmp_path: Path
) -> None:
    """The same by hand in one process: each one's clips, frame and noise, and the mean of both gradients."""
    torch.set_num_threads(1)
    words = tiny_checkpoint / "tokenizer.json"
    model = load_checkpoint(tiny_checkpoint).train()
    captions = films / "captions.jsonl"
    recipe = Recipe((STAGE,), seed=5, start=str(tiny_checkpoint), clips=str(films), captions=str(captions))
    choose_layers(model, recipe)
    source = _source(tmp_path, words, model, recipe, Ranks(torch.device("cpu")), anew=True)
    source.enter(STAGE, np.random.default_rng(0))
    was = {name: p.detach().clone() for name, p in model.named_parameters()}
    loss = TrainingLoss(model)
    optimizers = Optimizers(loss)
    for rank in (0, 1):
        rng = np.random.default_rng([5, 0, rank, 0])
        torch.manual_seed(int(rng.integers(2**62)))
        clips = source.batch(STAGE.batch, rng)
        (loss(clips, chosen_frame(rng, STAGE, 2)) / 2).backward()
    optimizers.step(STAGE.learning_rate / 100)  # the first of a hundred steps of warming up
    moved = 0
    for part in ("transformer", "diffusion_head"):
        kept = load_file(trained / f"{part}.safetensors")
        for name, value in kept.items():
            full = f"{part}.{name}"
            now = dict(model.named_parameters())[full].detach()
            # After its first update the average has gone nine tenths of the way.
            torch.testing.assert_close(value, was[full] + 0.9 * (now - was[full]), rtol=0, atol=2e-6)
            moved += not torch.equal(value, was[full])
    assert moved > 10
