"""Charts and what other commands found out: scales, colours, labels, and files that are not theirs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from videomar.errors import InputError
from videomar.parity.comparing.table import number
from videomar.parity.reporting.bars import bars, spans
from videomar.parity.reporting.charts import Curve, Decades, amplification, frames_strip, heat_map, lines
from videomar.parity.reporting.drawing import (
    ACCENT,
    BAD,
    Drawing,
    Line,
    Picture,
    Rect,
    Text,
    data_uri,
    fitted,
    mix,
    to_picture,
    to_svg,
)
from videomar.parity.reporting.extras import extra_charts, extra_sections, read_extra


def texts(drawing: Drawing) -> list[str]:
    return [shape.text for shape in drawing.shapes if isinstance(shape, Text)]


def rects(drawing: Drawing) -> list[Rect]:
    return [shape for shape in drawing.shapes if isinstance(shape, Rect)]


# ---- scales


def test_decades_hold_every_positive_value_and_are_never_too_few() -> None:
    assert Decades.over([3e-4, 2e-6]) == Decades(-6, -3)
    assert Decades.over([1e-3, 1e-3]) == Decades(-5, -3)
    assert Decades.over([None, 0.0]) == Decades(-3, -1)
    scale = Decades(-6, -3)
    assert (scale.share(1e-6), scale.share(1e-3), scale.share(0)) == (0, pytest.approx(1), 0)
    assert scale.share(10**-4.5) == pytest.approx(0.5)


def test_colours_go_from_paper_to_accent_and_no_further() -> None:
    assert mix(0) == "#ffffff" and mix(1) == mix(7) == ACCENT
    assert mix(0.5, "#000000", "#ffffff") == "#808080"


# ---- charts


def test_a_heat_map_has_a_cell_a_value_dark_for_large_and_another_colour_for_no_number() -> None:
    cells = {(1, 0): 1e-6, (1, 1): 1e-3, (2, 0): None}
    drawing = heat_map("Drift", cells, "frame", "step", "relative L2")
    found = {r.title: r.fill for r in rects(drawing) if r.title}
    assert found["frame 2, step 0: not finite"] == BAD
    light, dark = found["frame 1, step 0: 1.0e-06"], found["frame 1, step 1: 1.0e-03"]
    assert sum(int(light[i : i + 2], 16) for i in (1, 3, 5)) > sum(int(dark[i : i + 2], 16) for i in (1, 3, 5))
    assert {"Drift", "step", "frame 1", "frame 2", "relative L2", "1e-6", "1e-3"} <= set(texts(drawing))


def test_many_columns_are_not_all_named() -> None:
    cells: dict[tuple[int, int], float | None] = {(1, step): 1e-3 for step in range(64)}
    names = [t for t in texts(heat_map("z", cells, "frame", "step", "x")) if t.isdigit()]
    assert 10 < len(names) < 40 and len([t for t in texts(heat_map("z", cells, "f", "s", "x")) if "e-03" in t]) == 0


def test_a_curve_with_a_hole_is_drawn_in_two_pieces_and_stays_inside() -> None:
    drawing = lines("t", [Curve("a", (1e-3, 1e-2, None, 1e-1, 1e-4))], "x", "y", {0: "first"}, bound=(1e-2, "gate"))
    pieces = [s for s in drawing.shapes if isinstance(s, Line) and s.stroke == ACCENT]
    assert [len(p.points) for p in pieces] == [2, 2]
    assert all(0 <= x <= drawing.width and 0 <= y <= drawing.height for p in pieces for x, y in p.points)
    assert {"gate", "a", "first", "x", "y"} <= set(texts(drawing))


@pytest.mark.parametrize(("least", "most"), [(0, 1), (44.9, 60.3), (21.7, 45), (90, 90.0001), (-3, 7), (5, 5)])
def test_a_linear_axis_has_a_few_round_ticks_around_its_values(least: float, most: float) -> None:
    drawing = lines("t", [Curve("", (least, most))], "x", "y", {}, log=False)
    marks = [float(s.text) for s in drawing.shapes if isinstance(s, Text) and s.anchor == "end"]
    assert 2 <= len(marks) <= 6 and min(marks) <= least and max(marks) >= most
    curve = [s for s in drawing.shapes if isinstance(s, Line) and s.stroke == ACCENT][-1]
    assert all(40 <= y <= drawing.height - 44 + 1e-6 for _, y in curve.points)


def test_names_of_curves_that_end_together_do_not_overlap() -> None:
    drawing = lines("t", [Curve(n, (0.5, 0.5)) for n in "abc"], "x", "y", {}, log=False)
    ends = [s.y for s in drawing.shapes if isinstance(s, Text) and s.text in "abc"]
    assert min(abs(a - b) for i, a in enumerate(ends) for b in ends[:i]) >= 12


def test_bars_tell_a_value_or_that_it_is_none() -> None:
    drawing = bars("t", [("big", 10.0), ("small", 0.1), ("odd", None)], "unit", [(1.0, "limit")], marked=["big"])
    by_name = {r.title.split(":")[0]: r for r in rects(drawing)}
    assert by_name["big"].width > by_name["small"].width and by_name["odd"].width >= by_name["big"].width
    assert by_name["big"].fill == by_name["odd"].fill == BAD and by_name["small"].fill == ACCENT
    assert {"not finite", "limit", "unit"} <= set(texts(drawing))


def test_spans_go_from_their_low_to_their_high_end() -> None:
    drawing = spans("t", [("a", 0.01, 1.0, 0.1)], "unit")
    band, stroke = rects(drawing)
    assert stroke.x + 1.5 == pytest.approx(band.x + band.width / 2)


@pytest.mark.parametrize(("most", "factor"), [(0, 100), (2, 100), (5, 50), (20, 10), (100, 2), (255, 1)])
def test_the_difference_is_amplified_as_far_as_it_stays_visible(most: int, factor: int) -> None:
    a = np.zeros((2, 4, 4, 3), np.uint8)
    assert amplification(a, a + np.uint8(most)) == factor


def test_a_strip_shows_both_clips_the_difference_and_says_its_factor() -> None:
    a = np.full((17, 8, 8, 3), 100, np.uint8)
    b = a.copy()
    b[16, 0, 0] = (110, 100, 100)
    drawing = frames_strip("t", a, b, ("ref", "cand"))
    shown = [s for s in drawing.shapes if isinstance(s, Picture)]
    assert len(shown) == 12 and np.array_equal(shown[3].pixels, a[16]) and np.array_equal(shown[7].pixels, b[16])
    factor = int(next(t for t in texts(drawing) if t.startswith("difference x")).removeprefix("difference x"))
    assert (
        np.array_equal(shown[11].pixels[0, 0], [max(0, 255 - 10 * factor)] * 3) and (shown[11].pixels[1:] == 255).all()
    )


# ---- SVG and pixels


def test_svg_is_xml_whatever_the_text_says() -> None:
    drawing = Drawing(100, 50, 'a "label" & <more>')
    drawing.text(1, 2, "<script>alert('&')</script>")
    drawing.rect(0, 0, 3, 4, ACCENT, title="a < b")
    drawing.line([(0, 0), (1, 1)], dash="4 4")
    drawing.picture(0, 0, 8, 8, np.zeros((2, 2, 3), np.uint8), "p")
    root = ElementTree.fromstring(to_svg(drawing))
    assert root.get("aria-label") == 'a "label" & <more>'
    assert [child.tag for child in root] == ["text", "rect", "polyline", "image"]
    assert root[0].text == "<script>alert('&')</script>"


def test_a_data_address_holds_the_same_picture() -> None:
    import base64

    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    data = np.frombuffer(base64.b64decode(data_uri(pixels).split(",")[1]), np.uint8)
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert decoded is not None and np.array_equal(decoded[..., ::-1], pixels)


@pytest.mark.parametrize("scale", [1, 2, 1.5])
def test_shapes_lie_in_the_picture_where_they_lie_in_the_drawing(scale: float) -> None:
    drawing = Drawing(40, 20)
    drawing.rect(4, 6, 10, 8, "#ff0000")
    drawing.picture(20, 4, 8, 8, np.full((4, 4, 3), 7, np.uint8))
    picture = to_picture(drawing, scale)
    assert picture.shape == (20 * scale, 40 * scale, 3)
    red, grey = (picture == (255, 0, 0)).all(axis=2), (picture == 7).all(axis=2)
    for mask, (x, y, width, height) in ((red, (4, 6, 10, 8)), (grey, (20, 4, 8, 8))):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        assert (rows[0], columns[0]) == (y * scale, x * scale)
        assert (len(rows), len(columns)) == (height * scale, width * scale)


def test_an_older_opencv_without_a_font_of_its_own_still_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    drawing = Drawing(200, 40)
    drawing.text(100, 25, "z \u2265 0.9999", 14, weight=600, anchor="middle")
    monkeypatch.delattr(cv2, "FontFace", raising=False)
    columns = np.flatnonzero((to_picture(drawing, 2) < 255).any(axis=(0, 2)))
    assert len(columns) and abs((columns[0] + columns[-1]) / 2 - 200) < 12


@pytest.mark.parametrize("font", [True, False], ids=["its own font", "an older OpenCV"])
@pytest.mark.parametrize("anchor", ["start", "middle", "end"])
def test_a_text_that_is_too_long_loses_its_middle(anchor: str, font: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not font:
        monkeypatch.delattr(cv2, "FontFace", raising=False)
    drawing = Drawing(400, 40)
    drawing.text(
        {"start": 50, "middle": 200, "end": 350}[anchor], 25, "demo-" * 40 + "fp16", 14, anchor=anchor, most=300
    )
    columns = np.flatnonzero((to_picture(drawing, 1) < 255).any(axis=(0, 2)))
    assert 45 <= columns[0] and columns[-1] <= 355 and columns[-1] - columns[0] > 250
    assert fitted("demo-fp16-of-today", 10, len) == "demo...day" and fitted("demo", 10, len) == "demo"
    assert fitted("demo-fp16-of-today", 0, len) == "demo-fp16-of-today"
    written = to_svg(drawing).split(">")[-3].removesuffix("</text")
    assert "..." in written and written.startswith("demo-demo") and written.endswith("fp16") and len(written) < 45


def test_a_placed_drawing_is_moved_whole() -> None:
    inner, outer = Drawing(10, 10), Drawing(50, 50)
    inner.rect(1, 2, 3, 4, ACCENT)
    inner.line([(0, 0), (5, 5)])
    inner.text(1, 9, "t")
    inner.picture(1, 1, 2, 2, np.zeros((1, 1, 3), np.uint8))
    outer.place(inner, 20, 30)
    rect, line, text, picture = outer.shapes
    assert isinstance(rect, Rect) and (rect.x, rect.y) == (21, 32)
    assert isinstance(line, Line) and line.points == ((20, 30), (25, 35))
    assert isinstance(text, Text) and (text.x, text.y) == (21, 39)
    assert isinstance(picture, Picture) and (picture.x, picture.y) == (21, 31)


def test_numbers_are_written_with_their_units() -> None:
    assert number("psnr", 200.0) == "equal" and number("psnr", 59.66) == "59.7 dB"
    assert number("centroid_lost", -0.0001) == "0.00 points" and number("followed_lost", 2.5) == "2.50 points"
    assert number("relative_l2", None) == "not finite" and number("relative_l2", 0.00123) == "1.2e-03"
    assert number("cosine", 0.99999965) == "0.9999997" or number("cosine", 0.99999965) == "0.9999996"


# ---- what other commands found out

LAYERS: dict[str, Any] = {
    "found": True,
    "layers": [
        {"tensor": "a", "added": 0.0, "guilty": False},
        {"tensor": "b", "added": 1e-3, "guilty": True},
        {"tensor": "c", "added": None, "guilty": True},
    ],
}
RANGES: dict[str, Any] = {"largest": {"transformer_step": {"x/reshape": 70000.0, "x": 70000.0, "y": 3.0, "zero": 0.0}}}
SENSITIVITY: dict[str, Any] = {
    "linears": {
        "block 0 qkv": {"min": -3.0, "max": 2.0, "threshold": 2.5, "quantized": True, "alone": {"z_relative": 1e-3}},
        "block 1 fc2": {"min": -9.0, "max": 40.0, "threshold": 30.0, "quantized": False, "alone": {"z_relative": 0.1}},
    }
}


def test_every_file_becomes_a_chart_of_the_page() -> None:
    charts = dict(extra_charts({"layers": LAYERS, "ranges": RANGES, "sensitivity": SENSITIVITY}))
    assert len(charts) == 4 and len(extra_sections({})) == 0
    layers, ranges, _, sensitivity = charts.values()
    assert "a" not in texts(layers) and {"b", "c", "not finite"} <= set(texts(layers))
    over = {r.title.split(":")[0]: r.fill for r in rects(ranges)}
    assert over == {"transformer_step x": BAD, "transformer_step y": ACCENT}
    assert [r.fill for r in rects(sensitivity)] == [BAD, ACCENT]
    assert all(re.search(r"<svg .*</svg>", part) for part in extra_sections({"ranges": RANGES}))


def test_a_bisection_that_found_nothing_has_no_chart() -> None:
    assert extra_charts({"layers": {"found": False}, "ranges": None}) == []


def test_files_are_read_in_their_own_formats(tmp_path: Path) -> None:
    (tmp_path / "layers.json").write_text(json.dumps(LAYERS))
    assert read_extra(tmp_path / "layers.json", "layers") == LAYERS
    np.savez(tmp_path / "ranges.npz", header=np.frombuffer(json.dumps(RANGES).encode(), np.uint8))
    assert read_extra(tmp_path / "ranges.npz", "ranges") == RANGES
    assert read_extra(None, "layers") is None
    for what in ("layers", "ranges", "sensitivity"):
        for name in ("ranges.npz", "layers.json", "missing"):
            if (what, name) not in (("layers", "layers.json"), ("ranges", "ranges.npz")):
                with pytest.raises(InputError, match=f"--{what}"):
                    read_extra(tmp_path / name, what)


@pytest.mark.parametrize("data", [{"layers": {"found": 1, "layers": [{}]}}, {"sensitivity": {"linears": {"a": {}}}}])
def test_a_file_of_another_version_is_one_clear_line(data: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="write it again with this version"):
        extra_charts(data)
