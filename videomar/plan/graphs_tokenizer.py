"""Operators of the Cosmos tokenizer's two graphs, in ONNX Runtime's order; layers as in AutoencoderKLCosmos."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

from videomar.carried import CONTEXT
from videomar.config import TokenizerConfig
from videomar.plan.tape import Tape, Value


class Clip(NamedTuple):
    """A tensor [1, c, t, h, w]."""

    value: Value
    c: int
    t: int
    h: int
    w: int


def encoder(c: TokenizerConfig, frames: int, height: int, width: int, tape: Tape) -> Tape:
    """Pixels -> latents; sizes in pixels."""
    write = _Writer(tape)
    levels, channels = _levels(c), c.encoder_channels
    x = write.patch(Clip(tape.given(3 * frames * height * width, 4), 3, frames, height, width), c.patch_size)
    x = write.project(x, channels[0])
    size = c.resolution // c.patch_size
    for i, (into, out) in enumerate(itertools.pairwise(channels)):
        for layer in range(c.layers_per_block):
            x = write.residual(x, out if layer or into != out else into)
            if size in c.attention_resolutions:
                x = write.attention(write.attention(x, False), True)
        if i < len(channels) - 2:
            x = write.down(x, space=i < levels[0], time=i < levels[1])
            size //= 2
    x = write.middle(x)
    x = write.project(write.silu(write.norm(x)), c.latent_channels)
    write.conv(x, c.latent_channels, 1)
    return tape


def decoder(c: TokenizerConfig, clip: int, height: int, width: int, tape: Tape) -> Tape:
    """One latent frame -> its pixels; height and width in latents, `clip` latent frames that attention has room for.

    What is carried from frame to frame (videomar/carried.py) is the caller's memory.
    """
    write = _Writer(tape, clip)
    levels, channels = _levels(c), c.decoder_channels[::-1]
    z = c.latent_channels
    given = Clip(tape.given(z * height * width, 4), z, 1, height, width)
    x = write.conv(given._replace(value=tape.pointwise(given.value)), z, 1)
    x = write.middle(write.project(x, channels[0]))
    size = (c.resolution // c.patch_size) // 2 ** (len(channels) - 2)
    for i, (into, out) in enumerate(itertools.pairwise(channels)):
        for layer in range(c.layers_per_block + 1):
            x = write.residual(x, out if layer or into != out else into)
            if size in c.attention_resolutions:
                x = write.attention(write.attention(x, False), True)
        if i < len(channels) - 2:
            time = 0 < i < levels[1] + 1
            x = write.up(x, space=time or (i < levels[0] and levels[0] > levels[1]), time=time)
            size *= 2
    x = write.project(write.silu(write.norm(x)), 3 * c.patch_size**3)
    # Unpatching is in the last convolution; a shuffle and a clip are left.
    shuffled = tape.move(x.value.elements, x.value)
    tape.compute(shuffled.elements, shuffled, flops=shuffled.elements, bound=True)
    write.carry()
    return tape


def _levels(c: TokenizerConfig) -> tuple[int, int]:
    """How often blocks halve space and time, the patches' own halving taken off."""
    patch = int(math.log2(c.patch_size))
    return int(math.log2(c.spatial_stride)) - patch, int(math.log2(c.temporal_stride)) - patch


class _Writer:
    """Layers of the encoder, or of the decoder, which sees a frame of a `clip` at a time and carries the rest."""

    def __init__(self, tape: Tape, clip: int = 0) -> None:
        self.tape, self.clip = tape, clip
        self._contexts: list[tuple[int, Value]] = []

    def conv(self, x: Clip, out: int, kernel: int, t: int = 0, h: int = 0, w: int = 0, bias: bool = True) -> Clip:
        """A convolution with `kernel` weights a channel pair to [out, t, h, w] (default: x's)."""
        t, h, w = t or x.t, h or x.h, w or x.w
        n = out * t * h * w
        flops, params = 2.0 * n * x.c * kernel, out * x.c * kernel + bias * out
        return Clip(self.tape.compute(n, x.value, flops=flops, params=params), out, t, h, w)

    def causal(self, x: Clip, t: int = 0) -> Clip:
        """Three frames in time, x's first frame repeated in front, or what was carried."""
        tape, plane = self.tape, x.c * x.h * x.w
        first = tape.move(plane, x.value)
        front = tape.move(2 * plane, first, *([tape.given(2 * plane)] if self.clip else []))
        whole = tape.move((x.t + 2) * plane, front, x.value)
        if self.clip and x.t == CONTEXT:
            x.value.bound = True  # it is what is carried
        elif self.clip:
            self._contexts.append((2 * plane, whole))
        return self.conv(x._replace(value=whole), x.c, 3, t or x.t)

    def carry(self) -> None:
        """The last frames of every convolution's input leave the graph: ONNX Runtime cuts them out at the very end."""
        for elements, whole in self._contexts:
            self.tape.move(elements, whole, bound=True)

    def project(self, x: Clip, out: int) -> Clip:
        """3x3 in space, then 3 in time."""
        return self.causal(self.conv(x, out, 9))

    def norm(self, x: Clip) -> Clip:
        """Over channels and space of every frame: frames to the front, normalize, scale, shift, and back."""
        y = self.tape.compute(x.value.elements, self.tape.view(x.value.elements, x.value), flops=5.0 * x.value.elements)
        y = self.tape.pointwise(self.tape.pointwise(y, params=x.c), params=x.c)
        return x._replace(value=self.tape.view(y.elements, y))

    def silu(self, x: Clip) -> Clip:
        return x._replace(value=self.tape.pointwise(x.value))

    def residual(self, x: Clip, out: int) -> Clip:
        y = self.project(self.silu(self.norm(x)), out)
        y = self.project(self.silu(self.norm(y)), out)
        shortcut = x if x.c == out else self.conv(x, out, 1)
        return y._replace(value=self.tape.pointwise(y.value, shortcut.value))

    def attention(self, x: Clip, over_time: bool) -> Clip:
        """One head over the positions of a frame, or over the frames of a position."""
        tape, n = self.tape, x.value.elements
        seen = max(x.t, x.t * self.clip) if over_time else x.h * x.w
        scores = n // x.c * seen
        y = self.norm(x)
        k = self._remembered(self._turned(y, 3), x, over_time)
        q = self._turned(y, 2)
        steps = 1 + over_time  # over time: the mask is added
        # Engines have no fused kernel for a head this wide either.
        s = tape.pointwise(tape.compute(scores, q, k, flops=2.0 * scores * x.c), steps=steps)
        v = self._remembered(self._turned(y, 2), x, over_time)
        a = tape.compute(n, s, v, flops=2.0 * scores * x.c)
        a = tape.view(n, tape.view(n, a))
        out = self.conv(x._replace(value=a), x.c, 1)
        return out._replace(value=tape.pointwise(out.value, x.value))

    def _turned(self, x: Clip, times: int) -> Value:
        """Queries, keys or values: 1x1, then channels behind positions."""
        y = self.conv(x, x.c, 1).value
        for _ in range(times):
            y = self.tape.view(y.elements, y)
        return y

    def _remembered(self, new: Value, x: Clip, over_time: bool) -> Value:
        """Keys or values of the whole clip, the frame's in their place: what is carried, and the same turned."""
        if not (self.clip and over_time):
            return new
        whole = self.tape.move(new.elements * self.clip, new, bound=True)
        return self.tape.move(whole.elements, whole)

    def middle(self, x: Clip) -> Clip:
        x = self.attention(self.attention(self.residual(x, x.c), False), True)
        return self.residual(x, x.c)

    def down(self, x: Clip, space: bool, time: bool) -> Clip:
        tape = self.tape
        if not (space or time):
            return x
        if space:
            padded = x._replace(value=tape.move(x.c * x.t * (x.h + 1) * (x.w + 1), x.value))
            h, w = x.h // 2, x.w // 2
            y = self.conv(padded, x.c, 9, x.t, h, w)
            pooled = tape.compute(y.value.elements, padded.value)
            x = y._replace(value=tape.pointwise(y.value, pooled))
        if time:
            plane, t = x.c * x.h * x.w, (x.t + 1) // 2
            more = x._replace(value=tape.move((x.t + 1) * plane, tape.move(plane, x.value), x.value), t=x.t + 1)
            y = self.causal(more, t)
            pooled = tape.compute(y.value.elements, more.value)
            x = y._replace(value=tape.pointwise(y.value, pooled))
        return self.conv(x, x.c, 1)

    def up(self, x: Clip, space: bool, time: bool) -> Clip:
        tape = self.tape
        if not (space or time):
            return x
        if time:
            x = x._replace(value=tape.move(2 * x.value.elements, x.value), t=2 * x.t)
            x = x._replace(value=tape.pointwise(self.causal(x).value, x.value))
        if space:
            x = x._replace(value=tape.move(2 * x.value.elements, x.value), h=2 * x.h)
            x = x._replace(value=tape.move(2 * x.value.elements, x.value), w=2 * x.w)
            x = x._replace(value=tape.pointwise(self.conv(x, x.c, 9).value, x.value))
        return self.conv(x, x.c, 1)

    def patch(self, x: Clip, size: int) -> Clip:
        """Haar wavelets, a halving of all three axes at a time; the first frame stands for `size`."""
        tape, t = self.tape, x.t + size - 1
        plane = x.c * x.h * x.w
        first, rest = tape.move(plane, x.value), tape.move((x.t - 1) * plane, x.value)
        value = tape.move(t * plane, tape.move(size * plane, first), rest)
        c, h, w = x.c, x.h, x.w
        for _ in range(int(math.log2(size))):
            n = c * t * h * w
            padded = tape.move(c * (t + 1) * (h + 1) * (w + 1), value)
            parts = []
            for _ in range(2):
                half = self._haar(n // 2, padded)
                for _ in range(2):
                    quarter = self._haar(n // 4, half)
                    parts += [self._haar(n // 8, quarter) for _ in range(2)]
            value = tape.pointwise(tape.move(n, *parts))
            c, t, h, w = 8 * c, t // 2, h // 2, w // 2
        return Clip(value, c, t, h, w)

    def _haar(self, elements: int, x: Value) -> Value:
        """A filter of two taps along one axis."""
        return self.tape.compute(elements, x, flops=4.0 * elements)
