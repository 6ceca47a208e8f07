"""Bytes that a generation needs: what lies in memory, when, and the largest moment.

A plan is a list of moments (loading, encoding, the last frame's pass, decoding), each a list of parts; the need is the
largest sum. Sizes come from the config and the tapes of graphs_*.py alone. Knows nothing of time or of advice.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from videomar import graphs
from videomar.carried import decoder_axes
from videomar.plan.arena import Arena, Ideal
from videomar.plan.devices import MIB, Device
from videomar.plan.graphs_head import head_condition, head_loop, head_step, text_encoder
from videomar.plan.graphs_tokenizer import decoder, encoder
from videomar.plan.graphs_transformer import Pass, Step, text_key_values
from videomar.plan.request import Request
from videomar.plan.tape import Tape

# ONNX Runtime on a CPU; measured with `python benchmarks/memory.py` (docs/plan.md says how).
CPU_BASELINE = 104 * MIB  # Python, numpy, OpenCV, PyAV and ONNX Runtime's code, before any model
CPU_RUN = 2 * MIB  # a session that has run: its arena's first region, which is never given back, and its kernels' code
CPU_OPERATOR = 9728  # a session's own bookkeeping, an operator
CPU_LOADING = {"fp32": 0.3, "fp16-as-fp32": 0.7}  # more than its weights that a session holds while it loads
CPU_LOADING_HEAD = 1.25  # the same for the loop's graph, whose body is copied
# TensorRT; the first two assumed, the others measured (docs/build.md, "The gate").
GPU_BASELINE = 600 * MIB  # Python, a CUDA context, TensorRT's libraries
GPU_ENGINE = 1.02  # an engine's bytes over its weights'
BUILD_FACTOR = 3.3  # peak of a build over its graph's weights
BUILD_BASE = 1.66 * (1 << 30)  # the smallest peak of a build of this project's graphs


# What every clip in flight takes for itself; all else is shared between those that take turns on one backend.
OF_A_CLIP = ("K/V of frames", "K/V of text", "clip", "decoder's carried frames", "pixels")


@dataclass(frozen=True)
class Moment:
    """What lies in memory at one time: part -> bytes."""

    name: str
    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Memory:
    """All moments of a generation, and the peak of building its engines (0 where nothing is built)."""

    moments: tuple[Moment, ...]
    build: int
    baseline: int

    @property
    def largest(self) -> Moment:
        """The moment that decides."""
        return max(self.moments, key=lambda m: m.total)

    @property
    def peak(self) -> int:
        """Bytes needed to generate."""
        return self.largest.total

    @property
    def another(self) -> int:
        """Bytes that one more clip like this needs, beside the first on the same backend."""
        return max(sum(moment.parts.get(part, 0) for part in OF_A_CLIP) for moment in self.moments)


def mode(request: Request, backend: str) -> str:
    """How the tape's numbers lie in memory."""
    if wide(request, backend):
        return "fp32"
    return "fp16-as-fp32" if backend == "ort-cpu" else "fp16"


def wide(request: Request, backend: str) -> bool:
    """Whether four bytes lie between graphs: around INT8 products a CPU is best left in FP32."""
    return request.precision == "fp32" or (request.precision == "int8" and backend == "ort-cpu")


# Every layer needs what the one before needed: the arena has come to rest after three.
LAYERS = 3


def peak_of(request: Request, backend: str, name: str, allocator: type[Arena] | type[Ideal]) -> int:
    """Bytes of a pass through a graph."""
    c = request.config
    t, text = c.transformer, c.text
    shallow = dataclasses.replace(
        c,
        transformer=dataclasses.replace(t, depth=min(t.depth, LAYERS)),
        text=dataclasses.replace(text, depth=min(text.depth, LAYERS)),
    )
    return tapes(request.but(config=shallow), backend)[name].peak(allocator)


@lru_cache(maxsize=512)
def tapes(request: Request, backend: str) -> dict[str, Tape]:
    """Every graph's operators at the largest sizes of this generation."""
    c, s = request.config, request.sampling
    t, text = c.transformer, request.text_tokens
    fused, native = backend != "ort-cpu", request.emitter == "native"
    predicted, rows = max(request.counts), request.branches * max(request.counts)

    def new() -> Tape:
        return Tape(mode(request, backend), fused)

    largest = Pass(request.branches_at_once, request.tokens, request.seen * request.tokens, text, predicted)
    made = {
        graphs.TEXT_KEY_VALUES: text_key_values(t, c.text.width, c.text.max_tokens, text, new()),
        # Without a picture it never runs; where it is opened all the same, its weights count.
        graphs.TOKENIZER_ENCODER: encoder(c.tokenizer, max(1, request.given), s.height, s.width, new()),
        graphs.TOKENIZER_DECODER: decoder(c.tokenizer, request.frames, request.rows, request.columns, new()),
        graphs.TRANSFORMER_STEP: Step(t, largest, new(), native).write(),
        graphs.HEAD_CONDITION: head_condition(c.head, t, rows, _ahead(request, backend, rows), new()),
        graphs.HEAD_STEP: head_step(c.head, t, rows, predicted, new()),
    }
    if not request.text_embeddings:
        made = {graphs.TEXT_ENCODER: text_encoder(c.text, c.text.system_tokens + text, new()), **made}
    return made


def weights(request: Request, backend: str) -> dict[str, int]:
    """Bytes of every graph's weights in memory."""
    sizes = {}
    for name, tape in tapes(request, backend).items():
        width = tape.weight_width
        if name == graphs.HEAD_STEP and tape.mode == "fp16-as-fp32":
            width = 2  # ONNX Runtime casts those of the loop's body in every step
        size = tape.params * width
        if request.precision == "int8" and name == graphs.TRANSFORMER_STEP:
            size -= tape.linear_params * (width - 1)
        sizes[name] = int(size * (1 if backend == "ort-cpu" else GPU_ENGINE))
    return sizes


def key_values(request: Request, backend: str) -> int:
    """Bytes of finished frames' K/V, the current frame's included."""
    t, width = request.config.transformer, 4 if wide(request, backend) else 2
    frame = 2 * t.depth * request.branches * t.heads * t.head_dim * request.tokens * width
    if request.emitter == "portable" and request.sampling.refresh_every > 1:  # a third buffer: what a part sees
        return frame * (3 * request.seen + (3 if backend == "ort-cpu" else 2))
    if request.emitter == "native" and request.cache_tokens is not None:
        return frame * (request.seen + 1) if backend == "ort-cpu" else frame * request.cache_tokens // request.tokens
    # Two buffers in turn: one holds the finished frames, the other those and the current one. On the host they are
    # taken alike, from memory that the allocator may have to clear.
    return frame * (2 * request.seen + (2 if backend == "ort-cpu" else 1))


def _clip(request: Request, backend: str) -> int:
    """Bytes of a clip's small buffers: inputs, predicted rows, noise."""
    c, s = request.config, request.sampling
    t, width = c.transformer, 4 if wide(request, backend) else 2
    inputs = request.tokens * (4 * t.token_channels + 1 + t.head_dim * width)
    sizes = sum({1, *request.counts})
    rows = sizes * (8 + request.branches * t.width * width + 4 * t.token_channels * (2 + s.head_steps))
    most = request.branches * max(request.counts)
    noise = 12 * s.head_steps * max(request.counts) * t.token_channels
    # An engine's modulations lie in the clip's memory; ONNX Runtime's in its arena.
    engines = backend == "trt"
    kinds = len(graphs.modulation_names(c.head)) * engines
    modulations = _ahead(request, backend, most) * kinds * most * c.head.width * width
    return inputs + rows + noise + modulations


def _ahead(request: Request, backend: str, rows: int) -> int:
    """Diffusion steps whose modulations are computed at once, the most of any loop."""
    head, itemsize = request.config.head, 4 if wide(request, backend) else 2
    return max(graphs.steps_ahead(head, rows, steps, itemsize) for steps, _ in request.clip.schedules)


def _text(request: Request, backend: str) -> int:
    """Bytes of the text's K/V, always both branches."""
    t, width = request.config.transformer, 4 if wide(request, backend) else 2
    return 2 * 2 * t.depth * t.heads * t.head_dim * request.text_tokens * width


def _pixels(request: Request, frames: int) -> int:
    return 12 * frames * request.sampling.height * request.sampling.width


@lru_cache(maxsize=512)
def plan_memory(request: Request, backend: str) -> Memory:
    """Every moment's parts on a backend: "ort-cpu" or "trt"."""
    return _Cpu(request).write() if backend == "ort-cpu" else _on_gpu(request)


GROUPS = {
    graphs.TEXT_ENCODER: "text encoder",
    graphs.TEXT_KEY_VALUES: "transformer",
    graphs.TRANSFORMER_STEP: "transformer",
    graphs.TOKENIZER_ENCODER: "tokenizer",
    graphs.TOKENIZER_DECODER: "tokenizer",
    graphs.HEAD_CONDITION: "diffusion head",
    graphs.HEAD_STEP: "diffusion head",
}
HEADS = (graphs.HEAD_CONDITION, graphs.HEAD_STEP)  # one session on ONNX Runtime, the loop's
# Sessions in the order they are opened: all at the start, or each when it is needed.
EAGER = (
    (graphs.TEXT_ENCODER,),
    (graphs.TEXT_KEY_VALUES,),
    (graphs.TOKENIZER_ENCODER,),
    (graphs.TOKENIZER_DECODER,),
    (graphs.TRANSFORMER_STEP,),
    HEADS,
)


def _grouped(sizes: Mapping[str, int]) -> dict[str, int]:
    """Bytes by what people call it."""
    groups: dict[str, int] = {}
    for name, size in sizes.items():
        key = f"{GROUPS[name]}: weights"
        groups[key] = groups.get(key, 0) + size
    return groups


class _Cpu:
    """Moments of ONNX Runtime on the host: every session that is open, its arena, the clip's buffers and pixels."""

    def __init__(self, request: Request) -> None:
        self.request, self.made = request, tapes(request, "ort-cpu")
        self.held = {n: s + len(self.made[n].ops) * CPU_OPERATOR for n, s in weights(request, "ort-cpu").items()}
        self.open: list[str] = []
        self.sessions = 0
        self.moments: list[Moment] = []

    def load(self, names: tuple[str, ...]) -> None:
        """Open a session; while it is read it takes more than it keeps."""
        names = tuple(n for n in names if n in self.held)
        if not names or names[0] in self.open:
            return
        self.open += names
        self.sessions += 1
        share = CPU_LOADING_HEAD if names == HEADS else CPU_LOADING[self.made[names[0]].mode]
        extra = int(share * sum(self.held[n] for n in names))
        self.moment(f"loading {GROUPS[names[0]]}", {"loading": extra})

    def moment(self, name: str, parts: Mapping[str, int]) -> None:
        held = _grouped({n: self.held[n] for n in self.open})
        base = {"Python and libraries": CPU_BASELINE, "ONNX Runtime at work": CPU_RUN * self.sessions}
        self.moments.append(Moment(name, base | held | dict(parts)))

    def arena(self, name: str) -> int:
        return peak_of(self.request, "ort-cpu", name, Arena)

    def write(self) -> Memory:
        request = self.request
        if not request.lean:
            for names in EAGER:
                self.load(names)
        if graphs.TEXT_ENCODER in self.made:
            self.load((graphs.TEXT_ENCODER,))
            self.moment("encoding the text", {"working memory": self.arena(graphs.TEXT_ENCODER)})
            if request.lean:
                self.open.remove(graphs.TEXT_ENCODER)
        given = {"pixels": _pixels(request, request.given) * 5 // 4}
        if request.given:
            self.load((graphs.TOKENIZER_ENCODER,))
            self.moment("encoding the picture", given | {"working memory": self.arena(graphs.TOKENIZER_ENCODER)})
        for names in ((graphs.TEXT_KEY_VALUES,), (graphs.TRANSFORMER_STEP,), HEADS, (graphs.TOKENIZER_DECODER,)):
            self.load(names)
        loop = self.arena(graphs.TRANSFORMER_STEP) + _head_arena(request)
        clip = {
            "K/V of frames": key_values(request, "ort-cpu"),
            "K/V of text": _text(request, "ort-cpu"),
            "clip": _clip(request, "ort-cpu"),
        }
        # The decoder takes one latent frame at a time, beside the loop; pixels become frames by way of two copies.
        pixels = 3 * _pixels(request, request.config.tokenizer.temporal_stride)
        self.moment("decoding", clip | {
            "decoder's carried frames": _carried(request, "ort-cpu"),
            "working memory": loop + self.arena(graphs.TOKENIZER_DECODER),
            "pixels": given["pixels"] + pixels,
        })  # fmt: skip
        return Memory(tuple(self.moments), 0, CPU_BASELINE)


def _head_arena(request: Request) -> int:
    """Bytes that the loop's arena comes to over a frame, whose mask steps predict ever more tokens."""
    c, arena = request.config, Arena()
    for predicted in sorted(set(request.counts)):
        rows, most = request.branches * predicted, request.branches * max(request.counts)
        steps, tape = _ahead(request, "ort-cpu", most), Tape(mode(request, "ort-cpu"))
        head_loop(c.head, c.transformer, rows, predicted, steps, tape).run(arena)
    return arena.peak


def _carried(request: Request, backend: str) -> int:
    """Bytes that the decoder carries from frame to frame, in two sets that change places, and its pixels."""
    c = request.config
    axes = decoder_axes(c.tokenizer, request.frames, request.rows, request.columns)
    width = 4 if wide(request, backend) else 2
    sizes = (
        math.prod(axes.get(a, 1) if isinstance(a, str) else a for a in tensor.axes)
        for tensor in graphs.carried_tensors(c, "past", "float32")
    )
    return 2 * width * sum(sizes)


def _on_gpu(request: Request) -> Memory:
    held = weights(request, "trt")
    base = {"Python, CUDA, TensorRT": GPU_BASELINE}
    moments = []
    # `videomar build` makes every engine, the text encoder's too.
    build = max(BUILD_FACTOR * size for size in weights(request.but(text_embeddings=False), "trt").values())
    if request.lean and (text := held.pop(graphs.TEXT_ENCODER, 0)):
        working = {"working memory": peak_of(request, "trt", graphs.TEXT_ENCODER, Ideal)}
        moments.append(Moment("encoding the text", base | _grouped({graphs.TEXT_ENCODER: text}) | working))
    # One block for all contexts, as large as the largest needs.
    working = {"working memory": max(peak_of(request, "trt", name, Ideal) for name in held)}
    pixels = _pixels(request, request.given) + 3 * _pixels(request, request.config.tokenizer.temporal_stride)
    clip = {
        "K/V of frames": key_values(request, "trt"),
        "K/V of text": _text(request, "trt"),
        "clip": _clip(request, "trt"),
    }
    clip |= {"decoder's carried frames": _carried(request, "trt"), "pixels": pixels}
    moments.append(Moment("generating", base | _grouped(held) | clip | working))
    return Memory(tuple(moments), int(max(build, BUILD_BASE)), GPU_BASELINE)


def fits(memory: Memory, device: Device) -> bool:
    """Whether generating stays within what is free."""
    return memory.peak <= device.free


def builds(memory: Memory, device: Device) -> bool:
    """Whether building the engines does, one graph at a time and without swap."""
    return memory.build <= device.free
