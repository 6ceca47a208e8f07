"""The ONNX Runtime backend: K/V written in place, nothing allocated in the loop, steps that see what they should."""

from __future__ import annotations

import ctypes
import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from videomar.artifacts import Manifest, read_manifest
from videomar.errors import ArtifactError, InputError
from videomar.graphs import DIFFUSION_HEAD, TRANSFORMER_STEP, layer_names
from videomar.runtime.backends.base import ClipPlan, predicted_sizes
from videomar.runtime.backends.ort import NEEDED, OrtBackend
from videomar.runtime.backends.ort_session import open_session
from videomar.schedule import DiffusionSchedule, half_tables

GRID, FRAMES, COUNTS, HEAD_STEPS = (2, 3), 3, (1, 2, 3), 4
TOKENS = GRID[0] * GRID[1]
FLAVOURS = ("tiny_artifacts", "tiny_native", "tiny_fixed", "tiny_half")
REFUSED = "in-place"  # what ONNX Runtime says of a cache that it had to copy


@pytest.fixture(params=FLAVOURS)
def artifacts(request: pytest.FixtureRequest) -> Path:
    return Path(request.getfixturevalue(request.param))


@pytest.fixture(params=["tiny_native", "tiny_fixed"])
def in_place(request: pytest.FixtureRequest) -> Path:
    return Path(request.getfixturevalue(request.param))


def open_backend(directory: Path, **options: Any) -> OrtBackend:
    return OrtBackend(directory, read_manifest(directory), 1, **options)


def plan(backend: OrtBackend, branches: int = 2, frames: int = FRAMES, tokens: int = TOKENS) -> ClipPlan:
    schedule = DiffusionSchedule.respaced(backend.config.head.train_steps, HEAD_STEPS)
    return ClipPlan(tokens, frames, branches, COUNTS, {(HEAD_STEPS, "ancestral"): schedule})


def item_size(backend: OrtBackend) -> int:
    """Bytes of a number between graphs."""
    return int(np.dtype(backend.specs[TRANSFORMER_STEP].outputs[0].dtype).itemsize)


class Driver:
    """Runs a clip's steps with numbers that depend only on (frame, step)."""

    def __init__(self, backend: OrtBackend, branches: int = 2, frames: int = FRAMES) -> None:
        self.backend, self.t = backend, backend.config.transformer
        states = backend.encode_text(np.arange(7)[None] + 1)
        self.clip = backend.begin(states, plan(backend, branches, frames))

    def numbers(self, *key: int) -> np.random.Generator:
        return np.random.default_rng(key)

    def step(self, frame: int, step: int, predict: np.ndarray | None = None, masked: np.ndarray | None = None) -> None:
        rng = self.numbers(frame, step)
        tokens = rng.standard_normal((TOKENS, self.t.token_channels)).astype(np.float32)
        order = rng.permutation(TOKENS)[: COUNTS[step]]
        flags = rng.random(TOKENS) < 0.5
        tables = half_tables(frame, *GRID, self.t.rope_split, self.t.rope_theta)
        self.clip.step(tokens, flags if masked is None else masked, order if predict is None else predict, *tables)

    def sample(self, frame: int, step: int, count: int | None = None, guidance: float = 2.0) -> np.ndarray:
        rng, shape = self.numbers(frame, step, 1), (count or COUNTS[step], self.t.token_channels)
        draws = rng.standard_normal((HEAD_STEPS, *shape)).astype(np.float32)
        return self.clip.sample(guidance, rng.standard_normal(shape).astype(np.float32), draws).copy()

    def frame(self, frame: int, keep: bool = True) -> list[np.ndarray]:
        sampled = []
        for step in range(len(COUNTS)):
            self.step(frame, step)
            sampled.append(self.sample(frame, step))
        if keep:
            self.step(frame, 0, np.zeros(1, np.int64), np.zeros(TOKENS, bool))
            self.clip.keep()
        return sampled


# ---- bound memory


class SpyBinding:
    """Notes the address behind every bound name."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self.addresses: dict[str, int] = {}

    def bind_ortvalue_input(self, name: str, value: ort.OrtValue) -> None:
        self.addresses[name] = value.data_ptr()
        self.real.bind_ortvalue_input(name, value)

    def bind_ortvalue_output(self, name: str, value: ort.OrtValue) -> None:
        self.addresses[name] = value.data_ptr()
        self.real.bind_ortvalue_output(name, value)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


class SpySession:
    """Notes the addresses of all bound tensors at every run."""

    def __init__(self, real: ort.InferenceSession) -> None:
        self.real = real
        self.runs: list[dict[str, int]] = []

    def io_binding(self) -> SpyBinding:
        return SpyBinding(self.real.io_binding())

    def run_with_iobinding(self, binding: SpyBinding, *options: ort.RunOptions) -> None:
        self.runs.append(dict(binding.addresses))
        self.real.run_with_iobinding(binding.real, *options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


def spy(backend: OrtBackend, name: str) -> SpySession:
    backend.sessions[name] = session = SpySession(backend.sessions[name])  # type: ignore[assignment]
    return session  # type: ignore[return-value]


BY_COUNT = {"predict", "z", "initial", "draws", "sampled"}


def test_every_tensor_of_a_step_is_bound_and_stays_where_it_is(artifacts: Path) -> None:
    backend = open_backend(artifacts)
    step, head = spy(backend, TRANSFORMER_STEP), spy(backend, DIFFUSION_HEAD)
    driver = Driver(backend)
    for frame in range(FRAMES):
        step.runs.clear(), head.runs.clear()
        driver.frame(frame)
        driver.frame(frame, keep=False) if frame + 1 == FRAMES else None
        for name, session in ((TRANSFORMER_STEP, step), (DIFFUSION_HEAD, head)):
            spec = backend.specs[name]
            bound = {t.name for t in [*spec.inputs, *spec.outputs]}
            assert all(set(run) == bound for run in session.runs)
            fixed = [{k: v for k, v in run.items() if k not in BY_COUNT} for run in session.runs]
            assert all(run == fixed[0] for run in fixed)
            per_count = len(predicted_sizes(COUNTS))
            assert all(len({run[k] for run in session.runs}) <= per_count for k in BY_COUNT & bound)


def test_what_the_transformer_says_goes_to_the_head_without_a_copy(artifacts: Path) -> None:
    backend = open_backend(artifacts)
    step, head = spy(backend, TRANSFORMER_STEP), spy(backend, DIFFUSION_HEAD)
    Driver(backend).frame(0, keep=False)
    assert [run["z"] for run in step.runs] == [run["z"] for run in head.runs]


def test_finished_keys_and_values_change_places_between_two_buffers_a_tensor(artifacts: Path) -> None:
    backend = open_backend(artifacts)
    step, driver = spy(backend, TRANSFORMER_STEP), Driver(backend)
    for frame in range(FRAMES):
        driver.frame(frame)
    expected = 1 if backend.cache_tokens else 2
    for name in layer_names("present", driver.t.depth):
        assert len({run[name] for run in step.runs}) == expected


def test_the_native_emitter_reads_and_writes_one_memory(in_place: Path) -> None:
    backend = open_backend(in_place)
    step, driver = spy(backend, TRANSFORMER_STEP), Driver(backend)
    for frame in range(FRAMES):
        driver.frame(frame)
    depth = driver.t.depth
    for run in step.runs:
        for past, present in zip(layer_names("past", depth), layer_names("present", depth), strict=True):
            assert run[past] == run[present]


def verbose(backend: OrtBackend, directory: Path) -> None:
    file = directory / f"{TRANSFORMER_STEP}.onnx"
    backend.sessions[TRANSFORMER_STEP] = open_session(file, 1, log_severity_level=2)


def test_onnx_runtime_has_nothing_to_say_against_writing_in_place(
    in_place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    backend = open_backend(in_place)
    verbose(backend, in_place)
    capfd.readouterr()
    driver = Driver(backend)
    for frame in range(FRAMES):
        driver.frame(frame)
    assert REFUSED not in capfd.readouterr().err.lower()


def test_onnx_runtime_does_speak_up_when_the_cache_is_bound_elsewhere(
    in_place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # So that its silence above says something.
    backend = open_backend(in_place)
    verbose(backend, in_place)
    sizes = {"branches": 1, "tokens": TOKENS, "total": TOKENS, "text": 2, "predicted": 1}
    feeds = {}
    for t in backend.specs[TRANSFORMER_STEP].inputs:
        shape = [sizes[a] if isinstance(a, str) else a for a in t.axes]
        feeds[t.name] = np.zeros(shape, t.dtype)
    capfd.readouterr()
    backend.sessions[TRANSFORMER_STEP].run(None, feeds)
    assert REFUSED in capfd.readouterr().err.lower()


def test_finished_rows_are_not_written_again(in_place: Path) -> None:
    """Other numbers put into finished rows between steps are still there after a step, and are what it sees."""
    backend = open_backend(in_place)
    step, driver = spy(backend, TRANSFORMER_STEP), Driver(backend)
    driver.frame(0)
    driver.step(1, 1)
    before = driver.sample(1, 1)
    shape = (2, driver.t.heads, backend.cache_tokens or 2 * TOKENS, driver.t.head_dim)
    finished = [memory(step.runs[-1][name], shape)[:, :, :TOKENS] for name in layer_names("present", driver.t.depth)]
    assert all(np.abs(rows).min() > 0 for rows in finished)
    for rows in finished:
        rows[...] = 0.25
    driver.step(1, 1)
    after = driver.sample(1, 1)
    assert all((rows == 0.25).all() for rows in finished)
    assert np.abs(after - before).max() > 1e-4
    driver.step(1, 1)
    np.testing.assert_array_equal(driver.sample(1, 1), after)


def memory(address: int, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 tensor at an address, to read and write."""
    size = int(np.prod(shape))
    return np.frombuffer((ctypes.c_float * size).from_address(address), np.float32).reshape(shape)


def test_steps_allocate_nothing_that_stays(artifacts: Path, held: Callable[[], int]) -> None:
    driver = Driver(open_backend(artifacts))
    driver.frame(0)
    driver.frame(1, keep=False)
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((TOKENS, driver.t.token_channels)).astype(np.float32)
    masked, tables = np.zeros(TOKENS, bool), half_tables(1, *GRID, driver.t.rope_split, driver.t.rope_theta)
    orders = [np.arange(n) for n in COUNTS]
    noise = [np.zeros((n, driver.t.token_channels), np.float32) for n in COUNTS]
    draws = [np.zeros((HEAD_STEPS, n, driver.t.token_channels), np.float32) for n in COUNTS]

    def rounds(count: int) -> None:
        for _ in range(count):
            for i in range(len(COUNTS)):
                driver.clip.step(tokens, masked, orders[i], *tables)
                driver.clip.sample(2.0, noise[i], draws[i])

    rounds(5)  # whatever is cached at its first use
    windows = [held()]
    for _ in range(4):
        rounds(50)
        windows.append(held())
    # ONNX Runtime keeps small objects of its own now and then, once; what a step left would be left in every window.
    assert min(after - before for before, after in itertools.pairwise(windows)) < 2 * 50 * len(COUNTS)  # 2 bytes a step


# ---- what a step sees


def test_a_clip_gives_the_same_numbers_as_another_with_other_clips_between(artifacts: Path) -> None:
    backend = open_backend(artifacts)
    first = Driver(backend)
    one = [first.frame(f) for f in range(FRAMES)]
    first.clip.close()
    other = Driver(backend, branches=1, frames=2)
    other.frame(0)
    other.clip.close()
    again = Driver(backend)
    two = [again.frame(f) for f in range(FRAMES)]
    for a, b in zip(one, two, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


def test_two_clips_at_once_do_not_disturb_each_other(artifacts: Path) -> None:
    backend = open_backend(artifacts)
    alone = Driver(backend)
    expected = [alone.frame(f) for f in range(2)]
    one, two = Driver(backend), Driver(backend, branches=1)
    for f in range(2):
        two.frame(2 - f)
        got = one.frame(f)
        assert all(map(np.array_equal, got, expected[f]))


def test_a_step_that_is_not_kept_leaves_no_trace(artifacts: Path) -> None:
    backend = open_backend(artifacts)
    plain, messy = Driver(backend), Driver(backend)
    plain.frame(0), messy.frame(0)
    messy.frame(2, keep=False)  # as every mask step of a frame before its storing pass
    expected, got = plain.frame(1), messy.frame(1)
    assert all(map(np.array_equal, got, expected))


def test_later_frames_depend_on_kept_ones(artifacts: Path) -> None:
    backend = open_backend(artifacts)
    one, other = Driver(backend), Driver(backend)
    one.frame(0), other.frame(2)
    assert all(np.abs(a - b).max() > 1e-4 for a, b in zip(one.frame(1), other.frame(1), strict=True))


def test_one_branch_is_two_with_a_guidance_of_one(artifacts: Path) -> None:
    """The second branch has no part in the result then; what is left differs by the arithmetic's own rounding."""
    backend = open_backend(artifacts)
    one, two = Driver(backend, branches=1), Driver(backend, branches=2)
    for frame in range(2):
        one.step(frame, 2), two.step(frame, 2)
        a, b = one.sample(frame, 2, guidance=1.0), two.sample(frame, 2, guidance=1.0)
        np.testing.assert_allclose(a, b, rtol=0, atol=3e-2 if item_size(backend) == 2 else 1e-5)
        one.clip.keep(), two.clip.keep()
    assert np.abs(two.sample(1, 2, guidance=3.0) - b).max() > 1e-3


def test_the_sampled_array_may_be_lent_until_the_next_call(artifacts: Path) -> None:
    driver = Driver(open_backend(artifacts))
    driver.step(0, 2)
    lent = driver.clip.sample(1.0, np.zeros((3, 16), np.float32), np.zeros((HEAD_STEPS, 3, 16), np.float32))
    assert lent.shape == (3, 16) and lent.dtype == np.float32 and np.isfinite(lent).all()


# ---- opening and refusing


@pytest.fixture
def copy(tmp_path: Path, tiny_native: Path) -> Iterator[tuple[Path, Manifest]]:
    directory = Path(shutil.copytree(tiny_native, tmp_path / "copy"))
    yield directory, read_manifest(directory)


def _other_opset(file: Path) -> None:
    model = onnx.load(file)
    model.opset_import[0].version = 99
    onnx.save(model, file)


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda f: f.write_bytes(b"rubbish"), r"cannot be loaded by ONNX Runtime \(.*\); export the checkpoint again"),
        (lambda f: f.unlink(), r"cannot be loaded by ONNX Runtime \(.*\); export the checkpoint again"),
        (_other_opset, r"uses ONNX opset 24 \(native\), newer than ONNX Runtime .*--emitter portable"),
    ],
    ids=["rubbish", "missing", "opset of the future"],
)
def test_a_graph_that_cannot_be_loaded_is_named_with_the_mend(
    copy: tuple[Path, Manifest], spoil: Callable[[Path], None], match: str
) -> None:
    directory, manifest = copy
    spoil(directory / f"{TRANSFORMER_STEP}.onnx")
    with pytest.raises(ArtifactError, match=f"{TRANSFORMER_STEP}.onnx.*{match}") as caught:
        OrtBackend(directory, manifest, 1)
    assert "\n" not in str(caught.value)


def test_only_the_graphs_it_runs_are_loaded(copy: tuple[Path, Manifest]) -> None:
    directory, manifest = copy
    for file in directory.glob("*.onnx"):
        if file.stem not in NEEDED:
            file.unlink()
    assert set(OrtBackend(directory, manifest, 1).sessions) == set(NEEDED)


def test_threads_below_one_are_refused(copy: tuple[Path, Manifest]) -> None:
    for threads in (0, -1):
        with pytest.raises(InputError, match=f"threads is {threads}, expected at least 1"):
            OrtBackend(*copy, threads)


def test_a_clip_longer_than_the_fixed_cache_is_refused_by_name(tiny_fixed: Path) -> None:
    backend = open_backend(tiny_fixed)
    states = backend.encode_text(np.arange(6)[None])
    longest = 64 // TOKENS
    backend.begin(states, plan(backend, frames=longest)).close()
    with pytest.raises(InputError, match=r"needs K/V of 66 tokens, these artifacts hold 64; .*--cache-tokens 66"):
        backend.begin(states, plan(backend, frames=longest + 1))


def test_closing_lets_go_of_sessions_and_of_a_clips_memory(artifacts: Path, held: Callable[[], int]) -> None:
    backend = open_backend(artifacts)
    states, long = backend.encode_text(np.arange(6)[None]), plan(backend, frames=10)
    backend.begin(states, long).close()
    before = held()
    clip = backend.begin(states, long)
    taken = held() - before
    clip.close()
    left = held() - before
    assert taken > 10 * TOKENS * backend.config.transformer.width * item_size(backend)
    assert left < taken / 8
    backend.close()
    assert not backend.sessions
