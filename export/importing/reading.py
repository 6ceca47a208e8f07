"""Tensors out of other people's files, without running what is in them: torch.save, safetensors; and strict fitting.

Every failure is one line that names the file. Knows nothing of what the tensors mean.
"""

from __future__ import annotations

import argparse
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from videomar.errors import ArtifactError

Tensors = dict[str, Tensor]
EXACT = (torch.float32, torch.float16, torch.bfloat16)  # all of them are float32 numbers


def read_pickle(path: Path) -> Any:
    """What was `torch.save`d, memory-mapped; only tensors and plain data are unpickled, never code.

    Raises ArtifactError for a missing, truncated or foreign file, and for one that would run code.
    """
    check_zip(path, "a file of torch.save")
    with zipfile.ZipFile(path) as archive:
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            raise ArtifactError(f"{path} is a TorchScript archive, expected a file of torch.save; give the checkpoint")
    try:
        # Training scripts of this family save their command line beside the weights: attributes, no code.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        if asked := re.search(r"(?:GLOBAL|class) ([\w.]+)", str(error)):
            raise ArtifactError(
                f"{path} would run code when opened (it asks for {asked[1]}), expected tensors and plain data only; "
                "if you trust it, save its 'model_ema' alone with torch.save and import that"
            ) from None
        raise ArtifactError(f"{path} cannot be read ({one_line(error)}), expected torch.save; get it again") from None


def read_safetensors(path: Path) -> Tensors:
    """All tensors of a safetensors file; raises ArtifactError if it is missing, truncated or something else."""
    check_file(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(
            f"{path} cannot be read as safetensors ({one_line(error)}), expected a whole file; get it again"
        ) from None


def read_shards(directory: Path, stem: str) -> Tensors:
    """The tensors of STEM.safetensors, of the shards that STEM.safetensors.index.json lists, or of the only file."""
    index = directory / f"{stem}.safetensors.index.json"
    if index.is_file() and not (directory / f"{stem}.safetensors").is_file():
        where = read_json(index).get("weight_map")
        if not isinstance(where, dict) or not all(isinstance(f, str) and Path(f).name == f for f in where.values()):
            raise ArtifactError(f"{index} has no usable 'weight_map', expected names and files; get it again")
        tensors: Tensors = {}
        for file in sorted(set(where.values())):
            tensors |= read_safetensors(directory / file)
        for name in sorted(set(where) - set(tensors)):
            raise ArtifactError(f"{directory / where[name]} lacks the tensor {name!r} that {index.name} lists in it")
        return tensors
    found = sorted(directory.glob("*.safetensors"))
    if directory / f"{stem}.safetensors" in found:
        found = [directory / f"{stem}.safetensors"]
    if len(found) != 1:
        got = ", ".join(p.name for p in found) or "none"
        raise ArtifactError(
            f"{directory} has no {stem}.safetensors (safetensors files there: {got}), expected it; "
            "weights in .bin or .pt files are not read: save the model again with safe_serialization=True"
        )
    return read_safetensors(found[0])


def read_json(path: Path) -> dict[str, Any]:
    """An object out of a JSON file; raises ArtifactError."""
    check_file(path)
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is not JSON ({one_line(error)}), expected an object; get it again") from None
    if not isinstance(data, dict):
        raise ArtifactError(f"{path} holds {type(data).__name__}, expected an object; get it again")
    return data


def check_file(path: Path) -> None:
    if path.is_dir():
        raise ArtifactError(f"{path} is a directory, expected a file; give the file itself")
    if not path.is_file():
        got = "is a pipe, socket or device" if path.exists() else "does not exist"
        raise ArtifactError(f"{path} {got}, expected a file; check the path")


def check_zip(path: Path, kind: str) -> None:
    """Raise ArtifactError unless the file is a whole zip archive, saying which of the usual accidents it is."""
    check_file(path)
    try:
        with open(path, "rb") as file:
            start = file.read(16)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror}), expected {kind}; check permissions") from None
    if zipfile.is_zipfile(path):
        return
    if start.startswith(b"PK"):
        raise ArtifactError(
            f"{path} ends early, after {path.stat().st_size} bytes, expected {kind}: half a download; get it again"
        )
    if start.startswith(b"\x80"):
        raise ArtifactError(
            f"{path} is a bare pickle (PyTorch before 1.6 wrote such), expected {kind}; "
            "if you trust it, load it with PyTorch and torch.save it again"
        )
    raise ArtifactError(
        f"{path} starts with {start!r}, expected {kind}; a web page or a Git LFS pointer looks so: get the file itself"
    )


def one_line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


def count(names: Iterable[str], prefix: str, source: Path) -> int:
    """How many numbered things there are, as in PREFIX0.weight, PREFIX1.weight; raises ArtifactError at a gap."""
    numbers = {int(found[1]) for name in names if (found := re.match(re.escape(prefix) + r"(\d+)\.", name))}
    number = next(i for i in range(len(numbers) + 1) if i not in numbers)
    if number < len(numbers):
        raise ArtifactError(
            f"{source} lacks every tensor of {prefix}{number}, expected all up to {prefix}{max(numbers)}"
        )
    return number


def shape(tensors: Mapping[str, Tensor], name: str, dims: int, source: Path) -> tuple[int, ...]:
    """The shape of a tensor that a size is inferred from; raises ArtifactError naming it."""
    if name not in tensors:
        raise ArtifactError(f"{source} lacks the tensor {name!r}; it is of another model, or cut")
    got = tuple(tensors[name].shape)
    if len(got) != dims or 0 in got:
        raise ArtifactError(f"{source}: {name!r} has shape {list(got)}, expected {dims} dimensions; get it again")
    return got


def check_fit(module: nn.Module, tensors: Mapping[str, Tensor], source: Path, theirs: Callable[[str], str]) -> None:
    """Whether these are exactly the tensors that `module` (on any device) has.

    `theirs` turns our name into that in `source`. Raises ArtifactError naming the first missing, unknown, ill-shaped
    or quantised tensor.
    """
    wanted = module.state_dict()
    for name in sorted(tensors.keys() - wanted.keys()):
        raise ArtifactError(f"{source} has an unknown tensor {theirs(name)!r}; it is of another model or version")
    for name, like in wanted.items():
        if name not in tensors:
            raise ArtifactError(f"{source} lacks the tensor {theirs(name)!r}, expected shape {list(like.shape)}")
        tensor = tensors[name]
        if tensor.shape != like.shape:
            raise ArtifactError(
                f"{source}: {theirs(name)!r} has shape {list(tensor.shape)}, expected {list(like.shape)} by the others"
            )
        if tensor.dtype not in EXACT or tensor.layout != torch.strided:
            raise ArtifactError(
                f"{source}: {theirs(name)!r} is {str(tensor.dtype).removeprefix('torch.')}, expected float32, float16 "
                "or bfloat16; quantised weights cannot be imported: get the original"
            )
