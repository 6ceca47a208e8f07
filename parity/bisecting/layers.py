"""The walk through one call of one graph: every layer of B on A's numbers, beside B on its own.

What a layer adds is its error on A's inputs: rounding that piled up in front of it is not held against it. A tensor is
dropped after its last reader, so that a model of any depth takes a few tensors of memory. Knows nothing of ONNX,
PyTorch or loops.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

HALF_MAX = 65504.0
MASKED = -1e37

Arrays = Mapping[str, np.ndarray]
Listen = Callable[[str, np.ndarray], None]
Flow = Callable[[Listen], None]  # tells a listener A's tensors in dataflow order


class Pieces(Protocol):
    """B's graph cut into layers."""

    order: Sequence[str]  # the tensors it is cut at, in dataflow order

    def reads(self, tensor: str) -> Sequence[str]:
        """What a layer reads: inputs of the graph and tensors of `order`."""

    def run(self, tensor: str, lanes: Sequence[Arrays], wide: Sequence[Arrays] = ()) -> list[np.ndarray]:
        """The layer's result for each of `lanes`, then, in FP32 and without quantized activations, for each of `wide`.

        Raises RuntimeError when it cannot be computed from them.
        """

    def fit(self, tensor: str, value: np.ndarray) -> np.ndarray:
        """A's tensor in the form that B's layers read (a K/V cache may be longer than what counts of it)."""


@dataclass(frozen=True)
class Layer:
    """One tensor of a walk. Errors are relative L2 against A's tensor; inf where B is not finite and A is."""

    tensor: str
    carried: float  # the largest error of what B's layer was given
    error: float  # of B's tensor
    added: float  # of the layer alone, on A's inputs
    wide: float | None  # the same in FP32 and without quantized activations; only of a layer over the gate
    guilty: bool  # over the gate, and not for magnifying the rounding of its inputs
    max_abs: float  # largest difference of B's tensor
    largest: float  # largest absolute value of A's tensor
    mended: float | None = None  # the error that remains with the first guilty layer mended; from it on


@dataclass(frozen=True)
class Walked:
    """All layers of one call, and the first one that adds more than the gate lets pass."""

    layers: list[Layer]
    guilty: Layer | None
    mend: str  # "wide" or "replaced": how the mended numbers were made, "" without a guilty one
    wide: tuple[str, ...]  # the layers that ran in FP32 for it
    outputs: dict[str, float]  # errors of the graph's results
    remains: float | None  # the largest of them behind the guilty layer, once that is mended
    peak_tensors: int  # of the layers' tensors, held at once; the call's own inputs not counted
    peak_bytes: int


def relative(got: np.ndarray, reference: np.ndarray) -> float:
    """Relative L2 error in float64; inf for another shape, or where only one of the two is a finite number."""
    if got.shape != reference.shape:
        return np.inf
    a, b = got.astype(np.float64), reference.astype(np.float64)
    # An attention mask is the lowest number there is, which FP16 writes as another one or as minus infinity.
    masked = (b < MASKED) & (a < -1e4)
    a, b = np.where(masked, 0, a), np.where(masked, 0, b)
    odd = ~(np.isfinite(a) & np.isfinite(b))
    if odd.any():
        if not np.array_equal(a[odd], b[odd], equal_nan=True):
            return np.inf
        a, b = a[~odd], b[~odd]
    difference, norm = float(np.linalg.norm(a - b)), float(np.linalg.norm(b))
    return difference / norm if norm else (0.0 if difference == 0 else np.inf)


class Walk:
    """Listens to A's tensors and runs B's layers as soon as all they read is known."""

    def __init__(
        self,
        pieces: Pieces,
        reference: Arrays,
        own: Arrays,
        gate: float,
        outputs: Iterable[str] = (),
        hold: bool = False,
    ) -> None:
        """reference, own: the graph's inputs in B's form, A's numbers and B's; outputs: what the graph is run for;
        hold: keep them in `reference` and `own`."""
        self._pieces, self._gate, self._outputs, self._hold = pieces, gate, list(outputs), hold
        self.reference, self.own = dict(reference), dict(own)
        self.mended: dict[str, np.ndarray] | None = None
        self._errors = {name: relative(own[name], value) for name, value in reference.items()}
        self._waiting = list(pieces.order)
        self._expected = set(self._waiting)
        self._readers = Counter(name for tensor in self._waiting for name in {*pieces.reads(tensor), tensor})
        self._layers: list[Layer] = []
        self._guilty: Layer | None = None
        self._wide: list[str] = []
        self._mend = ""
        self._peak = (0, 0)

    def __call__(self, tensor: str, value: np.ndarray) -> None:
        """One of A's tensors."""
        if tensor not in self._expected:
            return
        self.reference[tensor] = value
        while ready := next((t for t in self._waiting if self._is_ready(t)), None):
            self._waiting.remove(ready)
            self._step(ready)

    def _is_ready(self, tensor: str) -> bool:
        return tensor in self.reference and all(
            n in self.reference and n in self.own for n in self._pieces.reads(tensor)
        )

    def _step(self, tensor: str) -> None:
        pieces, truth = self._pieces, self.reference[tensor]
        reads = pieces.reads(tensor)
        lanes = [{n: pieces.fit(n, self.reference[n]) for n in reads}, self.own]
        if self.mended is not None:
            lanes.append(self.mended)
        try:
            added, own, *mended = pieces.run(tensor, lanes)
        except RuntimeError:  # a shape that does not fit
            added = own = np.full(truth.shape, np.nan, np.float32)
            mended = [own] * (self.mended is not None)
        self.own[tensor] = own
        if self.mended is not None:
            self.mended[tensor] = self._still_mended(tensor, reads, mended[0])
        error = relative(_crop(added, truth), truth)
        over, wide = not error <= self._gate, None
        if over:
            wide, apart = self._try_wide(tensor, lanes[0], truth, added)
            over = wide > self._gate or apart > self._gate
        layer = Layer(
            tensor,
            max((self._errors[n] for n in reads), default=0.0),
            relative(_crop(own, truth), truth),
            error,
            wide,
            over,
            _largest(_crop(own, truth), truth),
            _largest(truth),
        )
        if over and self._guilty is None:
            self._guilty = layer
            self._mend_it(tensor, reads, truth, wide)
        if self.mended is not None:
            layer = Layer(**{**vars(layer), "mended": relative(_crop(self.mended[tensor], truth), truth)})
        self._errors[tensor] = layer.error
        self._layers.append(layer)
        self._drop({*reads, tensor})

    def _try_wide(self, tensor: str, lane: Arrays, truth: np.ndarray, narrow: np.ndarray) -> tuple[float, float]:
        """The error in FP32, and how far FP32 and the layer are apart on inputs rounded as B's are.

        Where both are small the layer only magnifies the rounding of its inputs, as a difference of two nearly equal
        numbers does, and has no fault of its own.
        """
        with np.errstate(over="ignore"):
            rounded = {n: lane[n].astype(self.own[n].dtype) for n in self._pieces.reads(tensor)}
        try:
            exact, same = self._pieces.run(tensor, [], [lane, rounded])
        except RuntimeError:
            return np.inf, np.inf
        return relative(_crop(exact, truth), truth), relative(narrow, same)

    def _mend_it(self, tensor: str, reads: Sequence[str], truth: np.ndarray, wide: float | None) -> None:
        """Start the mended numbers: in FP32 where that removes the error, else with A's tensor."""
        self.mended = dict(self.own)
        if wide is not None and wide <= self._gate:
            self._mend = "wide"
            self._wide.append(tensor)
            (self.mended[tensor],) = self._pieces.run(tensor, [], [{n: self.own[n] for n in reads}])
        else:
            self._mend = "replaced"
            self.mended[tensor] = self._pieces.fit(tensor, truth)

    def _still_mended(self, tensor: str, reads: Sequence[str], narrow: np.ndarray) -> np.ndarray:
        """What is read beyond FP16's range has to be read in FP32."""
        if narrow.dtype == np.float16 or any(self.own[n].dtype == np.float16 for n in reads):
            beyond = any(HALF_MAX < _largest(self.mended[n]) < np.inf for n in reads)
            if beyond:
                self._wide.append(tensor)
                return self._pieces.run(tensor, [], [self.mended])[0]
        return narrow

    def _drop(self, names: Iterable[str]) -> None:
        lanes = [lane for lane in (self.reference, self.own, self.mended) if lane is not None]
        held = [lane[name] for lane in lanes for name in lane.keys() & self._expected]
        self._peak = max(self._peak[0], len(held)), max(self._peak[1], sum(v.nbytes for v in held))
        for name in names:
            self._readers[name] -= 1
            if not self._readers[name] and not (self._hold and name in self._outputs):
                for lane in lanes:
                    lane.pop(name, None)

    def finish(self) -> Walked:
        """What was found; raises RuntimeError when A never told a tensor that B's layers wait for."""
        if self._waiting:
            raise RuntimeError(f"never told {self._waiting[0]}, so {len(self._waiting)} layers were not compared")
        ends = {layer.tensor: layer for layer in self._layers if layer.tensor in self._outputs}
        errors = {name: ends[name].error for name in self._outputs}
        mended = [layer.mended for layer in ends.values() if layer.mended is not None]
        return Walked(
            self._layers, self._guilty, self._mend, tuple(self._wide), errors, max(mended, default=None), *self._peak
        )


def walk(
    flow: Flow, pieces: Pieces, reference: Arrays, own: Arrays, gate: float, outputs: Iterable[str] = ()
) -> Walked:
    """Compare B's layers with A's tensors as they come; see `Walk`."""
    listener = Walk(pieces, reference, own, gate, outputs)
    flow(listener)
    return listener.finish()


def _crop(value: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Without the part of a K/V cache that does not count yet."""
    if value.ndim == truth.ndim == 4 and value.shape[2] > truth.shape[2]:
        return value[:, :, : truth.shape[2]]
    return value


def _largest(value: np.ndarray, minus: np.ndarray | None = None) -> float:
    """Largest absolute value (or difference); NaN counts as infinite."""
    if minus is not None:
        if value.shape != minus.shape:
            return np.inf
        with np.errstate(invalid="ignore"):
            value = value.astype(np.float64) - minus
    found = float(np.abs(value.astype(np.float64)).max(initial=0.0))
    return np.inf if np.isnan(found) else found
