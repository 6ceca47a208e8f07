"""Frames become the clip's size as torch's antialiased bilinear makes them, cropped or stretched."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from videomar.runtime.resize import fit


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def flat(*colors: tuple[int, int, int], height: int, width: int) -> np.ndarray:
    return np.stack([np.full((height, width, 3), color, np.uint8) for color in colors])


def torchs(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """What torchvision's Resize(antialias=True) does: [t, h, w, 3] uint8 -> float64 levels, not rounded."""
    planes = torch.from_numpy(frames).permute(0, 3, 1, 2).double()
    # PyTorch 2.13 does not scale a single column, such as [1, 3, 2, 1] to (3, 1), unless the colours lie last.
    planes = planes.contiguous(memory_format=torch.channels_last)
    return interpolate(planes, (height, width), mode="bilinear", antialias=True).permute(0, 2, 3, 1).numpy()


@settings(deadline=None, max_examples=200)
@given(*[st.integers(1, 60)] * 4, st.integers(0, 9))
@example(2, 1, 3, 1, 0)
def test_stretching_is_torchs_bilinear_with_antialias(h: int, w: int, height: int, width: int, seed: int) -> None:
    frames = noise(2, h, w, seed=seed)
    assert np.abs(fit(frames, height, width, "stretch") - torchs(frames, height, width)).max() <= 0.501


@pytest.mark.parametrize("size", [(720, 1280), (1080, 1920), (300, 200), (480, 900)])
def test_pictures_that_people_have_are_within_a_level_of_torchvisions_integers(size: tuple[int, int]) -> None:
    coarse = torch.rand((1, 3, 9, 9), generator=torch.Generator().manual_seed(0))
    picture = (interpolate(coarse, size, mode="bicubic").clamp(0, 1) * 255).byte()
    frame = picture[0].permute(1, 2, 0).numpy()
    for target in ((480, 768), (256, 256)):
        theirs = interpolate(picture, target, mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()
        assert np.abs(fit(frame, *target, "stretch").astype(int) - theirs).max() <= 1


@settings(deadline=None)
@given(*[st.integers(1, 40)] * 4, st.booleans(), st.sampled_from(["crop", "stretch"]))
def test_fit_gives_the_size_asked_for_and_invents_no_color(
    h: int, w: int, height: int, width: int, clip: bool, how: str
) -> None:
    frames = flat((10, 200, 90), (250, 0, 3), height=h, width=w)
    fitted = fit(frames if clip else frames[0], height, width, how)
    expected = flat((10, 200, 90), (250, 0, 3), height=height, width=width)
    np.testing.assert_array_equal(fitted, expected if clip else expected[0])


def test_frames_of_the_right_size_are_left_untouched() -> None:
    frames = noise(2, 8, 12)
    assert fit(frames, 8, 12) is frames and fit(frames, 8, 12, "stretch") is frames


def test_a_crop_is_the_centre() -> None:
    picture = noise(8, 12)
    np.testing.assert_array_equal(fit(picture, 8, 8), picture[:, 2:10])
    np.testing.assert_array_equal(fit(picture, 4, 12), picture[2:6])


def test_a_crop_is_the_middle_of_the_whole_picture_resized_but_for_its_outermost_pixels() -> None:
    frames = noise(3, 60, 128)  # 60 -> 24 rows is 128 -> 51.2 columns: at whole numbers both orders are one
    whole = torchs(frames[:, :, 4:124], 24, 48)
    inside = fit(frames[:, :, 4:124], 24, 36)  # 120 columns to 48, of which the middle 36
    assert np.abs(inside[:, :, 1:-1] - whole[:, :, 7:-7]).max() <= 0.501  # the crop's own edge has no neighbours


def test_a_stretch_keeps_what_a_crop_cuts_off() -> None:
    picture = np.zeros((16, 48, 3), np.uint8)
    picture[:, :16] = 255
    assert fit(picture, 16, 16).max() == 0
    assert np.array_equal(
        fit(picture, 16, 16, "stretch")[:, :, 0] > 127, np.arange(16) < 16 / 3 - 0.5 + np.zeros((16, 1))
    )


def test_arrays_of_another_kind_and_unknown_words_are_our_bug() -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        fit(np.zeros((4, 4), np.uint8), 2, 2)
    with pytest.raises(ValueError, match="'squash'"):
        fit(noise(4, 4), 2, 2, "squash")
