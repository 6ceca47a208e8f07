"""A checkpoint's weights as safetensors' own reader finds them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from videomar.export.importing.writing import save_float32


def test_every_kind_of_tensor_is_read_back_as_the_same_numbers_in_float32(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(6, 5, generator=generator)
    tensors = {
        "whole": numbers,
        "half": numbers.half(),
        "brain": numbers.bfloat16(),
        "turned": numbers.t(),
        "every second": numbers[::2, 1::2],
        "one number": torch.tensor(3.5),
        "none": torch.zeros(0, 4),
        "weight": torch.nn.Parameter(numbers[:1]),
        "größe": numbers[0],
    }
    sizes = list(save_float32(tensors, tmp_path / "a.safetensors"))
    assert sizes == [4 * tensor.numel() for tensor in tensors.values()]
    found = load_file(tmp_path / "a.safetensors")
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == torch.float32 and torch.equal(found[name], tensor.detach().float()), name


def test_numbers_begin_aligned_and_the_file_ends_with_them(tmp_path: Path) -> None:
    for count in range(8):
        file = tmp_path / "a.safetensors"
        list(save_float32({"x" * count: torch.ones(3)}, file))
        data = file.read_bytes()
        length = int.from_bytes(data[:8], "little")
        assert length % 8 == 0 and len(data) == 8 + length + 12
        json.loads(data[8 : 8 + length])
