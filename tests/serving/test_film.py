"""A film grows by whole fragments, each to be seen at once; the same frames give the same bytes."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy", reason="needs the extra `serve`: pip install 'videomar[serve]'")

import av
import numpy as np

from videomar.runtime.recording import load_clip
from videomar.serving.making.film import Film, boxes, content_type, finish


def parts(height: int = 32, width: int = 48) -> list[np.ndarray]:
    """Frames of a square that moves: 1, 8 and 8 of them."""
    clip = np.full((17, height, width, 3), 40, np.uint8)
    for t, frame in enumerate(clip):
        frame[8:20, t : t + 12] = (200, 60, 30)
    return [clip[:1], clip[1:9], clip[9:]]


def seen(data: bytes) -> list[float]:
    with av.open(io.BytesIO(data)) as container:
        return [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]


@pytest.mark.parametrize("fps", [24.0, 7.5, 29.97])
def test_all_frames_given_so_far_can_be_seen_after_every_fragment(fps: float) -> None:
    film, data, count = Film(48, 32, fps), b"", 0
    for frames in parts():
        data += film.add(frames)
        count += len(frames)
        assert seen(data) == pytest.approx([i / fps for i in range(count)], abs=2e-3)


def test_a_film_is_one_header_and_then_fragments_numbered_in_order() -> None:
    film = Film(48, 32, 24.0)
    data = b"".join(film.add(frames) for frames in parts())
    names = [name for name, _ in boxes(data)]
    assert names == [b"ftyp", b"moov", *[b"moof", b"mdat"] * 3]
    numbers = [int.from_bytes(box[box.index(b"mfhd") + 8 :][:4], "big") for name, box in boxes(data) if name == b"moof"]
    assert numbers == [1, 2, 3]


def test_the_same_frames_give_the_same_bytes() -> None:
    one, two = Film(48, 32, 24.0), Film(48, 32, 24.0)
    for frames in parts():
        assert one.add(frames) == two.add(frames)


def test_the_codec_is_named_as_the_header_has_it_before_anything_is_encoded() -> None:
    data = Film(48, 32, 24.0).add(parts()[0])
    at = data.index(b"avcC") + 5
    assert content_type(48, 32, 24.0) == f'video/mp4; codecs="avc1.{data[at : at + 3].hex()}"'


def test_the_finished_clip_has_the_same_pictures_with_its_index_in_front(tmp_path: Path) -> None:
    film = Film(48, 32, 24.0)
    (tmp_path / "stream.mp4").write_bytes(b"".join(film.add(frames) for frames in parts()))
    finish(tmp_path / "stream.mp4", tmp_path / "clip.mp4")
    assert [name for name, _ in boxes((tmp_path / "clip.mp4").read_bytes())][:2] == [b"ftyp", b"moov"]
    clip = load_clip(tmp_path / "clip.mp4")
    assert np.array_equal(clip, load_clip(tmp_path / "stream.mp4"))
    assert np.abs(clip.astype(int) - np.concatenate(parts()).astype(int)).mean() < 3
    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert container.duration == pytest.approx(17 / 24 * 1e6, rel=1e-3)


def test_sizes_that_are_odd_grow_by_an_edge() -> None:
    data = Film(47, 31, 24.0).add(parts(31, 47)[1])
    with av.open(io.BytesIO(data)) as container:
        assert (container.streams.video[0].width, container.streams.video[0].height) == (48, 32)
