"""OpenVINO against ONNX Runtime on the same graphs, a step at a time; `benchmarks/clip.py --openvino` prints it.

Portable FP32 artifacts: OpenVINO has no opset 24. Its 2026.4 refuses the Scan of `diffusion_head` ("num_scan_outputs
can't be negative"), so the head is compared by `head_step`, one diffusion step. Both compute in FP32 on as many
threads, take turns, and the processor's time counts at one thread, time by the clock at more.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from videomar.artifacts import read_manifest
from videomar.graphs import HEAD_STEP, TRANSFORMER_STEP, contract
from videomar.runtime.backends.ort_session import open_session
from videomar.steps import ClipSteps, Step

Run = Callable[[dict[str, np.ndarray]], np.ndarray]


def compare(directory: Path, threads: int, rounds: int) -> list[tuple[str, float, float, float]]:
    """Of every graph: (what, ms of ONNX Runtime, ms of OpenVINO, relative L2 between the two), medians."""
    config = read_manifest(directory).config
    clip = ClipSteps.of(config, config.sampling, 1)
    clock = time.process_time if threads == 1 else time.perf_counter
    middle = [s for s in clip.steps if s.frame == clip.shape.frames - 1][clip.sampling.mask_steps // 2]
    rows = []
    for graph in (TRANSFORMER_STEP, HEAD_STEP):
        feeds, file = _feeds(clip, middle, graph), directory / f"{graph}.onnx"
        runs = {"ort": _ort(file, threads), "openvino": _openvino(file, threads)}
        spent: dict[str, list[float]] = {name: [] for name in runs}
        made = {}
        for round_ in range(rounds + 1):  # the first one warms up
            for name, run in runs.items():
                began = clock()
                made[name] = run(feeds)
                if round_:
                    spent[name].append(1e3 * (clock() - began))
        difference = np.linalg.norm(made["ort"] - made["openvino"]) / np.linalg.norm(made["ort"])
        rows.append((graph, *(statistics.median(spent[name]) for name in runs), float(difference)))
    return rows


def _feeds(clip: ClipSteps, step: Step, graph: str) -> dict[str, np.ndarray]:
    """Random inputs of one step, in its sizes and with its schedule."""
    rng, tokens = np.random.default_rng(0), clip.shape.tokens
    sizes = {"branches": 2, "tokens": tokens, "predicted": step.predicted, "text": 16, "past": step.frame * tokens}
    given = {
        "predict": np.arange(step.predicted),
        "masked": np.arange(tokens) >= step.known,
        "step_coefficients": clip.schedule.coefficients[clip.sampling.head_steps // 2],
        "guidance": np.array([step.guidance]),
    }
    feeds = {}
    for tensor in contract(clip.config, "fp32", in_place=False)[graph].inputs:
        shape = [sizes[a] if isinstance(a, str) else a for a in tensor.axes]
        feeds[tensor.name] = given.get(tensor.name, rng.standard_normal(shape)).astype(tensor.dtype)
    return feeds


def _ort(file: Path, threads: int) -> Run:
    session = open_session(file, threads)
    first = session.get_outputs()[0].name
    return lambda feeds: session.run([first], feeds)[0]


def _openvino(file: Path, threads: int) -> Run:
    import openvino

    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(file, "CPU", options)
    first, request = compiled.outputs[0], compiled.create_infer_request()
    return lambda feeds: request.infer(feeds)[first].copy()
