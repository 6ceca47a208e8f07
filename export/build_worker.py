"""One graph -> one engine, in a process of its own: `python -m videomar.export.build_worker JOB.json`.

A process each, so that TensorRT's memory is given back between graphs and its crash is only one graph's. Progress goes
to stdout as JSON lines, TensorRT's every word to the log, the outcome to a JSON file. Decides nothing: a job says all.

Written against the API that `tensorrt` 10.3 to 11 and `tensorrt_rtx` share. Polygraphy's loaders build the same engines
(tried with 0.53 and TensorRT-RTX 1.7), but they import `tensorrt_rtx` by a name that the bindings package does not
have, turn parser errors into a text that no longer says which operator failed, and are one package more on a board.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import resource
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from videomar.artifacts import atomic_write
from videomar.capabilities import capabilities
from videomar.errors import UserError
from videomar.fingerprint import as_data, this_machine
from videomar.runtime.backends.trt_module import load_tensorrt

MIB = 1 << 20


class BuildFailed(Exception):
    """TensorRT said no; `stage` is read, parse, contract, profile, build or verify; `node` names the operator."""

    def __init__(self, stage: str, message: str, node: str = "") -> None:
        super().__init__(message)
        self.stage, self.node = stage, node


def main(path: str) -> int:
    """Do one job; 0 when it succeeded, 1 when it failed and said why in the result file."""
    _die_with_parent()
    job = json.loads(Path(path).read_text())
    try:
        result = probe(job["builder"]) if job.get("probe") else build(job)
    except BuildFailed as error:
        result = {"stage": error.stage, "error": str(error), "node": error.node}
    except UserError as error:
        result = {"stage": "user", "error": str(error), "node": ""}
    except MemoryError:
        result = {"stage": "build", "error": "out of memory (bad_alloc)", "node": ""}
    result["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    atomic_write(Path(job["result"]), json.dumps(result))
    return 1 if "error" in result else 0


def probe(builder: str) -> dict[str, Any]:
    """What machine this is to an engine, and whether TensorRT or TensorRT-RTX is there."""
    trt, rtx = load_tensorrt(builder)
    capabilities(trt.__version__, rtx)
    return {"machine": as_data(this_machine(trt.__version__, rtx)), "rtx": rtx}


def build(job: dict[str, Any]) -> dict[str, Any]:
    """Build, write, read back and verify one engine; raises BuildFailed."""
    started = time.monotonic()
    trt, _ = load_tensorrt(job["builder"])
    with open(job["log"], "w", buffering=1, encoding="utf-8", errors="replace") as log:
        logger = _logger(trt, log)
        builder = trt.Builder(logger)
        # Accepted by 10.3 to 11; from 11 on every network is strongly typed and the flag may go.
        flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = builder.create_network(0 if flag is None else 1 << int(flag))
        parser = trt.OnnxParser(network, logger)
        _say("reading", 0.0)
        if not parser.parse_from_file(job["onnx"]):
            raise _parse_failure(parser)
        _check_contract(network, job)
        config = _config(trt, builder, job)
        _say("building", 0.02)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise BuildFailed("build", " | ".join(logger.errors[-4:]) or "TensorRT returned no engine and no reason")
        _say("writing", 0.97)
        data = memoryview(plan)
        digest, size = hashlib.sha256(data).hexdigest(), data.nbytes
        atomic_write(Path(job["engine"]), data)  # type: ignore[arg-type]
        _save_timing_cache(config, job)
        del data, plan, parser, network, builder, config  # room for reading it back
        tensors = _read_back(trt, logger, job, digest)
    return {"bytes": size, "sha256": digest, "seconds": time.monotonic() - started, "tensors": tensors}


def _config(trt: ModuleType, builder: Any, job: dict[str, Any]) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    # Their defaults are most of the memory, which a board shares with everything else.
    for pool, limit in (("WORKSPACE", job["workspace"]), ("TACTIC_DRAM", job["tactic_memory"])):
        if limit and hasattr(trt.MemoryPoolType, pool):
            config.set_memory_pool_limit(getattr(trt.MemoryPoolType, pool), limit)
    if job["optimization_level"] is not None and hasattr(config, "builder_optimization_level"):
        config.builder_optimization_level = job["optimization_level"]
    if job["compute_capabilities"]:
        config.num_compute_capabilities = len(job["compute_capabilities"])
        for i, sm in enumerate(job["compute_capabilities"]):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{sm}"), i)
    if job["timing_cache"]:
        stored = Path(job["timing_cache"])
        data = stored.read_bytes() if stored.is_file() else b""
        cache = config.create_timing_cache(data)
        if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
            config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)  # of another device: anew
    if hasattr(trt, "IProgressMonitor"):
        config.progress_monitor = _monitor(trt)
    if job["profile"]:
        shapes = builder.create_optimization_profile()
        for name, (least, tuned, most) in job["profile"].items():
            shapes.set_shape(name, least, tuned, most)
        if config.add_optimization_profile(shapes) < 0:
            raise BuildFailed("profile", f"TensorRT refuses the profile {job['profile']}")
    return config


def _check_contract(network: Any, job: dict[str, Any]) -> None:
    """The network's tensors are the contract's: an ONNX file of another export has others."""
    for side, count, get in (
        ("inputs", network.num_inputs, network.get_input),
        ("outputs", network.num_outputs, network.get_output),
    ):
        got = [get(i).name for i in range(count)]
        if got != job[side]:
            odd = next((n for n in [*got, *job[side]] if (n in got) != (n in job[side])), "their order")
            raise BuildFailed("contract", f"its {side} are not the contract's ({odd}); export the checkpoint again")


def _parse_failure(parser: Any) -> BuildFailed:
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    if not errors:
        return BuildFailed("parse", "TensorRT's parser gave no reason")
    first = errors[0]
    operator = first.node_operator() if hasattr(first, "node_operator") else ""
    name = first.node_name() if hasattr(first, "node_name") else ""
    return BuildFailed("parse", first.desc(), f"{operator} {name}".strip())


def _save_timing_cache(config: Any, job: dict[str, Any]) -> None:
    if job["timing_cache"] and (cache := config.get_timing_cache()) is not None:
        file = Path(job["timing_cache"])
        with suppress(UserError, OSError):  # the next build takes longer, which is no reason to lose this one
            file.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(file, bytes(memoryview(cache.serialize())))


def _read_back(trt: ModuleType, logger: Any, job: dict[str, Any], digest: str) -> list[str]:
    """Compare the file with what was built and, where a GPU is, load it: a full disk or small memory shows here."""
    _say("verifying", 0.98)
    data = Path(job["engine"]).read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise BuildFailed("verify", "the written file is not what was built; is the disk full or failing?")
    if not job["load"]:
        return []
    engine = trt.Runtime(logger).deserialize_cuda_engine(data)
    if engine is None:
        raise BuildFailed("verify", "the written engine does not load: " + " | ".join(logger.errors[-3:]))
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    if sorted(names) != sorted([*job["inputs"], *job["outputs"]]):
        raise BuildFailed("verify", f"the written engine has other tensors than the graph: {', '.join(names)}")
    return names


def _logger(trt: ModuleType, log: Any) -> Any:
    """A TensorRT logger that writes everything to the file and keeps the errors."""

    class FileLogger(trt.ILogger):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            name = str(severity).rsplit(".", 1)[-1]
            log.write(f"{time.strftime('%H:%M:%S')} {name:14} {message}\n")
            if "ERROR" in name:
                self.errors.append(message)

    return FileLogger()


def _monitor(trt: ModuleType) -> Any:
    """A TensorRT progress monitor that says the stage and the part done, at most ten times a second."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.phases: dict[str, list[Any]] = {}  # phase -> parent, steps, steps done
            self.said = 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.phases[phase_name] = [parent_phase, max(1, num_steps), 0]
            self._tell(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self.phases:
                self.phases[phase_name][2] = step + 1
            self._tell(phase_name)
            return True

        def phase_finish(self, phase_name: str) -> None:
            self.phases.pop(phase_name, None)

        def _tell(self, phase_name: str) -> None:
            if time.monotonic() - self.said < 0.1:
                return
            self.said = time.monotonic()
            done, at = 0.0, phase_name  # a phase is a step of its parent
            while at in self.phases:
                parent, steps, finished = self.phases[at]
                done, at = min(1.0, (finished + done) / steps), parent
            _say(phase_name.lower(), 0.02 + 0.95 * done)

    return Monitor()


def _say(stage: str, done: float) -> None:
    print(json.dumps({"stage": stage, "done": round(done, 3)}), flush=True)


def _die_with_parent() -> None:
    """A killed build must not leave a worker that goes on taking the memory (Linux)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
