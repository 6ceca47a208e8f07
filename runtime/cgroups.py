"""What a container allows this process: cores and memory of its control groups, version 1, version 2 or both.

A group's limit holds for all below it, so every group from the process's own up to the root is asked. In a container
without a namespace of its own /proc tells the host's path, which is not there: then the root is the container's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from videomar.runtime.system import System

ROOT = PurePosixPath("/sys/fs/cgroup")


def cpu_quota(system: System) -> float | None:
    """Processors' worth of time that may be used, such as 1.5; None without a limit."""
    found = []
    for folder in _folders(system, "cpu"):
        quota, period, *_ = ((system.read(f"{folder}/cpu.max") or "").split() or ["", ""]) + [""]
        if not quota:
            quota, period = ((system.read(f"{folder}/cpu.cfs_{n}_us") or "").strip() for n in ("quota", "period"))
        if quota.isdigit() and period.isdigit() and int(period):  # else "max", or -1
            found.append(int(quota) / int(period))
    return min(found, default=None)


def memory_limits(system: System) -> list[tuple[int, int]]:
    """(bytes allowed, bytes of them free) of every group that limits this process."""
    found = []
    for folder in _folders(system, "memory"):
        for limit, used in (("max", "current"), ("limit_in_bytes", "usage_in_bytes")):
            most, now = ((system.read(f"{folder}/memory.{name}") or "").strip() for name in (limit, used))
            if most.isdigit() and now.isdigit() and int(most) < 1 << 62:  # version 1 has no word for "none"
                # Pages of files that were read count as used and are given up first.
                files = re.search(r"^(?:total_)?inactive_file (\d+)", system.read(f"{folder}/memory.stat") or "", re.M)
                found.append((int(most), max(0, int(most) - int(now) + (int(files[1]) if files else 0))))
    return found


def _folders(system: System, controller: str) -> Iterator[PurePosixPath]:
    """Folders of the groups that hold this process, for one controller; some of them may not exist."""
    groups = [(ROOT, "/"), (ROOT / controller, "/")]
    for line in (system.read("/proc/self/cgroup") or "").splitlines():
        number, controllers, path = ([*line.split(":", 2), "", ""])[:3]
        if number == "0" and not controllers:
            groups.append((ROOT, path))
        elif controller in controllers.split(","):
            groups.append((ROOT / controller, path))
    seen = set()
    for root, path in groups:
        own = root / path.lstrip("/")
        for folder in (own, *own.parents):
            if folder.is_relative_to(root) and folder not in seen:
                seen.add(folder)
                yield folder
