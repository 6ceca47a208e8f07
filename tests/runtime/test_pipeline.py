"""Whole clips through the pipeline against the PyTorch reference, and what callers may rely on and get wrong."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import torch

from videomar import graphs
from videomar.config import SamplingConfig
from videomar.errors import ConfigError, InputError, UserError
from videomar.model.generate import generate
from videomar.model.videomar import VideoMAR
from videomar.runtime.pipeline import Pipeline
from videomar.runtime.prompt import PromptCut
from videomar.schedule import SeededNoise
from videomar.steps import Step

PROMPT = "a red circle moves right"
EXACT = ("tiny_artifacts", "tiny_native", "tiny_fixed")
LATENT_TOLERANCE, HALF_TOLERANCE, PSNR = 1e-3, 0.1, 60.0


def picture(height: int = 16, width: int = 24, frames: int = 0, seed: int = 0) -> np.ndarray:
    """Smooth colours that move: [height, width, 3] uint8, or that many frames of it."""
    rng = np.random.default_rng(seed)
    waves = rng.uniform(0.1, 0.5, (3, 3)), rng.uniform(0, 6, 3)
    y, x, t = np.mgrid[:height, :width, : max(frames, 1)]
    values = [np.sin(a * y + b * x + c * t + d) for (a, b, c), d in zip(*waves, strict=True)]
    clip = np.stack(values, axis=-1).transpose(2, 0, 1, 3) * 110 + 128
    return clip.astype(np.uint8) if frames else clip.astype(np.uint8)[0]


@pytest.fixture(scope="module", params=EXACT)
def pipe(request: pytest.FixtureRequest) -> Iterator[Pipeline]:
    with Pipeline.open(request.getfixturevalue(request.param), threads=1, backend="ort-cpu") as pipe:
        yield pipe


@pytest.fixture(scope="module")
def portable(tiny_artifacts: Path) -> Iterator[Pipeline]:
    with Pipeline.open(tiny_artifacts, threads=1, backend="ort-cpu") as pipe:
        yield pipe


# ---- the reference


@dataclass(frozen=True)
class Clip:
    """One generation; sizes in pixels."""

    frames: int = 17
    size: tuple[int, int] = (16, 24)
    given: int = 0
    guidance: float = 3.0
    temperature: float | None = None
    mask_steps: int = 3
    head_steps: int = 4

    @property
    def knobs(self) -> dict[str, Any]:
        return {
            "frames": self.frames,
            "height": self.size[0],
            "width": self.size[1],
            "mask_steps": self.mask_steps,
            "head_steps": self.head_steps,
            "guidance_scale": self.guidance,
            "temperature": self.temperature,
        }

    @property
    def image(self) -> np.ndarray:
        return picture(*self.size, self.given)


CLIPS = {
    "image to video": Clip(),
    "no guidance": Clip(guidance=1.0),
    "video to video, nine given frames": Clip(given=9, frames=25, guidance=0.5),
    "tall, one mask step, one head step": Clip(size=(32, 8), mask_steps=1, head_steps=1),
    "one token a frame, four latent frames": Clip(size=(8, 8), frames=33, mask_steps=1, temperature=0.7),
    "a token a step, every trained diffusion step": Clip(size=(16, 16), frames=9, mask_steps=4, head_steps=20),
}


def reference(
    model: VideoMAR, pipe: Pipeline, clip: Clip, seed: int, cache: bool, **dials: Any
) -> tuple[np.ndarray, np.ndarray]:
    """(latents [channels, t, h, w], pixels [3, frames, height, width]) of PyTorch."""
    image = clip.image.reshape(-1, *clip.image.shape[-3:])
    pixels = torch.from_numpy(np.moveaxis(image, -1, 0)[None].astype(np.float32) / 127.5 - 1)
    sampling = SamplingConfig(
        frames=clip.frames,
        height=clip.size[0],
        width=clip.size[1],
        mask_steps=clip.mask_steps,
        head_steps=clip.head_steps,
        guidance_scale=clip.guidance,
        temperature=clip.temperature,
        token_clip=model.config.sampling.token_clip,
        max_beta=model.config.sampling.max_beta,
        **dials,
    )
    system = model.config.text.system_prompt
    ids = torch.from_numpy(pipe.tokenizer(PROMPT))
    assert ids.shape[1] == len(system.split()) + len(PROMPT.split())
    latents, video = generate(model, pixels, ids, len(system.split()), sampling, SeededNoise(seed), cache=cache)
    return latents[0].numpy(), video[0].numpy()


def psnr(got: np.ndarray, expected: np.ndarray) -> float:
    """Decibels, for values in [-1, 1]."""
    return float(-10 * np.log10(max(np.mean((got.astype(np.float64) - expected) ** 2) / 4, 1e-20)))


def decoded(pipe: Pipeline, latents: np.ndarray) -> np.ndarray:
    return pipe.backend.decode(latents[None])[0]


@pytest.mark.parametrize("clip", CLIPS.values(), ids=CLIPS.keys())
def test_a_clip_is_the_reference_with_and_without_a_cache(tiny_model: VideoMAR, pipe: Pipeline, clip: Clip) -> None:
    video = pipe(clip.image, PROMPT, seed=5, **clip.knobs)
    for cache in (True, False):
        latents, pixels = reference(tiny_model, pipe, clip, 5, cache)
        assert video.latents.shape == latents.shape
        assert np.abs(video.latents - latents).max() <= LATENT_TOLERANCE
        assert psnr(decoded(pipe, video.latents), pixels) >= PSNR
        frames = np.moveaxis(np.clip((pixels + 1) * 127.5 + 0.5, 0, 255), 0, -1).astype(np.uint8)
        assert video.frames.shape == frames.shape == (clip.frames, *clip.size, 3)
        assert np.abs(video.frames.astype(int) - frames).max() <= 1


@pytest.mark.parametrize("clip", [CLIPS["image to video"], CLIPS["video to video, nine given frames"]], ids=str)
def test_fp16_stays_near_the_reference(tiny_model: VideoMAR, tiny_half: Path, clip: Clip) -> None:
    with Pipeline.open(tiny_half, threads=1, backend="ort-cpu") as pipe:
        video = pipe(clip.image, PROMPT, seed=5, **clip.knobs)
        latents, _ = reference(tiny_model, pipe, clip, 5, cache=True)
        assert np.abs(video.latents - latents).max() <= HALF_TOLERANCE


def test_the_clips_compared_depend_on_all_that_they_should(portable: Pipeline) -> None:
    # So that agreement above says something: each of these moves the latents by far more than the tolerance.
    base = portable(picture(), PROMPT, seed=5).latents[:, 1:]
    others = [
        portable(picture(), "a blue square grows", seed=5),
        portable(picture(seed=1), PROMPT, seed=5),
        portable(picture(), PROMPT, seed=6),
        portable(picture(), PROMPT, seed=5, guidance_scale=1.0),
        portable(picture(), PROMPT, seed=5, temperature=0.0),
        portable(picture(), PROMPT, seed=5, mask_steps=2),
        portable(picture(), PROMPT, seed=5, head_steps=5),
    ]
    for other in others:
        assert np.abs(other.latents[:, 1:] - base).max() > 20 * LATENT_TOLERANCE
    assert np.abs(base[:, 0]).max() > 1 and np.abs(base[:, 1]).max() == 1  # the clip bites
    assert np.ptp(portable(picture(), PROMPT, seed=5).frames.astype(int)) > 60


def test_emitters_agree_with_each_other(tiny_artifacts: Path, tiny_native: Path, tiny_fixed: Path) -> None:
    latents = []
    for directory in (tiny_artifacts, tiny_native, tiny_fixed):
        with Pipeline.open(directory, threads=1, backend="ort-cpu") as pipe:
            latents.append(pipe(picture(), PROMPT, frames=25).latents)
    assert max(np.abs(other - latents[0]).max() for other in latents[1:]) <= LATENT_TOLERANCE


DIALS: dict[str, dict[str, Any]] = {
    "structure first": {"order": "structure", "detail_steps": 2},
    "spread": {"order": "spread"},
    "fewer diffusion steps": {"head_steps_end": 2},
    "deterministic": {"head_solver": "ddim"},
    "two stages of them": {"head_steps_end": 1, "head_anneal": "two-stage"},
    "guidance in the middle": {"guidance_start": 0.2, "guidance_end": 0.7},
    "guidance in the middle, one branch after the other": {
        "guidance_start": 0.2, "guidance_end": 0.7, "guidance_passes": 2,
    },
    "parts of a frame": {"refresh_every": 3},
    "parts, guidance at the end, a window": {
        "refresh_every": 9, "known_share": 0.3, "guidance_start": 0.3, "kv_window": 1, "order": "structure",
        "head_steps_end": 1, "head_anneal": "cosine", "head_solver": "ddim",
    },
    "parts, one branch after the other": {"refresh_every": 4, "guidance_end": 0.8, "guidance_passes": 2},
}  # fmt: skip


@pytest.mark.parametrize("dials", DIALS.values(), ids=DIALS.keys())
def test_a_clip_with_dials_is_the_reference_with_them(
    tiny_model: VideoMAR, pipe: Pipeline, dials: dict[str, Any]
) -> None:
    clip = Clip(frames=25, size=(32, 32), mask_steps=8)
    video = pipe(clip.image, PROMPT, seed=5, **clip.knobs, **dials)
    latents, _ = reference(
        tiny_model, pipe, clip, 5, True, **{k: v for k, v in dials.items() if k != "guidance_passes"}
    )
    assert np.abs(video.latents - latents).max() <= LATENT_TOLERANCE
    exact = pipe(clip.image, PROMPT, seed=5, **clip.knobs)
    assert np.abs(video.latents - exact.latents).max() > 5 * LATENT_TOLERANCE


def test_parts_that_are_the_whole_are_exact_up_to_rounding(pipe: Pipeline) -> None:
    options = {"frames": 25, "height": 16, "width": 16, "mask_steps": 2, "head_steps": 4}
    whole, parts = (pipe(picture(16, 16), PROMPT, **options, refresh_every=n).latents for n in (1, 3))
    assert np.abs(whole - parts).max() <= LATENT_TOLERANCE


def test_dials_that_are_off_give_the_same_bytes(pipe: Pipeline) -> None:
    off = {"order": "random", "head_steps_end": 4, "guidance_start": 0.0, "guidance_end": 1.0, "refresh_every": 1}
    knobs = Clip().knobs
    assert np.array_equal(pipe(picture(), PROMPT, **knobs).frames, pipe(picture(), PROMPT, **knobs, **off).frames)


# ---- seeds and noise


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(pipe: Pipeline) -> None:
    one, again, other = (pipe(picture(), PROMPT, seed=seed) for seed in (3, 3, 4))
    assert one.frames.tobytes() == again.frames.tobytes() and one.latents.tobytes() == again.latents.tobytes()
    assert one.frames.tobytes() != other.frames.tobytes()
    np.testing.assert_array_equal(one.latents[:, 0], other.latents[:, 0])  # the given frame is no matter of chance


def test_the_same_seed_gives_the_same_bytes_after_the_directory_is_opened_again(tiny_native: Path) -> None:
    clips = []
    for _ in range(2):
        with Pipeline.open(tiny_native, threads=1, backend="ort-cpu") as pipe:
            clips.append(pipe(picture(), PROMPT, seed=3).latents.tobytes())
    assert clips[0] == clips[1]


class Recorded(SeededNoise):
    """A caller's own noise; false in a boolean context, as a container may be."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.asked: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return 0

    def initial(self, frame: int, step: int, shape: tuple[int, int]) -> np.ndarray:
        self.asked.append((frame, step))
        return super().initial(frame, step, shape)


def test_a_callers_noise_replaces_the_seed(portable: Pipeline) -> None:
    noise = Recorded(8)
    video = portable(picture(), PROMPT, seed=3, noise=noise)
    assert noise.asked == [(frame, step) for frame in (1, 2) for step in range(3)]
    np.testing.assert_array_equal(video.latents, portable(picture(), PROMPT, seed=8).latents)


# ---- the stream


@pytest.mark.parametrize("clip", [Clip(), Clip(frames=33, given=9)], ids=["image", "clip"])
def test_a_stream_yields_the_frames_of_a_whole_clip(pipe: Pipeline, clip: Clip) -> None:
    whole = pipe(clip.image, PROMPT, **clip.knobs).frames
    streamed = np.stack(list(pipe.stream(clip.image, PROMPT, **clip.knobs)))
    assert streamed.dtype == np.uint8
    np.testing.assert_array_equal(streamed, whole)


@pytest.mark.parametrize(("given", "frames", "chunks"), [(0, 25, (1, 8, 8, 8)), (9, 25, (9, 8, 8)), (17, 25, (17, 8))])
def test_a_stream_yields_frames_as_soon_as_their_latent_frame_is_finished(
    portable: Pipeline, given: int, frames: int, chunks: tuple[int, ...]
) -> None:
    finished: list[tuple[int, int]] = []
    arrived: list[int] = []  # mask steps done when each frame came

    def progress(step: Step) -> None:
        if step.predicted:
            finished.append((step.frame, step.index))

    for _ in portable.stream(picture(frames=given), PROMPT, frames=frames, progress=progress):
        arrived.append(len(finished))
    assert tuple(arrived.count(3 * i) for i in range(len(chunks))) == chunks
    assert arrived == sorted(arrived) and len(arrived) == frames


@dataclass
class Watched:
    """Lets every call through and counts what is begun and closed."""

    real: Any
    begun: list[Any] = field(default_factory=list)
    closed: int = 0
    decoders: int = 0  # open ones
    encoded: int = 0

    def begin(self, *args: Any) -> Any:
        clip = self.real.begin(*args)
        self.begun.append(clip)
        close = clip.close

        def counted() -> None:
            self.closed += 1
            close()

        clip.close = counted
        return clip

    def decoder(self, *args: Any) -> Any:
        decoder = self.real.decoder(*args)
        self.decoders += 1
        close = decoder.close

        def counted() -> None:
            self.decoders -= 1
            close()

        decoder.close = counted
        return decoder

    def encode_text(self, ids: np.ndarray) -> np.ndarray:
        self.encoded += 1
        return self.real.encode_text(ids)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


@pytest.fixture
def watched(portable: Pipeline) -> tuple[Pipeline, Watched]:
    backend = Watched(portable.backend)
    return Pipeline(portable.config, backend, portable.tokenizer), backend  # type: ignore[arg-type]


def test_stopping_a_stream_early_frees_the_clip(watched: tuple[Pipeline, Watched]) -> None:
    pipe, backend = watched
    stream = pipe.stream(picture(), PROMPT, frames=25)
    for _ in range(2):
        next(stream)
    assert (len(backend.begun), backend.closed, backend.decoders) == (1, 0, 1)
    stream.close()  # type: ignore[attr-defined]
    assert (backend.closed, backend.decoders) == (1, 0)


def test_leaving_a_loop_over_a_stream_frees_the_clip(watched: tuple[Pipeline, Watched]) -> None:
    pipe, backend = watched
    for i, _ in enumerate(pipe.stream(picture(), PROMPT, frames=25)):
        if i == 3:
            break
    gc.collect()
    assert (len(backend.begun), backend.closed, backend.decoders) == (1, 1, 0)


def test_a_failing_caller_frees_the_clip(watched: tuple[Pipeline, Watched]) -> None:
    pipe, backend = watched

    def stop(step: Step) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe(picture(), PROMPT, progress=stop)
    assert (len(backend.begun), backend.closed, backend.decoders) == (1, 1, 0)


def test_numbers_that_overflow_are_a_line_and_no_video(watched: tuple[Pipeline, Watched]) -> None:
    pipe, backend = watched
    real = backend.decoder

    def decoder(*args: Any) -> Any:
        broken = real(*args)
        broken.next = lambda latent: np.full((1, 3, 8, 16, 24), np.nan)
        return broken

    backend.decoder = decoder  # type: ignore[method-assign]
    with pytest.raises(InputError, match=r"overflowed, expected finite ones; .*--precision fp32"):
        pipe(picture(), PROMPT)
    with pytest.raises(InputError, match="overflowed"):
        list(pipe.stream(picture(), PROMPT))


# ---- latent frames, timing, plans


def test_latent_frames_come_one_by_one_given_ones_first(portable: Pipeline) -> None:
    with portable.start(picture(frames=9), PROMPT, frames=25) as run:
        counts = [len(run.latents) for _ in run]
        assert counts == [1, 2, 3, 4]
        assert all(f.shape == (16, 2, 3) and f.dtype == np.float32 for f in run.latents)
        whole = portable(picture(frames=9), PROMPT, frames=25).latents
        np.testing.assert_array_equal(np.stack(run.latents, axis=1), whole)


def test_timing_covers_every_stage_and_counts_its_calls(portable: Pipeline) -> None:
    timing = portable(picture(), PROMPT).timing
    # Two frames of three steps, one prefilled and one stored in between.
    expected = {"transformer": 2 * 3 + 2, "head": 2 * 3, "encoder": 1, "decoder": 3}
    assert {k: timing.calls[k] for k in expected} == expected
    assert 0 < sum(timing.seconds.values()) <= timing.total
    assert timing.first_frame is not None and timing.first_frame <= timing.total
    for given, latent in ((1, 4), (17, 4)):
        with portable.start(picture(frames=given), PROMPT, frames=25) as run:
            list(run)
        stream = run.timing
        assert stream.calls["decoder"] == latent  # each latent frame once
        assert stream.first_frame is not None and stream.first_frame < stream.total


def test_the_first_generated_frame_comes_before_the_second_latent_frame_is_begun(portable: Pipeline) -> None:
    with portable.start(picture(), PROMPT, frames=25) as run:
        next(iter(run))
        assert run.timing.first_frame is None and run.done == 1  # the given frame is there after one pass
        next(iter(run))
        assert run.timing.first_frame is not None and {step.frame for step in run.steps[: run.done]} == {0, 1}


def test_a_clip_says_what_will_be_done_before_anything_is(watched: tuple[Pipeline, Watched]) -> None:
    pipe, backend = watched
    run = pipe.start(picture(frames=9), PROMPT, height=8, width=32, frames=33, mask_steps=2)
    assert (run.done, run.given, run.finished) == (0, 9, False)
    assert [(s.frame, s.index, s.predicted) for s in run.left] == [
        (0, 0, 0), (1, 0, 0), (2, 0, 2), (2, 1, 2), (2, 2, 0), (3, 0, 2), (3, 1, 2), (3, 2, 0), (4, 0, 2), (4, 1, 2),
    ]  # fmt: skip
    assert not backend.encoded and not backend.begun
    told: list[Step] = []
    pipe(picture(frames=9), PROMPT, height=8, width=32, frames=33, mask_steps=2, progress=told.append)
    assert tuple(told) == run.steps


def test_clips_that_take_turns_are_what_each_is_alone(pipe: Pipeline) -> None:
    asked = [Clip(), Clip(frames=25, given=9, guidance=1.0), Clip(size=(8, 32), frames=9, mask_steps=4)]
    alone = [pipe(clip.image, PROMPT, seed=i, **clip.knobs).frames for i, clip in enumerate(asked)]
    runs = [pipe.start(clip.image, PROMPT, seed=i, **clip.knobs) for i, clip in enumerate(asked)]
    made: list[list[np.ndarray]] = [[] for _ in runs]
    while any(not run.finished for run in runs):
        for run, frames in zip(runs, made, strict=True):
            if not run.finished and (new := run.advance()) is not None:
                frames.append(new)
    for run, frames, expected in zip(runs, made, alone, strict=True):
        run.close()
        np.testing.assert_array_equal(np.concatenate(frames), expected)


def test_a_clip_that_is_closed_in_the_middle_leaves_the_others_alone(pipe: Pipeline) -> None:
    first, second = (pipe.start(picture(), PROMPT, seed=seed) for seed in (1, 2))
    for _ in range(3):
        first.advance(), second.advance()
    first.close()
    first.close()
    with pytest.raises(InputError, match="this clip is closed"):
        first.advance()
    rest = np.concatenate([np.concatenate(list(second))])
    np.testing.assert_array_equal(rest, pipe(picture(), PROMPT, seed=2).frames[1:])
    with pytest.raises(InputError, match="this clip is finished"):
        second.advance()


@pytest.mark.parametrize("ahead", [1, 3])
def test_the_head_may_take_its_diffusion_steps_in_several_calls(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    whole = pipe(picture(), PROMPT, head_steps=5).latents
    step = 8 * 2 * 3 * 128 * 4  # bytes of one step: eight modulations of three tokens in two branches, 128 wide
    monkeypatch.setattr(graphs, "MODULATION_BYTES", ahead * step)
    assert graphs.steps_ahead(pipe.config.head, 6, 5, 4) == ahead
    assert np.abs(pipe(picture(), PROMPT, head_steps=5).latents - whole).max() <= LATENT_TOLERANCE / 10


def test_a_closed_pipeline_says_so(tiny_artifacts: Path) -> None:
    with Pipeline.open(tiny_artifacts, threads=1, backend="ort-cpu") as pipe:
        pass
    pipe.close()
    with pytest.raises(InputError, match="this pipeline is closed"):
        pipe(picture(), PROMPT)


def test_a_picture_file_of_any_size_is_cropped_and_scaled(portable: Pipeline, tmp_path: Path) -> None:
    large = picture(50, 60)
    cv2.imwrite(str(tmp_path / "large.png"), large[..., ::-1])
    by_path = portable(tmp_path / "large.png", PROMPT)
    assert by_path.frames.shape == (17, 16, 24, 3)
    np.testing.assert_array_equal(by_path.frames, portable(large, PROMPT).frames)
    np.testing.assert_array_equal(by_path.frames, portable(str(tmp_path / "large.png"), PROMPT).frames)


def test_the_callers_picture_is_left_alone(portable: Pipeline) -> None:
    image = picture()
    image.flags.writeable = False
    portable(image, PROMPT)
    np.testing.assert_array_equal(image, picture())


LONG = "a red circle moves right a red circle moves"  # nine words, of which eight are read


def test_a_prompt_that_is_too_long_is_cut_with_a_note(portable: Pipeline) -> None:
    with pytest.warns(PromptCut, match="the prompt has 9 tokens, of which the model reads 8"):
        cut = portable.tokenizer(LONG)
    assert cut.tolist() == portable.tokenizer(LONG.removesuffix(" moves")).tolist()


def test_a_prompt_that_has_to_be_whole_is_refused_if_it_is_not(tiny_artifacts: Path) -> None:
    with Pipeline.open(tiny_artifacts, whole_prompt=True) as pipe:
        with pytest.raises(InputError, match="the prompt has 9 tokens, expected at most 8; shorten it"):
            pipe.embed(LONG)


# ---- what callers get wrong

MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"frames": 16}, r"frames is 16, expected 1 \+ 8k, such as 9; change --frames"),
    ({"frames": 1}, r"frames is 1, expected more than the 1 conditioning frames, such as 9; change --frames"),
    ({"frames": 0}, r"frames is 0, expected a whole number of at least 1"),
    ({"frames": 17.0}, r"frames is 17.0, expected a whole number"),
    ({"image": picture(frames=17)}, r"frames is 17, expected more than the 17 conditioning frames, such as 25"),
    ({"image": picture(frames=4)}, r"conditioning frames is 4, expected 1 \+ 8k, such as 1"),
    ({"image": picture(frames=25)}, r"frames is 17, expected more than the 25 conditioning frames"),
    ({"height": 20}, r"height is 20, expected a multiple of 8, such as (16|24); change --height"),
    ({"width": 3}, r"width is 3, expected a multiple of 8, such as 8; change --width"),
    ({"height": 0}, r"height is 0, expected a whole number of at least 1"),
    ({"mask_steps": 0}, r"mask steps is 0, expected a whole number of at least 1"),
    ({"mask_steps": 7}, r"mask steps is 7, expected 1 to 6 \(the tokens of one frame at this size\); lower"),
    ({"mask_steps": True}, r"mask steps is True, expected a whole number"),
    ({"head_steps": -1}, r"head steps is -1, expected a whole number of at least 1"),
    ({"head_steps": 21}, r"head steps is 21, expected 1 to 20; change --head-steps"),
    ({"guidance_scale": -0.5}, r"guidance scale is -0.5, expected 0 or more"),
    ({"guidance_scale": float("nan")}, r"guidance scale is nan, expected 0 or more"),
    ({"temperature": -1.0}, r"temperature is -1.0, expected 0 or more"),
    ({"frame": 17}, r"there is no option 'frame', did you mean frames\? there are: frames, height, width, mask_steps"),
    ({"frames": None}, r"frames is None, expected a whole number"),
    ({"frames": np.zeros((2, 3))}, r"frames is a ndarray, expected a whole number"),
    ({"guidance_scale": "3"}, r"guidance scale is '3', expected 0 or more"),
    ({"guidance_ramp": 1}, r"guidance ramp is 1, expected True or False"),
    ({"guidance_passes": 3}, r"guidance passes is 3, expected 1 or 2; change --guidance-passes"),
    ({"kv_window": 0}, r"K/V window is 0, expected at least 1 latent frame; change --kv-window"),
    ({"token_clip": 0.0}, r"token clip is 0.0, expected a positive bound, or None for none"),
    ({"prompt": None}, r"the prompt is a NoneType, expected a sentence"),
    ({"seed": None}, r"seed is None, expected a whole number"),
    ({"seed": -1}, r"seed is -1, expected a whole number, 0 to 2\^63 - 1"),
    ({"image": picture().astype(np.float32)}, r"float32 \[16, 24, 3\], expected uint8 \[height, width, 3\]"),
    ({"image": picture()[..., 0]}, r"uint8 \[16, 24\], expected uint8 \[height, width, 3\]"),
    ({"image": picture()[..., :2]}, r"uint8 \[16, 24, 2\], expected uint8"),
    ({"image": picture()[:0]}, r"uint8 \[0, 24, 3\], expected uint8"),
    ({"image": picture().tolist()}, r"int64 \[16, 24, 3\], expected uint8"),
    ({"image": "no/such/picture.png"}, r"no/such/picture.png cannot be read \(No such file or directory\)"),
    ({"prompt": ""}, r"the prompt is empty, expected a sentence"),
    ({"prompt": "  \n"}, r"the prompt is empty, expected a sentence"),
    ({"prompt": "..."}, r"the prompt holds no words, expected a sentence"),
    (
        {"prompt": "a red Elephant flies"},
        r"unknown words Elephant, flies; this model knows: a away blue bounces .* yellow",
    ),
]


@pytest.mark.parametrize("way", ["call", "stream", "start"])
@pytest.mark.parametrize(
    ("mistake", "match"), MISTAKES, ids=[f"{next(iter(m))}{i}" for i, (m, _) in enumerate(MISTAKES)]
)
def test_a_mistake_is_one_line_that_names_it_before_anything_runs(
    watched: tuple[Pipeline, Watched], mistake: dict[str, Any], match: str, way: str
) -> None:
    pipe, backend = watched
    arguments = {"image": picture(), "prompt": PROMPT} | mistake
    image, prompt = arguments.pop("image"), arguments.pop("prompt")
    with pytest.raises((InputError, ConfigError), match=match) as caught:
        if way == "call":
            pipe(image, prompt, **arguments)
        elif way == "stream":
            next(pipe.stream(image, prompt, **arguments))
        else:
            pipe.start(image, prompt, **arguments)
    assert isinstance(caught.value, UserError) and "\n" not in str(caught.value)
    assert not backend.encoded and not backend.begun


def test_case_and_punctuation_of_a_prompt_do_not_matter(portable: Pipeline) -> None:
    plain, fancy = (portable(picture(), prompt, seed=1).latents for prompt in (PROMPT, "A red CIRCLE, moves  right."))
    np.testing.assert_array_equal(plain, fancy)


def test_a_video_is_saved_at_the_models_frame_rate_unless_told_otherwise(pipe: Pipeline, tmp_path: Path) -> None:
    video = pipe(picture(16, 24), PROMPT, frames=9, mask_steps=1, head_steps=1)
    video.save(tmp_path / "own.mp4")
    video.save(tmp_path / "told.mp4", fps=30)
    for name, rate in (("own", pipe.config.sampling.fps), ("told", 30)):
        with av.open(str(tmp_path / f"{name}.mp4")) as container:
            assert container.streams.video[0].average_rate == rate
    assert pipe(picture(16, 24), PROMPT, frames=9, mask_steps=1, head_steps=1, fps=8.0).fps == 8


def test_fit_and_fps_that_cannot_be_are_refused(pipe: Pipeline) -> None:
    for wrong in (
        {"fit": "squash"},
        {"fit": None},
        {"fit": np.zeros(2)},
        {"fps": 0},
        {"fps": float("nan")},
        {"fps": "fast"},
    ):
        with pytest.raises(ConfigError, match=r"(fit|fps).*expected"):
            pipe.config.sampling.but(**wrong)
