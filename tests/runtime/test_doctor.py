"""`videomar doctor`: what it finds, what it concludes, and that nothing a machine answers can break it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

from videomar.cli import main
from videomar.runtime import doctor, probes
from videomar.runtime.doctor import as_data, as_text, examine
from videomar.runtime.system import System, numbers


def _load(name: str) -> ModuleType:
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
        assert spec and spec.loader
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


machines = _load("machines")
ORIN, THOR, SERVER, OLD_DRIVER, LAPTOP = (
    machines.ORIN, machines.THOR, machines.SERVER, machines.OLD_DRIVER, machines.LAPTOP,
)  # fmt: skip


def run_here(report: doctor.Report) -> set[str]:
    return {name for name, why in report.backends.items() if not why}


def mends(report: doctor.Report, word: str) -> str:
    """The command for the one problem that has `word` in it."""
    [problem] = [problem for problem in report.problems if word in problem.what]
    return problem.mend


# ---- whole machines


def test_a_bare_laptop_runs_on_its_cpu_and_nothing_is_broken() -> None:
    report = examine(LAPTOP)
    assert run_here(report) == {"ort-cpu"} and report.problems == []
    assert report.automatic["ONNX graphs"].startswith("ort-cpu: no NVIDIA GPU is visible")
    text = as_text(report)
    assert "nothing to mend" in text and "none seen" in text and "11.0 of 16.0 GiB available" in text


def test_a_machine_that_knows_nothing_is_described_all_the_same() -> None:
    report = examine(machines.Machine(modules=()))
    assert run_here(report) == set() and report.broken
    assert mends(report, "ONNX Runtime is not installed") == "pip install --force-reinstall onnxruntime"
    assert "not installed" in as_text(report)


def test_an_orin_with_jetpack_6_runs_engines_and_is_told_to_wake_up() -> None:
    report = examine(ORIN)
    assert run_here(report) == {"ort-cpu", "trt"} and not report.broken
    assert report.facts.jetson == probes.Jetson(
        "NVIDIA Jetson AGX Orin Developer Kit", "36.4.3", "6.2", "MODE_30W", pinned=False
    )
    assert "no kernels for Orin" in report.automatic["ONNX graphs"] and "ort-cpu" in report.automatic["ONNX graphs"]
    assert mends(report, "power mode is MODE_30W").startswith("sudo nvpmodel -m 0")
    assert mends(report, "clock") == "sudo jetson_clocks"
    assert "Python 3.11" in mends(report, "native artifacts need 1.24")
    text = as_text(report)
    assert "JetPack 6.2 (L4T 36.4.3)" in text and "10.3.0, /lib/aarch64-linux-gnu/libnvinfer.so.10" in text


def test_a_thor_with_jetpack_7_at_full_power_has_nothing_to_mend() -> None:
    report = examine(THOR)
    assert run_here(report) == {"ort-cpu", "trt"} and report.problems == []
    assert report.facts.jetson and (report.facts.jetson.jetpack, report.facts.jetson.pinned) == ("7.2", True)


def test_a_server_whose_parts_fit_runs_everything_but_rtx() -> None:
    report = examine(SERVER)
    assert run_here(report) == {"ort-cpu", "ort-cuda", "ort-trt", "trt"} and report.problems == []
    assert report.automatic["ONNX graphs"].startswith("ort-cuda: ")
    assert "136.7 of 140.4 GiB free" in as_text(report) and "driver 580.95.05" in as_text(report)


def test_cuda_13_wheels_over_a_cuda_12_driver_are_broken_each_with_its_mend() -> None:
    report = examine(OLD_DRIVER)
    assert report.broken and run_here(report) == {"ort-cpu"}
    assert report.automatic["ONNX graphs"].startswith("ort-cpu: ort-cuda cannot be used")
    assert "update the driver" in mends(report, "ONNX Runtime is built for CUDA 13.0, the driver runs at most")
    assert "tensorrt-cu12" in mends(report, "TensorRT's wheel is built for CUDA 13")
    assert mends(report, "cuda-python is built for CUDA 13.0.3") == "pip install 'cuda-python==12.*'"


# ---- single faults


@pytest.mark.parametrize(
    ("machine", "said", "mend", "lost"),
    [
        (ORIN.but(loads={probes.TENSORRT_CODE: {"version": "8.6.2"}}), "expected 10.3", "JetPack 6.1", "trt"),
        (SERVER.but(loads={probes.TENSORRT_CODE: "crashed with signal 11"}), "signal 11", "pip install", "trt"),
        (SERVER.but(loads={probes.ORT_CODE: "ImportError: GLIBC_2.38"}), "GLIBC_2.38", "force-reinstall", "ort-cpu"),
        (SERVER.but(loads={probes.ORT_CODE: machines.ort("1.20.1")}), "expected 1.22", "-U onnxruntime", "ort-cuda"),
        (
            SERVER.but(loads={probes.ORT_CODE: machines.ort("1.31.0", machines.CUDA, cuda_error="libcudnn.so.9: no")}),
            "libcudnn.so.9", "onnxruntime-gpu[cuda,cudnn]", "ort-cuda",
        ),
        (SERVER.but(packages={"onnxruntime": "1.31.0"}), "overwrite each other", "pip uninstall", "trt-rtx"),
        (
            SERVER.but(loads={probes.GPU_CODE: {"name": "", "sm": "", "cuda": "", "runtime": ""}}),
            "does not answer", "nvidia-smi", "ort-cuda",
        ),
        (
            ORIN.but(loads={probes.GPU_CODE: {"name": "", "sm": "", "cuda": "", "runtime": ""}}),
            "its GPU does not answer", "usermod -aG video", "trt",
        ),
        (LAPTOP.but(loads={probes.KERNELS_CODE: "ABI version 0"}), "ABI version 0", "cmake --build", "ort-cuda"),
    ],
)  # fmt: skip
def test_what_is_broken_is_said_with_the_command_that_mends_it(
    machine: System, said: str, mend: str, lost: str
) -> None:
    report = examine(machine)
    assert report.broken and lost not in run_here(report)
    assert mend in mends(report, said)
    assert f"    -> {mends(report, said)}" in as_text(report).splitlines()


@pytest.mark.parametrize(
    ("machine", "said", "mend"),
    [
        (ORIN.but(modules=("onnxruntime", "cuda.bindings.runtime")), "though its library is", "--system-site-packages"),
        (THOR.but(contents={"/proc/meminfo": machines.meminfo(2.5, 7.4)}), "2.5 of 7.4 GiB", "multi-user.target"),
        (LAPTOP.but(disk=1 << 30), "1.0 GiB disk", "df -h"),
        (LAPTOP.but(loads={probes.KERNELS_CODE: {"version": "numpy"}}), "kernels are not built", "cmake"),
        (SERVER.but(loads={probes.ORT_CODE: machines.ort("1.32.0")}), "no CUDA provider", "onnxruntime-gpu"),
        (SERVER.but(packages={"cuda-bindings": ""}), "cuda-python is not installed", "cuda-python==13.*"),
        (THOR.but(loads={probes.ORT_CODE: machines.ort("1.32.0", machines.CUDA)}), "no kernels for", "videomar build"),
    ],
)
def test_what_could_be_better_breaks_nothing(machine: System, said: str, mend: str) -> None:
    report = examine(machine)
    assert not report.broken and mend in mends(report, said)


BOX = LAPTOP.but(  # docker run --cpus 2.5 --memory 3g
    processors=(16, 8),
    contents={
        "/proc/cpuinfo": "flags\t\t: sse2 avx2 avx512bw avx512_vnni\n",
        "/sys/fs/cgroup/cpu.max": "250000 100000\n",
        "/sys/fs/cgroup/memory.max": f"{3 << 30}\n",
        "/sys/fs/cgroup/memory.current": f"{1 << 30}\n",
    },
)


def test_a_container_is_described_by_what_it_allows_not_by_its_host() -> None:
    report = examine(BOX)
    text = as_text(report)
    assert "2 usable of 16 (this process may run on 8, its container is given the time of 2.5)" in text
    assert "11.0 of 16.0 GiB available; this container may use 3.0 GiB, of which 2.0 are free" in text
    assert "docker run --memory" in mends(report, "this container may use 3.0 GiB memory") and not report.broken
    assert "8 usable of 8\n" in as_text(examine(LAPTOP))
    roomy = BOX.but(contents={"/sys/fs/cgroup/memory.max": f"{64 << 30}\n"})
    assert examine(roomy).facts.memory_limit is None and not examine(roomy).problems


def test_the_integer_arithmetic_is_said() -> None:
    assert "INT8 on the CPU  AVX-512 VNNI: " in as_text(examine(BOX))
    old = BOX.but(contents={"/proc/cpuinfo": "flags\t\t: sse2 avx2\n"})
    assert "INT8 on the CPU  AVX2 without VNNI: int8 is widened to 16 bits" in as_text(examine(old))
    assert "INT8 on the CPU  unknown" in as_text(examine(LAPTOP))


def test_jetpack_is_told_from_jetson_linux_where_its_package_is_missing() -> None:
    report = examine(ORIN.but(commands={("dpkg-query", "-W"): ""}))
    assert report.facts.jetson and report.facts.jetson.jetpack == "6.2"


def test_no_probe_raises_whatever_the_machine_answers() -> None:
    class Nonsense(machines.Machine):  # type: ignore[misc, name-defined]
        def run(self, command: Sequence[str], timeout: float = 10) -> str | None:
            return "\x00 , ,,\n=> R REVISION: NV Power Mode:"

        def evaluate(self, code: str, timeout: float = 60) -> tuple[bool, str]:
            return True, "not JSON"

        def read(self, path: str) -> str | None:
            return "R REVISION: MemAvailable: kB Jetson"

        def files(self, pattern: str) -> list[str]:
            return ["/a", "/b"]

        def has(self, module: str) -> bool:
            return True

    assert as_text(examine(Nonsense()))


# ---- this machine


def test_the_real_system_never_raises_and_never_waits() -> None:
    system = System()
    assert system.run(["no-such-command"]) is None and system.run(["false"]) is None
    assert system.run(["sleep", "9"], timeout=0.1) is None
    assert system.evaluate("import time; time.sleep(9)", timeout=0.2) == (False, "no answer in 0 s")
    assert system.evaluate("import os; os.kill(os.getpid(), 11)") == (False, "crashed with signal 11")
    assert system.evaluate("raise ValueError('so it goes')") == (False, "ValueError: so it goes")
    assert system.read("/no/such/file") is None and system.files("/no/such/*") == []
    assert not system.has("no.such.module") and system.version("no-such-package") is None
    assert system.free_disk("/no/such/place") is None


def test_versions_are_compared_as_numbers() -> None:
    assert numbers("10.16.0.72") > numbers("10.3.0") and numbers("1.24.0+cu13") == (1, 24, 0)
    assert numbers("2.13.0rc1") == (2, 13) and numbers(None) == numbers("dev") == ()


def test_the_command_prints_text_or_json_and_strict_decides_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "System", lambda: OLD_DRIVER)
    assert main(["doctor"]) == 0 and "NVIDIA H100 (SM 90)" in capsys.readouterr().out
    assert main(["doctor", "--strict"]) == 1
    capsys.readouterr()
    assert main(["doctor", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data == json.loads(json.dumps(as_data(examine(OLD_DRIVER)))) and data["broken"]
    monkeypatch.setattr(doctor, "System", lambda: SERVER)
    assert main(["doctor", "--strict"]) == 0


def test_the_doctor_runs_here_without_torch_onnx_or_tensorrt_in_its_process() -> None:
    code = (
        "import sys; from videomar.runtime.doctor import examine, as_text; as_text(examine())\n"
        "print(sorted({'torch', 'onnx', 'tensorrt', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stdout.strip() == "[]", done.stderr
