"""Large files in slices that fit where a whole one does not: split here, join there, every byte checked.

    python -m benchmarks.gpu.wheels split FILE... -o SLICES [--mib 32]
    python -m benchmarks.gpu.wheels join SLICES -o WHEELS

FILE.001, FILE.002 ... and FILE.slices.json, which holds size and SHA-256 of the whole and of each. `join` may be run
again as more slices come; files that are whole already, and what is no slice, are copied. Standard library only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
from pathlib import Path

MIB = 1 << 20
INDEX = ".slices.json"


class SliceError(Exception):
    """A slice is missing or not what was split."""


def split(file: Path, out: Path, size: int) -> list[Path]:
    """Write a file's slices of at most `size` bytes and their index into `out`; the slices."""
    out.mkdir(parents=True, exist_ok=True)
    whole, slices, made = hashlib.sha256(), [], []
    with open(file, "rb") as data:
        while part := data.read(size):
            whole.update(part)
            made.append(out / f"{file.name}.{len(made) + 1:03d}")
            made[-1].write_bytes(part)
            slices.append({"name": made[-1].name, "bytes": len(part), "sha256": hashlib.sha256(part).hexdigest()})
    index = {"name": file.name, "bytes": file.stat().st_size, "sha256": whole.hexdigest(), "slices": slices}
    (out / (file.name + INDEX)).write_text(json.dumps(index, indent=1))
    return made


def join(directory: Path, out: Path) -> list[Path]:
    """Every whole file of `directory`, in `out`: joined, or copied if it never was split.

    Raises SliceError naming the slices that are missing or altered; what could be joined is there all the same.
    """
    out.mkdir(parents=True, exist_ok=True)
    made, problems, parts = list[Path](), list[str](), set[str]()
    for index in sorted(directory.glob(f"*{INDEX}")):
        told = json.loads(index.read_text())
        parts |= {index.name, *(each["name"] for each in told["slices"])}
        target = out / told["name"]
        if target.is_file() and target.stat().st_size == told["bytes"] and _sha256(target) == told["sha256"]:
            made.append(target)
        elif found := [problem for each in told["slices"] if (problem := _problem(directory, each))]:
            problems += found
        else:
            with open(target, "wb") as whole:
                for each in told["slices"]:
                    with open(directory / each["name"], "rb") as part:
                        shutil.copyfileobj(part, whole)
            if _sha256(target) != told["sha256"]:
                target.unlink()
                problems.append(f"{target.name} is another file than was split")
            else:
                made.append(target)
    for file in sorted(p for p in directory.iterdir() if p.is_file() and p.name not in parts):
        if re.fullmatch(r".+\.\d{3}", file.name):  # a slice whose index has not come
            problems.append(f"{file.name[:-4]}{INDEX} is missing")
            continue
        if file.resolve().parent != out.resolve():
            shutil.copy(file, out / file.name)
        made.append(out / file.name)
    if problems:
        raise SliceError("; ".join(dict.fromkeys(problems)))
    return made


def _problem(directory: Path, told: dict[str, str]) -> str:
    file = directory / told["name"]
    if not file.is_file():
        return f"{file.name} is missing"
    return "" if _sha256(file) == told["sha256"] else f"{file.name} is altered"


def _sha256(file: Path) -> str:
    with open(file, "rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(data)


def _digest(data: object) -> str:
    digest = hashlib.sha256()
    while part := data.read(MIB):  # type: ignore[attr-defined]
        digest.update(part)
    return digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("split", "join"))
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--mib", type=int, default=32, help="of a slice (default 32)")
    args = parser.parse_args()
    if args.what == "split":
        for file in args.files:
            made = split(file, args.output, args.mib * MIB)
            print(f"{file.name}: {len(made)} slices of at most {args.mib} MiB in {args.output}")
        return
    for directory in args.files:
        try:
            print(f"whole: {', '.join(sorted(p.name for p in join(directory, args.output)))}")
        except SliceError as error:
            raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
