"""ONNX Runtime on a device, without one: memory bound by address, what stays there, providers and failures.

The CPU is bound by address as a GPU is, and once it is even called "cuda" (`Disguise`). What only a GPU can show is
not shown here: that CUDA's kernels agree, and that a provider's own copies are as they are described.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnxruntime.capi import onnxruntime_inference_collection as collection

from videomar.artifacts import read_manifest
from videomar.errors import DeviceError
from videomar.graphs import TRANSFORMER_STEP, contract
from videomar.runtime.backends import ort_providers
from videomar.runtime.backends.base import ClipPlan
from videomar.runtime.backends.ort import OrtBackend
from videomar.runtime.backends.ort_memory import Buffer, DeviceMemory, HostMemory, Memory
from videomar.runtime.backends.ort_providers import CPU_PROVIDER, Providers, cache_directory, ranges, tensorrt_options
from videomar.runtime.backends.ort_session import open_session
from videomar.runtime.backends.small_graphs import concat_graph, drop_graph
from videomar.schedule import DiffusionSchedule, half_tables

FRAMES, COUNTS, H, W = 3, (4, 2), 2, 3
ARTIFACTS = pytest.mark.parametrize("artifacts", ["tiny_artifacts", "tiny_native", "tiny_fixed"])


def open_backend(directory: Path, memory: Memory | None = None, providers: Providers = ort_providers.CPU) -> OrtBackend:
    return OrtBackend(directory, read_manifest(directory), 1, providers, memory)


def run_clip(backend: OrtBackend, branches: int, seed: int = 0) -> list[np.ndarray]:
    """Every sampled array of a clip, driven as the sampler does."""
    t, tokens, rng = backend.config.transformer, H * W, np.random.default_rng(seed)
    schedule = DiffusionSchedule.respaced(backend.config.head.train_steps, 3)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    states = backend.encode_text(np.array([[1, 2, 3, 4, 5, 6, 7]]))
    loops = {(len(schedule.timesteps), "ancestral"): schedule}
    clip = backend.begin(states, ClipPlan(tokens, FRAMES, branches, COUNTS, loops))
    sampled = []
    for frame in range(FRAMES):
        tables = half_tables(frame, H, W, t.rope_split, t.rope_theta)
        x, order = normal(tokens, t.token_channels), rng.permutation(tokens)
        for count in COUNTS:
            clip.step(x, rng.random(tokens) < 0.5, order[:count], *tables)
            draws = normal(3, count, t.token_channels)
            sampled.append(clip.sample(1.7, normal(count, t.token_channels), draws).copy())
        clip.step(x, np.zeros(tokens, bool), np.zeros(1, np.int64), *tables)
        clip.keep()
    clip.close()
    return sampled


@ARTIFACTS
@pytest.mark.parametrize("branches", [1, 2])
def test_memory_bound_by_address_gives_the_bits_of_numpy_memory(
    artifacts: str, branches: int, request: pytest.FixtureRequest
) -> None:
    directory = request.getfixturevalue(artifacts)
    expected = run_clip(open_backend(directory), branches)
    got = run_clip(open_backend(directory, DeviceMemory("cpu")), branches)
    assert len(got) == FRAMES * len(COUNTS) and all(map(np.array_equal, got, expected))
    assert all(np.isfinite(array).all() for array in got)


def test_a_clip_depends_on_every_frame_before_it(tiny_artifacts: Path) -> None:
    # So that the equalities above say something about K/V.
    backend = open_backend(tiny_artifacts)
    one, other = run_clip(backend, 2, seed=0), run_clip(backend, 2, seed=1)
    assert not any(map(np.array_equal, one, other))


class Disguise:
    """Calls the host "cuda" and notes what is taken, written, read and bound there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[tuple[str, int]] = []  # (what, bytes)
        make, value = collection.OrtDevice.make, collection.OrtValue
        note, update, read = self.events.append, value.update_inplace, value.numpy
        allocate = value.ortvalue_from_shape_and_type.__func__

        def taken(cls: type, shape: Any, element: Any, device: str = "cpu", index: int = 0) -> ort.OrtValue:
            made = allocate(cls, shape, element, "cpu", index)
            assert (device, index) == ("cuda", 0)
            note(("take", made.tensor_size_in_bytes()))
            return made

        def written(self: ort.OrtValue, data: np.ndarray) -> None:
            note(("write", data.nbytes))
            update(self, data)

        def fetched(self: ort.OrtValue) -> np.ndarray:
            note(("read", self.tensor_size_in_bytes()))
            return read(self)

        def disguised(device: str, index: int, *rest: Any) -> Any:
            note((f"bind {device}", index))
            return make("cpu", index, *rest)

        monkeypatch.setattr(value, "ortvalue_from_shape_and_type", classmethod(taken))
        monkeypatch.setattr(value, "update_inplace", written)
        monkeypatch.setattr(value, "numpy", fetched)
        monkeypatch.setattr(collection.OrtDevice, "make", staticmethod(disguised))

    def since(self) -> Counter[str]:
        """How often each thing happened since the last look."""
        counted = Counter(what for what, _ in self.events)
        self.events.clear()
        return counted


@pytest.fixture
def disguise(monkeypatch: pytest.MonkeyPatch) -> Disguise:
    return Disguise(monkeypatch)


CUDA_BY_NAME = Providers("ort-cuda", "cuda", CPU_PROVIDER, lambda spec: [CPU_PROVIDER], [CPU_PROVIDER])


@ARTIFACTS
def test_keys_and_values_never_leave_the_device_and_a_clip_allocates_only_when_it_begins(
    artifacts: str, request: pytest.FixtureRequest, disguise: Disguise
) -> None:
    backend = open_backend(request.getfixturevalue(artifacts), providers=CUDA_BY_NAME)
    t, tokens = backend.config.transformer, H * W
    schedule = DiffusionSchedule.respaced(backend.config.head.train_steps, 3)
    states = backend.encode_text(np.array([[1, 2, 3, 4, 5, 6, 7]]))
    loops = {(len(schedule.timesteps), "ancestral"): schedule}
    clip = backend.begin(states, ClipPlan(tokens, FRAMES, 2, COUNTS, loops))
    began = disguise.since()
    assert began["take"] > 4 * t.depth and began["read"] == 0
    x, masked = np.zeros((tokens, t.token_channels), np.float32), np.ones(tokens, bool)
    frame_kv = 2 * t.heads * tokens * t.head_dim * 4
    for frame in range(FRAMES):
        tables = half_tables(frame, H, W, t.rope_split, t.rope_theta)
        clip.step(x, masked, np.arange(4), *tables)
        clip.sample(1.7, np.zeros((4, t.token_channels), np.float32), np.zeros((3, 4, t.token_channels), np.float32))
        reads = [size for what, size in disguise.events if what == "read"]
        assert reads == [4 * t.token_channels * 4]  # what was sampled, and nothing else
        # The zeros that the in-place emitter's growing cache is copied with are taken when the second frame begins.
        first_copy = artifacts == "tiny_native" and frame == 1
        assert first_copy or all(size < frame_kv for what, size in disguise.events if what == "write")
        assert set(disguise.since()) == {"write", "read", "bind cuda"} | ({"take", "bind cpu"} if first_copy else set())
        clip.keep()
        after = disguise.since()
        assert (after["take"], after["read"]) == (0, 0)
    clip.close()


def test_a_view_has_the_memory_of_its_buffer_and_never_more() -> None:
    for memory in (HostMemory(), DeviceMemory("cpu")):
        whole = memory.zeros((2, 3), np.float32)
        part = memory.view(whole, (1, 2, 2))
        assert part.shape == (1, 2, 2) and part.value.data_ptr() == whole.value.data_ptr()
        later = memory.view(whole, (2,), 4)
        memory.put(identity().io_binding(), "given", whole, np.arange(6, dtype=np.float32).reshape(2, 3))
        assert contents(memory, later).tolist() == [4, 5]
        with pytest.raises(ValueError):
            memory.view(whole, (7,))
        with pytest.raises(ValueError):
            memory.view(whole, (3,), 4)


def identity() -> ort.InferenceSession:
    """given -> given, any length."""
    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("Identity", ["given"], ["same"])
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph([node], "g", [value("given", kind, None)], [value("same", kind, None)])
    opset = [onnx.helper.make_opsetid("", 13)]
    return open_session(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString())


def contents(memory: Memory, buffer: Buffer) -> np.ndarray:
    """What a session reads there."""
    session = identity()
    binding = session.io_binding()
    memory.bind_input(binding, "given", buffer)
    binding.bind_output("same", "cpu")
    memory.run(session, binding, "a look")
    return binding.copy_outputs_to_cpu()[0]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_copying_graph_is_valid_onnx_and_widens(dtype: Any) -> None:
    onnx.checker.check_model(onnx.load_from_string(concat_graph(np.dtype(dtype))), full_check=True)
    memory, rng = DeviceMemory("cpu"), np.random.default_rng(0)
    values = rng.standard_normal((2, 3, 200, 4)).astype(dtype)

    def filled(array: np.ndarray) -> Buffer:
        buffer = memory.zeros(array.shape, array.dtype)
        buffer.value.update_inplace(array)
        return buffer

    target = memory.zeros((2, 3, 300, 4), dtype)
    memory.widen(filled(values), target)
    assert np.array_equal(memory.read(target)[:, :, :200], values) and not memory.read(target)[:, :, 200:].any()
    memory.widen(filled(values[:, :, :0]), target)  # nothing finished yet: nothing to do
    assert np.array_equal(memory.read(target)[:, :, :200], values)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("start", [0, 2, 5])
def test_tokens_are_dropped_in_every_memory(dtype: Any, start: int) -> None:
    onnx.checker.check_model(onnx.load_from_string(drop_graph(np.dtype(dtype))), full_check=True)
    values = np.random.default_rng(0).standard_normal((2, 3, 8, 4)).astype(dtype)
    for memory in (HostMemory(), DeviceMemory("cpu")):
        source, target = memory.zeros(values.shape, dtype), memory.zeros((2, 3, 5, 4), dtype)
        source.value.update_inplace(values)
        memory.drop(source, target, start)
        kept = [token for token in range(8) if not start <= token < start + 3]
        assert np.array_equal(memory.read(target), values[:, :, kept])


# ---- failures


class Failing:
    """A session or binding that fails as CUDA does."""

    def __init__(self, message: str) -> None:
        self.message = message

    def synchronize_inputs(self) -> None: ...

    def run_with_iobinding(self, _: object) -> None:
        raise RuntimeError(self.message)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("CUDA failure 700: an illegal memory access\n at some.cc:12", "cuda failed in the head (CUDA failure 700: an"),
        ("BFCArena: Failed to allocate memory for requested buffer of size 99", "too little memory for the head"),
        ("CUDA failure 2: out of memory", "ask for fewer --frames"),
        ("", "RuntimeError"),
    ],
)
def test_a_device_that_fails_in_a_clip_is_one_line(message: str, said: str) -> None:
    failing: Any = Failing(message)
    with pytest.raises(DeviceError) as caught:
        DeviceMemory("cuda").run(failing, failing, "the head")
    assert said in str(caught.value) and "\n" not in str(caught.value) and "--backend ort-cpu" in str(caught.value)


@pytest.mark.parametrize("graph", ["loading", "running"])
def test_a_device_that_fails_elsewhere_is_one_line_too(
    tiny_artifacts: Path, graph: str, disguise: Disguise, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA failure 35: CUDA driver version is insufficient\nmore")

    target = "__init__" if graph == "loading" else "run"
    backend = None if graph == "loading" else open_backend(tiny_artifacts, providers=CUDA_BY_NAME)
    monkeypatch.setattr(ort.InferenceSession, target, fail)
    with pytest.raises(DeviceError, match=r"cuda failed in .*CUDA failure 35: .*insufficient\)"):
        open_backend(tiny_artifacts, providers=CUDA_BY_NAME) if backend is None else backend.encode_text(
            np.zeros((1, 5))
        )


def test_no_memory_for_a_clip_is_said_and_nothing_is_kept(
    tiny_artifacts: Path, disguise: Disguise, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = open_backend(tiny_artifacts, providers=CUDA_BY_NAME)

    def full(*_: object, **__: object) -> None:
        raise RuntimeError("Failed to allocate memory for requested buffer of size 123")

    monkeypatch.setattr(ort.OrtValue, "ortvalue_from_shape_and_type", full)
    with pytest.raises(DeviceError, match="cuda has too little memory for a clip's buffers"):
        run_clip(backend, 2)


def test_a_provider_that_falls_back_to_the_cpu_is_refused(tiny_artifacts: Path) -> None:
    with pytest.warns(UserWarning, match="not in available provider names"):
        with pytest.raises(DeviceError, match=r"could not start CUDAExecutionProvider.*--backend ort-cuda"):
            open_backend(tiny_artifacts, providers=ort_providers.cuda())


# ---- TensorRT's provider


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.setenv("VIDEOMAR_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"


def test_tensorrts_profile_covers_every_dynamic_axis_and_sets_no_precision(
    tiny_artifacts: Path, tmp_path: Path
) -> None:
    manifest = read_manifest(tiny_artifacts)
    for spec in contract(manifest.config, "fp16", in_place=False).values():
        options = tensorrt_options(spec, manifest.config, tmp_path)
        bounds = []
        for bound in ("min", "opt", "max"):
            shapes = dict(entry.split(":") for entry in options[f"trt_profile_{bound}_shapes"].split(","))
            dynamic = [tensor for tensor in spec.inputs if any(isinstance(axis, str) for axis in tensor.axes)]
            assert list(shapes) == [tensor.name for tensor in dynamic]
            assert all(len(shapes[tensor.name].split("x")) == len(tensor.axes) for tensor in dynamic)
            bounds.append([int(size) for shape in shapes.values() for size in shape.split("x")])
        assert all(low <= usual <= high for low, usual, high in zip(*bounds, strict=True))
        assert not [name for name in options if any(word in name for word in ("fp16", "int8", "bf16", "fp8"))]
        assert options["trt_engine_cache_enable"] and options["trt_engine_cache_path"] == str(tmp_path)


def test_tensorrts_profile_serves_the_models_own_clip(tiny_artifacts: Path) -> None:
    config = read_manifest(tiny_artifacts).config
    known = ranges(config)
    axes = {axis for spec in contract(config, "fp32", in_place=False).values() for t in spec.inputs for axis in t.axes}
    assert {axis for axis in axes if isinstance(axis, str)} <= set(known)
    assert known["tokens"][2] == 6 and known["past"] == (0, 6, 18) and known["frames"][2] == 17
    step = tensorrt_options(contract(config, "fp32", in_place=False)[TRANSFORMER_STEP], config, Path("x"))
    assert "past_key_0:1x2x0x16" in step["trt_profile_min_shapes"].split(",")


def test_the_engine_cache_belongs_to_these_files_and_versions_and_lies_outside_the_artifacts(
    tiny_artifacts: Path, tiny_native: Path, cache: Path
) -> None:
    portable, native = read_manifest(tiny_artifacts), read_manifest(tiny_native)
    here = cache_directory(portable, "100300")
    assert here == cache_directory(portable, "100300") and here.parent == cache / "ort-trt"
    assert len({here, cache_directory(portable, "101300"), cache_directory(native, "100300")}) == 3
    before = sorted(os.listdir(tiny_artifacts))
    providers = ort_providers.tensorrt(portable)
    names = [entry if isinstance(entry, str) else entry[0] for entry in providers.of(contract(
        portable.config, "fp32", in_place=False)[TRANSFORMER_STEP])]  # fmt: skip
    assert names == ["TensorrtExecutionProvider", "CUDAExecutionProvider", CPU_PROVIDER]
    assert (cache / "ort-trt").is_dir() and sorted(os.listdir(tiny_artifacts)) == before


def test_cuda_computes_fp32_as_fp32_and_chooses_alike_every_time() -> None:
    [(name, options), last] = ort_providers.cuda().copying
    assert (name, last) == ("CUDAExecutionProvider", CPU_PROVIDER)
    assert options["use_tf32"] == 0 and options["cudnn_conv_algo_search"] == "HEURISTIC"
    assert options["arena_extend_strategy"] == "kSameAsRequested"  # no power of two over what a graph needs


def test_nvidias_libraries_are_loaded_from_a_python_below_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cu12", "cu13", "cudnn"):
        (tmp_path / "nvidia" / name / "lib").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(ort, "preload_dlls", lambda **how: asked.append(how))
    ort_providers.cuda()
    place = tmp_path / "nvidia"
    first = {"cuda": True, "cudnn": False, "directory": str(place / "cu13" / "lib")}
    second = {"cuda": False, "cudnn": True, "directory": str(place / "cudnn" / "lib")}
    assert asked[:2] == [first, second] and asked[-1] == {}  # then beside ONNX Runtime, and the system's
