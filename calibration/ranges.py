"""What was seen of every tensor, in numbers that add up over calls, clips and machines; and the file they are kept in.

A histogram's bin is the upper bits of the float32 itself (exponent and five bits of fraction, without the sign): bins
are 1.6 to 3.1 % wide, the same for every tensor, and two histograms add. Knows nothing of graphs or of quantizing.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from videomar.artifacts import atomic_write
from videomar.errors import ArtifactError, InputError

FORMAT = 1
SHIFT = 18  # bits of a float32 that a bin leaves out
BINS = (0xFF << 23) >> SHIFT  # of finite numbers
ROWS = 256  # kept of every tensor, as they were


def bin_edges() -> np.ndarray:
    """Lower edge of every bin and the upper one of the last: [BINS + 1] float64."""
    edges = (np.arange(BINS, dtype=np.uint32) << SHIFT).view(np.float32).astype(np.float64)
    return np.append(edges, 2.0**128)


@dataclass
class Seen:
    """All that is kept of one linear's input, [..., channels]."""

    count: int = 0
    bad: int = 0  # NaN and infinite
    least: float = np.inf
    most: float = -np.inf
    histogram: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))  # of absolute values
    channels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))  # largest absolute value of each
    keys: np.ndarray = field(default_factory=lambda: np.zeros(0))  # random, one a kept row: the smallest are kept
    rows: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    @property
    def absmax(self) -> float:
        """The largest finite absolute value."""
        return float(self.channels.max(initial=0))

    @property
    def constant(self) -> bool:
        """Whether one number was seen and no other."""
        return self.count > 0 and self.least == self.most

    def add(self, values: np.ndarray, rng: np.random.Generator) -> None:
        """Take in one call's values, [..., channels] of any float dtype; `rng` draws the rows to keep."""
        flat = np.ascontiguousarray(values.reshape(-1, values.shape[-1]), np.float32)
        counts = np.bincount((flat.view(np.uint32).ravel() & 0x7FFFFFFF) >> SHIFT, minlength=BINS)
        if bad := int(counts[BINS:].sum()):
            flat = flat[np.isfinite(flat).all(axis=1)]
        other = Seen(values.size, bad, histogram=counts[:BINS])
        if len(flat):
            other.least, other.most = float(flat.min()), float(flat.max())
            other.channels = np.abs(flat).max(axis=0)
            keys = rng.random(len(flat))
            chosen = np.argsort(keys)[:ROWS]
            other.keys, other.rows = keys[chosen], flat[chosen]
        self.merge(other)

    def merge(self, other: Seen) -> None:
        """Take in what was seen elsewhere; the order of merging does not matter."""
        self.count += other.count
        self.bad += other.bad
        self.least, self.most = min(self.least, other.least), max(self.most, other.most)
        self.histogram = self.histogram + other.histogram
        if not len(other.keys):
            return
        if not len(self.keys):
            self.channels, self.keys, self.rows = other.channels, other.keys, other.rows
            return
        self.channels = np.maximum(self.channels, other.channels)
        keys = np.concatenate([self.keys, other.keys])
        chosen = np.argsort(keys)[:ROWS]
        self.keys, self.rows = keys[chosen], np.concatenate([self.rows, other.rows])[chosen]

    def percentile(self, share: float) -> float:
        """Upper edge of the bin that holds this share of the absolute values, at most the largest one."""
        upto = np.cumsum(self.histogram)
        index = int(np.searchsorted(upto, share * upto[-1]))
        return min(self.absmax, float(bin_edges()[min(index, BINS - 1) + 1]))


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
            used = np.flatnonzero(seen.histogram)
            arrays |= {f"{name}/bins": used, f"{name}/counts": seen.histogram[used], f"{name}/channels": seen.channels}
            arrays |= {f"{name}/keys": seen.keys, f"{name}/rows": seen.rows}
        arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
        data = io.BytesIO()
        np.savez(data, **arrays)
        atomic_write(path, data.getvalue())

    @staticmethod
    def load(path: Path) -> Ranges:
        """Read a file of `save`; raises ArtifactError for anything else."""
        mend = "give a ranges.npz of `videomar calibrate`, or collect it again"
        try:
            with np.load(path, allow_pickle=False) as file:
                header = json.loads(file["header"].tobytes())
                if header["format"] != FORMAT:
                    raise ArtifactError(f"{path} is of format {header['format']}, expected {FORMAT}; {mend}")
                ranges = Ranges(header["model"], {}, header["largest"], header["clips"], header["parts"])
                for name, row in header["inputs"].items():
                    histogram = np.zeros(BINS, np.int64)
                    histogram[file[f"{name}/bins"]] = file[f"{name}/counts"]
                    arrays = (file[f"{name}/{part}"] for part in ("channels", "keys", "rows"))
                    ranges.inputs[name] = Seen(**row, histogram=histogram, **dict(zip(_ARRAYS, arrays, strict=True)))
        except FileNotFoundError:
            raise ArtifactError(f"{path} does not exist, expected a file of ranges; {mend}") from None
        except (OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, BadZipFile) as error:
            raise ArtifactError(f"{path} is not a file of ranges ({error!s:.80}); {mend}") from None
        return ranges


_ARRAYS = ("channels", "keys", "rows")
