"""Exported graphs cut open: weights changed, tensors replaced, conditions on where in the loop a fault shows."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from videomar.artifacts import read_manifest, write_manifest
from videomar.graphs import DIFFUSION_HEAD
from videomar.schedule import masked_after_steps

TOKENS, STEPS = 64, 8  # of a latent frame and of its mask steps, in the demo model's default clip
Spot = tuple[int, int]  # frame, mask step


class Surgery:
    """One graph being edited. Names are the module's, also inside the head's loop."""

    def __init__(self, file: Path, graph: str) -> None:
        self.file, self.model = file, onnx.load(file)
        self._top = self.model.graph
        scan = [n for n in self._top.node if n.op_type == "Scan"]
        self._inside = graph == DIFFUSION_HEAD and bool(scan)
        self.body = next(a.g for a in scan[0].attribute if a.name == "body") if self._inside else self._top

    def own(self, name: str) -> str:
        """How this graph calls a tensor."""
        made = {o for n in self.body.node for o in n.output} | {t.name for t in self._top.initializer}
        return f"step_{name}" if f"step_{name}" in made else name

    def weight(self, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
        tensor = next(t for t in self._top.initializer if t.name == self.own(name))
        values = numpy_helper.to_array(tensor)
        changed = change(values.copy()).astype(values.dtype)
        assert changed.shape == values.shape and not np.array_equal(changed, values, equal_nan=True)
        tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))

    def half(self) -> bool:
        """Whether its weights are FP16."""
        return any(t.data_type == onnx.TensorProto.FLOAT16 for t in self._top.initializer)

    def constant(self, values: Any, dtype: Any = None) -> str:
        name = f"plant/{len(self._top.initializer)}"
        array = np.asarray(values, dtype or (np.float16 if self.half() else np.float32))
        self._top.initializer.append(numpy_helper.from_array(array, name))
        return name

    def nodes_reading(self, name: str) -> list[onnx.NodeProto]:
        return [n for n in self.body.node if name in n.input]

    def insert(self, at: int, operator: str, inputs: list[str], output: str | None = None, **attributes: Any) -> str:
        output = output or f"plant/{operator}{len(self.body.node)}"
        self.body.node.insert(at, helper.make_node(operator, inputs, [output], name=f"plant:{output}", **attributes))
        return output

    def after(self, tensor: str, faulty: Callable[[int, str], tuple[int, str]], condition: Any = None) -> None:
        """Put `faulty(tensor)` (or, where `condition` says so) in a tensor's place, under its name."""
        tensor = self.own(tensor)
        at, node = next((i, n) for i, n in enumerate(self.body.node) if tensor in n.output)
        was, slot = f"{tensor}:was", list(node.output).index(tensor)
        node.output[slot], scope = was, node.name
        at, wrong = faulty(at + 1, was)
        if condition is None:
            self.insert(at, "Identity", [wrong], tensor)
        else:
            at, when = condition(at)
            self.insert(at, "Where", [when, wrong, was], tensor)
        made = next(n for n in self.body.node if tensor in n.output)
        made.name = f"{scope.rpartition(':')[0]}:{made.op_type}"  # the module that a graph's reader sees

    def at_spot(self, spot: Spot) -> Callable[[int], tuple[int, str]]:
        """A condition: this frame's step. Told by the number of masked tokens and of finished ones."""
        frame, step = spot
        masked = [TOKENS, *masked_after_steps(TOKENS, STEPS)[:-1], 0][step] if frame else 0
        native = any(v.name == "start" for v in self._top.input)

        def build(at: int) -> tuple[int, str]:
            count = self.insert(at, "Cast", ["masked"], to=onnx.TensorProto.INT64)
            total = self.insert(at + 1, "ReduceSum", [count], keepdims=0)
            left = self.insert(at + 2, "Equal", [total, self.constant(masked, np.int64)])
            if native:
                past = self.insert(at + 3, "ReduceMax", ["start"], keepdims=0)
            else:
                shape = self.insert(at + 3, "Shape", ["past_key_0"])
                at += 1
                past = self.insert(at + 3, "Gather", [shape, self.constant(2, np.int64)])
            done = self.insert(at + 4, "Equal", [past, self.constant(frame * TOKENS, np.int64)])
            return at + 6, self.insert(at + 5, "And", [left, done])

        return build

    def at_head_step(self, coefficient: float) -> Callable[[int], tuple[int, str]]:
        """A condition: the diffusion step whose first coefficient this is."""

        def build(at: int) -> tuple[int, str]:
            first = self.insert(at, "Gather", ["step_coefficients", self.constant(0, np.int64)])
            return at + 2, self.insert(at + 1, "Equal", [first, self.constant(coefficient, np.float32)])

        return build

    def save(self) -> None:
        onnx.save(self.model, self.file)


def copy_with(source: Path, target: Path, graph: str, edit: Callable[[Surgery], None]) -> None:
    """A copy of an artifact directory with one graph edited, and a manifest that fits it."""
    target.mkdir()
    for file in source.iterdir():
        if file.name == f"{graph}.onnx":
            shutil.copyfile(file, target / file.name)
        elif file.name != "manifest.json":
            os.link(file, target / file.name)
    surgery = Surgery(target / f"{graph}.onnx", graph)
    edit(surgery)
    surgery.save()
    write_manifest(target, read_manifest(source))
