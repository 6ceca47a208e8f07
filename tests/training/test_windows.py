from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from videomar.errors import InputError
from videomar.training.recipe import Stage
from videomar.training.windows import Windows, held_out

STAGE = Stage(9, 32, 48, steps=1)
Make = Callable[[np.ndarray], np.ndarray]


@pytest.fixture
def clips(films: Path, tmp_path: Path) -> Path:
    """The three cheapest of the films."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for name in ("a.mp4", "b.avi", "d.mov"):
        shutil.copy(films / name, folder)
    return folder


NAMES = ["a.mp4", "b.avi", "d.mov"]


def windows(clips: Path, tmp_path: Path, make: Make = lambda window: window, fps: float = 24.0) -> Windows:
    return Windows(clips, tmp_path / "cache", fps, "crop", "pixels", make)


def joined(found: Windows, names: list[str] = NAMES, stage: Stage = STAGE) -> dict[str, np.ndarray]:
    shown, kept = found.read(names, stage)
    assert shown and kept and not set(shown) & set(kept)
    return {**shown, **kept}


@given(st.sets(st.text(min_size=1), min_size=2, max_size=40), st.text(min_size=1), st.floats(0, 1))
def test_the_same_clips_are_held_out_whatever_is_added(names: set[str], other: str, share: float) -> None:
    kept = held_out(sorted(names), share)
    assert kept == held_out(sorted(names, reverse=True), share)
    assert 0 < len(kept) < len(names) and kept <= names
    now = held_out(sorted(names | {other}), share)
    assert len(kept ^ now) <= 2, "one clip more: it, and perhaps the one that stood in for the least or the last"


def test_a_tenth_is_held_out() -> None:
    names = [f"{i}.mp4" for i in range(2000)]
    kept = held_out(names)
    assert 160 < len(kept) < 240
    lowest = min(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    assert lowest in kept


def test_windows_lie_back_to_back_at_the_models_rate(clips: Path, tmp_path: Path) -> None:
    """1.5 s are 36 frames of 24 a second and 18 of 12, whatever the file's own rate: 4 and 2 windows of 9."""
    for fps, count in ((24.0, 4), (12.0, 2)):
        found = windows(clips, tmp_path, fps=fps)
        found.fill(NAMES, STAGE)
        assert {name: array.shape for name, array in joined(found).items()} == {
            name: (count, 9, 32, 48, 3) for name in NAMES
        }


def test_a_window_holds_the_frames_that_the_file_shows(clips: Path, tmp_path: Path) -> None:
    found = windows(clips, tmp_path)
    stage = Stage(9, 64, 64, steps=1)
    found.fill(["a.mp4", "b.avi"], stage)
    with av.open(str(clips / "a.mp4")) as container:  # 24 frames a second of 64x64: nothing to resample
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    got = joined(found, ["a.mp4", "b.avi"], stage)["a.mp4"]
    off = np.abs(got.reshape(-1, 64, 64, 3).astype(int) - frames[: 9 * len(got)])
    assert off.max() <= 4, "another conversion to RGB, of the same frames"
    assert np.abs(np.diff(frames.astype(int), axis=0)).max(axis=(1, 2, 3)).max() > 40, "the next frame looks different"


def test_what_was_made_is_not_made_again_and_what_changed_is(clips: Path, tmp_path: Path) -> None:
    made: list[np.ndarray] = []

    def make(window: np.ndarray) -> np.ndarray:
        made.append(window)
        return window.mean(axis=(1, 2, 3))

    found = windows(clips, tmp_path, make)
    found.fill(NAMES, STAGE)
    first, count = joined(found), len(made)
    assert count == 12
    found.fill(NAMES, STAGE)
    assert len(made) == count
    shutil.copy(clips / "b.avi", clips / "a.mp4")  # another clip under this name
    found.fill(NAMES, STAGE)
    assert len(made) == count + 4
    now = {name: np.array(array) for name, array in joined(found).items()}
    assert np.array_equal(now["a.mp4"], first["b.avi"]) and np.array_equal(now["d.mov"], first["d.mov"])
    damaged = sorted((tmp_path / "cache").rglob("*.npy"))[0]
    damaged.write_bytes(damaged.read_bytes()[:-4] + b"junk")
    found.fill(NAMES, STAGE)
    assert len(made) == count + 8, "a file that is not what was written is made again"
    assert all(np.array_equal(array, now[name]) for name, array in joined(found).items())


def test_an_interrupted_cache_is_gone_on_with(clips: Path, tmp_path: Path) -> None:
    seen: list[bytes] = []

    def make(window: np.ndarray) -> np.ndarray:
        if len(seen) == 6:
            seen.append(b"")
            raise KeyboardInterrupt
        seen.append(window.tobytes())
        return window

    found = windows(clips, tmp_path, make)
    with pytest.raises(KeyboardInterrupt):
        found.fill(NAMES, STAGE)
    assert not [path for path in (tmp_path / "cache").rglob("*") if "tmp" in path.name], "nothing half-made is left"
    found.fill(NAMES, STAGE)
    assert len(seen) == 4 + 3 + 4 + 4, "the first clip stays, the second is begun anew"
    assert all(len(array) == 4 for array in joined(found).values())


def test_a_manifest_that_is_no_manifest_is_made_again(clips: Path, tmp_path: Path) -> None:
    found = windows(clips, tmp_path)
    found.fill(NAMES, STAGE)
    (manifest,) = (tmp_path / "cache").rglob("manifest.json")
    for text in ("", "[]", '{"a.mp4": 3}'):
        manifest.write_text(text)
        found.fill(NAMES, STAGE)
        assert set(joined(found)) == set(NAMES)


def test_clips_that_are_too_short_are_left_out_and_said(
    clips: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = windows(clips, tmp_path)
    long = Stage(41, 32, 48, steps=1)
    found.fill(NAMES, long)
    assert "3 of 3 clips are shorter than 41 frames" in caplog.text
    with pytest.raises(InputError, match=r"0 clips .* hold 41 frames .* stages of fewer frames"):
        found.read(NAMES, long)
