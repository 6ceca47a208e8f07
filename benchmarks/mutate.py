"""Damaged files: does each end in one line of text, soon and in little memory?

    python benchmarks/mutate.py [--artifacts out/demo-fp32] [--checkpoint models/demo] [--cases 1000] [--json FILE]

Every kind of file that a command reads is damaged anew in each case: a value of another type or size, a key dropped or
renamed, an array of another shape, a byte turned, a file cut. Then the code of the commands reads it. Right is to
succeed or to raise a UserError; anything else, more than TIME seconds or more than MEMORY bytes is a fault, and a
library's own code that ends this process. Where a manifest holds hashes they are made to fit, or nothing behind them
would ever be tried.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import hashlib
import io
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from videomar.artifacts import MANIFEST, read_manifest
from videomar.calibration.ranges import Ranges, Seen
from videomar.checkpoint import read_config
from videomar.errors import UserError
from videomar.export.islands import read_islands
from videomar.export.sources import BuildOptions, open_source
from videomar.fingerprint import Machine, check_fingerprint
from videomar.graphs import contract
from videomar.inspect import describe
from videomar.onnx_interface import read_interface
from videomar.parity.packs.pack import Pack
from videomar.parity.reporting.extras import extra_charts, read_extra
from videomar.plan.devices import device
from videomar.plan.report import make_report
from videomar.plan.request import Request
from videomar.runtime.backends.choose import engine_flavour
from videomar.runtime.embedding import PromptEmbedding
from videomar.runtime.media import load_picture, write_picture, write_video
from videomar.runtime.pipeline import Pipeline
from videomar.runtime.prompt import PromptTokenizer
from videomar.runtime.recording import Recording
from videomar.steps import ClipSteps

TIME, MEMORY = 20, 512 << 20  # seconds and bytes that one case may take
FPS = 12
PROMPT = "a red circle moves right"
HERE = Machine("TensorRT", "10.3.0", "12.6", "Orin", "87")
Rng = np.random.Generator
Read = Callable[[Path], object]
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 2**31, -(2**31), 2**63, 10**9, 1_000_000, 10**400),
    *(0.0, -1.0, 0.5, 1e308, float("nan"), float("inf"), "", "x", "1", "a" * 5000, "\ud800", "\0", "../x"),
    *([], [1], [[]], {}, {"x": 1}, [10**9] * 3, [-1, 0], ["x"]),
)


@dataclass(frozen=True)
class Kind:
    """One kind of file: where it lies in the folder, and what reads it."""

    file: str
    read: Read
    rehash: bool = False  # the manifest beside it lists its hash


@dataclass
class Outcome:
    """What became of a kind's cases."""

    cases: Counter[str] = field(default_factory=Counter)  # read, refused, fault
    faults: list[str] = field(default_factory=list)
    slowest: float = 0.0


def kinds(folder: Path) -> dict[str, Kind]:
    """Every kind that lies in a folder of `prepare`."""
    text = read_config(folder / "checkpoint").text
    found = {
        "manifest": Kind(f"artifacts/{MANIFEST}", lambda f: _generate(f.parent)),
        "manifest, to be built": Kind(f"artifacts/{MANIFEST}", lambda f: open_source(f.parent, BuildOptions())),
        "manifest, inspected and planned": Kind(f"artifacts/{MANIFEST}", lambda f: _look(f.parent)),
        "manifest of engines": Kind(f"engines/{MANIFEST}", lambda f: _engines(f.parent)),
        "config": Kind("checkpoint/config.json", lambda f: _config(f.parent)),
        "weights": Kind("checkpoint/transformer.safetensors", lambda f: describe(f.parent)),
        "tokenizer": Kind("artifacts/tokenizer.json", lambda f: PromptTokenizer(f, text)(PROMPT)),
        "graph": Kind("artifacts/tokenizer_decoder.onnx", read_interface),
        "pack's manifest": Kind(f"pack/{MANIFEST}", lambda f: _pack(f.parent)),
        "pack's clip": Kind("pack/clip.npz", lambda f: Pack.read(f.parent), rehash=True),
        "pack's inputs": Kind("pack/text_encoder.inputs.json", lambda f: _pack(f.parent), rehash=True),
        "pack's outputs": Kind("pack/text_encoder.outputs.json", lambda f: _pack(f.parent), rehash=True),
        "calibration": Kind("calibration.json", _calibration),
        "ranges": Kind("ranges.npz", _ranges),
        "embedding": Kind("embedding.npz", lambda f: PromptEmbedding.load(f, text)),
        "picture": Kind("picture.jpg", load_picture),
        "clip": Kind("clip.mp4", lambda f: Recording(f, FPS).excerpt(9)),
        "clip, its beginning": Kind("clip.webm", lambda f: Recording(f, FPS).excerpt(9, 0.2)),
    }
    return {name: kind for name, kind in found.items() if (folder / kind.file).is_file()}


def prepare(folder: Path, artifacts: Path, checkpoint: Path) -> None:
    """Whole files of every kind: links to large ones, never changed in place."""
    import videomar.model.videomar  # noqa: F401, which takes long and is no case's
    from videomar.cli import main

    for name, source in (("artifacts", artifacts), ("checkpoint", checkpoint)):
        (folder / name).mkdir()
        for file in source.iterdir():
            if file.is_file():
                shutil.copyfile(file, folder / name / file.name)
    with contextlib.redirect_stdout(io.StringIO()):
        options = ["--prompt", PROMPT, "--mask-steps", "2", "--head-steps", "3", "--frames", "9"]
        assert main(["record", str(artifacts), "-o", str(folder / "pack"), *options]) == 0
        assert main(["embed", str(artifacts), *options[:2], "-o", str(folder / "embedding.npz")]) == 0
    manifest = json.loads((folder / "artifacts" / MANIFEST).read_text())
    made_for = {"machine": vars(HERE), "targets": ["87"], "command": "videomar build A -o B"}
    (folder / "engines").mkdir()
    engines = manifest | {"kind": "engine", "files": {}, "extra": manifest["extra"] | {"fingerprint": made_for}}
    (folder / "engines" / MANIFEST).write_text(json.dumps(engines))
    rng, ranges = np.random.default_rng(0), Ranges("ab" * 32, clips={"a": "first"}, parts=["b/decoder_blocks.0"])
    for name in ("decoder_blocks.0.attn1.wo", "decoder_blocks.0.ff.0"):
        ranges.inputs[name] = Seen()
        ranges.inputs[name].add(rng.standard_normal((9, 8)))
    ranges.largest["transformer_step"] = {"z": 3.5, "decoder_blocks.0": 70000.0}
    ranges.save(folder / "ranges.npz")
    frames = rng.integers(0, 256, (17, 48, 64, 3), np.uint8)
    write_picture(folder / "picture.jpg", frames[0])
    for clip in ("clip.mp4", "clip.webm"):
        write_video(folder / clip, frames, FPS)
    row = {"min": -3.0, "max": 4.0, "threshold": 2.0, "quantized": True, "alone": {"z_relative": 0.01}}
    fp16 = [{"graph": "transformer_step", "tensor": "z", "largest": 7e4, "share": 1.1, "verdict": "overflow"}]
    (folder / "calibration.json").write_text(json.dumps({"linears": {"a": row, "b": row}, "fp16": fp16}))


def mutants(data: bytes, file: str, rng: Rng) -> Iterator[tuple[str, bytes]]:
    """Endlessly: what was done, and the damaged file."""
    while True:
        if rng.random() < 0.25:
            yield _bytes(data, rng)
        elif file.endswith(".json"):
            yield _tree(data, rng)
        elif file.endswith(".npz"):
            yield _arrays(data, rng)
        else:
            yield _bytes(data, rng)


def try_kind(name: str, kind: Kind, folder: Path, cases: int, seed: int) -> Outcome:
    """Damage a kind's file `cases` times; whatever happens, it is whole again afterwards."""
    path, outcome = folder / kind.file, Outcome()
    whole, manifest = path.read_bytes(), path.with_name(MANIFEST)
    listed = manifest.read_bytes() if kind.rehash else b""
    made = mutants(whole, kind.file, np.random.default_rng([seed, *name.encode()]))
    try:
        for (what, data), _ in zip(made, range(cases), strict=False):
            path.write_bytes(data)
            if kind.rehash:
                manifest.write_bytes(_rehashed(listed, path.name, data))
            said, seconds = attempt(lambda: kind.read(path))
            outcome.slowest = max(outcome.slowest, seconds)
            fault = said not in ("read", "refused")
            outcome.cases["fault" if fault else said] += 1
            if fault:
                outcome.faults.append(f"{name}: {what}: {said}")
    finally:
        path.write_bytes(whole)
        if kind.rehash:
            manifest.write_bytes(listed)
    return outcome


def attempt(act: Callable[[], object]) -> tuple[str, float]:
    """What came of it ("read", "refused", or the fault in words) and how many seconds it took."""

    def late(*_: object) -> None:
        raise TimeoutError(f"it took more than {TIME} s")

    before, began = _peak(), time.perf_counter()
    earlier = signal.signal(signal.SIGALRM, late)
    signal.alarm(TIME)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            act()
        said = "read"
    except UserError as error:
        said = "refused" if "\n" not in str(error) and len(str(error)) < 1000 else f"a message of {len(str(error))}"
    except Exception as error:
        said = f"{type(error).__name__}: {error!s:.200}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, earlier)
    took = _peak() - before
    return (f"it took {took >> 20} MiB" if took > MEMORY else said), time.perf_counter() - began


def _generate(directory: Path) -> None:
    """A clip's start as the configuration asks for it, and a short clip."""
    picture = np.zeros((16, 24, 3), np.uint8)
    with Pipeline.open(directory, threads=1) as pipe:
        with contextlib.suppress(UserError):
            pipe.start(picture, PROMPT).close()
        tokenizer, few = pipe.config.tokenizer, {"mask_steps": 1, "head_steps": 1}
        size = {"height": 2 * tokenizer.spatial_stride, "width": tokenizer.spatial_stride}
        pipe(picture, PROMPT, frames=1 + tokenizer.temporal_stride, **size, **few)  # type: ignore[arg-type]


def _look(directory: Path) -> None:
    describe(directory)
    manifest = read_manifest(directory)
    known = {"precision": manifest.precision, "emitter": manifest.emitter, "cache_tokens": manifest.cache_tokens}
    make_report(Request(manifest.config, manifest.config.sampling, **known), device("orin-nx-16"))  # type: ignore[arg-type]


def _engines(directory: Path) -> None:
    manifest = read_manifest(directory)
    engine_flavour(manifest)
    check_fingerprint(manifest, HERE)


def _config(directory: Path) -> None:
    """All that follows from a configuration before any weight is read, and whether the weights fit it."""
    from videomar.model.videomar import PartsOfCheckpoint

    config = read_config(directory)
    contract(config, "fp16", in_place=False)
    ClipSteps.of(config, config.sampling, 1)
    make_report(Request(config, config.sampling), device("orin-nx-16"))
    PartsOfCheckpoint(directory).check()


def _pack(directory: Path) -> None:
    pack = Pack.read(directory)
    for graph in pack.graphs:
        pack.calls(graph)
        pack.tolerance("fp16", graph)


def _calibration(file: Path) -> None:
    for read in (lambda: read_islands(file), lambda: extra_charts({"sensitivity": read_extra(file, "sensitivity")})):
        read()


def _ranges(file: Path) -> None:
    describe(file)
    extra_charts({"ranges": read_extra(file, "ranges")})
    Ranges.load(file)


def _bytes(data: bytes, rng: Rng) -> tuple[str, bytes]:
    at, kind = int(rng.integers(len(data))), int(rng.integers(4))
    if kind == 0:
        return f"cut at {at}", data[:at]
    if kind == 1:
        value = int(rng.integers(256))
        return f"byte {at} is {value}", data[:at] + bytes([value]) + data[at + 1 :]
    if kind == 2:
        return f"junk at {at}", data[:at] + rng.bytes(int(rng.integers(1, 40))) + data[at:]
    length = int(rng.integers(1, 200))
    return f"{length} bytes gone at {at}", data[:at] + data[at + length :]


def _tree(data: bytes, rng: Rng) -> tuple[str, bytes]:
    """One place of a JSON file: another value, dropped, renamed, or twice as large."""
    tree = json.loads(data)
    holder, key = _place(tree, rng)
    where, old = f"{key!s:.30}", holder[key]
    kind = int(rng.integers(6))
    if kind == 0:
        del holder[key]
        return f"{where} gone", json.dumps(tree).encode()
    if kind == 1 and isinstance(holder, dict):
        holder[f"{key}_"] = holder.pop(key)
        return f"{where} renamed", json.dumps(tree).encode()
    if kind == 2 and isinstance(old, (int, float)) and not isinstance(old, bool):
        holder[key] = [old + 1, old - 1, old * 2, old // 2, -old, old * 10**6][int(rng.integers(6))]
    elif kind == 3 and isinstance(old, list) and old:
        holder[key] = [old[:-1], old + old[-1:], old * 50][int(rng.integers(3))]
    else:
        holder[key] = VALUES[int(rng.integers(len(VALUES)))]
    return f"{where} is {holder[key]!r:.40}", json.dumps(tree).encode()


def _place(tree: Any, rng: Rng) -> tuple[Any, Any]:
    """A holder and its key, each place as likely as the others."""
    places = []

    def walk(at: Any) -> None:
        for key in list(at) if isinstance(at, dict) else range(len(at)):
            places.append((at, key))
            if isinstance(at[key], (dict, list)):
                walk(at[key])

    walk(tree)
    return places[int(rng.integers(len(places)))]


def _arrays(data: bytes, rng: Rng) -> tuple[str, bytes]:
    """One array of an .npz: gone, of another dtype or shape, or a header that lies; or a header in JSON damaged."""
    with np.load(io.BytesIO(data)) as file:
        arrays = dict(file)
    name = sorted(arrays)[int(rng.integers(len(arrays)))]
    value, kind = arrays.pop(name), int(rng.integers(6))
    if name == "header" and kind:
        what, text = _tree(value.tobytes(), rng)
        return f"header: {what}", _zipped(arrays | {"header": np.frombuffer(text, np.uint8)})
    if value.dtype.kind == "U" and str(value).startswith("{") and kind:
        what, text = _tree(str(value).encode(), rng)
        return f"{name}: {what}", _zipped(arrays | {name: np.array(text.decode())})
    if value.dtype.kind == "U":
        value = [np.array("x" * 5000), np.array(3), np.array(["a", "b"])][kind % 3]
    elif kind == 1:
        value = value.astype([np.int8, np.float16, np.float64, "U7", np.complex64][int(rng.integers(5))])
    elif kind == 2:
        value = np.stack([value, value])
    elif kind == 3:
        value = value.reshape(-1)[: value.size // 2]
    elif kind == 4 and value.dtype.kind in "fiu":
        with np.errstate(all="ignore"):
            odd = np.array([np.nan, np.inf, -1, 1e30]).astype(value.dtype, casting="unsafe")
        value = np.full_like(value, odd[int(rng.integers(4))])
    elif kind == 5:
        return f"{name}: lies", _zipped(arrays, {name: _lying(rng)})
    else:
        return f"{name} gone", _zipped(arrays)
    return f"{name} is {value.dtype} {list(value.shape)}", _zipped(arrays | {name: value})


def _lying(rng: Rng) -> bytes:
    """A .npy of a few bytes that says it holds very many, or something else."""
    shape = [(2**40,), (2**31, 2**31, 2**31), (-1,), (0, 10**18), "x"][int(rng.integers(5))]
    kind = ["'<f4'", "'<f8'", "'|O'", "'<U0'", "[('a', '<i4')]"][int(rng.integers(5))]
    header = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape!r}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"1234"


def _zipped(arrays: dict[str, np.ndarray], raw: dict[str, bytes] | None = None) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, value in arrays.items():
            one = io.BytesIO()
            np.save(one, value)
            archive.writestr(f"{name}.npy", one.getvalue())
        for name, content in (raw or {}).items():
            archive.writestr(f"{name}.npy", content)
    return data.getvalue()


def _rehashed(manifest: bytes, name: str, data: bytes) -> bytes:
    tree = json.loads(manifest)
    tree["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return json.dumps(tree).encode()


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> int:
    """Print the table; 1 if there was a fault."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--artifacts", type=Path, default=Path("out/demo-fp32"))
    options.add_argument("--checkpoint", type=Path, default=Path("models/demo"))
    options.add_argument("--cases", type=int, default=1000, help="of each kind")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--json", type=Path)
    args = options.parse_args()
    outcomes: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory(prefix="videomar-mutate-") as scratch:
        prepare(Path(scratch), args.artifacts, args.checkpoint)
        print(f"{'file':32} {'cases':>7} {'refused':>8} {'read':>6} {'faults':>7} {'slowest':>9}")
        for name, kind in kinds(Path(scratch)).items():
            made = outcomes[name] = try_kind(name, kind, Path(scratch), args.cases, args.seed)
            counts = [made.cases[key] for key in ("refused", "read", "fault")]
            print(
                f"{name:32} {sum(counts):7} {counts[0]:8} {counts[1]:6} {counts[2]:7} {made.slowest:7.2f} s", flush=True
            )
    faults = [fault for made in outcomes.values() for fault in made.faults]
    print("\n".join(faults[:50]))
    if args.json:
        rows = {name: {**made.cases, "slowest": made.slowest, "faults": made.faults} for name, made in outcomes.items()}
        args.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 1 if faults else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    faulthandler.enable()
    sys.exit(main())
