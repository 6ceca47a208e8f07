"""What is kept how long, what a directory belongs to, and what a server is told at its start."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy", reason="needs the extra `serve`: pip install 'videomar[serve]'")

import numpy as np

from videomar.errors import InputError
from videomar.serving.jobs import Job, new_id
from videomar.serving.keeping.housekeeping import Housekeeping
from videomar.serving.keeping.place import CLIP, Place
from videomar.serving.keeping.store import Store
from videomar.serving.settings import Settings, read_keys


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def kept(place: Place, store: Store, size: int, ended: bool = True) -> str:
    job = store.add(Job(new_id(), "a", "a ball", "{}", 0, 24.0, 9, 16, 16, 4, 1, "tiny", 0.0))
    place.file(job.id, CLIP).parent.mkdir()
    place.file(job.id, CLIP).write_bytes(bytes(size))
    if ended:
        store.claim("w", 10, lambda waiting, busy: next(j for j in waiting if j.id == job.id))
        store.complete("w", job.id)
    return job.id


def test_a_clip_goes_once_it_is_older_than_clips_are_kept_and_one_that_waits_never(tmp_path: Path) -> None:
    clock = Clock()
    place = Place(tmp_path)
    store = Store(place.database, clock)
    old, waits = kept(place, store, 10), kept(place, store, 10, ended=False)
    clock.now += 50
    young = kept(place, store, 10)
    clock.now += 60
    assert Housekeeping(store, place, 100.0, None, clock).tidy() == [old]
    assert store.known() == place.ids() == {waits, young}
    assert Housekeeping(store, place, None, None, clock).tidy() == []


def test_the_oldest_go_until_the_disk_suffices(tmp_path: Path) -> None:
    clock, place = Clock(), Place(tmp_path)
    store = Store(place.database, clock)
    ids = []
    for _ in range(4):
        ids.append(kept(place, store, 100))
        clock.now += 1
    keeping = Housekeeping(store, place, None, 250, clock)
    assert not keeping.full()
    assert store.known() == place.ids() == set(ids[2:])
    kept(place, store, 300, ended=False)
    assert keeping.full()


def test_files_of_no_job_are_swept(tmp_path: Path) -> None:
    place = Place(tmp_path)
    store = Store(place.database)
    mine = kept(place, store, 1)
    place.put_given(new_id(), np.zeros((1, 2, 2, 3), np.uint8))
    Housekeeping(store, place, None, None).sweep()
    assert place.ids() == {mine}


def test_a_directory_has_one_server_and_a_file_no_name_but_an_id(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.lock()
    with pytest.raises(InputError, match="another server's"):
        Place(tmp_path).lock()
    place.unlock()
    one, two = Place(tmp_path), Place(tmp_path)
    one.lock(shared=True), two.lock(shared=True)
    with pytest.raises(InputError, match="--database"):
        Place(tmp_path).lock()
    one.unlock(), two.unlock()
    for id in ("../../etc/passwd", "video_x", "", new_id() + "/..", new_id() + "\n"):
        with pytest.raises(ValueError):
            place.file(id, CLIP)


def test_ids_are_long_and_never_alike() -> None:
    assert len({new_id() for _ in range(1000)}) == 1000 and len(new_id()) >= 40


def test_an_open_address_without_a_key_is_refused_unless_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--api-key-file"):
        Settings(tmp_path, host="0.0.0.0")
    Settings(tmp_path, host="0.0.0.0", open_to_all=True)
    Settings(tmp_path, host="0.0.0.0", keys=("k" * 16,))


def test_keys_are_lines_and_short_ones_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\n" + "a" * 20 + "\n\n" + "b" * 20 + "\n")
    assert read_keys(file) == ("a" * 20, "b" * 20)
    for text in ("", "# none\n", "short\n", "has a space in the middle\n"):
        file.write_text(text)
        with pytest.raises(InputError):
            read_keys(file)
    with pytest.raises(InputError, match="cannot be read"):
        read_keys(tmp_path / "nowhere")
