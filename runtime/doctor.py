"""`videomar doctor`: asks the machine, says what is installed, which backends would run here, and what to mend.

Works on a machine with none of it. Knows no version and no rule: `probes` asks, `diagnosis` judges.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from videomar.runtime import probes
from videomar.runtime.arithmetic import integer_arithmetic
from videomar.runtime.backends.choose import (
    BACKENDS,
    JETSON_SMS,
    automatic_for_onnx,
    missing_for_engines,
    missing_for_onnx,
)
from videomar.runtime.cores import Cores, cores
from videomar.runtime.diagnosis import RTX_SMS, TENSORRT_LEAST, Facts, Problem, cuda_too_new, problems
from videomar.runtime.probes import Found
from videomar.runtime.system import System, numbers

_ORT_PACKAGES = ("onnxruntime", "onnxruntime-gpu")


@dataclass(frozen=True)
class Report:
    """Everything `videomar doctor` says."""

    facts: Facts
    backends: dict[str, str]  # name -> why it cannot run here, "" if it would
    automatic: dict[str, str]  # what the directory holds -> what --backend auto does with it
    problems: list[Problem]

    @property
    def broken(self) -> bool:
        return any(problem.broken for problem in self.problems)


def examine(system: System | None = None) -> Report:
    """Ask everything; never raises, and takes seconds at most."""
    system = system or System()
    facts = collect(system)
    seen = _Seen(system, facts)
    backends = {name: _missing(name, facts, seen) for name in BACKENDS if name != "auto"}
    name, why = automatic_for_onnx("fp32", "portable", seen)
    if backends[name]:  # as `choose` falls back when the CUDA provider does not start
        name, why = "ort-cpu", f"{name} cannot be used: {backends[name]}"
    engines = [name for name in ("trt", "trt-rtx") if not backends[name]]
    automatic = {
        "ONNX graphs": f"{name}: {why}",
        "engines": "what they were built with: " + (" or ".join(engines) if engines else "neither kind runs here"),
    }
    return Report(facts, backends, automatic, problems(facts))


def collect(system: System) -> Facts:
    """What is installed."""
    wheels = [major for major in (12, 13) if system.version(f"tensorrt-cu{major}", f"tensorrt_cu{major}")]
    disk = system.free_disk(".")
    packages = {name: system.version(name) for name in _ORT_PACKAGES}
    return Facts(
        videomar=system.version("videomar") or "(not installed)",
        python=system.python,
        arch=system.arch,
        gpu=probes.gpu(system),
        jetson=probes.jetson(system),
        ort=probes.onnxruntime(system),
        ort_packages={name: version for name, version in packages.items() if version},
        tensorrt=probes.tensorrt(system),
        tensorrt_library=probes.library(system, "libnvinfer.so"),
        tensorrt_cuda=max(wheels, default=0),
        rtx=probes.tensorrt_rtx(system),
        cuda_python=system.version("cuda-bindings", "cuda-python") or "",
        torch=system.version("torch") or "",
        kernels=probes.kernels(system),
        memory=probes.memory(system),
        memory_limit=probes.memory_limit(system),
        cores=cores(system),
        arithmetic=integer_arithmetic(system),
        disk=None if disk is None else disk / 2**30,
    )


class _Seen(System):
    """The machine with ONNX Runtime and GPU as the probes found them, so that nothing is loaded into this process."""

    def __init__(self, system: System, facts: Facts) -> None:
        self._system, self._facts = system, facts

    @property
    def arch(self) -> str:
        return self._facts.arch

    def read(self, path: str) -> str | None:
        return self._system.read(path)

    def has(self, module: str) -> bool:
        return self._system.has(module)

    def onnxruntime(self) -> tuple[str, tuple[str, ...]] | None:
        ort = self._facts.ort
        return (ort.version, ort.providers) if ort.version else None

    def gpu(self) -> tuple[str, str]:
        return self._facts.gpu.name, self._facts.gpu.sm


def _missing(name: str, facts: Facts, seen: System) -> str:
    """As at `--backend`, and what only a look at the libraries tells."""
    if name.startswith("trt"):
        found = facts.tensorrt if name == "trt" else facts.rtx
        if problem := found.error or missing_for_engines(name, seen):
            return problem
        for what, cuda in (("TensorRT", str(facts.tensorrt_cuda)), ("cuda-python", facts.cuda_python)):
            if (name == "trt" or what == "cuda-python") and (why := cuda_too_new(facts, cuda)):
                return f"{what} {why}"
        if name == "trt":
            old = numbers(found.version)[:2] < TENSORRT_LEAST
            return f"TensorRT {found.version} is older than {'.'.join(map(str, TENSORRT_LEAST))}" if old else ""
        return "" if int(facts.gpu.sm or 0) in RTX_SMS else f"TensorRT-RTX has nothing for {facts.gpu.name}"
    if problem := missing_for_onnx(name, "portable", seen):
        return problem
    if name == "ort-cpu":
        return ""
    if facts.gpu.sm in JETSON_SMS:
        return f"the public wheel of onnxruntime-gpu has no kernels for {facts.gpu.name}"
    if why := cuda_too_new(facts, facts.ort.cuda):
        return f"ONNX Runtime {why}"
    errors = dict(facts.ort.errors)
    return errors.get("cuda", "") or (errors.get("tensorrt", "") if name == "ort-trt" else "")


def as_data(report: Report) -> dict[str, Any]:
    """JSON-ready."""
    return {**dataclasses.asdict(report), "broken": report.broken}


def as_text(report: Report) -> str:
    """For people."""
    f = report.facts
    lines = [f"videomar {f.videomar}, Python {f.python}, {f.arch}", "", *_table(_installed(f))]
    lines += ["", "--backend"]
    lines += _table({name: f"no: {why}" if why else "would run" for name, why in report.backends.items()}, "  ")
    lines += [f"  auto, for {what}: {why}" for what, why in report.automatic.items()]
    for broken, title in ((True, "broken"), (False, "could be better")):
        if chosen := [problem for problem in report.problems if problem.broken is broken]:
            lines += ["", title]
            lines += [line for problem in chosen for line in (f"  {problem.what}", f"    -> {problem.mend}")]
    if not report.problems:
        lines += ["", "nothing to mend"]
    return "\n".join(lines)


def _installed(f: Facts) -> dict[str, str]:
    gpu, jetson, ort = f.gpu, f.jetson, f.ort
    rows = {"GPU": f"{gpu.name} (SM {gpu.sm})" + (f", {gpu.free}" if gpu.free else "") if gpu.name else "none seen"}
    if gpu.name or gpu.cuda:
        driver = f", driver {gpu.driver}" if gpu.driver else ""
        rows["CUDA"] = f"up to {gpu.cuda or 'unknown'} by the driver{driver}; runtime {gpu.runtime or 'not found'}"
    if jetson:
        clocks = {True: "pinned", False: "not pinned", None: "unknown"}[jetson.pinned]
        rows["Jetson"] = f"{jetson.model}, JetPack {jetson.jetpack or 'unknown'} (L4T {jetson.l4t or 'unknown'})"
        rows["power mode"] = f"{jetson.power or 'unknown'}, clocks {clocks}"
    built = f" for CUDA {ort.cuda}" if ort.cuda else ""
    rows["ONNX Runtime"] = _version(ort)
    if ort.version:
        rows["ONNX Runtime"] += f" ({ort.package}{built}): {', '.join(ort.providers)}"
    rows["TensorRT"], rows["TensorRT-RTX"] = _version(f.tensorrt), _version(f.rtx)
    if f.tensorrt_library:
        rows["TensorRT"] += f", {f.tensorrt_library}"
    rows["cuda-python"] = f.cuda_python or "not installed"
    rows["kernels"] = _version(f.kernels)
    rows["torch"] = f"{f.torch} (for export only)" if f.torch else "not installed (not needed to run)"
    available, total = f.memory
    rows["cores"] = _cores(f.cores)
    rows["INT8 on the CPU"] = str(f.arithmetic or "unknown")
    rows["memory"] = f"{available:.1f} of {total:.1f} GiB available" if total else "unknown"
    if f.memory_limit:
        rows["memory"] += "; this container may use {1:.1f} GiB, of which {0:.1f} are free".format(*f.memory_limit)
    rows["disk"] = "unknown" if f.disk is None else f"{f.disk:.1f} GiB free here"
    return rows


def _cores(c: Cores) -> str:
    limits = [f"this process may run on {c.allowed}"] if c.allowed < c.present else []
    limits += [f"its container is given the time of {c.quota:g}"] if c.quota is not None else []
    return f"{c.usable} usable of {c.present}" + (f" ({', '.join(limits)})" if limits else "")


def _version(found: Found) -> str:
    return found.version or (f"cannot be loaded: {found.error}" if found.error else "not installed")


def _table(rows: dict[str, str], indent: str = "") -> list[str]:
    width = max(map(len, rows))
    return [f"{indent}{name:{width}}  {value}" for name, value in rows.items()]
