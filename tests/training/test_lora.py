from __future__ import annotations

import copy

import pytest
import torch

from videomar.errors import InputError
from videomar.model.videomar import VideoMAR
from videomar.training import lora


@pytest.fixture
def model(tiny_model: VideoMAR) -> VideoMAR:
    return copy.deepcopy(tiny_model).requires_grad_(True)


def test_updates_change_nothing_at_first_and_are_all_that_is_trained(model: VideoMAR, tiny_model: VideoMAR) -> None:
    lora.apply(model, 2)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all(min(p.shape) == 2 for p in trained.values())
    assert all(name.startswith("transformer.") for name in trained)
    now, was = lora.merged(model.transformer), tiny_model.transformer.state_dict()
    assert now.keys() == was.keys() and all(torch.equal(now[name], was[name]) for name in was)


def test_merged_weights_are_the_old_ones_plus_a_product_of_the_rank(model: VideoMAR, tiny_model: VideoMAR) -> None:
    lora.apply(model, 3)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.normal_(generator=torch.manual_seed(0))
    now, was = lora.merged(model.transformer), tiny_model.transformer.state_dict()
    changed = [name for name in was if not torch.equal(now[name], was[name])]
    assert len(changed) == len([p for p in model.parameters() if p.requires_grad]) / 2
    for name in changed:
        assert int(torch.linalg.matrix_rank(now[name] - was[name], rtol=1e-3)) == min(3, *was[name].shape)


def test_layers_without_a_matrix_to_update_are_refused(model: VideoMAR) -> None:
    model.requires_grad_(False)
    model.diffusion_head.requires_grad_(True)
    with pytest.raises(InputError, match="--layers"):
        lora.apply(model, 2)
