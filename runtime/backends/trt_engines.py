"""TensorRT engines and their execution contexts: load, check against the contract, bind, enqueue.

Knows `tensorrt` and `tensorrt_rtx`, which share one API, and where versions from 10.3 on differ. Knows nothing of
clips, of K/V, or of who owns the memory it is given.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from videomar.errors import ArtifactError, DeviceError, InputError
from videomar.graphs import GraphSpec, TensorSpec

Shape = tuple[int, ...]
# Which option of `videomar build` widens which axis.
OPTIONS = {
    "--frames": ("frames", "clip", "past", "total"),
    "--height and --width": ("height", "width", "h", "w", "tokens"),
    "--mask-steps": ("predicted",),
    "--max-text": ("prompt", "text"),
    "--branches": ("branches",),
}
DTYPES = {"FLOAT": "float32", "HALF": "float16", "INT64": "int64", "BOOL": "bool"}


def make_runtime(trt: ModuleType) -> tuple[Any, list[str]]:
    """A TensorRT runtime and the list that its error messages go to."""
    errors: list[str] = []

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                errors.append(message)

    logger = Logger()
    runtime = trt.Runtime(logger)
    if runtime is None:
        raise DeviceError("TensorRT cannot start on this machine; run `videomar doctor`")
    return runtime, errors


def shapes_of(tensors: tuple[TensorSpec, ...], sizes: Mapping[str, int]) -> dict[str, Shape]:
    """Name -> shape, for the sizes of the contract's named axes."""
    return {t.name: tuple(sizes[a] if isinstance(a, str) else a for a in t.axes) for t in tensors}


class Engine:
    """One graph's engine."""

    def __init__(
        self, trt: ModuleType, runtime: Any, errors: list[str], file: Path, spec: GraphSpec, rebuild: str
    ) -> None:
        """rebuild: how to make an engine that fits, for messages.

        Raises ArtifactError when TensorRT refuses the file or its tensors are not the contract's.
        """
        self.trt, self.spec, self.rebuild, self._errors = trt, spec, rebuild, errors
        errors.clear()
        try:
            # Mapped, not read: on a Jetson the file's bytes and the engine share one memory.
            with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
                self.raw = runtime.deserialize_cuda_engine(data)
        except OSError as error:
            raise ArtifactError(f"{file} cannot be read ({error.strerror}); {rebuild}") from None
        except ValueError:
            raise ArtifactError(f"{file} is empty; {rebuild}") from None
        if self.raw is None:
            raise ArtifactError(
                f"{file} is not an engine for TensorRT {trt.__version__} on this GPU, or it is truncated"
                f"{self.why()}; {rebuild}"
            )
        try:
            self._check_contract(file)
        except BaseException:
            self.close()
            raise

    def _check_contract(self, file: Path) -> None:
        mode, host = self.trt.TensorIOMode, self.trt.TensorLocation.HOST
        names = [self.raw.get_tensor_name(i) for i in range(self.raw.num_io_tensors)]
        for side, kind, tensors in (
            ("input", mode.INPUT, self.spec.inputs),
            ("output", mode.OUTPUT, self.spec.outputs),
        ):
            wanted = {t.name: (t.dtype, len(t.axes)) for t in tensors}
            got = {
                n: (DTYPES.get(self.raw.get_tensor_dtype(n).name, "unknown"), len(tuple(self.raw.get_tensor_shape(n))))
                for n in names
                if self.raw.get_tensor_mode(n) == kind and self.raw.get_tensor_location(n) != host
            }
            if got != wanted:
                odd = sorted(n for n in got.keys() | wanted.keys() if got.get(n) != wanted.get(n))[0]
                raise ArtifactError(
                    f"{file} was built from another export: its {side} {odd!r} is {_say(got.get(odd))}, "
                    f"expected {_say(wanted.get(odd))}; {self.rebuild}"
                )

    @property
    def device_memory(self) -> int:
        """Bytes that a context needs while it runs."""
        for name in ("device_memory_size_v2", "device_memory_size"):  # _v2 since 10.1; the other is gone in 11
            if hasattr(self.raw, name):
                return int(getattr(self.raw, name))
        raise DeviceError(f"TensorRT {self.trt.__version__} is not a version this backend knows; run `videomar doctor`")

    def profile(self, sizes: Mapping[str, int]) -> int:
        """Index of the first optimization profile that takes these sizes of the contract's axes.

        Raises InputError naming the axis, what was asked and what the engine takes.
        """
        refusals = []
        for index in range(self.raw.num_optimization_profiles):
            refusals.append(self._refusal(index, sizes))
            if not refusals[-1]:
                return index
        raise InputError(f"{self.spec.name}.engine: {refusals[-1]}: {self.rebuild}")

    def most(self, axis: str) -> int:
        """The largest size of one of the contract's axes that any profile takes."""
        tensor, at = next((t, t.axes.index(axis)) for t in self.spec.inputs if axis in t.axes)
        built: int = tuple(self.raw.get_tensor_shape(tensor.name))[at]
        profiles = range(self.raw.num_optimization_profiles)
        if built != -1:
            return built
        return max(int(tuple(self.raw.get_tensor_profile_shape(tensor.name, index)[2])[at]) for index in profiles)

    def _refusal(self, index: int, sizes: Mapping[str, int]) -> str:
        for tensor in self.spec.inputs:
            built = tuple(self.raw.get_tensor_shape(tensor.name))
            low, high = built, built
            if -1 in built:
                low, _, high = (tuple(d) for d in self.raw.get_tensor_profile_shape(tensor.name, index))
            for axis, least, most in zip(tensor.axes, low, high, strict=True):
                size = sizes[axis] if isinstance(axis, str) else axis
                if not least <= size <= most:
                    takes = f"{least} to {most}" if least < most else f"{most}"
                    option = next((o for o, axes in OPTIONS.items() if axis in axes), "other options")
                    return (
                        f"{axis!r} of {tensor.name!r} would be {size}, it was built for {takes}; ask for another "
                        f"clip, or build with other {option}"
                    )
        return ""

    def failure(self, what: str) -> DeviceError:
        return DeviceError(f"TensorRT could not {what} of {self.spec.name}{self.why()}; run `videomar doctor`")

    def why(self) -> str:
        """What TensorRT logged last, in brackets."""
        return f" ({self._errors[-1].splitlines()[0].strip()})" if self._errors else ""

    def close(self) -> None:
        self.raw = None


class Context:
    """An execution context working in the device memory at `block`; give it sizes, then addresses, then enqueue."""

    def __init__(self, engine: Engine, block: int, stream: Any) -> None:
        self.engine, self._block, self._stream = engine, block, stream
        self._profile: int | None = None
        self._context = self._make()
        if self._context is None:
            raise engine.failure("make a context")

    def _make(self) -> Any:
        """One that allocates no working memory of its own."""
        trt = self.engine.trt
        strategy = getattr(trt, "ExecutionContextAllocationStrategy", None)
        if strategy is None:
            return self.engine.raw.create_execution_context_without_device_memory()
        kernels = getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)
        if kernels is None:
            return self.engine.raw.create_execution_context(strategy.USER_MANAGED)
        # TensorRT-RTX compiles kernels for the shapes it meets, by default in the background: a graph would be
        # captured with the slow ones that stand in for them.
        config = self.engine.raw.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy.USER_MANAGED)
        config.dynamic_shapes_kernel_specialization_strategy = kernels.EAGER
        return self.engine.raw.create_execution_context(config)

    def resize(self, sizes: Mapping[str, int]) -> None:
        """Take these sizes of the contract's axes; the next enqueue must not be a captured one."""
        profile = self.engine.profile(sizes)
        if profile != self._profile:  # only an engine's first context has one by itself
            self._do("choose a profile", self._context.set_optimization_profile_async(profile, int(self._stream)))
            self._profile = profile
            if hasattr(self._context, "set_device_memory"):  # since 10.1
                self._context.set_device_memory(self._block, self.engine.device_memory)
            else:
                self._context.device_memory = self._block
        for name, shape in shapes_of(self.engine.spec.inputs, sizes).items():
            self._do(f"take the shape {list(shape)} of {name!r}", self._context.set_input_shape(name, shape))
        if missing := self._context.infer_shapes():
            raise self.engine.failure(f"infer the shapes from {', '.join(missing)}")

    def _do(self, what: str, done: bool) -> None:
        if not done:
            raise self.engine.failure(what)

    def output_shape(self, name: str) -> Shape:
        """Shape of an output, as the input shapes make it."""
        return tuple(self._context.get_tensor_shape(name))

    def bind(self, addresses: Mapping[str, int]) -> None:
        """Where tensors lie, until bound elsewhere."""
        for name, address in addresses.items():
            self._do(f"bind {name!r}", self._context.set_tensor_address(name, address))

    def bind_named(self, addresses: Mapping[str, int]) -> None:
        """Bind every tensor that `addresses` has by its name."""
        tensors = (*self.engine.spec.inputs, *self.engine.spec.outputs)
        self.bind({t.name: addresses[t.name] for t in tensors if t.name in addresses})

    def enqueue(self) -> None:
        self._do("run a pass", self._context.execute_async_v3(int(self._stream)))

    @property
    def capturable(self) -> bool:
        """Whether TensorRT says that this context can be captured; versions that cannot say are tried."""
        ask = getattr(self._context, "is_stream_capturable", None)  # TensorRT-RTX
        return ask is None or bool(ask(int(self._stream)))

    def close(self) -> None:
        self._context = None


def _say(tensor: tuple[str, int] | None) -> str:
    return "missing" if tensor is None else f"{tensor[0]} of {tensor[1]} axes"
