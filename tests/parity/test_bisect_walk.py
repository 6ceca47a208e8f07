"""The walk on chains of a few numpy formulas with known errors: what it names, holds and mends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videomar.parity.bisecting.layers import HALF_MAX, Walk, relative, walk

Formula = Callable[..., np.ndarray]
GATE = 1e-3


class Chain:
    """`Pieces`: tensors by formulas of earlier ones. `narrow` is the dtype that results are rounded to."""

    def __init__(self, formulas: Mapping[str, tuple[Formula, Sequence[str]]], narrow: type = np.float32) -> None:
        self.formulas, self.order, self.narrow = formulas, list(formulas), narrow

    def reads(self, tensor: str) -> Sequence[str]:
        return self.formulas[tensor][1]

    def run(
        self, tensor: str, lanes: Sequence[Mapping[str, np.ndarray]], wide: Sequence[Mapping[str, np.ndarray]] = ()
    ) -> list[np.ndarray]:
        formula, reads = self.formulas[tensor]
        with np.errstate(all="ignore"):
            narrow = [formula(*(lane[n].astype(self.narrow) for n in reads)).astype(self.narrow) for lane in lanes]
            return narrow + [formula(*(lane[n].astype(np.float32) for n in reads)) for lane in wide]

    def fit(self, tensor: str, value: np.ndarray) -> np.ndarray:
        return value

    def tell(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        values = dict(inputs)
        for tensor in self.order:
            formula, reads = self.formulas[tensor]
            values[tensor] = formula(*(values[n] for n in reads))
        return {tensor: values[tensor] for tensor in self.order}


X = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)


def run(a: Chain, b: Chain, order: Sequence[str] | None = None, outputs: Sequence[str] = ()):
    told = a.tell({"x": X})
    rounded = {"x": X.astype(b.narrow)}
    return walk(
        lambda listen: [listen(n, told[n]) for n in order or a.order],
        b,
        {"x": X.astype(b.narrow)},
        rounded,
        GATE,
        outputs,
    )


def chain(seed: int, depth: int, faulty: int | None = None, factor: float = 1.0) -> Chain:
    """Random layers, each of one or two earlier tensors of at most four back; `faulty` is scaled."""
    rng, formulas = np.random.default_rng(seed), {}
    for i in range(depth):
        names = ["x", *(f"t{k}" for k in range(i))][-4:]
        reads = list(rng.choice(names, size=min(len(names), int(rng.integers(1, 3))), replace=False))
        reads[0] = names[-1]  # every layer depends on the one before
        matrix = rng.standard_normal((8, 8)).astype(np.float32) / 3

        def formula(*values: np.ndarray, matrix: np.ndarray = matrix, scale: float = 1.0) -> np.ndarray:
            return (np.tanh(sum(v @ matrix for v in values)) * scale).astype(np.float32)

        if i == faulty:
            formula = lambda *v, inner=formula: inner(*v, scale=factor)  # noqa: E731
        formulas[f"t{i}"] = (formula, list(dict.fromkeys(reads)))
    return Chain(formulas)


faults = st.one_of(st.floats(1.01, 10), st.floats(-5, 0.99), st.just(np.nan), st.just(np.inf))


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), depth=st.integers(1, 30), at=st.integers(0, 29), factor=faults)
def test_the_faulty_layer_of_any_chain_is_named(seed: int, depth: int, at: int, factor: float) -> None:
    at %= depth
    found = run(chain(seed, depth), chain(seed, depth, at, factor), outputs=[f"t{depth - 1}"])
    assert found.guilty is not None and found.guilty.tensor == f"t{at}"
    assert found.mend == "replaced" and found.remains == 0
    assert [layer.tensor for layer in found.layers if layer.guilty] == [f"t{at}"]  # nobody after it is blamed


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), depth=st.integers(1, 30))
def test_an_innocent_chain_is_cleared_and_its_rounding_too(seed: int, depth: int) -> None:
    a, b = chain(seed, depth), chain(seed, depth)
    assert run(a, b).guilty is None
    b.narrow = np.float16  # a layer adds about 5e-4 at most; a deep chain carries more than the gate
    assert run(a, b).guilty is None


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), at=st.integers(0, 11), order=st.permutations([f"t{i}" for i in range(12)]))
def test_the_order_in_which_tensors_are_told_does_not_matter(seed: int, at: int, order: list[str]) -> None:
    found = run(chain(seed, 12), chain(seed, 12, at, 2.0), order)
    assert found.guilty is not None and found.guilty.tensor == f"t{at}"


def test_rounding_that_piled_up_is_carried_and_not_added() -> None:
    a = Chain({f"t{i}": (lambda v: v * np.float32(1.001), [f"t{i - 1}" if i else "x"]) for i in range(50)})
    b = Chain({f"t{i}": (lambda v: v * np.float32(1.0012), [f"t{i - 1}" if i else "x"]) for i in range(50)})
    found = run(a, b)
    assert found.guilty is None
    assert found.layers[-1].error > 5 * GATE > GATE > found.layers[-1].added
    assert found.layers[-1].carried == found.layers[-2].error


def test_two_faults_name_the_first_and_the_second_remains() -> None:
    a, b = chain(7, 10), chain(7, 10, 2, 3.0)
    b.formulas["t6"] = chain(7, 10, 6, 1.5).formulas["t6"]
    found = run(a, b, outputs=["t9"])
    assert found.guilty is not None and found.guilty.tensor == "t2"
    assert found.remains is not None and found.remains > GATE
    assert [layer.tensor for layer in found.layers if layer.guilty] == ["t2", "t6"]


def test_a_difference_of_nearly_equal_numbers_is_not_blamed_for_its_inputs_rounding() -> None:
    formulas = {
        "u": (lambda x: x, ["x"]),
        "v": (lambda x: x * np.float32(1.003), ["x"]),
        "difference": (lambda u, v: v - u, ["u", "v"]),
    }
    found = run(Chain(formulas), Chain(formulas, np.float16))
    assert found.layers[-1].added > 10 * GATE and not found.layers[-1].guilty
    assert found.guilty is None
    formulas_b = dict(formulas, difference=(lambda u, v: u - v, ["u", "v"]))
    wrong = run(Chain(formulas), Chain(formulas_b, np.float16)).guilty
    assert wrong is not None and wrong.tensor == "difference"  # its own fault is


def test_an_overflow_is_mended_by_the_layers_that_need_fp32_and_no_others() -> None:
    formulas = {
        "small": (lambda x: x * np.float32(2), ["x"]),
        "huge": (lambda v: v * np.float32(1e5), ["small"]),
        "back": (lambda v: v * np.float32(1e-5), ["huge"]),
        "end": (lambda v: v + np.float32(1), ["back"]),
    }
    found = run(Chain(formulas), Chain(formulas, np.float16), outputs=["end"])
    assert found.guilty is not None and found.guilty.tensor == "huge" and np.isinf(found.guilty.added)
    assert found.guilty.largest > HALF_MAX
    assert found.mend == "wide" and found.wide == ("huge", "back")
    assert found.remains is not None and found.remains < GATE < found.outputs["end"]


def test_memory_does_not_grow_with_depth() -> None:
    peaks = {depth: run(chain(3, depth), chain(3, depth, 2, 2.0)).peak_tensors for depth in (10, 40, 160)}
    assert max(peaks.values()) <= 3 * 5, peaks  # three lanes of a result and the four before it


def test_a_layer_that_cannot_be_computed_is_the_guilty_one() -> None:
    a, b = chain(1, 5), chain(1, 5)

    def refuses(*values: np.ndarray) -> np.ndarray:
        raise RuntimeError("shapes do not fit")

    b.formulas["t3"] = (refuses, b.formulas["t3"][1])
    found = run(a, b)
    assert found.guilty is not None and found.guilty.tensor == "t3"


def test_another_shape_is_the_largest_error() -> None:
    a, b = chain(1, 5), chain(1, 5)
    inner = b.formulas["t4"][0]
    b.formulas["t4"] = (lambda *v: inner(*v)[:, :4], b.formulas["t4"][1])
    found = run(a, b).guilty
    assert found is not None and found.tensor == "t4" and found.added == np.inf


def test_a_tensor_never_told_is_said() -> None:
    a, b = chain(1, 5), chain(1, 5)
    listener = Walk(b, {"x": X}, {"x": X}, GATE)
    for name, value in list(a.tell({"x": X}).items())[:3]:
        listener(name, value)
    listener("unknown", X)  # what nobody asked for is no harm
    with pytest.raises(RuntimeError, match="t3"):
        listener.finish()


@pytest.mark.parametrize(
    ("got", "truth", "error"),
    [
        ([3.0, 4.0], [3.0, 4.0], 0.0),
        ([3.0, 9.0], [3.0, 4.0], 1.0),  # 5 / 5
        ([0.0], [0.0], 0.0),
        ([1e-30], [0.0], np.inf),
        ([np.nan, 1.0], [np.nan, 1.0], 0.0),
        ([np.nan, 1.0], [2.0, 1.0], np.inf),
        ([np.inf, 1.0], [-np.inf, 1.0], np.inf),
        ([-np.inf, 1.0], [np.finfo(np.float32).min, 1.0], 0.0),  # an attention mask
        ([-65504.0, 2.0], [np.finfo(np.float32).min, 1.0], 1.0),
        ([], [], 0.0),
        ([1.0], [1.0, 2.0], np.inf),
    ],
)
def test_the_relative_error_by_hand(got: list[float], truth: list[float], error: float) -> None:
    assert relative(np.array(got), np.array(truth)) == error
