"""Artifact directories: whole or not there, and every deviation named on load."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videomar import artifacts
from videomar.artifacts import (
    FileEntry,
    Manifest,
    atomic_write,
    hash_files,
    read_manifest,
    together,
    up_to_date,
    verify,
    write_directory,
    write_manifest,
)
from videomar.config import DEMO, VIDEOMAR_1_4B
from videomar.errors import ArtifactError

INPUTS = {"transformer.safetensors": "ab" * 32, "precision": "fp32"}


def manifest(**changes: Any) -> Manifest:
    base = Manifest(kind="onnx", precision="fp32", emitter="portable", opset=18, config=DEMO, inputs=INPUTS)
    return dataclasses.replace(base, made_by={"videomar": "0.1.0"}, **changes)


def make(target: Path, content: bytes = b"weights" * 100, **options: Any) -> Manifest:
    with write_directory(target, **options) as directory:
        (directory / "step.onnx").write_bytes(content)
        (directory / "step.onnx.data").write_bytes(content[::-1])
        return write_manifest(directory, manifest())


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    make(tmp_path / "demo-fp32")
    return tmp_path / "demo-fp32"


def edit(directory: Path, **changes: Any) -> None:
    path = directory / "manifest.json"
    data = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not ...}))


# ---- reading and verifying


def test_what_was_written_reads_back_and_verifies(demo: Path) -> None:
    read = read_manifest(demo)
    verify(demo, read)
    assert list(read.files) == ["step.onnx", "step.onnx.data"] and read.files["step.onnx"].size == 700
    assert read.config == DEMO and read.inputs == INPUTS and read.format == artifacts.FORMAT
    assert sorted(p.name for p in demo.parent.iterdir()) == ["demo-fp32"]
    assert demo.stat().st_mode & 0o777 == 0o777 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


few = settings(max_examples=30, deadline=None)
words = st.text("abcxyz._-", min_size=1, max_size=8).filter(lambda s: s.strip("."))
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@few
@given(
    kind=st.sampled_from(artifacts.CHOICES["kind"]),
    precision=st.sampled_from(artifacts.CHOICES["precision"]),
    emitter=st.sampled_from(artifacts.CHOICES["emitter"]),
    opset=st.integers(1, 99),
    config=st.sampled_from([DEMO, VIDEOMAR_1_4B]),
    inputs=st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3),
    checks=st.dictionaries(st.text(max_size=8), plain, max_size=3),
    extra=st.dictionaries(st.text(max_size=8), plain, max_size=3),
    files=st.dictionaries(
        st.lists(words, min_size=1, max_size=3).map("/".join),
        st.builds(FileEntry, st.integers(0, 2**40), st.text("0123456789abcdef", min_size=64, max_size=64)),
        max_size=3,
    ),
)
def test_json_round_trip_keeps_everything(**fields: Any) -> None:
    before = Manifest(**fields)
    assert Manifest.from_json(before.to_json()) == before


def test_numpy_numbers_in_checks_become_plain_ones() -> None:
    after = Manifest.from_json(manifest(checks={"error": np.float32(0.5), "steps": np.int64(3)}).to_json())
    assert after.checks == {"error": 0.5, "steps": 3}


@few
@given(st.binary(max_size=200) | plain.map(lambda value: json.dumps(value).encode()))
def test_no_bytes_raise_anything_but_artifact_error(data: bytes) -> None:
    with pytest.raises(ArtifactError):
        Manifest.from_json(data)


@few
@given(st.data())
def test_any_manifest_value_of_another_type_is_one_artifact_error(data: st.DataObject) -> None:
    tree = json.loads(manifest(files={"a.onnx": FileEntry(1, "00")}).to_json())
    at = tree
    while True:
        key = data.draw(st.sampled_from(sorted(at)))
        if not (isinstance(at[key], dict) and at[key] and data.draw(st.booleans())):
            break
        at = at[key]
    at[key] = data.draw(plain)
    try:
        Manifest.from_json(json.dumps(tree))
    except ArtifactError as error:
        assert "\n" not in str(error)


def test_one_altered_byte_is_found_by_hash_and_named(demo: Path) -> None:
    data = bytearray((demo / "step.onnx").read_bytes())
    data[350] ^= 1
    (demo / "step.onnx").write_bytes(data)
    with pytest.raises(ArtifactError, match=r"step\.onnx was altered.*expected.*videomar export CHECKPOINT -o"):
        verify(demo, read_manifest(demo))
    verify(demo, read_manifest(demo), hashes=False)
    verify(demo, read_manifest(demo), names=["step.onnx.data"])


@pytest.mark.parametrize("hashes", [True, False])
def test_truncated_file_is_named_with_both_sizes(demo: Path, hashes: bool) -> None:
    os.truncate(demo / "step.onnx.data", 17)
    with pytest.raises(ArtifactError, match=r"step\.onnx\.data has 17 bytes, expected 700"):
        verify(demo, read_manifest(demo), hashes=hashes)


def test_missing_file_is_named(demo: Path) -> None:
    (demo / "step.onnx").unlink()
    with pytest.raises(ArtifactError, match=r"step\.onnx is missing"):
        verify(demo, read_manifest(demo), hashes=False)


def test_a_directory_in_place_of_a_file_is_refused(demo: Path) -> None:
    (demo / "step.onnx").unlink()
    (demo / "step.onnx").mkdir()
    with pytest.raises(ArtifactError, match=r"step\.onnx"):
        verify(demo, read_manifest(demo))


def test_a_wanted_file_the_manifest_does_not_list_is_named(demo: Path) -> None:
    with pytest.raises(ArtifactError, match=r"lists no head\.onnx"):
        verify(demo, read_manifest(demo), names=["head.onnx"])


def test_unlisted_extra_files_are_ignored(demo: Path) -> None:
    (demo / "notes.txt").write_text("mine")
    verify(demo, read_manifest(demo))
    assert up_to_date(demo, INPUTS)


@pytest.mark.parametrize(
    ("changes", "command"),
    [({"kind": "engine"}, "build ONNX_DIR"), ({"precision": "int8"}, "calibrate ONNX_DIR"), ({}, "export CHECKPOINT")],
)
def test_the_mend_is_the_command_of_the_stage_that_wrote_it(tmp_path: Path, changes: Any, command: str) -> None:
    broken = manifest(files={"a.onnx": FileEntry(1, "00")}, **changes)
    with pytest.raises(ArtifactError, match=f"videomar {command} -o '{tmp_path}/two words'"):
        verify(tmp_path / "two words", broken)


def test_no_directory_a_file_and_no_manifest_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    mend = "run `videomar export CHECKPOINT -o "
    for name, message in [("none", "does not exist"), ("file", "is a file"), ("empty", r"has no manifest\.json")]:
        with pytest.raises(ArtifactError, match=rf"{name} {message}.*{mend}"):
            read_manifest(tmp_path / name)


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe", b"{not json", b"[]", b"null", b"[" * 100_000, None])
def test_a_damaged_manifest_is_one_line(demo: Path, damage: bytes | None) -> None:
    path = demo / "manifest.json"
    path.write_bytes(path.read_bytes()[:-200] if damage is None else damage)
    with pytest.raises(ArtifactError, match=r"manifest\.json: .*videomar export") as caught:
        read_manifest(demo)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_another_format_version_says_which_and_whose(demo: Path) -> None:
    edit(demo, format=1, made_by={"videomar": "9.9"}, files=..., surprise=1)
    with pytest.raises(ArtifactError, match=r"format 1 by videomar 9\.9, expected format 3; export again"):
        read_manifest(demo)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"opset": ...}, "lacks the key 'opset'"),
        ({"colour": 1}, "unknown key 'colour'"),
        ({"opset": "18"}, "'opset' is '18', expected a whole number"),
        ({"opset": True}, "'opset' is True"),
        ({"precision": "fp8"}, "'precision' is 'fp8', expected one of fp32, fp16, int8"),
        ({"inputs": {"a": 1}}, "'inputs.a' is 1, expected a string"),
        ({"files": {"a.onnx": {"size": 1}}}, "'files.a.onnx.sha256'"),
        ({"files": {"a.onnx": 7}}, "files.a.onnx is 7, expected an object"),
        ({"config": {"name": "x"}}, "key 'config'"),
    ],
)
def test_a_wrong_key_is_named(demo: Path, changes: Any, message: str) -> None:
    edit(demo, **changes)
    with pytest.raises(ArtifactError, match=message):
        read_manifest(demo)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "..", "", ".", "C:\\x", "C:x", "a\\..\\..\\x"])
def test_a_path_out_of_the_directory_is_refused(demo: Path, name: str) -> None:
    edit(demo, files={name: {"size": 0, "sha256": "00"}})
    with pytest.raises(ArtifactError, match="expected a path inside the directory"):
        read_manifest(demo)


# ---- up to date


def test_same_inputs_are_up_to_date_until_anything_changes(demo: Path) -> None:
    assert up_to_date(demo, dict(INPUTS))
    assert not up_to_date(demo, INPUTS | {"precision": "fp16"})
    assert not up_to_date(demo.parent / "other", INPUTS)
    (demo / "step.onnx").write_bytes(b"weightz" * 100)
    assert not up_to_date(demo, INPUTS)


def test_hash_files_names_each_file_and_the_one_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    expected = {"a": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}
    assert hash_files([tmp_path / "a"]) == expected
    with pytest.raises(ArtifactError, match="b is missing"):
        hash_files([tmp_path / "b"])
    with pytest.raises(ValueError, match="two inputs"):
        hash_files([tmp_path / "a", tmp_path / "a"])


# ---- writing


@pytest.mark.parametrize("exception", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_interrupted_writer_leaves_nothing(tmp_path: Path, exception: type[BaseException]) -> None:
    with pytest.raises(exception), write_directory(tmp_path / "demo") as directory:
        (directory / "step.onnx").write_bytes(b"half")
        raise exception
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_writer_leaves_the_old_artifact_whole(demo: Path) -> None:
    with pytest.raises(ValueError), write_directory(demo) as directory:
        (directory / "step.onnx").write_bytes(b"half")
        raise ValueError
    assert up_to_date(demo, INPUTS) and len(list(demo.parent.iterdir())) == 1


def test_a_directory_without_manifest_is_never_published(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="write_manifest"), write_directory(tmp_path / "demo") as directory:
        (directory / "step.onnx").write_bytes(b"x")
    assert list(tmp_path.iterdir()) == []


WRITER = """
import sys, time
from pathlib import Path
from videomar.artifacts import write_directory
with write_directory(Path(sys.argv[1])) as directory:
    (directory / "step.onnx").write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", WRITER, tmp_path / "demo"], stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "writing\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_writer_leaves_nothing_that_loads_and_the_next_cleans_up(
    tmp_path: Path, writer: subprocess.Popen[str], number: signal.Signals
) -> None:
    writer.send_signal(number)
    writer.wait()
    (leftover,) = tmp_path.iterdir()
    assert leftover.name.startswith(f".demo.{writer.pid}-")
    for directory in (tmp_path / "demo", leftover):
        with pytest.raises(ArtifactError):
            read_manifest(directory)
    make(tmp_path / "demo")
    assert [p.name for p in tmp_path.iterdir()] == ["demo"]


def test_a_living_writer_and_strangers_are_left_alone(tmp_path: Path, writer: subprocess.Popen[str]) -> None:
    strangers = [tmp_path / name for name in (".demo", ".demo.tmp", ".demo-x.1-00000000.tmp", ".demo.x-00000000.tmp")]
    for path in strangers:
        path.mkdir()
    make(tmp_path / "demo")
    rest = set(tmp_path.iterdir()) - set(strangers) - {tmp_path / "demo"}
    assert len(rest) == 1 and (rest.pop() / "step.onnx").read_bytes() == b"half"
    assert all(path.exists() for path in strangers)


def test_a_leftover_of_our_own_pid_is_cleaned_up(tmp_path: Path) -> None:
    (tmp_path / f".demo.{os.getpid()}-0123abcd.tmp").mkdir()  # in a container every run may have pid 1
    make(tmp_path / "demo")
    assert [p.name for p in tmp_path.iterdir()] == ["demo"]


@pytest.mark.parametrize("exchange", [True, False])
def test_an_artifact_is_replaced_whole(demo: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:
        monkeypatch.setattr(artifacts.ctypes, "CDLL", lambda name: object())
    (demo / "old.txt").write_text("x")
    make(demo, b"new" * 10)
    assert sorted(p.name for p in demo.iterdir()) == ["manifest.json", "step.onnx", "step.onnx.data"]
    assert len(list(demo.parent.iterdir())) == 1
    verify(demo, read_manifest(demo))


def test_an_artifact_with_a_truncated_manifest_can_be_made_again(demo: Path) -> None:
    os.truncate(demo / "manifest.json", 40)
    make(demo)
    assert up_to_date(demo, INPUTS)


@pytest.mark.parametrize("foreign", ["thesis.tex", "manifest.json"])
def test_a_foreign_directory_is_refused_untouched_unless_forced(tmp_path: Path, foreign: str) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / foreign).write_text('{"name": "my browser extension"}')
    with pytest.raises(ArtifactError, match=r"mine holds files but no videomar manifest.*left alone.*-o"):
        make(mine)
    assert [p.name for p in mine.iterdir()] == [foreign] and len(list(tmp_path.iterdir())) == 1
    make(mine, force=True)
    assert up_to_date(mine, INPUTS)


def test_force_replaces_neither_a_file_nor_where_the_user_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="file is a file or a whole disk"):
        make(tmp_path / "file", force=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match="never replaced"):
        make(Path("."), force=True)
    with pytest.raises(ArtifactError, match="whole disk"):
        make(Path("/"), force=True)
    assert (tmp_path / "file").read_text() == "x"


def test_an_empty_directory_missing_parents_and_a_link_are_fine(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("real")
    for name in ("empty", "a/b/c", "link", "link"):
        make(tmp_path / name)
        assert up_to_date(tmp_path / name, INPUTS)
    assert (tmp_path / "link").is_symlink() and not (tmp_path / "real").is_symlink()


def test_a_read_only_place_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ArtifactError, match=r"demo cannot be written \(Read-only file system\).*-o"):
        make(tmp_path / "demo")
    assert list(tmp_path.iterdir()) == []


def test_a_parent_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="cannot be written"):
        make(tmp_path / "file" / "a" / "demo")


def test_a_full_disk_is_one_line_and_leaves_the_old_artifact(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ArtifactError, match=r"No space left on device, [\d.]+ MB free\), expected room.*free some"):
            make(demo, b"other")
        with pytest.raises(ArtifactError, match="No space left"):
            atomic_write(demo / "step.onnx", b"other")
    assert up_to_date(demo, INPUTS) and len(list(demo.parent.iterdir())) == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_really_full_keeps_the_old_artifact(small_disk: Path) -> None:
    make(small_disk / "demo")
    with pytest.raises(ArtifactError, match=r"demo cannot be written \(No space left on device") as caught:
        make(small_disk / "demo", bytes(400_000))
    assert "\n" not in str(caught.value)
    assert up_to_date(small_disk / "demo", INPUTS) and len(list(small_disk.iterdir())) == 1


def test_a_disk_that_is_really_read_only_is_one_line(small_disk: Path) -> None:
    make(small_disk / "demo")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for place in ("demo", "new", "a/b/c"):
        with pytest.raises(ArtifactError, match="Read-only file system"):
            make(small_disk / place)
    with pytest.raises(ArtifactError, match="Read-only file system"):
        atomic_write(small_disk / "file", "text")
    assert up_to_date(small_disk / "demo", INPUTS)


def test_an_error_that_names_an_input_is_not_blamed_on_the_output(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), write_directory(tmp_path / "demo"):
        (tmp_path / "checkpoint").read_bytes()
    assert list(tmp_path.iterdir()) == []


# ---- single files


@few
@given(st.binary(max_size=50) | st.text(max_size=50))
def test_atomic_write_writes_exactly_that(tmp_path_factory: pytest.TempPathFactory, data: bytes | str) -> None:
    path = tmp_path_factory.getbasetemp() / "atomic"
    atomic_write(path, data)
    assert path.read_bytes() == (data.encode() if isinstance(data, str) else data)


def test_atomic_write_keeps_the_old_file_when_replacing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atomic_write(tmp_path / "file", "old")

    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(source))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(ArtifactError, match=r"file cannot be written \(Permission denied\)"):
        atomic_write(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("fails", [0, 1, 2, None])
def test_files_that_belong_together_are_replaced_together_or_not_at_all(
    fails: int | None, links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {"a": "old a", "c": "old c", "other": "stays"}
    for name, text in before.items():
        (tmp_path / name).write_text(text)
    real, calls = os.replace, list[str]()

    def replace(source: Path, target: Path) -> None:
        if ".tmp" in str(source) and "kept" not in str(source):
            calls.append(Path(target).name)
            if len(calls) - 1 == fails:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(source, target)

    def link(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "replace", replace)
    if not links:
        monkeypatch.setattr(os, "link", link)
    made = pytest.raises(ArtifactError) if fails is not None else nullcontext()
    with made, together(tmp_path) as place:
        for name in ("a", "b", "c"):
            (place / name).write_text(f"new {name}")
    after = before if fails is not None else {"a": "new a", "b": "new b", "c": "new c", "other": "stays"}
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == after


def test_atomic_write_into_no_directory_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="No such file or directory"):
        atomic_write(tmp_path / "none" / "file", "x")
