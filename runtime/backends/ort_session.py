"""The one place that opens ONNX Runtime sessions, so that a graph means the same whoever runs it, on any CPU.

Without VNNI, ONNX Runtime multiplies unsigned by signed int8 with an instruction (vpmaddubsw) that adds two products
in 16 bits and saturates: the result of an INT8 graph would depend on the machine. An entry of the session has it
widen both to 16 bits, which is exact and takes longer; with VNNI it would take longer, too, and is not needed.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from videomar.files import plain
from videomar.runtime.backends.small_graphs import product_graph
from videomar.runtime.cores import allowed_cores

EXACT_INTEGERS = ("session.x64quantprecision", "1")
ON_CPU = ("CPUExecutionProvider",)


def open_session(
    graph: Path | bytes, threads: int | None = None, providers: Sequence[Any] = ON_CPU, **others: Any
) -> ort.InferenceSession:
    """A graph, a file or a serialized model, ready to run.

    threads: for one operator; None: all that this process may use. others: further attributes of SessionOptions.
    Raises whatever ONNX Runtime raises: its exception types are not public.
    """
    options = ort.SessionOptions()
    if saturates():
        options.add_session_config_entry(*EXACT_INTEGERS)
    options.intra_op_num_threads = threads or allowed_cores()
    options.log_severity_level = 3  # errors: a refused graph is told by the exception
    for name, value in others.items():
        setattr(options, name, value)
    if isinstance(graph, bytes):
        return ort.InferenceSession(graph, options, providers=list(providers))
    with plain(graph) as file:
        return ort.InferenceSession(str(file), options, providers=list(providers))


@functools.cache
def saturates() -> bool:
    """Whether ONNX Runtime's own choice of kernels loses bits here. A product tells, not the CPU's features: it is
    ONNX Runtime that chooses by them, and a machine that is emulated may show others than it has."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(product_graph(), options, providers=list(ON_CPU))
    left, right = np.full((4, 64), 255, np.uint8), np.full((64, 32), 127, np.int8)
    return bool(np.any(session.run(None, {"left": left, "right": right})[0] != 64 * 255 * 127))
