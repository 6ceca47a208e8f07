"""How close a clip's transformer and head are to the time of their matrix products alone, on this machine.

    python benchmarks/floor.py ARTIFACTS [--threads 1 2] [--rounds 15] [--profile]     # pip install threadpoolctl

The floor is the least arithmetic of the clip's step list: every product of its shape, taken by ONNX Runtime itself from
a graph that holds nothing else, and by numpy's BLAS for comparison. Modulations of the head depend on step and
condition alone, so the floor counts them as one product for all diffusion steps. Clips and products take turns; of each
call the least time counts, the processor's at one thread, by the clock at more (waiting threads spin). --profile adds
where the stages' time goes, by ONNX Runtime's profiler.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from videomar.artifacts import read_manifest
from videomar.demo.world import render, sample_scene
from videomar.graphs import DIFFUSION_HEAD, TRANSFORMER_STEP
from videomar.runtime.backends.ort import OrtBackend
from videomar.runtime.backends.ort_session import open_session
from videomar.runtime.clip import ClipRun
from videomar.runtime.media import to_pixels
from videomar.runtime.pipeline import Pipeline
from videomar.runtime.timing import Timing
from videomar.schedule import SeededNoise
from videomar.steps import ClipSteps, Step

STAGES = {"transformer": TRANSFORMER_STEP, "head": DIFFUSION_HEAD}
MOST_ROWS = 1024  # a product of more rows is timed with these and counted in proportion: its rate no longer grows
ENOUGH = 2e8  # operations that are timed at once, in several calls
CACHED = 1 << 20  # bytes of weights in one call: a loop's stay in a core's own cache, and a floor supposes that
LOOPS = ("Loop", "Scan", "If")  # their bodies are counted
SEED = 10**9

Clock = Callable[[], float]


@dataclass(frozen=True)
class Product:
    """[rows, inner] x [inner, columns]; a second factor that is no weight comes `batch` times."""

    rows: int
    inner: int
    columns: int
    batch: int = 0  # 0: with a weight

    @property
    def operations(self) -> float:
        """Multiplications and additions."""
        return 2.0 * max(1, self.batch) * self.rows * self.inner * self.columns

    @property
    def timed(self) -> Product:
        """The product that stands for this one."""
        return Product(min(self.rows, MOST_ROWS), self.inner, self.columns, self.batch)


def transformer_products(clip: ClipSteps, step: Step, text: int) -> Counter[Product]:
    """Products of one pass; text: tokens of the prompt."""
    t, tokens, branches = clip.config.transformer, clip.shape.tokens, 2 if clip.sampling.guidance_scale != 1 else 1
    window, w, made = clip.sampling.kv_window, t.width, Counter({Product(tokens, t.token_channels, t.width): 1})
    seen = tokens * (1 + (step.frame if window is None else min(step.frame, 1 + window)))
    rows = branches * tokens
    for layer in range(t.depth):
        asked = tokens if layer < t.depth - 1 else max(1, step.predicted)  # positions with queries
        if asked == tokens:
            made[Product(rows, w, 3 * w)] += 1
        else:
            made.update([Product(rows, w, 2 * w), Product(branches * asked, w, w)])
        for keys in (seen, text):
            made[Product(asked, t.head_dim, keys, branches * t.heads)] += 1
            made[Product(asked, keys, t.head_dim, branches * t.heads)] += 1
        made[Product(branches * asked, w, w)] += 3  # out of both attentions, and the queries of the second
        wide = t.mlp_ratio * w
        made.update([Product(branches * asked, w, wide), Product(branches * asked, wide, w)])
    return made


def head_products(clip: ClipSteps, step: Step) -> Counter[Product]:
    """Products of one mask step's whole diffusion loop; none if it predicts nothing."""
    if not step.predicted:
        return Counter()
    c, t, steps = clip.config.head, clip.config.transformer, clip.sampling.head_steps
    rows = step.predicted * (2 if clip.sampling.guidance_scale != 1 else 1)
    made = Counter([Product(rows, t.width, c.width), Product(steps, c.time_features, c.width)])
    made.update([Product(steps, c.width, c.width), Product(steps * rows, c.width, (3 * c.depth + 2) * c.width)])
    made[Product(step.predicted, t.token_channels, c.width)] += steps
    made[Product(rows, c.width, c.width)] += 2 * c.depth * steps
    made[Product(rows, c.width, 2 * t.token_channels)] += steps
    return made


class Timed:
    """One product, some copies of it in one call, by ONNX Runtime and by numpy, less what a call costs."""

    def __init__(self, product: Product, threads: int, idle: Timed | None = None) -> None:
        """idle: a product of next to nothing, taken before this one: the cost of a call."""
        p, rng, self._idle = product, np.random.default_rng(0), idle
        self.copies = int(np.clip(CACHED / (4 * max(1, p.batch) * p.inner * p.columns), 1, 16)) if idle else 1
        self._calls = int(np.clip(ENOUGH / (p.operations * self.copies), 1, 50))
        self.least = {"ort": np.inf, "numpy": np.inf}  # seconds of one product
        stack = (p.batch,) if p.batch else ()

        def value(name: str, *shape: int) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, (*stack, *shape))

        def random(*shape: int) -> np.ndarray:
            return rng.standard_normal((*stack, *shape)).astype(np.float32)

        self._x = random(p.rows, p.inner)
        self._factors = [random(p.inner, p.columns) for _ in range(self.copies)]
        named = [(f"w{i}", w) for i, w in enumerate(self._factors)]
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", name], [f"y{i}"]) for i, (name, _) in enumerate(named)],
            "products",
            [value("x", p.rows, p.inner), *(value(n, p.inner, p.columns) for n, _ in named if p.batch)],
            [value(f"y{i}", p.rows, p.columns) for i in range(self.copies)],
            [numpy_helper.from_array(w, n) for n, w in named if not p.batch],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        plain = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # there is nothing to join, and nothing may be joined
        self._session = open_session(model.SerializeToString(), threads, graph_optimization_level=plain)
        self._binding = self._session.io_binding()  # as the runtime calls: no memory is asked for
        for name, each in (("x", self._x), *(named if p.batch else [])):
            self._binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(each))
        self._made = np.zeros((*stack, p.rows, p.columns), np.float32)
        for i in range(self.copies):
            self._binding.bind_ortvalue_output(f"y{i}", ort.OrtValue.ortvalue_from_numpy(self._made))

    def take(self, clock: Clock) -> None:
        """Time both once."""
        for name, run in (("ort", lambda: self._session.run_with_iobinding(self._binding)), ("numpy", self._multiply)):
            began = clock()
            for _ in range(self._calls):
                run()
            call = (clock() - began) / self._calls - (self._idle.least[name] if self._idle else 0.0)
            self.least[name] = min(self.least[name], call / self.copies)

    def _multiply(self) -> None:
        for factor in self._factors:
            np.matmul(self._x, factor, out=self._made)


class LeastTiming(Timing):
    """Seconds of a clip's stages by a clock of choice."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = self._clock()
        yield
        self.seconds[name] += self._clock() - began


class Clip:
    """One demo clip on one backend, again and again; the least seconds of every step's stages."""

    def __init__(self, directory: Path, threads: int) -> None:
        self.pipe = Pipeline.open(directory, threads=threads, memory_check=False)
        scene = sample_scene(np.random.default_rng(SEED))
        self.pixels = to_pixels(render(scene)[0])
        self.states = self.pipe.embed(scene.prompt).states
        self.steps = ClipSteps.of(self.pipe.config, self.pipe.config.sampling, 1)
        self.least: dict[tuple[str, int], float] = {}

    def take(self, clock: Clock, backend: OrtBackend | None = None) -> None:
        """Run it once."""
        timing = LeastTiming(clock)
        with ClipRun(backend or self.pipe.backend, self.steps, self.pixels, self.states, SeededNoise(0), timing) as run:
            for i in range(len(self.steps.steps)):
                before = dict(timing.seconds)
                run.advance()
                for name, seconds in timing.seconds.items():
                    spent = seconds - before.get(name, 0.0)
                    if spent:
                        self.least[name, i] = min(self.least.get((name, i), np.inf), spent)

    def seconds(self, stage: str) -> float:
        """Of the whole clip."""
        return sum(s for (name, _), s in self.least.items() if name == stage)

    def products(self) -> dict[str, Counter[Product]]:
        """Of the whole clip, by stage."""
        made: dict[str, Counter[Product]] = defaultdict(Counter)
        for step in self.steps.steps:
            made["transformer"].update(transformer_products(self.steps, step, self.states.shape[1]))
            made["head"].update(head_products(self.steps, step))
        return made


def profile(clip: Clip, directory: Path, threads: int) -> dict[str, dict[str, float]]:
    """Microseconds of every kind of operator in one clip, by graph: of every node its calls times their median."""
    backend = OrtBackend(directory, read_manifest(directory), threads, lean=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in STAGES.values():
            prefix = {"enable_profiling": True, "profile_file_prefix": f"{folder}/{name}"}
            backend.sessions[name] = open_session(directory / f"{name}.onnx", threads, **prefix)
        clip.take(time.perf_counter, backend)
        files = {name: backend.sessions[name].end_profiling() for name in STAGES.values()}
        spent: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for name, file in files.items():
            calls: dict[tuple[str, str], list[int]] = defaultdict(list)
            for event in json.loads(Path(file).read_text()):
                kind = event.get("args", {}).get("op_name")
                if event.get("cat") == "Node" and event["name"].endswith("_kernel_time") and kind not in LOOPS:
                    calls[kind, event["name"]].append(event["dur"])
            for (kind, _), took in calls.items():
                spent[name][kind] += statistics.median(took) * len(took)
    backend.close()
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", type=Path)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    from threadpoolctl import threadpool_limits  # which the project needs nowhere else

    took: dict[str, float] = {}
    print("| threads | stage | products, GFLOP | floor, ms | GFLOP/s | floor by numpy, ms | stage, ms | of the floor |")
    print("|---|---|---|---|---|---|---|---|")
    for threads in args.threads:
        clock = time.process_time if threads == 1 else time.perf_counter
        clip = Clip(args.artifacts, threads)
        products = clip.products()
        idle = Timed(Product(1, 1, 1), threads)
        timed = {p: Timed(p, threads, idle) for p in {p.timed for made in products.values() for p in made}}
        with threadpool_limits(threads, "blas"):
            for _ in range(args.rounds):
                clip.take(clock)
                for each in (idle, *timed.values()):
                    each.take(clock)
        for stage, made in products.items():
            work = sum(n * p.operations for p, n in made.items())
            floor, blas = (
                sum(n * timed[p.timed].least[by] * p.rows / p.timed.rows for p, n in made.items())
                for by in ("ort", "numpy")
            )
            spent = clip.seconds(stage)
            faster = f" ({took[stage] / spent:.2f}x the first row's)" if stage in took else ""
            took.setdefault(stage, spent)
            print(
                f"| {threads} | {stage} | {work / 1e9:.2f} | {1e3 * floor:.1f} | {work / floor / 1e9:.0f} | "
                f"{1e3 * blas:.1f} | {1e3 * spent:.1f}{faster} | {floor / spent:.0%} |"
            )
        if args.profile:
            for graph, kinds in profile(clip, args.artifacts, threads).items():
                whole = sum(kinds.values())
                most = sorted(kinds.items(), key=lambda item: -item[1])[:14]
                shares = ", ".join(f"{kind} {us / whole:.1%}" for kind, us in most)
                print(f"{graph}, {threads} threads, {whole / 1e3:.1f} ms in operators: {shares}")
        clip.pipe.close()


if __name__ == "__main__":
    main()
