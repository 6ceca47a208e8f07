"""Low-rank updates (LoRA, Hu et al. 2021) as parametrizations of PyTorch's own: the model's code never sees them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from videomar.errors import InputError
from videomar.model.videomar import VideoMAR

MATRICES = ("wqkv", "wq", "wkv", "wo", "proj", "2")  # of attention and MLP, by their last name


class LowRank(nn.Module):
    """A weight plus the product of two thin matrices, the second of them zero at first."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.down = nn.Parameter(torch.randn(rank, columns, device=weight.device) / columns**0.5)
        self.up = nn.Parameter(torch.zeros(rows, rank, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def apply(model: VideoMAR, rank: int) -> None:
    """Train low-rank updates of the transformer's chosen matrices, and nothing else.

    Raises InputError when none of them is chosen.
    """
    chosen = [
        module
        for name, module in model.transformer.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in MATRICES and module.weight.requires_grad
    ]
    if not chosen:
        raise InputError("--lora finds no attention or MLP among the trained layers; change --layers")
    model.requires_grad_(False)
    for module in chosen:
        parametrize.register_parametrization(module, "weight", LowRank(module.weight, rank))


def merged(part: nn.Module) -> dict[str, Tensor]:
    """The part's tensors by name, with its updates added to its weights."""
    found = {name: value for name, value in part.state_dict().items() if ".parametrizations." not in name}
    for name, module in part.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            assert isinstance(module.weight, Tensor)
            found[f"{name}.weight"] = module.weight.detach()
    return found
