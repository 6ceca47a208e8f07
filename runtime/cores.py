"""How many cores this process may use."""

from __future__ import annotations

import os


def allowed_cores() -> int:
    """Cores this process may use: ONNX Runtime's own default counts those that a container keeps from it, too."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
