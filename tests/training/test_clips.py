from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from videomar.errors import InputError
from videomar.model.videomar import VideoMAR
from videomar.runtime.prompt import PromptTokenizer
from videomar.training.clips import FolderClips, read_captions
from videomar.training.ranks import Ranks
from videomar.training.recipe import Stage
from videomar.training.source import to_pixels
from videomar.training.windows import Windows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.mp4", "ü b.mp4"):
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def written(folder: Path, *lines: str | bytes) -> Path:
    file = folder / "captions.jsonl"
    file.write_bytes(b"\n".join(line.encode() if isinstance(line, str) else line for line in lines))
    return file


A, B = '{"file": "a.mp4", "caption": "one"}', '{"file_name": "ü b.mp4", "text": "zwei Bälle", "fps": 24}'


def test_captions_are_read_under_either_pair_of_names(folder: Path) -> None:
    assert read_captions(written(folder, A, "", B), folder) == {"a.mp4": "one", "ü b.mp4": "zwei Bälle"}


WRONG = {
    "no JSON": ((A, "a.mp4: one"), "line 2, not JSON"),
    "no object": (("[1]",), "line 1, the whole is a list"),
    "no sentence": (('{"file": "a.mp4"}',), "lacks the key 'text'"),
    "a sentence that is none": (('{"file": "a.mp4", "caption": 3}',), "caption"),
    "a clip twice": ((A, A), "line 2, names a.mp4 again"),
    "no such clip": ((A, '{"file": "c.mp4", "caption": "x"}'), "line 2, names c.mp4, which is not in"),
    "one clip": ((A,), "names 1 clips, expected at least 2"),
    "nothing": (("",), "names 0 clips"),
    "no text": ((b"\xff\xfe",), "cannot be read"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_captions_say_which_line_and_what_is_wrong(case: str, folder: Path) -> None:
    lines, said = WRONG[case]
    file = written(folder, *lines)
    with pytest.raises(InputError) as error:
        read_captions(file, folder)
    assert str(file) in str(error.value) and said in str(error.value)


@pytest.fixture
def source(films: Path, tiny_model: VideoMAR, tiny_checkpoint: Path, tmp_path: Path) -> FolderClips:
    captions = read_captions(films / "captions.jsonl", films)
    words = PromptTokenizer(tiny_checkpoint / "tokenizer.json", tiny_model.config.text)
    alone = Ranks(torch.device("cpu"))
    return FolderClips(films, captions, tiny_model.video_tokenizer, words, tmp_path, tiny_model.config, alone)


STAGE = Stage(9, 32, 48, steps=1)


def test_a_batch_is_what_the_tokenizer_makes_of_the_windows_with_their_sentences(
    source: FolderClips, films: Path, tiny_model: VideoMAR, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    source.enter(STAGE, np.random.default_rng(0))
    captions = {row["file"]: row["caption"] for row in map(json.loads, (films / "captions.jsonl").open())}
    fps, fit = tiny_model.config.sampling.fps, tiny_model.config.sampling.fit
    plain = Windows(films, tmp_path / "plain", fps, fit, "pixels", lambda window: window)
    plain.fill(list(captions), STAGE)
    shown, kept = plain.read(list(captions), STAGE)
    words = PromptTokenizer(tiny_checkpoint / "tokenizer.json", tiny_model.config.text)

    def made(arrays: dict[str, np.ndarray]) -> set[tuple[bytes, tuple[int, ...]]]:
        found = set()
        for name, array in arrays.items():
            for window in array:
                z = tiny_model.video_tokenizer.vae.encode(to_pixels(np.array(window[None]))).latent_dist.mode()[0]
                tokens = z.permute(1, 2, 3, 0).reshape(2, 4 * 6, -1).detach().numpy()
                found.add((tokens.tobytes(), tuple(words(captions[name])[0].tolist())))
        return found

    clips = source.batch(64, np.random.default_rng(0))
    got = {(x.numpy().tobytes(), prompt) for x, prompt in zip(clips.latents, clips.prompts, strict=True)}
    assert clips.grid == (4, 6) and got <= made(shown) and len(got) > 5
    held = source.held_out()
    assert {(x.numpy().tobytes(), prompt) for x, prompt in zip(held.latents, held.prompts, strict=True)} == made(kept)


def test_the_clips_of_a_step_depend_on_its_generator_alone(source: FolderClips) -> None:
    source.enter(STAGE, np.random.default_rng(0))
    first = source.batch(8, np.random.default_rng(5))
    source.batch(8, np.random.default_rng(6))
    source.restore(STAGE, source.state())
    again = source.batch(8, np.random.default_rng(5))
    assert torch.equal(first.latents, again.latents) and first.prompts == again.prompts
