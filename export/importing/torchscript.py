"""The named tensors of a TorchScript archive, read as data: none of the code in the archive is compiled or run.

An archive is a zip file: `data.pkl` is a pickle of the module tree whose classes are TorchScript's own, the tensors'
bytes lie beside it. The pickle is read with an unpickler that knows only those. Knows nothing of models.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from videomar.errors import ArtifactError
from videomar.export.importing.reading import check_zip, one_line

STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class _Module:
    """Stands for any object of the archive: its attributes and nothing else."""

    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}


class _Unpickler(pickle.Unpickler):
    """Knows modules, tensors, plain data; raises UnpicklingError for anything else that a pickle could call."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{root}/data.pkl")))
        self._archive, self._root = archive, root
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _Module
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch", "device"): str,
        }
        if (module, name) in known:
            return known[module, name]
        if module == "torch.jit._pickle" and name.startswith(("build_", "restore_")):
            return lambda value, *_: value  # lists with a type written beside them
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, _, numel = pid
        if key not in self._storages:
            data = bytearray(self._archive.read(f"{self._root}/data/{key}"))
            self._storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        if len(self._storages[key]) < numel:
            raise pickle.UnpicklingError(f"storage {key} is cut")
        return self._storages[key]

    @staticmethod
    def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
        return storage.as_strided(size, stride, offset)


def read_torchscript(path: Path) -> tuple[dict[str, Tensor], dict[str, bool]]:
    """All tensors and all true-or-false attributes of a TorchScript archive, by dotted name.

    Raises ArtifactError for a missing, truncated, altered or foreign file. A traced archive has no such attributes.
    """
    check_zip(path, "a TorchScript archive")
    try:
        with zipfile.ZipFile(path) as archive:
            roots = [name.removesuffix("/data.pkl") for name in archive.namelist() if name.endswith("/data.pkl")]
            scripts = [root for root in roots if f"{root}/constants.pkl" in archive.namelist()]
            if len(scripts) != 1:
                raise pickle.UnpicklingError("it holds no TorchScript module")
            tree = _Unpickler(archive, scripts[0]).load()
            named = dict(_walk(tree))
    except Exception as error:
        raise ArtifactError(
            f"{path} cannot be read as TorchScript ({one_line(error)}), expected a whole archive; get it again"
        ) from None
    tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ArtifactError(f"{path} holds no named tensors, expected weights; a frozen archive cannot be imported")
    return tensors, {name: value for name, value in named.items() if isinstance(value, bool)}


def _walk(module: _Module, prefix: str = "") -> Iterator[tuple[str, Tensor | bool]]:
    for name, value in module.attributes.items():
        if isinstance(value, _Module):
            yield from _walk(value, f"{prefix}{name}.")
        elif isinstance(value, (Tensor, bool)):
            yield prefix + name, value
