"""Names of tensors in exported graphs: the modules' own, the same in every precision and emitter."""

from __future__ import annotations

import onnx
import pytest
import torch
from torch import Tensor, nn

from tests.conftest import GraphFile
from videomar.export.names import name_by_module
from videomar.export.onnx_files import quiet
from videomar.graphs import HEAD_STEP, TRANSFORMER_STEP


def names(file: object) -> set[str]:
    graph = onnx.load(file, load_external_data=False).graph
    return {name for node in graph.node for name in node.output}


def layers(file: object) -> set[str]:
    return {name for name in names(file) if "/" not in name}


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x))) + x


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleList([Inner(), Inner()])

    def forward(self, x: Tensor) -> Tensor:
        return self.inner[1](self.inner[0](x)) * 2


def test_a_modules_result_has_the_modules_name() -> None:
    with quiet():
        model = torch.onnx.export(Outer(), (torch.zeros(2, 3),), dynamo=True, output_names=["out"]).model_proto
    name_by_module(model.graph)
    onnx.checker.check_model(model)
    made = {name: node for node in model.graph.node for name in node.output}
    for block in ("inner.0", "inner.1"):
        assert made[block].op_type == "Add"  # the residual sum is what the block returns
        assert made[f"{block}/tanh"].op_type == "Tanh"
        assert {f"{block}.first", f"{block}.second"} <= set(made)
        assert list(made[f"{block}.second"].input) == [f"{block}/tanh", f"{block}.second.weight"]
    assert "out" in made and len({node.name for node in model.graph.node}) == len(model.graph.node)


@pytest.mark.parametrize("precision", ("fp32", "fp16"))
@pytest.mark.parametrize("emitter", ("portable", "native"))
def test_every_variant_of_the_transformer_names_its_layers_alike(
    tiny_graph: GraphFile, precision: str, emitter: str
) -> None:
    reference = layers(tiny_graph(TRANSFORMER_STEP))
    assert layers(tiny_graph(TRANSFORMER_STEP, precision, emitter)) == reference
    for layer in ("norm1", "attn1.wqkv", "attn1.q_norm", "attn1.wo", "attn2.wq", "ff.net.0.proj", "ff.net.2"):
        assert f"decoder_blocks.0.{layer}" in reference


def test_the_heads_layers_are_named_in_every_precision(tiny_graph: GraphFile) -> None:
    assert "res_blocks.1.mlp.2" in layers(tiny_graph(HEAD_STEP))
    assert layers(tiny_graph(HEAD_STEP, "fp16")) == layers(tiny_graph(HEAD_STEP))
