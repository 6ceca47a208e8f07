"""The one place that opens ONNX Runtime sessions, so that a graph means the same whoever runs it, on any CPU.

Without VNNI, ONNX Runtime multiplies unsigned by signed int8 with an instruction (vpmaddubsw) that adds two products
in 16 bits and saturates: the result of an INT8 graph would depend on the machine. The entry below has it multiply
unsigned by unsigned there, which is exact; where the CPU is exact anyway it changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort

from videomar.runtime.cores import allowed_cores

EXACT_INTEGERS = ("session.x64quantprecision", "1")


def open_session(
    graph: Path | bytes, threads: int | None = None, providers: Sequence[Any] = ("CPUExecutionProvider",), **others: Any
) -> ort.InferenceSession:
    """A graph, a file or a serialized model, ready to run.

    threads: for one operator; None: all that this process may use. others: further attributes of SessionOptions.
    Raises whatever ONNX Runtime raises: its exception types are not public.
    """
    options = ort.SessionOptions()
    options.add_session_config_entry(*EXACT_INTEGERS)
    options.intra_op_num_threads = threads or allowed_cores()
    options.log_severity_level = 3  # errors: a refused graph is told by the exception
    for name, value in others.items():
        setattr(options, name, value)
    return ort.InferenceSession(graph if isinstance(graph, bytes) else str(graph), options, providers=list(providers))
