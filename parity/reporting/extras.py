"""What other commands found out, as sections of the page: layers of `bisect`, ranges and sensitivity of `calibrate`.

Knows their files. Imports neither command: stages meet in files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from videomar.arrays import read_arrays
from videomar.errors import InputError
from videomar.fields import FieldError, parse
from videomar.files import regular
from videomar.parity.reporting.bars import bars, spans
from videomar.parity.reporting.drawing import Drawing, to_svg

FP16_MOST, FP16_LEAST = 65504.0, 6.1e-5  # largest number, smallest normal one
LEVELS = 127  # of symmetric int8
MOST_BYTES = 4 << 30  # of a file of ranges, unpacked
MOST = 40  # rows of a chart


def read_extra(path: Path | None, what: str) -> Any:
    """The file given with --layers, --ranges or --sensitivity as data; None when not given.

    Raises InputError for a file that the other command did not write.
    """
    if path is None:
        return None
    mend = f"give what `videomar {'bisect --json' if what == 'layers' else 'calibrate'}` wrote"
    try:
        if what == "ranges":
            data = parse(read_arrays(path, MOST_BYTES)["header"].tobytes())
        else:
            data = parse(regular(path).read_bytes())
    except OSError as error:
        raise InputError(f"--{what} {path} cannot be read ({error.strerror or error}); {mend}") from None
    except (ValueError, LookupError, FieldError) as error:
        raise InputError(f"--{what} {path} is no such file ({error!s:.60}); {mend}") from None
    if not isinstance(data, dict) or KEYS[what] not in data:
        raise InputError(f"--{what} {path} has no {KEYS[what]!r}; {mend}")
    return data


KEYS = {"layers": "found", "ranges": "largest", "sensitivity": "linears"}


def extra_charts(extras: Mapping[str, Any]) -> list[tuple[str, Drawing]]:
    """(heading, chart) of everything given."""
    found = []
    try:
        if extras.get("layers") and extras["layers"].get("layers"):  # none where nothing was found
            found.append(("Error by layer", layer_bars(extras["layers"])))
        if extras.get("ranges"):
            found.append(("Activations against FP16's range", range_bars(extras["ranges"])))
        if extras.get("sensitivity"):
            found.append(("Inputs of linears against INT8's range", int8_spans(extras["sensitivity"])))
            found.append(("Sensitivity to INT8", sensitivity_bars(extras["sensitivity"])))
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise InputError(
            f"a file of --layers, --ranges or --sensitivity lacks {error}; write it again with this version"
        ) from None
    return found


def extra_sections(extras: Mapping[str, Any]) -> list[str]:
    """The same as parts of the page."""
    return [f"<section><h2>{heading}</h2>{to_svg(chart)}</section>" for heading, chart in extra_charts(extras)]


def layer_bars(data: Mapping[str, Any]) -> Drawing:
    """What every layer adds on the reference's inputs, in dataflow order; guilty ones marked."""
    rows = [row for row in data["layers"] if row["added"] != 0]
    worst = sorted(rows, key=lambda row: (row["added"] is not None, -(row["added"] or 0)))[:MOST]
    values = [(row["tensor"], row["added"]) for row in rows if row in worst]
    marked = [row["tensor"] for row in worst if row["guilty"]]
    return bars("What each layer adds, given the reference's inputs", values, "relative L2", marked=marked)


def range_bars(data: Mapping[str, Any]) -> Drawing:
    """The tensors nearest to FP16's end."""
    found: dict[tuple[str, float], str] = {}  # of a tensor and its reshapes one, a module's rather than an operator's
    for graph, tensors in data["largest"].items():
        for tensor in sorted(tensors, key=lambda name: "/" in name):
            found.setdefault((graph, tensors[tensor]), f"{graph} {tensor}")
    rows = sorted(((name, value) for (_, value), name in found.items() if value > 0), key=lambda row: -row[1])[:MOST]
    marked = [name for name, value in rows if not value <= FP16_MOST]
    values = [(name, min(value, 1e38)) for name, value in rows]
    title = "Largest absolute value of each tensor in the real loop"
    return bars(title, values, "absolute value", [(FP16_MOST, "FP16's largest, 65504")], marked)


def int8_spans(data: Mapping[str, Any]) -> Drawing:
    """From INT8's step to its end, and the largest value seen, per linear."""
    rows = []
    for name, row in data["linears"].items():
        largest = max(abs(row["min"]), abs(row["max"]))
        rows.append((name, row["threshold"] / LEVELS, row["threshold"], largest))
    rows = sorted(rows, key=lambda row: -row[3])[:MOST]
    bounds = [(FP16_LEAST, "FP16's least normal"), (FP16_MOST, "FP16's largest")]
    return spans(
        "INT8's step and range after smoothing (band), largest input seen before it (stroke)",
        rows,
        "absolute value",
        bounds,
    )


def sensitivity_bars(data: Mapping[str, Any]) -> Drawing:
    """Error of z with one linear quantized at a time; those kept in floating point marked."""
    rows = [(name, row["alone"]["z_relative"]) for name, row in data["linears"].items()]
    rows = sorted(rows, key=lambda row: -row[1])[:MOST]
    kept = [name for name, row in data["linears"].items() if not row["quantized"]]
    title = "Error of z with this linear alone in INT8" + ("; red ones are kept in floating point" if kept else "")
    return bars(title, [(name, value) for name, value in rows], "relative L2", marked=kept)
