"""A TensorRT that behaves like the version FAKE_TRT_VERSION says, for the real build code; `import tensorrt` finds it.

It reads ONNX, refuses what that version refuses, keeps no secrets: its engines are JSON. FAKE_TRT_BEHAVIOUR: "kill"
(SIGKILL while building), "sleep" (builds for a minute), "unloadable", or "fail MESSAGE" (no engine, MESSAGE logged).
"""

import enum
import json
import os
import signal
import time

import onnx

__version__ = os.environ.get("FAKE_TRT_VERSION", "10.3.0.26")
_BEHAVIOUR = os.environ.get("FAKE_TRT_BEHAVIOUR", "")
_NUMBERS = tuple(int(n) for n in __version__.split(".")[:2])
_RTX = _NUMBERS[0] == 1
_NEW_OPS = {"Attention": (10, 14), "RotaryEmbedding": (10, 15), "RMSNormalization": (10, 15), "TensorScatter": (10, 15)}
_FORBIDDEN = {"IInt8Calibrator", "IInt8EntropyCalibrator2", "QuantizationFlag", "CalibrationAlgoType"}


def __getattr__(name):
    """Weak typing: there until 10, never to be touched; gone in 11 and RTX."""
    if name in _FORBIDDEN and _NUMBERS[0] == 10:
        raise AssertionError(f"touched {name}")
    raise AttributeError(name)


class _Flags(type):
    def __getattr__(cls, name):
        if name in ("FP16", "INT8", "BF16", "FP8", "OBEY_PRECISION_CONSTRAINTS") and _NUMBERS[0] == 10:
            raise AssertionError(f"touched {name}")
        raise AttributeError(name)


class BuilderFlag(metaclass=_Flags):
    TF32 = 7


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 0 if _RTX else 1


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0
    TACTIC_DRAM = 4


class ProfilingVerbosity(enum.Enum):
    DETAILED = 1


class ComputeCapability(enum.Enum):
    SM86 = 86
    SM120 = 120


if not _RTX:
    del ComputeCapability


class ILogger:
    class Severity(enum.Enum):
        ERROR = 1
        VERBOSE = 4

    def __init__(self):
        pass


class IProgressMonitor:
    def __init__(self):
        pass


class ParserError:
    def __init__(self, desc, node):
        self._desc, self._node = desc, node

    def desc(self):
        return self._desc

    def node_operator(self):
        return self._node.op_type if self._node is not None else ""

    def node_name(self):
        return self._node.name if self._node is not None else ""


class OnnxParser:
    def __init__(self, network, logger):
        self.network, self.logger, self.errors = network, logger, []

    def parse_from_file(self, path):
        try:
            graph = onnx.load(path).graph
        except Exception:
            self.errors.append(ParserError("Failed to parse the ONNX model.", None))
            return False
        for node in graph.node:
            if not _RTX and _NUMBERS < _NEW_OPS.get(node.op_type, (0, 0)):
                self.errors.append(ParserError(f"No importer registered for op: {node.op_type}", node))
        self.network.graph = graph
        return not self.errors

    @property
    def num_errors(self):
        return len(self.errors)

    def get_error(self, i):
        return self.errors[i]


class _Network:
    def __init__(self, flags):
        self.typed = bool(flags & 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED) or _RTX or _NUMBERS[0] > 10

    num_inputs = property(lambda self: len(self.graph.input))
    num_outputs = property(lambda self: len(self.graph.output))

    def get_input(self, i):
        return self.graph.input[i]

    def get_output(self, i):
        return self.graph.output[i]


class _Profile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, name, least, tuned, most):
        assert all(a <= b <= c for a, b, c in zip(least, tuned, most, strict=True)), (name, least, tuned, most)
        self.shapes[name] = [list(least), list(tuned), list(most)]


class _Cache:
    def __init__(self, data):
        self.data = bytes(data)

    def serialize(self):
        return self.data + b"timed "


class _Config:
    def __init__(self):
        self.pools, self.profiles, self.cache, self.progress_monitor = {}, [], None, None
        self.builder_optimization_level = 3

    def __setattr__(self, name, value):
        if name in ("int8_calibrator", "flags"):
            raise AssertionError(f"touched {name}")
        super().__setattr__(name, value)

    def set_flag(self, flag):
        raise AssertionError("touched a flag")

    def set_memory_pool_limit(self, pool, limit):
        self.pools[pool.name] = limit

    def create_timing_cache(self, data):
        return _Cache(data)

    def set_timing_cache(self, cache, ignore_mismatch):
        assert not ignore_mismatch
        if cache.data and not cache.data.startswith(b"timed "):
            return False
        self.cache = cache
        return True

    def get_timing_cache(self):
        return self.cache

    def add_optimization_profile(self, profile):
        self.profiles.append(profile)
        return 0


class Builder:
    def __init__(self, logger):
        self.logger = logger

    def create_network(self, flags):
        return _Network(flags)

    def create_builder_config(self):
        return _Config()

    def create_optimization_profile(self):
        return _Profile()

    def build_serialized_network(self, network, config):
        assert network.typed, "a weakly typed network"
        graph, monitor = network.graph, config.progress_monitor
        self.logger.log(ILogger.Severity.VERBOSE, "building")
        if monitor is not None:
            monitor.phase_start("Building engine", None, 2)
            assert monitor.step_complete("Building engine", 0)
        if _BEHAVIOUR == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if _BEHAVIOUR == "sleep":
            time.sleep(60)
        if _BEHAVIOUR.startswith("fail "):
            self.logger.log(ILogger.Severity.ERROR, _BEHAVIOUR[5:])
            return None
        for value in graph.input:
            dims = value.type.tensor_type.shape.dim
            if any(d.dim_param for d in dims):
                least, _, most = config.profiles[0].shapes[value.name]
                for dim, low, high in zip(dims, least, most, strict=True):
                    assert dim.dim_param or low == high == dim.dim_value, value.name
        if monitor is not None:
            monitor.phase_finish("Building engine")
        names = [v.name for v in [*graph.input, *graph.output]]
        engine = {"version": __version__, "names": names, "pools": config.pools, "cached": bool(config.cache)}
        engine["timed"] = config.cache.data.decode() if config.cache else ""
        return json.dumps(engine | {"profiles": [p.shapes for p in config.profiles]}).encode()


class _Engine:
    def __init__(self, data):
        self.names = data["names"]
        self.num_io_tensors = len(self.names)

    def get_tensor_name(self, i):
        return self.names[i]


class Runtime:
    def __init__(self, logger):
        self.logger = logger

    def deserialize_cuda_engine(self, data):
        try:
            engine = json.loads(data)
        except ValueError:
            engine = {}
        if engine.get("version") != __version__ or _BEHAVIOUR == "unloadable":
            self.logger.log(ILogger.Severity.ERROR, "Serialization assertion failed")
            return None
        return _Engine(engine)
