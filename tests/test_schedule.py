import cmath
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videomar.errors import InputError
from videomar.schedule import (
    DiffusionSchedule,
    SeededNoise,
    cosine_betas,
    guidance_at,
    masked_after_steps,
    rope_tables,
    temperature_at,
)

# ---- mask counts, guidance, temperature


def test_mask_counts_of_64_tokens_in_8_steps_by_hand():
    # 64 cos(k pi / 16) = 62.77 59.13 53.21 45.25 35.56 24.49 12.49
    by_hand = [math.floor(64 * math.cos(k * math.pi / 16)) for k in range(1, 8)] + [0]
    assert by_hand == [62, 59, 53, 45, 35, 24, 12, 0]
    assert masked_after_steps(64, 8) == by_hand


def test_mask_counts_of_the_released_configuration_begin_and_end_as_worked_out():
    # 1440 cos(pi / 128) = 1439.57; 1440 sin(2 pi / 128) = 70.66; 1440 sin(pi / 128) = 35.34
    counts = masked_after_steps(1440, 64)
    assert len(counts) == 64
    assert counts[0] == 1439 and counts[-3:] == [70, 35, 0]
    assert max(np.diff([1440, *counts]) * -1) == 36  # most tokens that one step predicts


@pytest.mark.parametrize(
    ("tokens", "steps", "counts"),
    [
        (1, 1, [0]),
        (7, 1, [0]),
        (2, 2, [1, 0]),  # 2 cos 45 = 1.41
        (4, 2, [2, 0]),  # 4 cos 45 = 2.83
        (6, 3, [5, 3, 0]),  # 6 cos 30 = 5.196, 6 cos 60 = 3 (its double lies above 3)
        (5, 5, [4, 3, 2, 1, 0]),  # 5 cos 36 = 4.05, but one step predicts at least one token
    ],
)
def test_mask_counts_of_small_cases_by_hand(tokens, steps, counts):
    assert masked_after_steps(tokens, steps) == counts


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 3000).flatmap(lambda tokens: st.tuples(st.just(tokens), st.integers(1, tokens))))
def test_every_step_predicts_at_least_one_token_and_all_are_predicted_in_the_end(case):
    tokens, steps = case
    counts = masked_after_steps(tokens, steps)
    predicted = [before - after for before, after in zip([tokens, *counts], counts, strict=False)]
    assert len(counts) == steps and counts[-1] == 0
    assert min(predicted) >= 1 and sum(predicted) == tokens


@pytest.mark.parametrize("steps", [0, -1, 65])
def test_more_steps_than_tokens_or_none_is_an_input_error(steps):
    with pytest.raises(InputError, match=f"mask steps is {steps}, expected 1 to 64"):
        masked_after_steps(64, steps)


def test_guidance_ramp_by_hand():
    assert guidance_at(3.0, 64, 64) == 1.0
    assert guidance_at(3.0, 48, 64) == 1.5
    assert guidance_at(3.0, 32, 64) == 2.0
    assert guidance_at(3.0, 1, 64) == 2.96875
    assert guidance_at(3.0, 0, 64) == 2.96875  # the last step's count is 1 too
    assert guidance_at(3.0, 0, 1) == 1.0
    assert guidance_at(1.0, 17, 64) == 1.0


def test_temperature_falls_from_one_to_nine_tenths_unless_it_is_fixed():
    assert [temperature_at(t) for t in range(4)] == pytest.approx([1.0, 0.91, 0.901, 0.9001], abs=1e-12)
    assert temperature_at(0, 0.95) == temperature_at(7, 0.95) == 0.95
    assert temperature_at(3, 0.0) == 0.0


# ---- diffusion


def closed_bar(step: int, steps: int) -> float:
    """Signal power left after `step` of `steps`, by Nichol and Dhariwal's eq. 17."""

    def f(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    return f(step / steps) / f(0)


def test_cosine_betas_equal_numbers_worked_out_with_mpmath():
    betas = cosine_betas(1000)
    literal = {0: 4.1284224821777802e-05, 1: 4.6141752736694508e-05, 500: 0.0031556914415850029, 998: 0.7499993929}
    for step, value in literal.items():
        assert betas[step] == pytest.approx(value, rel=1e-9)
    assert betas[999] == 0.999  # the formula gives 1
    assert cosine_betas(4) == pytest.approx([0.15298783867309527, 0.41695808751199435, 0.70785871239716356, 0.999])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 1200))
def test_the_product_of_the_cosine_betas_is_the_closed_formula(steps):
    betas, bar = cosine_betas(steps), 1.0
    assert betas.shape == (steps,) and betas.dtype == np.float64
    for step in range(steps - 1):  # the last beta is held at 0.999
        bar *= 1 - betas[step]
        assert bar == pytest.approx(closed_bar(step + 1, steps), rel=1e-7)
    assert (betas > 0).all() and (np.diff(betas) >= 0).all() and betas[-1] == 0.999


def columns(train_steps: int, steps: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Time steps and named columns in float64, turned round: least noisy first."""
    schedule = DiffusionSchedule.respaced(train_steps, steps)
    assert schedule.timesteps.dtype == schedule.coefficients.dtype == np.float32
    assert schedule.timesteps.shape == (steps,) and schedule.coefficients.shape == (steps, 6)
    table = schedule.coefficients[::-1].astype(np.float64)
    return schedule.timesteps[::-1], {name: table[:, i] for i, name in enumerate(DiffusionSchedule.COLUMNS)}


def test_all_thousand_steps_equal_the_textbook_posterior():
    kept, table = columns(1000, 1000)
    assert kept.tolist() == list(range(1000))
    before, variance_at_1 = 1.0, None
    for t, beta in enumerate(cosine_betas(1000).tolist()):  # Ho et al. 2020, eq. 6 and 7
        alpha = 1 - beta
        bar = before * alpha
        variance = (1 - before) / (1 - bar) * beta
        variance_at_1 = variance if t == 1 else variance_at_1
        expected = {
            "a": 1 / math.sqrt(bar),
            "b": math.sqrt(1 - bar) / math.sqrt(bar),
            "p": math.sqrt(before) * beta / (1 - bar),
            "q": math.sqrt(alpha) * (1 - before) / (1 - bar),
            "high": math.log(beta),
        }
        if t:
            expected["low"] = math.log(variance)
        for name, value in expected.items():
            assert table[name][t] == pytest.approx(value, rel=2e-6, abs=1e-9), (name, t)
        before = bar
    assert table["low"][0] == pytest.approx(math.log(variance_at_1), rel=1e-6)  # a variance of 0 has no logarithm


def test_kept_steps_are_a_hundred_distinct_ones_from_the_first_to_the_last():
    kept, _ = columns(1000, 100)
    assert kept[0] == 0 and kept[-1] == 999 and len(set(kept.tolist())) == 100
    assert set(np.diff(kept)) == {10.0, 11.0}  # 999 / 99 = 10.09


def test_timesteps_come_noisiest_first():
    schedule = DiffusionSchedule.respaced(1000, 100)
    assert (np.diff(schedule.timesteps) < 0).all()
    assert (np.diff(schedule.coefficients[:, 0]) < 0).all()  # a = 1 / sqrt(signal power)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 1000).flatmap(lambda train: st.tuples(st.just(train), st.integers(2, train))))
def test_respaced_betas_multiply_to_the_trained_signal_power_at_the_kept_steps(case):
    kept, table = columns(*case)
    steps = kept.astype(int)
    assert steps[0] == 0 and steps[-1] == case[0] - 1 and (np.diff(steps) > 0).all()
    trained = np.cumprod(1 - cosine_betas(case[0]))[steps]
    assert np.cumprod(-np.expm1(table["high"])) == pytest.approx(trained, rel=1e-4)  # 1 - beta, exact for beta near 1
    assert table["a"] ** -2 == pytest.approx(trained, rel=1e-6)


@pytest.mark.parametrize("steps", [1000, 100, 10])
def test_x0_comes_back_from_a_noised_value(steps):
    kept, table = columns(1000, steps)
    bar = np.cumprod(1 - cosine_betas(1000))[kept.astype(int)]
    x0, eps = 0.7, -1.3
    x = np.sqrt(bar) * x0 + np.sqrt(1 - bar) * eps
    error = np.abs(table["a"] * x - table["b"] * eps - x0)
    assert (error <= 3e-7 * table["a"]).all()  # float32 coefficients


def posterior_on_a_grid(prior: tuple[float, float], slope: float, noise: float, seen: float) -> tuple[float, float]:
    """Mean and variance of y given `seen` = slope * y + N(0, noise), y ~ N(prior): Bayes' rule, summed on a grid."""
    mean, variance = prior
    y = mean + math.sqrt(variance) * np.linspace(-9, 9, 400_001)
    log = -((y - mean) ** 2) / (2 * variance) - (seen - slope * y) ** 2 / (2 * noise)
    weight = np.exp(log - log.max())
    weight /= weight.sum()
    centre = float((weight * y).sum())
    return centre, float((weight * (y - centre) ** 2).sum())


@pytest.mark.parametrize("steps", [1000, 100, 25])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_posterior_is_what_bayes_rule_finds_on_two_gaussians(steps, share):
    kept, table = columns(1000, steps)
    i = 1 + round(share * (steps - 2))
    bars = np.cumprod(1 - cosine_betas(1000))
    bar, before = bars[int(kept[i])], bars[int(kept[i - 1])]
    x0, alpha = 0.6, bar / before
    prior = (math.sqrt(before) * x0, 1 - before)  # of the less noisy x
    x = math.sqrt(alpha) * (prior[0] + 0.8 * math.sqrt(prior[1]))
    mean, variance = posterior_on_a_grid(prior, math.sqrt(alpha), 1 - alpha, x)
    assert table["p"][i] * x0 + table["q"][i] * x == pytest.approx(mean, abs=1e-6)
    assert math.exp(table["low"][i]) == pytest.approx(variance, rel=1e-5)
    assert math.exp(table["high"][i]) == pytest.approx(1 - alpha, rel=1e-5)


def test_the_last_step_returns_x0_itself():
    _, table = columns(1000, 100)
    assert table["p"][0] == 1 and table["q"][0] == 0


@pytest.mark.parametrize("steps", [0, 1001])
def test_more_head_steps_than_trained_is_an_input_error(steps):
    with pytest.raises(InputError, match=f"head steps is {steps}, expected 1 to 1000"):
        DiffusionSchedule.respaced(1000, steps)
    with pytest.raises(InputError, match=f"head steps is {steps}, expected 1 to 1000"):
        DiffusionSchedule.ddim(1000, steps)


def test_a_single_head_step_is_finite():
    schedule = DiffusionSchedule.respaced(1000, 1)
    assert np.isfinite(schedule.coefficients).all()


@pytest.mark.parametrize("max_beta", [0.999, 0.05])
@pytest.mark.parametrize("steps", [1, 4, 25, 1000])
def test_the_deterministic_steps_are_those_of_diffusers(steps, max_beta):
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    theirs = diffusers.DDIMScheduler(
        1000, trained_betas=cosine_betas(1000, max_beta), timestep_spacing="trailing", clip_sample=False
    )
    theirs.set_timesteps(steps)
    schedule = DiffusionSchedule.ddim(1000, steps, max_beta)
    assert schedule.timesteps.tolist() == theirs.timesteps.tolist()
    rng = np.random.default_rng(steps)
    x, noise = rng.standard_normal((2, 5, 16))
    for timestep, (a, b, p, q, low, high) in zip(schedule.timesteps, schedule.coefficients.astype(float), strict=True):
        following = p * (a * x - b * noise) + q * x
        expected = theirs.step(torch.from_numpy(noise), int(timestep), torch.from_numpy(x)).prev_sample.numpy()
        np.testing.assert_allclose(following, expected, rtol=1e-3, atol=1e-4)
        assert np.exp(low / 2) == np.exp(high / 2) < 1e-17  # nothing is drawn


# ---- rotary positions

splits = st.tuples(*[st.integers(1, 4).map(lambda half: 2 * half)] * 3)


def turned(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, split: tuple[int, int, int]) -> np.ndarray:
    """x * cos + rotate_half(x) * sin inside each slice, for one token."""
    other, start = [], 0
    for part in split:
        piece = x[start : start + part].tolist()
        other += [-value for value in piece[part // 2 :]] + piece[: part // 2]
        start += part
    return x * cos + np.array(other) * sin


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 20), st.integers(1, 5), st.integers(1, 5), splits, st.sampled_from([100.0, 10000.0]))
def test_rope_tables_turn_pairs_of_channels_like_complex_numbers(frame, height, width, split, theta):
    cos, sin = rope_tables(frame, height, width, split, theta)
    assert cos.shape == sin.shape == (height * width, sum(split)) and cos.dtype == sin.dtype == np.float32
    x = np.random.default_rng(0).normal(size=sum(split))
    for row in range(height):
        for column in range(width):
            token, start = row * width + column, 0
            got = turned(x, cos[token], sin[token], split)
            for position, part in zip((frame, row, column), split, strict=True):
                for i in range(part // 2):
                    first, second = start + i, start + i + part // 2
                    turn = cmath.exp(1j * position * theta ** (-2 * i / part))
                    for channel in (first, second):
                        assert abs(complex(cos[token, channel], sin[token, channel]) - turn) < 1e-6
                    assert abs(complex(got[first], got[second]) - complex(x[first], x[second]) * turn) < 1e-5
                start += part


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_query_times_key_depends_only_on_the_difference_of_positions(axis):
    split, height, width = (8, 4, 4), 7, 6
    rng = np.random.default_rng(1)
    q, k = rng.normal(size=16), rng.normal(size=16)

    def product(at: tuple[int, int, int], to: tuple[int, int, int]) -> float:
        def put(x: np.ndarray, place: tuple[int, int, int]) -> np.ndarray:
            cos, sin = rope_tables(place[0], height, width, split, 10000.0)
            token = place[1] * width + place[2]
            return turned(x, cos[token], sin[token], split)

        return float(put(q, at) @ put(k, to))

    def moved(place: tuple[int, int, int], by: int) -> tuple[int, int, int]:
        out = list(place)
        out[axis] += by
        return (out[0], out[1], out[2])

    at, to = (2, 1, 3), (1, 3, 0)
    for by in (1, 2):
        assert product(moved(at, by), moved(to, by)) == pytest.approx(product(at, to), abs=1e-5)
        assert abs(product(moved(at, by), to) - product(at, to)) > 1e-3  # and it does depend on the difference


# ---- noise


def test_same_seed_same_bits_in_whatever_order_they_are_drawn():
    first, second = SeededNoise(7), SeededNoise(7)
    keys = [(frame, step) for frame in range(3) for step in range(4)]
    forwards = {key: (first.initial(*key, (5, 16)), first.steps(*key, (3, 5, 16))) for key in keys}
    orders = [first.order(frame, 64) for frame in range(3)]
    for frame in (2, 0, 1):
        assert np.array_equal(second.order(frame, 64), orders[frame])
    for key in reversed(keys):
        assert np.array_equal(second.steps(*key, (3, 5, 16)), forwards[key][1])
        assert np.array_equal(second.initial(*key, (5, 16)), forwards[key][0])


def test_other_seed_frame_step_or_kind_is_other_noise():
    draws = [
        noise(seed, frame, step).tobytes()
        for seed in (0, 1, 2**32, 2**40 + 1, 2**63 - 1)
        for frame in (0, 1, 2)
        for step in (0, 1, 2)
        for noise in (
            lambda seed, frame, step: SeededNoise(seed).initial(frame, step, (4, 16)),
            lambda seed, frame, step: SeededNoise(seed).steps(frame, step, (1, 4, 16)),
        )
    ]
    assert len(set(draws)) == len(draws)
    orders = {SeededNoise(seed).order(frame, 64).tobytes() for seed in (0, 1, 2**32) for frame in range(5)}
    assert len(orders) == 15


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(0, 100), st.integers(1, 1500))
def test_an_order_is_a_permutation(seed, frame, tokens):
    order = SeededNoise(seed).order(frame, tokens)
    assert order.dtype == np.int64 and sorted(order.tolist()) == list(range(tokens))


def test_every_position_comes_first_equally_often():
    noise = SeededNoise(3)
    count = np.bincount([noise.order(frame, 8)[0] for frame in range(4000)], minlength=8)
    assert ((count - 500) ** 2 / 500).sum() < 24.3  # chi squared, 7 degrees of freedom, 1 in 1000


def test_noise_is_standard_normal_and_frames_are_uncorrelated():
    noise = SeededNoise(5)
    first, other = noise.initial(0, 0, (20_000, 16)), noise.initial(1, 0, (20_000, 16))
    steps = noise.steps(0, 0, (100, 200, 16))
    for x in (first, steps):
        assert x.dtype == np.float32
        x = x.astype(np.float64)
        assert abs(x.mean()) < 0.01 and abs(x.var() - 1) < 0.02 and abs((x**4).mean() - 3) < 0.1
        for limit, share in ((-1.0, 0.1587), (0.0, 0.5), (1.96, 0.975)):
            assert (x < limit).mean() == pytest.approx(share, abs=0.005)
    for y in (other, steps.reshape(20_000, 16)):
        assert abs(np.corrcoef(first.ravel(), y.ravel())[0, 1]) < 0.01


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_out_of_range_is_an_input_error(seed):
    with pytest.raises(InputError, match="expected a whole number, 0 to"):
        SeededNoise(seed)


@given(st.floats(0, 20), st.integers(1, 500), st.data())
def test_without_a_ramp_the_guidance_scale_is_the_same_in_every_step(
    scale: float, tokens: int, data: st.DataObject
) -> None:
    still = data.draw(st.integers(0, tokens))
    assert guidance_at(scale, still, tokens, ramp=False) == scale
    assert guidance_at(scale, 0, tokens) == guidance_at(scale, 1, tokens)
