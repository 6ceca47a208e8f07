"""The native kernels compute what numpy and plain formulas do, and refuse what would harm memory."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videomar.runtime import kernels, media
from videomar.runtime.kernels import binding
from videomar.runtime.kernels.binding import NativeKernels
from videomar.runtime.kernels.fallback import NumpyKernels
from videomar.schedule import DiffusionSchedule

NUMPY = NumpyKernels()
SCHEDULE = DiffusionSchedule.respaced(1000, 100)
seeds = st.integers(0, 2**32 - 1)
floats = st.sampled_from([np.float32, np.float16])
few = settings(max_examples=60, deadline=None)


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> NativeKernels:
    """The CPU library: the one that ctest built and names, otherwise built here."""
    told = Path(os.environ.get(binding.VARIABLE, ""))
    if told.is_file():
        return NativeKernels(told)
    if shutil.which("cmake") is None or shutil.which(os.environ.get("CXX", "c++")) is None:
        pytest.skip("cmake or a C++ compiler is missing")
    directory = str(tmp_path_factory.mktemp("build"))
    configure = ["cmake", "-S", str(Path(__file__).parents[2]), "-B", directory, "-DVIDEOMAR_CUDA=OFF"]
    for command in (configure, ["cmake", "--build", directory]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return NativeKernels(Path(directory, binding.CPU_LIBRARY))


@pytest.fixture(params=["numpy", "native"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The public functions, on one implementation and then on the other."""
    chosen = NUMPY if request.param == "numpy" else request.getfixturevalue("native")
    monkeypatch.setattr(kernels, "implementation", lambda: chosen)
    return kernels


# ---- guidance and diffusion step


def step_case(branches: int, n: int, channels: int, dtype: type, step: int, seed: int) -> SimpleNamespace:
    """Inputs of a real schedule's step, and the next x and the size of its terms by the formula in float64."""
    g = np.random.default_rng(seed)
    output = g.standard_normal((branches, n, 2 * channels)).astype(dtype)
    x, draw = (g.standard_normal((n, channels)).astype(np.float32) for _ in range(2))
    scale, coefficients = float(np.float32(g.uniform(1, 6))), SCHEDULE.coefficients[step]
    (a, b, p, q, low, high), o = coefficients.astype(float), output.astype(float)
    text, without, share = o[0, :, :channels], o[-1, :, :channels], (o[0, :, channels:] + 1) / 2
    noise = np.exp((share * high + (1 - share) * low) / 2) * draw
    exact = p * (a * x - b * (without + scale * (text - without))) + q * x + noise
    unsteady = np.abs(noise) * (4 + np.abs(share * high) + np.abs((1 - share) * low))
    size = np.abs(p * a * x) + np.abs(p * b) * (np.abs(without) + scale * (np.abs(text) + np.abs(without)))
    size += np.abs(q * x) + unsteady
    return SimpleNamespace(inputs=(output, x, coefficients, draw, scale), exact=exact, size=size, noise=noise)


step_cases = st.builds(
    step_case, st.integers(1, 2), st.integers(0, 40), st.integers(1, 20), floats, st.integers(0, 99), seeds
)


def stepped(how: NumpyKernels | NativeKernels, case: SimpleNamespace, **changes: np.ndarray) -> np.ndarray:
    inputs = dict(zip(("output", "x", "coefficients", "draw", "scale"), case.inputs, strict=True)) | changes
    out = np.empty_like(inputs["x"])
    how.guided_step(**inputs, out=out)
    return out


@few
@given(case=step_cases)
def test_a_step_is_the_formula_to_float32_rounding_on_both(native, case):
    for how in (NUMPY, native):
        assert np.all(np.abs(stepped(how, case) - case.exact) <= 8 * 2.0**-23 * case.size)


@few
@given(case=step_cases)
def test_a_native_step_differs_from_numpy_by_the_exponentials_last_bits_only(native, case):
    silent = np.zeros_like(case.inputs[1])
    assert np.array_equal(stepped(native, case, draw=silent), stepped(NUMPY, case, draw=silent))
    mine, other = stepped(native, case), stepped(NUMPY, case)
    assert np.all(np.abs(mine - other) <= 5 * 2.0**-23 * np.abs(case.noise) + np.spacing(np.abs(other)))


def test_a_step_is_the_pytorch_references(either):
    torch = pytest.importorskip("torch")
    from videomar.model.head import ancestral_step

    for step in (0, 50, 99):
        case = step_case(2, 24, 16, np.float32, step, step)
        output, x, coefficients, draw = (torch.from_numpy(part.copy()) for part in case.inputs[:4])
        noise, variance = output.chunk(2, dim=-1)
        guided = noise[-1] + case.inputs[4] * (noise[0] - noise[-1])
        theirs = ancestral_step(x, guided, variance[0], coefficients, draw).numpy()
        assert np.all(np.abs(either.guided_step(*case.inputs) - theirs) <= 2 * 2.0**-23 * case.size)


def test_the_next_x_may_be_written_over_x_but_over_nothing_else(either):
    case = step_case(2, 24, 16, np.float32, 50, 1)
    output, x, coefficients, draw, scale = case.inputs
    apart = either.guided_step(*case.inputs)
    assert np.array_equal(x, case.inputs[1])
    assert either.guided_step(output, x, coefficients, draw, scale, out=x) is x and np.array_equal(x, apart)
    for over in (draw, output.reshape(-1, 16)[:24]):
        with pytest.raises(ValueError, match="overlaps"):
            either.guided_step(output, x, coefficients, draw, scale, out=over)
    long = np.zeros((25, 16), np.float32)
    either.guided_step(output, long[1:], coefficients, draw, scale, out=long[1:])
    with pytest.raises(ValueError, match="overlaps x in part"):
        either.guided_step(output, long[1:], coefficients, draw, scale, out=long[:-1])


def test_every_half_precision_number_is_read_exactly(either):
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    output = np.stack([halves, np.zeros_like(halves)], axis=1)[None]
    x = np.zeros((2**16, 1), np.float32)
    read = either.guided_step(output, x, np.array([0, -1, 1, 0, 0, 0], np.float32), x.copy(), 1.0)  # next = noise
    assert np.array_equal(read[:, 0], halves.astype(np.float32), equal_nan=True)


# ---- scatter and gather


@few
@given(st.integers(1, 60), st.integers(1, 20), st.none() | st.floats(0, 3, width=32), seeds)
def test_scatter_writes_clipped_rows_and_clears_their_mask_and_nothing_else(native, size, channels, clip, seed):
    g = np.random.default_rng(seed)
    positions = g.permutation(size)[: g.integers(0, size + 1)]
    sampled, before = (g.standard_normal((n, channels)).astype(np.float32) * 2 for n in (len(positions), size))
    sampled[g.random(sampled.shape) < 0.05] = np.nan
    expected, hidden, bound = before.copy(), np.ones(size, bool), np.inf if clip is None else clip
    for row, position in zip(sampled, positions, strict=True):
        expected[position], hidden[position] = [v if v != v else max(-bound, min(bound, v)) for v in row], False
    for how in (NUMPY, native):
        tokens, masked = before.copy(), np.ones(size, bool)
        how.scatter_tokens(tokens, masked, positions, sampled, bound)
        assert np.array_equal(tokens, expected, equal_nan=True) and np.array_equal(masked, hidden)


@few
@given(st.integers(1, 60), st.integers(0, 20), st.integers(0, 80), floats, seeds)
def test_gather_copies_rows_bit_by_bit_in_any_order_and_repeated(native, size, width, n, dtype, seed):
    g = np.random.default_rng(seed)
    bits = {np.float32: np.uint32, np.float16: np.uint16}[dtype]
    table = g.integers(0, np.iinfo(bits).max, (size, width), bits, endpoint=True).view(dtype)  # NaNs of all kinds too
    positions = g.integers(0, size, n)
    for how in (NUMPY, native):
        out = np.empty((n, width), dtype)
        how.gather_rows(table, positions, out)
        assert [row.tobytes() for row in out] == [table[position].tobytes() for position in positions]


@pytest.mark.parametrize("positions", [[-1], [9], [0, 9], [np.iinfo(np.int64).min], [np.iinfo(np.int64).max]])
def test_positions_out_of_range_are_refused_before_anything_is_written(either, positions):
    where = np.array(positions, np.int64)
    tokens, masked, out = np.ones((9, 4), np.float32), np.ones(9, bool), np.ones((len(where), 4), np.float32)
    with pytest.raises(IndexError):
        either.scatter_tokens(tokens, masked, where, np.zeros((len(where), 4), np.float32))
    with pytest.raises(IndexError):
        either.gather_rows(np.zeros((9, 4), np.float32), where, out)
    assert tokens.all() and masked.all() and out.all()


# ---- pixels


@few
@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    axes=st.permutations(range(4)),
    back=st.booleans(),
    dtype=floats,
    seed=seeds,
)
def test_a_frame_is_rounded_the_same_from_any_strides(native, shape, axes, back, dtype, seed):
    full = (3, *shape)
    base = np.random.default_rng(seed).uniform(-1.3, 1.3, [2 * full[axis] for axis in axes]).astype(dtype)
    pixels = base[tuple(slice(None, None, -2 if back else 2) for _ in axes)].transpose(np.argsort(axes))
    assert pixels.shape == full
    frame = seed % shape[0]
    level = (pixels[:, frame].astype(float) + 1) * 127.5 + 0.5
    clear = np.abs(level - np.round(level)) > 1e-4  # elsewhere float32 may round to the other side
    expected = np.clip(np.floor(level), 0, 255)
    frames = []
    for how in (NUMPY, native):
        frames.append(np.empty((*shape[1:], 3), np.uint8))
        how.pixels_to_frame(pixels, frame, frames[-1])
        assert np.array_equal(frames[-1].transpose(2, 0, 1)[clear], expected[clear])
    assert np.array_equal(*frames)


def test_every_level_survives_and_what_is_no_level_is_clipped(either):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    frame = np.stack([levels, levels.T, 255 - levels], axis=-1)
    pixels = media.to_pixels(frame)[0]
    assert np.array_equal(either.pixels_to_frame(pixels), frame)
    assert np.array_equal(either.pixels_to_frame(pixels[:, 0]), frame)
    odd = np.array([np.nan, np.inf, -np.inf, -0.0, 1.01, -1.01, 3e38, -3e38], np.float32)
    assert either.pixels_to_frame(np.tile(odd, (3, 1, 1)))[0, :, 0].tolist() == [0, 255, 0, 128, 255, 0, 255, 0]


def test_all_half_precision_pixels_make_the_frame_that_media_makes(either):
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    pixels = np.tile(halves[~np.isnan(halves)], (3, 1, 1, 1))
    assert np.array_equal(either.pixels_to_frame(pixels), media.to_frames(pixels[None])[0])
    assert not either.pixels_to_frame(np.tile(halves[np.isnan(halves)], (3, 1, 1))).any()


@pytest.mark.parametrize("frame", [-1, 2])
def test_a_frame_that_is_not_there_is_refused(native, frame):
    pixels, out = np.zeros((3, 2, 4, 4), np.float32), np.ones((4, 4, 3), np.uint8)
    with pytest.raises(IndexError):
        kernels.pixels_to_frame(pixels, frame, out)
    with pytest.raises(IndexError):
        native.pixels_to_frame(pixels, frame, out)
    assert out.all()


# ---- arguments


def test_arrays_of_another_shape_dtype_or_layout_are_refused(either):
    f, w, i = np.zeros((4, 6), np.float32), np.zeros((2, 4, 12), np.float32), np.arange(4)
    six, masked, frozen = np.zeros(6, np.float32), np.ones(4, bool), np.zeros((4, 6), np.float32)
    frozen.flags.writeable = False
    refused = {
        "output is float64": lambda: either.guided_step(w.astype(float), f, six, f, 1.0),
        "output is .2, 4, 10.": lambda: either.guided_step(w[..., :10].copy(), f, six, f, 1.0),
        "3 branches": lambda: either.guided_step(np.zeros((3, 4, 12), np.float32), f, six, f, 1.0),
        "output is not contig": lambda: either.guided_step(np.zeros((2, 4, 24), np.float32)[..., ::2], f, six, f, 1.0),
        "coefficients is .4.": lambda: either.guided_step(w, f, six[:4], f, 1.0),
        "out is read-only": lambda: either.guided_step(w, f, six, f.copy(), 1.0, out=frozen),
        "positions is int32": lambda: either.gather_rows(f, i.astype(np.int32)),
        "sampled is .4, 6.": lambda: either.scatter_tokens(f, masked, i[:3], f.copy()),
        "masked is .3.": lambda: either.scatter_tokens(f, masked[:3], i, f.copy()),
        "clip is -1": lambda: either.scatter_tokens(f, masked, i, f.copy(), clip=-1.0),
        "clip is nan": lambda: either.scatter_tokens(f, masked, i, f.copy(), clip=float("nan")),
        "overlaps": lambda: either.scatter_tokens(f, masked, i, f),
        "not aligned": lambda: either.gather_rows(np.zeros(97, np.uint8)[1:].view(np.float32).reshape(4, 6), i),
        "pixels is .4, 1, 6, 6.": lambda: either.pixels_to_frame(np.zeros((4, 6, 6), np.float32)),
        "out is .6, 6, 1.": lambda: either.pixels_to_frame(
            np.zeros((3, 6, 6), np.float32), 0, np.zeros((6, 6, 1), "u1")
        ),
    }
    for message, call in refused.items():
        with pytest.raises(ValueError, match=message):
            call()
