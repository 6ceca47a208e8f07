"""One pass of a graph as a list of operators: what each writes, reads, multiplies and holds. Numbers, no tensors.

One list, four readers: weights are counted, lifetimes give the memory of a pass, and operations and bytes its time.
Knows nothing of models (graphs_*.py write the lists) or of devices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

MODES = ("fp32", "fp16", "fp16-as-fp32")


@dataclass(eq=False)
class Value:
    """A tensor's memory; views of it are the same object."""

    elements: int
    width: int  # bytes of an element
    bound: bool = False  # the caller's: an input, or an output written where the caller says

    @property
    def size(self) -> int:
        """Bytes."""
        return self.elements * self.width


@dataclass(frozen=True)
class Op:
    """One operator, in the order of execution."""

    inputs: tuple[Value, ...]
    output: Value
    flops: float = 0.0
    params: int = 0  # weights it reads
    scratch: int = 0  # bytes it holds while it runs
    in_place: bool = False  # may write over its first input, if that ends here and has the same size
    linear: bool = False  # a product with weights that INT8 may hold
    folded: bool = False  # an engine does it while it reads or writes for a neighbour


class Allocator(Protocol):
    """Where values live, such as `arena.Arena`."""

    def take(self, size: int) -> int: ...

    def give(self, handle: int) -> None: ...


@dataclass
class Tape:
    """Records operators.

    mode: "fp32"; "fp16"; or "fp16-as-fp32", an FP16 graph on ONNX Runtime's CPU, which multiplies and adds in FP32
    between casts and only moves FP16.
    fused: an engine that joins pointwise operators and never stores attention's scores.
    """

    mode: str
    fused: bool = False
    ops: list[Op] = field(default_factory=list)
    _other: dict[Value, Value] = field(default_factory=dict)  # a value -> the same numbers in the other width

    @property
    def width(self) -> int:
        """Bytes of an element between operators."""
        return 4 if self.mode == "fp32" else 2

    @property
    def weight_width(self) -> int:
        """Bytes of a weight in memory."""
        return 2 if self.mode == "fp16" else 4

    def given(self, elements: int, width: int | None = None) -> Value:
        """An input: the caller's memory."""
        return Value(elements, width or self.width, bound=True)

    def move(
        self,
        elements: int,
        *inputs: Value,
        flops: float = 0.0,
        params: int = 0,
        bound: bool = False,
        in_place: bool = False,
    ) -> Value:
        """An operator that every mode runs in the graph's own width: transpose, split, concatenation, LayerNorm."""
        return self._record(self.width, elements, inputs, flops, params, 0, in_place, bound)

    def compute(
        self,
        elements: int,
        *inputs: Value,
        flops: float = 0.0,
        params: int = 0,
        scratch: int = 0,
        in_place: bool = False,
        bound: bool = False,
        linear: bool = False,
        folds: bool = False,
    ) -> Value:
        """An operator that multiplies or adds; scratch in elements."""
        width, folded = 4 if self.mode == "fp16-as-fp32" else self.width, folds and self.fused
        return self._record(
            width, elements, inputs, flops, params, scratch * width, in_place or folded, bound, linear, folded
        )

    def linear(self, rows: int, into: int, out: int, x: Value, bias: bool = False) -> Value:
        """[rows, into] times [into, out]; a bias is added by an operator of its own."""
        y = self.compute(rows * out, x, flops=2.0 * rows * into * out, params=into * out, linear=True)
        return self.pointwise(y, params=out) if bias else y

    def view(self, elements: int, *inputs: Value) -> Value:
        """A move between two layouts that an engine folds into its neighbours: split, transpose."""
        return self._record(self.width, elements, inputs, in_place=self.fused, folded=self.fused)

    def pointwise(self, x: Value, *others: Value, params: int = 0, steps: int = 1) -> Value:
        """`steps` operators on every element of x, one after another; an engine folds them into the one before."""
        for _ in range(1 if self.fused else steps):
            x = self.compute(x.elements, x, *others, flops=float(x.elements), params=params, folds=True)
            others, params = (), 0
        return x

    def _record(
        self,
        width: int,
        elements: int,
        inputs: tuple[Value, ...],
        flops: float = 0.0,
        params: int = 0,
        scratch: int = 0,
        in_place: bool = False,
        bound: bool = False,
        linear: bool = False,
        folded: bool = False,
    ) -> Value:
        output = Value(elements, width, bound)
        self.ops.append(
            Op(tuple(self._as(width, v) for v in inputs), output, flops, params, scratch, in_place, linear, folded)
        )
        return output

    def cast(self, value: Value) -> Value:
        """The value as operators that compute want it, from now on."""
        return self._as(4, value)

    def _as(self, width: int, value: Value) -> Value:
        """The value in this width, cast once."""
        if value.width == width or self.mode != "fp16-as-fp32":
            return value
        if value not in self._other:
            self._other[value] = cast = Value(value.elements, width)
            self.ops.append(Op((value,), cast))
        return self._other[value]

    @property
    def params(self) -> int:
        """Weights."""
        return sum(op.params for op in self.ops)

    @property
    def linear_params(self) -> int:
        """Weights of linear layers."""
        return sum(op.params for op in self.ops if op.linear)

    @property
    def flops(self) -> float:
        """Multiplications and additions."""
        return sum(op.flops for op in self.ops)

    def run(self, allocator: Allocator) -> None:
        """Take and give memory as an execution would: outputs and scratch before, what has ended after each one."""
        ends: dict[Value, int] = {}
        for i, op in enumerate(self.ops):
            for value in (*op.inputs, op.output):
                ends[value] = i
        handles: dict[Value, int] = {}
        for i, op in enumerate(self.ops):
            first = op.inputs[0] if op.inputs else op.output
            if op.in_place and first in handles and ends[first] == i and first.size == op.output.size:
                handles[op.output] = handles.pop(first)
            elif not op.output.bound and op.output.elements:
                handles[op.output] = allocator.take(op.output.size)
            if op.scratch:
                allocator.give(allocator.take(op.scratch))
            for value in {*op.inputs, op.output}:
                if ends[value] == i and value in handles:
                    allocator.give(handles.pop(value))

    def peak(self, allocator: Callable[[], Allocator]) -> int:
        """Bytes of a pass in a fresh allocator that counts them (`peak`)."""
        fresh: Any = allocator()
        self.run(fresh)
        return int(fresh.peak)
