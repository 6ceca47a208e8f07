"""The files of a golden pack: every graph's calls as JSON that Polygraphy loads too, and one clip as .npz.

Knows formats. Knows nothing of who records or replays.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from videomar.arrays import read_array, read_arrays
from videomar.artifacts import atomic_write
from videomar.errors import ArtifactError
from videomar.fields import FieldError, parse
from videomar.files import regular

Arrays = Mapping[str, np.ndarray]
RUNNER = "videomar"  # who made the outputs, in Polygraphy's words
INPUTS, OUTPUTS, CLIP = ".inputs.json", ".outputs.json", "clip.npz"
MOST_BYTES = 16 << 30  # of a clip, unpacked
MEND = "copy the pack again, or run `videomar record DIR -o PACK`"


def write_calls(folder: Path, graph: str, calls: Sequence[tuple[Arrays, Arrays]]) -> None:
    """GRAPH.inputs.json for `polygraphy run --load-inputs` and GRAPH.outputs.json for `--load-outputs`."""
    inputs = [{name: _pack(value) for name, value in feeds.items()} for feeds, _ in calls]
    results = [
        {
            "outputs": {n: {"values": _pack(v), "polygraphy_class": "LazyArray"} for n, v in made.items()},
            "runtime": 0.0,
            "runner_name": RUNNER,
            "polygraphy_class": "IterationResult",
        }
        for _, made in calls
    ]
    atomic_write(folder / f"{graph}{INPUTS}", json.dumps(inputs))
    outputs = {"lst": [[RUNNER, results]], "polygraphy_class": "RunResults"}
    atomic_write(folder / f"{graph}{OUTPUTS}", json.dumps(outputs))


def read_calls(folder: Path, graph: str) -> list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """(inputs, outputs) of every recorded call; raises ArtifactError for files that are not `write_calls`'s."""
    inputs, outputs = folder / f"{graph}{INPUTS}", folder / f"{graph}{OUTPUTS}"
    feeds = _load(inputs, lambda data: [{n: _unpack(v) for n, v in each.items()} for each in data])
    made = _load(
        outputs,
        lambda data: [{n: _unpack(v["values"]) for n, v in each["outputs"].items()} for each in data["lst"][0][1]],
    )
    if len(feeds) != len(made):
        raise ArtifactError(f"{outputs} holds {len(made)} calls, expected {len(feeds)} as in {inputs.name}; {MEND}")
    return list(zip(feeds, made, strict=True))


def _pack(value: np.ndarray) -> dict[str, str]:
    """As polygraphy.json writes an array: a .npy file in base64."""
    data = io.BytesIO()
    np.save(data, value, allow_pickle=False)
    return {"array": base64.b64encode(data.getvalue()).decode(), "polygraphy_class": "ndarray"}


def _unpack(data: Mapping[str, str]) -> np.ndarray:
    return read_array(base64.b64decode(data["array"], validate=True))


def _load(path: Path, convert: Any) -> Any:
    try:
        return convert(parse(regular(path).read_bytes()))
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror}), expected recorded calls; {MEND}") from None
    except (ValueError, LookupError, TypeError, AttributeError, FieldError) as error:
        raise ArtifactError(f"{path} does not hold recorded calls ({error!s:.60}); {MEND}") from None


def write_clip(folder: Path, arrays: Arrays) -> None:
    """The clip's inputs, noise and results by name."""
    data = io.BytesIO()
    np.savez_compressed(data, **arrays)
    atomic_write(folder / CLIP, data.getvalue())


def read_clip(folder: Path) -> dict[str, np.ndarray]:
    """What `write_clip` wrote; raises ArtifactError for anything else."""
    path = folder / CLIP
    try:
        return read_arrays(path, MOST_BYTES)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror or error}); {MEND}") from None
    except ValueError as error:
        raise ArtifactError(f"{path} does not hold a recorded clip ({error!s:.60}); {MEND}") from None
