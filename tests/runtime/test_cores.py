"""Cores and memory that a container allows, in both versions of control groups; their files are faked."""

from __future__ import annotations

import os

import onnxruntime as ort
import pytest

from videomar.runtime import cores as counted
from videomar.runtime.backends import ort_session
from videomar.runtime.cgroups import cpu_quota, memory_limits
from videomar.runtime.cores import Cores, allowed_cores, cores
from videomar.runtime.system import System

GIB = 1 << 30
NO_LIMIT = str((1 << 63) - 4096)  # as version 1 says it
GROUP = "/sys/fs/cgroup"


class Machine(System):
    def __init__(self, files: dict[str, str], present: int = 16, allowed: int = 16) -> None:
        self.files_, self.cores_ = files, (present, allowed)

    def read(self, path: str) -> str | None:
        return self.files_.get(path)

    def cores(self) -> tuple[int, int]:
        return self.cores_


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({f"{GROUP}/cpu.max": "max 100000\n"}, None),
        ({f"{GROUP}/cpu.max": "150000 100000\n"}, 1.5),  # docker run --cpus 1.5, seen from inside
        ({"/proc/self/cgroup": "0::/\n", f"{GROUP}/cpu.max": "400000 100000\n"}, 4),
        ({"/proc/self/cgroup": "0::/user.slice/a.scope\n", f"{GROUP}/user.slice/a.scope/cpu.max": "50000 100000"}, 0.5),
        (  # the tightest of all above
            {
                "/proc/self/cgroup": "0::/a/b\n",
                f"{GROUP}/a/b/cpu.max": "max 100000",
                f"{GROUP}/a/cpu.max": "300000 100000",
                f"{GROUP}/cpu.max": "800000 100000",
            },
            3,
        ),
        ({f"{GROUP}/cpu/cpu.cfs_quota_us": "-1\n", f"{GROUP}/cpu/cpu.cfs_period_us": "100000\n"}, None),
        (  # version 1 without a namespace: the host's path is not in the container
            {
                "/proc/self/cgroup": "5:cpu,cpuacct:/docker/0123\n4:memory:/docker/0123\n0::/x\n",
                f"{GROUP}/cpu/cpu.cfs_quota_us": "250000\n",
                f"{GROUP}/cpu/cpu.cfs_period_us": "100000\n",
            },
            2.5,
        ),
        (
            {
                "/proc/self/cgroup": "5:cpu,cpuacct:/a\n0::/\n",
                f"{GROUP}/cpu/a/cpu.cfs_quota_us": "200000\n",
                f"{GROUP}/cpu/a/cpu.cfs_period_us": "100000\n",
                f"{GROUP}/cpu/cpu.cfs_quota_us": "-1\n",
                f"{GROUP}/cpu/cpu.cfs_period_us": "100000\n",
            },
            2,
        ),
        ({"/proc/self/cgroup": "rubbish\n:\n\n", f"{GROUP}/cpu.max": "rubbish"}, None),
        ({f"{GROUP}/cpu.max": "100000 0"}, None),
    ],
)
def test_the_quota_is_that_of_the_tightest_group(files: dict[str, str], quota: float | None) -> None:
    assert cpu_quota(Machine(files)) == quota


@pytest.mark.parametrize(
    ("found", "usable"),
    [
        (Cores(16, 16), 16),
        (Cores(16, 4), 4),
        (Cores(16, 16, 2.5), 2),
        (Cores(16, 2, 8.0), 2),
        (Cores(16, 16, 0.5), 1),
    ],
)
def test_usable_is_what_can_run_at_once(found: Cores, usable: int) -> None:
    assert found.usable == usable


def test_cores_are_counted_by_affinity_and_quota() -> None:
    assert cores(Machine({f"{GROUP}/cpu.max": "350000 100000"}, 64, 8)) == Cores(64, 8, 3.5)


def test_affinity_counts_here() -> None:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system binds no process to cores")
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert System().cores() == (os.cpu_count(), 1) and allowed_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_sessions_take_as_many_threads_as_are_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counted, "System", lambda: Machine({f"{GROUP}/cpu.max": "350000 100000"}))
    seen: list[int] = []
    monkeypatch.setattr(ort, "InferenceSession", lambda graph, options, **_: seen.append(options.intra_op_num_threads))
    ort_session.open_session(b"")
    ort_session.open_session(b"", threads=7)
    assert seen == [3, 7]


@pytest.mark.parametrize(
    ("files", "limits"),
    [
        ({}, []),
        ({f"{GROUP}/memory.max": "max", f"{GROUP}/memory.current": "1"}, []),
        ({f"{GROUP}/memory.max": f"{4 * GIB}\n", f"{GROUP}/memory.current": f"{GIB}\n"}, [(4 * GIB, 3 * GIB)]),
        (
            {
                "/proc/self/cgroup": "0::/pod/box\n",
                f"{GROUP}/pod/box/memory.max": f"{8 * GIB}",
                f"{GROUP}/pod/box/memory.current": f"{GIB}",
                f"{GROUP}/pod/memory.max": f"{2 * GIB}",
                f"{GROUP}/pod/memory.current": f"{3 * GIB}",
                f"{GROUP}/pod/memory.stat": f"anon 1\ninactive_file {2 * GIB}\n",
            },
            [(8 * GIB, 7 * GIB), (2 * GIB, GIB)],
        ),
        (
            {
                "/proc/self/cgroup": "4:memory:/docker/0123\n",
                f"{GROUP}/memory/memory.limit_in_bytes": f"{GIB}",
                f"{GROUP}/memory/memory.usage_in_bytes": f"{GIB // 2}",
                f"{GROUP}/memory/memory.stat": f"inactive_file 7\ntotal_inactive_file {GIB // 4}\n",
            },
            [(GIB, GIB - GIB // 2 + 7)],
        ),
        ({f"{GROUP}/memory/memory.limit_in_bytes": NO_LIMIT, f"{GROUP}/memory/memory.usage_in_bytes": "1"}, []),
    ],
)
def test_memory_is_limited_by_every_group_above(files: dict[str, str], limits: list[tuple[int, int]]) -> None:
    assert memory_limits(Machine(files)) == limits
