"""What was seen of every tensor, in numbers that add up over calls, clips and machines; and the file they are kept in.

A histogram's bin is the upper bits of the float32 itself: exponent and three bits of fraction, without the sign. Bins
are the same for every tensor, two histograms add, and dividing by a power of two moves one by whole octaves. Knows
nothing of graphs or of quantizing.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from videomar.arrays import read_arrays
from videomar.artifacts import atomic_write
from videomar.errors import ArtifactError, InputError
from videomar.fields import FieldError, Fields, parse

FORMAT = 1
MOST_BYTES = 4 << 30  # of a file, unpacked
OCTAVES, PER_OCTAVE = (-16, 16), 8  # smaller values count as the smallest ones, larger ones as the largest
BINS = (OCTAVES[1] - OCTAVES[0]) * PER_OCTAVE
_SHIFT, _FIRST = 20, (127 + OCTAVES[0]) * PER_OCTAVE  # of a float32's bits; 127 is the exponent of 1


def bin_edges(octaves_more: int = 0) -> np.ndarray:
    """Edges of the bins, with some octaves more on both sides: [bins + 1] float64; inside an octave evenly spaced."""
    octaves = np.exp2(np.arange(OCTAVES[0] - octaves_more, OCTAVES[1] + octaves_more + 1))
    return np.append(np.outer(octaves[:-1], 1 + np.arange(PER_OCTAVE) / PER_OCTAVE).ravel(), octaves[-1])


@dataclass
class Seen:
    """All that is kept of one linear's input, [..., channels]."""

    count: int = 0
    bad: int = 0  # NaN and infinite
    least: float = np.inf
    most: float = -np.inf
    channels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))  # largest absolute value of each
    histogram: np.ndarray = field(default_factory=lambda: np.zeros((0, BINS), np.uint32))  # of each, absolute values

    @property
    def absmax(self) -> float:
        """The largest finite absolute value."""
        return float(self.channels.max(initial=0))

    @property
    def constant(self) -> bool:
        """Whether one number was seen and no other."""
        return self.count > 0 and self.least == self.most

    def add(self, values: np.ndarray) -> None:
        """Take in one call's values, [..., channels] of any float dtype."""
        channels = values.shape[-1]
        flat = np.ascontiguousarray(values.reshape(-1, channels), np.float32)
        bad = values.size - int(np.isfinite(flat).sum())
        if bad:
            flat = flat[np.isfinite(flat).all(axis=1)]
        other = Seen(values.size, bad)
        if len(flat):
            other.least, other.most = float(flat.min()), float(flat.max())
            other.channels = np.abs(flat).max(axis=0)
            bits = flat.view(np.int32) & 0x7FFFFFFF
            bins = np.clip((bits >> _SHIFT) - _FIRST, 0, BINS - 1) + np.arange(channels) * BINS
            counts = np.bincount(bins.ravel(), minlength=channels * BINS)
            other.histogram = counts.astype(np.uint32).reshape(channels, BINS)
        self.merge(other)

    def merge(self, other: Seen) -> None:
        """Take in what was seen elsewhere; the order of merging does not matter."""
        self.count += other.count
        self.bad += other.bad
        self.least, self.most = min(self.least, other.least), max(self.most, other.most)
        if not len(self.channels):
            self.channels, self.histogram = other.channels, other.histogram
        elif len(other.channels):
            self.channels = np.maximum(self.channels, other.channels)
            self.histogram = self.histogram + other.histogram


def percentile(histogram: np.ndarray, edges: np.ndarray, share: float) -> float:
    """The value below which this share of a histogram lies; evenly spread inside a bin."""
    upto = np.cumsum(histogram, dtype=np.float64)
    index = int(np.searchsorted(upto, share * upto[-1]))
    below = upto[index - 1] if index else 0.0
    part = (share * upto[-1] - below) / max(upto[index] - below, 1e-30)
    return float(edges[index] + part * (edges[index + 1] - edges[index]))


@dataclass
class Ranges:
    """Every linear's input and every tensor's largest value, of one model."""

    model: str  # model_id of the manifest it was seen with
    inputs: dict[str, Seen] = field(default_factory=dict)  # linear -> its input
    largest: dict[str, dict[str, float]] = field(default_factory=dict)  # graph -> tensor -> largest absolute value
    clips: dict[str, str] = field(default_factory=dict)  # key -> name of the clips seen whole
    parts: list[str] = field(default_factory=list)  # what is done of a clip that was not: "clip key/pass"

    def merge(self, other: Ranges) -> None:
        """Take in other ranges of the same model; raises InputError for another model's or for a clip seen twice."""
        if other.model != self.model:
            raise InputError(
                f"the ranges are of model {other.model:.12}, expected {self.model:.12}: they were collected with "
                "another checkpoint; collect them with this one"
            )
        if both := sorted(other.clips[key] for key in self.clips.keys() & other.clips.keys()):
            raise InputError(f"the ranges both hold clip {both[0]!r}, expected each clip once; give ranges that differ")
        for name, seen in other.inputs.items():
            self.inputs.setdefault(name, Seen()).merge(seen)
        for graph, tensors in other.largest.items():
            mine = self.largest.setdefault(graph, {})
            for name, value in tensors.items():
                mine[name] = max(value, mine.get(name, 0.0))
        self.clips |= other.clips

    def save(self, path: Path) -> None:
        """Write one .npz: `header`, JSON text, and the arrays of every linear."""
        header: dict[str, Any] = {"format": FORMAT, "model": self.model, "clips": self.clips, "parts": self.parts}
        header |= {"largest": self.largest, "inputs": {}}
        arrays: dict[str, np.ndarray] = {}
        for name, seen in self.inputs.items():
            header["inputs"][name] = {"count": seen.count, "bad": seen.bad, "least": seen.least, "most": seen.most}
            arrays |= {f"{name}/channels": seen.channels, f"{name}/histogram": seen.histogram}
        arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
        data = io.BytesIO()
        np.savez_compressed(data, **arrays)
        atomic_write(path, data.getvalue())

    @staticmethod
    def load(path: Path) -> Ranges:
        """Read a file of `save`; raises ArtifactError for anything else."""
        mend = "give a ranges.npz of `videomar calibrate`, or collect it again"
        try:
            file = read_arrays(path, MOST_BYTES)
            header = Fields(parse(file["header"].tobytes()))
            if header.whole("format") != FORMAT:
                raise ArtifactError(f"{path} is of format {header.whole('format')}, expected {FORMAT}; {mend}")
            return _ranges(header, file)
        except FileNotFoundError:
            raise ArtifactError(f"{path} does not exist, expected a file of ranges; {mend}") from None
        except (OSError, ValueError, LookupError, FieldError) as error:
            raise ArtifactError(f"{path} is not a file of ranges ({error!s:.80}); {mend}") from None


def _ranges(header: Fields, arrays: Mapping[str, np.ndarray]) -> Ranges:
    """What `save` wrote; raises FieldError, ValueError or LookupError for what it did not."""
    largest, clips, inputs = (header.fields(name) for name in ("largest", "clips", "inputs"))
    ranges = Ranges(header.text("model"), clips={key: clips.text(key) for key in clips}, parts=header.texts("parts"))
    for graph in largest:
        tensors = largest.fields(graph)
        ranges.largest[graph] = {name: tensors.number(name, finite=False) for name in tensors}
    for name in inputs:
        row, channels, histogram = inputs.fields(name), arrays[f"{name}/channels"], arrays[f"{name}/histogram"]
        if channels.ndim != 1 or channels.dtype != np.float32 or not (np.isfinite(channels) & (channels >= 0)).all():
            raise ValueError(f"channels of {channels.dtype} {list(channels.shape)}")
        if histogram.shape != (len(channels), BINS) or histogram.dtype != np.uint32:
            raise ValueError(f"a histogram of {histogram.dtype} {list(histogram.shape)}")
        seen = Seen(row.whole("count"), row.whole("bad"), channels=channels, histogram=histogram)
        if seen.count > seen.bad:
            seen.least, seen.most = row.number("least"), row.number("most")
        ranges.inputs[name] = seen
    return ranges
