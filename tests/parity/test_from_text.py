"""Clips without a picture, compared call by call with PyTorch, recorded, replayed and bisected."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from videomar.artifacts import MANIFEST
from videomar.cli import main
from videomar.config import ModelConfig
from videomar.errors import ArtifactError, InputError
from videomar.graphs import GRAPHS, TOKENIZER_DECODER, TOKENIZER_ENCODER, TRANSFORMER_STEP
from videomar.parity.cases import make_cases
from videomar.parity.packs.pack import Pack
from videomar.parity.packs.pack_files import read_calls

PROMPT = "a red circle falls"
OPTIONS = ["--threads", "1", "--backend", "ort-cpu"]
ALONE = ["--from-text", "--prompt", PROMPT, "--frames", "9", *OPTIONS]
Trained = Callable[[Path], Path]


def test_every_call_of_both_emitters_is_the_references(
    tiny_checkpoint: Path, tiny_artifacts: Path, tiny_native: Path, from_text: Trained, tmp_path: Path
) -> None:
    sides = [str(from_text(directory)) for directory in (tiny_checkpoint, tiny_artifacts, tiny_native)]
    assert main(["compare", *sides, *ALONE, "--cases", "1", "--json", str(tmp_path / "out.json")]) == 0
    data = json.loads((tmp_path / "out.json").read_text())
    assert [case["name"] for case in data["cases"]] == ["sentence 0"]
    for candidate in data["candidates"]:
        rungs = candidate["rungs"]
        for rung in ("z", "head", "sampled", "decoded"):
            assert 0 <= rungs[rung]["measures"]["relative_l2"]["worst"] < 1e-4
        # The first frame is among what was made: both mask steps of both frames, and its pixels.
        assert [row["frame"] for row in candidate["free"]["frames"]] == list(range(9))
        assert not rungs["encoded"]["measures"]


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory, tiny_artifacts: Path, from_text: Trained) -> Path:
    out = tmp_path_factory.mktemp("pack") / "pack"
    assert main(["record", str(from_text(tiny_artifacts)), "-o", str(out), *ALONE]) == 0
    return out


def test_a_pack_holds_the_first_frames_steps_and_no_encoder(pack: Path) -> None:
    read = Pack.read(pack)
    assert set(read.graphs) == set(GRAPHS) - {TOKENIZER_ENCODER} and not len(read.case().given)
    assert "encoded" not in read.arrays
    # The first pass predicts, beside no finished frame.
    calls = [feeds for feeds, _ in read_calls(pack, TRANSFORMER_STEP)]
    assert calls[0]["masked"].all() and calls[0]["past_key_0"].shape[2] == 0
    assert [int(feeds["done"][0]) for feeds, _ in read_calls(pack, TOKENIZER_DECODER)] == [0, 1]


def test_a_pack_replays_on_the_other_emitter(pack: Path, tiny_native: Path, from_text: Trained) -> None:
    assert main(["replay", str(pack), str(from_text(tiny_native)), *OPTIONS]) == 0


def test_a_pack_without_a_picture_of_a_model_that_needs_one_is_refused(pack: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(pack, tmp_path / "pack"))
    manifest = json.loads((damaged / MANIFEST).read_text())
    manifest["config"]["from_text"] = False
    (damaged / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="there is no picture, and tiny was not trained"):
        Pack.read(damaged)


def test_a_bisection_of_two_that_agree_ends_without_the_encoder(
    tiny_artifacts: Path, tiny_native: Path, from_text: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    sides = [str(from_text(directory)) for directory in (tiny_artifacts, tiny_native)]
    assert main(["bisect", *sides, *ALONE, "--cases", "1"]) == 0
    assert TOKENIZER_ENCODER not in capsys.readouterr().out


def test_cases_without_pictures_have_the_sentences_and_noise_of_those_with(tiny_config: ModelConfig) -> None:
    shape = (9, 64, 64)
    usual, alone = (make_cases(tiny_config, [], [], 3, 0, *shape, from_text=flag) for flag in (False, True))
    for a, b in zip(usual, alone, strict=True):
        assert (a.prompt, b.scene, len(b.given)) == (b.prompt, None, 0)
        np.testing.assert_array_equal(a.noise.order(0, 9), b.noise.order(0, 9))
    with pytest.raises(InputError, match="--from-text is for clips without a picture, got --image"):
        make_cases(tiny_config, [Path("a.png")], ["x"], 1, 0, *shape, from_text=True)
