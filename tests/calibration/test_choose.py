from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from videomar.calibration.choose import (
    METHODS,
    Energies,
    choose,
    fake_quantize,
    fake_quantize_weight,
    smoothing,
)
from videomar.calibration.linears import Linear
from videomar.calibration.ranges import Seen
from videomar.calibration.sensitivity import keep_list
from videomar.calibration.trials import Errors


def seen(values: np.ndarray) -> Seen:
    one = Seen()
    one.add(values)
    return one


@pytest.fixture
def outliers() -> np.ndarray:
    """An input two of whose channels are a hundred times the others, as in large transformers."""
    values = np.random.default_rng(3).standard_normal((400, 32)).astype(np.float32)
    values[:, [5, 20]] *= 100
    return values


@pytest.fixture
def weight() -> np.ndarray:
    return np.random.default_rng(4).standard_normal((32, 16)).astype(np.float32)


def test_rounding_to_int8_is_the_one_of_the_onnx_specification(outliers: np.ndarray) -> None:
    scale = 0.37
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    tensors = [
        helper.make_tensor(*t) for t in (("s", TensorProto.FLOAT, [], [scale]), ("z", TensorProto.INT8, [], [0]))
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [400, 32]) for n in "xy")
    graph = helper.make_graph(nodes, "q", [x], [y], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])
    onnx.checker.check_model(model)
    expected = ReferenceEvaluator(model).run(None, {"x": outliers})[0]
    np.testing.assert_allclose(fake_quantize(outliers, np.float32(scale)), expected, rtol=1e-6)


def test_a_matrix_is_rounded_by_output_channel_and_a_dead_channel_stays_zero(weight: np.ndarray) -> None:
    weight[:, 3] = 0
    rounded = fake_quantize_weight(weight)
    step = np.abs(weight).max(axis=0) / 127
    assert (np.abs(rounded - weight) <= step / 2 + 1e-6).all()
    assert not rounded[:, 3].any()
    np.testing.assert_allclose(np.abs(rounded).max(axis=0), np.abs(weight).max(axis=0), rtol=1e-6)


def true_error(values: np.ndarray, weight: np.ndarray, divisor: np.ndarray | None, threshold: float) -> float:
    """Relative error of the result, computed on all values."""
    divisor = np.ones(len(weight)) if divisor is None else divisor
    step, matrix = threshold / 127, weight * divisor[:, None]
    columns = np.abs(matrix).max(axis=0) / 127
    rounded = np.clip(np.round(values / divisor / step), -128, 127) * step
    off = rounded @ (np.round(matrix / columns) * columns) - values @ weight
    return float(np.linalg.norm(off) / np.linalg.norm(values @ weight))


@pytest.mark.parametrize("share", [1.0, 0.5, 0.1])
@pytest.mark.parametrize("alpha", [None, 0.5])
def test_the_estimated_error_is_the_one_of_all_values(
    outliers: np.ndarray, weight: np.ndarray, share: float, alpha: float | None
) -> None:
    divisor = None if alpha is None else smoothing([seen(outliers)], [weight], alpha)
    energies = Energies.of(seen(outliers), weight, divisor)
    assert energies.absmax == pytest.approx(np.abs(outliers if divisor is None else outliers / divisor).max())
    estimate = float(energies.error(np.array([share * energies.absmax]))[0])
    assert estimate == pytest.approx(true_error(outliers, weight, divisor, share * energies.absmax), rel=0.15)


def test_the_mse_threshold_errs_no_more_than_any_other_tried_on_all_values(weight: np.ndarray) -> None:
    values = np.random.default_rng(1).laplace(size=(2000, 32)).astype(np.float32)
    chosen = Energies.of(seen(values), weight, None).thresholds()["mse"]
    best = min(true_error(values, weight, None, t) for t in np.linspace(0.05, 1, 80) * np.abs(values).max())
    assert true_error(values, weight, None, chosen) <= 1.05 * best
    assert chosen < np.abs(values).max()


@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.8])
def test_smoothing_divides_by_powers_of_two_and_leaves_the_product_as_it_is(
    outliers: np.ndarray, weight: np.ndarray, alpha: float
) -> None:
    divisor = smoothing([seen(outliers)], [weight], alpha)
    assert np.array_equal(np.frexp(divisor)[0], np.full(32, 0.5, np.float32))
    np.testing.assert_array_equal((outliers / divisor) @ (weight * divisor[:, None]), outliers @ weight)


def test_dead_channels_are_not_smoothed(weight: np.ndarray) -> None:
    values = np.random.default_rng(2).standard_normal((50, 32)).astype(np.float32)
    values[:, 7] = 0
    weight[9] = 0
    divisor = smoothing([seen(values)], [weight], 0.5)
    assert (divisor[7], divisor[9]) == (1, 1)


def test_outlier_channels_are_smoothed_and_that_mends_most_of_the_error(
    outliers: np.ndarray, weight: np.ndarray
) -> None:
    plain, [without] = choose([seen(outliers)], [weight], ())
    divisor, [choice] = choose([seen(outliers)], [weight], (0.35, 0.5, 0.65))
    assert plain is None and divisor is not None and choice.alpha is not None
    assert choice.error < 0.6 * without.error
    assert true_error(outliers, weight, divisor, choice.threshold) == pytest.approx(choice.error, rel=0.15)


def test_the_method_chosen_is_the_one_that_errs_least(outliers: np.ndarray, weight: np.ndarray) -> None:
    found = Energies.of(seen(outliers), weight, None).thresholds()
    errors = {name: true_error(outliers, weight, None, value) for name, value in found.items()}
    _, [choice] = choose([seen(outliers)], [weight], ())
    assert errors[choice.method] <= 1.02 * min(errors.values())
    assert {name.split()[0] for name in errors} == set(METHODS)
    for method in METHODS:
        assert choose([seen(outliers)], [weight], (), [method])[1][0].method.split()[0] == method


LINEARS = [Linear(f"decoder_blocks.{i}.ff.net.2", f"n{i}", "x", "w", 8, 8, None) for i in range(5)]


def keep(shares: list[float], target: float, forced: list[str]) -> list[str]:
    """The keep list where errors add up and a cosine is 1 - their sum."""
    cost = {linear.name: share for linear, share in zip(LINEARS, shares, strict=True)}

    def errors(names: list[str]) -> Errors:
        total = sum(cost[name] for name in names)
        return Errors(1 - total, total)

    alone = {name: errors([name]) for name in cost}
    names = keep_list(alone, forced, target, errors, lambda what: None)  # type: ignore[arg-type]
    return [[linear.name for linear in LINEARS].index(name) for name in names]


def test_the_keep_list_is_empty_where_the_target_holds() -> None:
    assert keep([0.1, 0.1, 0.1, 0.1, 0.1], 0.5, []) == []


def test_the_worst_linears_are_kept_and_no_more_than_it_takes() -> None:
    assert keep([0.01, 0.3, 0.02, 0.2, 0.01], 0.95, []) == [1, 3]
    assert keep([0.01, 0.3, 0.02, 0.2, 0.01], 0.75, []) == [1]


def test_what_is_forced_is_kept_and_counts() -> None:
    assert keep([0.01, 0.3, 0.02, 0.2, 0.01], 0.75, [LINEARS[3].name]) == [1, 3]


def test_everything_is_kept_where_nothing_less_reaches_the_target() -> None:
    assert keep([0.1] * 5, 1.0, []) == [0, 1, 2, 3, 4]
