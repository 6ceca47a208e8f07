"""A drawing as a list of shapes, so that one drawing becomes SVG in a page and pixels in a picture.

Units are CSS pixels; y grows downwards, and a text's y is its baseline. Knows nothing of what is drawn.

Why not matplotlib: charts and picture were written with it, the page with Jinja2, and both looked at side by side (a
report of two candidates and three charts of other commands, 2026-11-28, one thread of an EPYC, Zen 3). It looks as
good, in 898 lines for 1087 of this folder. But the page takes 4.6 s of the processor for 0.15 s and 558 KB for 394 KB,
the picture 5.4 s for 0.9 s and 501 KB for 293 KB, after 1.7 s of imports for 0.6 s, and an installation grows by about
100 MB: too much on a device, where `replay --html --png` is for, and works without an extra.
"""

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import cv2
import numpy as np

Point = tuple[float, float]

INK, MUTED, RULE, PAPER = "#1b2026", "#67707b", "#e3e6ea", "#ffffff"
ACCENT, BAD = "#0b6e75", "#b93815"  # one accent; the other colour says "missed" and nothing else
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


@dataclass(frozen=True)
class Rect:
    x: float
    y: float
    width: float
    height: float
    fill: str
    radius: float = 0
    title: str = ""  # shown when pointed at


@dataclass(frozen=True)
class Line:
    points: tuple[Point, ...]
    stroke: str
    width: float = 1
    dash: str = ""


@dataclass(frozen=True)
class Text:
    x: float
    y: float
    text: str
    size: float = 12
    fill: str = INK
    weight: int = 400
    anchor: str = "start"  # "start", "middle" or "end"
    most: float = 0  # how wide it may be: a longer text loses its middle; 0: any width


@dataclass(frozen=True, eq=False)
class Picture:
    x: float
    y: float
    width: float
    height: float
    pixels: np.ndarray  # [h, w, 3] uint8
    title: str = ""


@dataclass
class Drawing:
    """Shapes in the order in which they are painted; `label` says in words what is seen."""

    width: float
    height: float
    label: str = ""
    shapes: list[Rect | Line | Text | Picture] = field(default_factory=list)

    def rect(
        self, x: float, y: float, width: float, height: float, fill: str, radius: float = 0, title: str = ""
    ) -> None:
        self.shapes.append(Rect(x, y, width, height, fill, radius, title))

    def line(self, points: Sequence[Point], stroke: str = RULE, width: float = 1, dash: str = "") -> None:
        self.shapes.append(Line(tuple(points), stroke, width, dash))

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float = 12,
        fill: str = INK,
        weight: int = 400,
        anchor: str = "start",
        most: float = 0,
    ) -> None:
        self.shapes.append(Text(x, y, text, size, fill, weight, anchor, most))

    def picture(self, x: float, y: float, width: float, height: float, pixels: np.ndarray, title: str = "") -> None:
        self.shapes.append(Picture(x, y, width, height, pixels, title))

    def place(self, other: Drawing, x: float, y: float) -> None:
        """Paint another drawing with its corner at (x, y)."""
        for shape in other.shapes:
            match shape:
                case Line(points, stroke, width, dash):
                    self.line([(a + x, b + y) for a, b in points], stroke, width, dash)
                case Rect(a, b, width, height, fill, radius, title):
                    self.rect(a + x, b + y, width, height, fill, radius, title)
                case Text(a, b, text, size, fill, weight, anchor, most):
                    self.text(a + x, b + y, text, size, fill, weight, anchor, most)
                case Picture(a, b, width, height, pixels, title):
                    self.picture(a + x, b + y, width, height, pixels, title)


# ---- SVG


def to_svg(drawing: Drawing, alone: bool = False) -> str:
    """One <svg> element that needs nothing from outside and shrinks with the page; alone: a file of its own."""
    body = "".join(_svg(shape) for shape in drawing.shapes)
    own = ' xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" style="background: white"' if alone else ""
    return (
        f'<svg{own} viewBox="0 0 {_n(drawing.width)} {_n(drawing.height)}" width="{_n(drawing.width)}" '
        f'height="{_n(drawing.height)}" role="img" aria-label="{escape(drawing.label)}">{body}</svg>'
    )


def _svg(shape: Rect | Line | Text | Picture) -> str:
    match shape:
        case Rect(x, y, width, height, fill, radius, title):
            start = f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}" fill="{fill}"'
            start += f' rx="{_n(radius)}"' if radius else ""
            return f"{start}><title>{escape(title)}</title></rect>" if title else f"{start}></rect>"
        case Line(points, stroke, width, dash):
            path = " ".join(f"{_n(x)},{_n(y)}" for x, y in points)
            dashed = f' stroke-dasharray="{dash}"' if dash else ""
            return (
                f'<polyline points="{path}" fill="none" stroke="{stroke}" stroke-width="{_n(width)}"'
                f' stroke-linejoin="round" stroke-linecap="round"{dashed}></polyline>'
            )
        case Text(x, y, text, size, fill, weight, anchor, most):
            text = fitted(text, most, lambda part: len(part) * size * 0.56)  # about, in any browser's font
            return (
                f'<text x="{_n(x)}" y="{_n(y)}" font-size="{_n(size)}" fill="{fill}" font-weight="{weight}"'
                f' text-anchor="{anchor}">{escape(text)}</text>'
            )
        case Picture(x, y, width, height, pixels, title):
            return (
                f'<image x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}" '
                f'preserveAspectRatio="none" style="image-rendering:pixelated" href="{data_uri(pixels)}">'
                f"<title>{escape(title)}</title></image>"
            )


def data_uri(pixels: np.ndarray) -> str:
    """[h, w, 3] uint8 RGB as a PNG inside an address."""
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode()


def png(pixels: np.ndarray) -> bytes:
    """[h, w, 3] uint8 RGB as a PNG, as small as it gets."""
    options = [cv2.IMWRITE_PNG_COMPRESSION, 9, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_DEFAULT]
    return cv2.imencode(".png", np.ascontiguousarray(pixels[..., ::-1]), options)[1].tobytes()


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


# ---- pixels


def to_picture(drawing: Drawing, scale: float = 2) -> np.ndarray:
    """[height * scale, width * scale, 3] uint8, drawn with OpenCV: its own font, smooth edges, pictures on top."""
    canvas = np.full((round(drawing.height * scale), round(drawing.width * scale), 3), 255, np.uint8)
    pictures = [shape for shape in drawing.shapes if isinstance(shape, Picture)]
    for shape in drawing.shapes:
        if not isinstance(shape, Picture):
            _paint(canvas, shape, scale)
    canvas = (np.rint(canvas / np.float32(17)) * 17).astype(
        np.uint8
    )  # 16 levels are enough for text, in half the bytes
    for shape in pictures:
        _paint(canvas, shape, scale)
    return canvas


def _paint(canvas: np.ndarray, shape: Rect | Line | Text | Picture, scale: float) -> None:
    match shape:
        case Rect(x, y, width, height, fill, radius, _):
            _fill(canvas, x * scale, y * scale, width * scale, height * scale, _rgb(fill), radius * scale)
        case Line(points, stroke, width, dash):
            ends = list(itertools.pairwise(points))
            for a, b in [part for end in ends for part in (_dashes(*end) if dash else [end])]:
                p, q = (tuple(round(v * scale * 16) for v in point) for point in (a, b))
                cv2.line(canvas, p, q, _rgb(stroke), max(1, int(width * scale)), cv2.LINE_AA, shift=4)
        case Text():
            _write(canvas, shape, scale)
        case Picture(x, y, width, height, pixels, _):
            size = round(width * scale), round(height * scale)
            left, top = round(x * scale), round(y * scale)
            how = cv2.INTER_NEAREST if size[0] >= pixels.shape[1] else cv2.INTER_AREA
            canvas[top : top + size[1], left : left + size[0]] = cv2.resize(pixels, size, interpolation=how)


def _fill(canvas: np.ndarray, x: float, y: float, width: float, height: float, color: Color, radius: float) -> None:
    left, top, right, bottom = round(x), round(y), round(x + width), round(y + height)
    r = min(round(radius), (right - left) // 2, (bottom - top) // 2)
    if r <= 0:
        canvas[top:bottom, left:right] = color
        return
    canvas[top + r : bottom - r, left:right] = color
    canvas[top:bottom, left + r : right - r] = color
    for cx in (left + r, right - r - 1):
        for cy in (top + r, bottom - r - 1):
            cv2.circle(canvas, (cx, cy), r, color, cv2.FILLED, cv2.LINE_AA)


def _write(canvas: np.ndarray, text: Text, scale: float) -> None:
    at, size, color = (round(text.x * scale), round(text.y * scale)), round(text.size * scale), _rgb(text.fill)
    thick, factor = (2 if text.weight > 500 else 1) * max(1, round(scale / 2)), size / 30
    real = hasattr(cv2, "FontFace")  # OpenCV 5 brings a real font with it
    face: Any = cv2.FontFace("sans") if real else cv2.FONT_HERSHEY_DUPLEX

    def wide(words: str) -> int:
        if real:
            return int(cv2.getTextSize((0, 0), words, (0, 0), face, size, text.weight)[2])
        return int(cv2.getTextSize(words, face, factor, thick)[0][0])

    words = fitted(text.text if real else text.text.encode("ascii", "replace").decode(), text.most * scale, wide)
    at = (at[0] - {"start": 0, "middle": wide(words) // 2, "end": wide(words)}[text.anchor], at[1])
    if real:
        cv2.putText(canvas, words, at, color, face, size, text.weight)
    else:
        cv2.putText(canvas, words, at, face, factor, color, thick, cv2.LINE_AA)


def fitted(text: str, most: float, wide: Callable[[str], float]) -> str:
    """The text, or as much of its beginning and end as `most` holds; `wide` measures. Any width if `most` is 0."""
    if not most or wide(text) <= most:
        return text
    kept = len(text) - 1
    while kept > 1 and wide(_shortened(text, kept)) > most:
        kept -= 1
    return _shortened(text, kept)


def _shortened(text: str, kept: int) -> str:
    return f"{text[: kept - kept // 2]}...{text[len(text) - kept // 2 :]}"


Color = tuple[int, int, int]


def _rgb(color: str) -> Color:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def _dashes(a: Point, b: Point, on: float = 4, off: float = 4) -> list[tuple[Point, Point]]:
    length = float(np.hypot(b[0] - a[0], b[1] - a[1]))
    starts = np.arange(0, length, on + off)

    def along(t: float) -> Point:
        share = min(t, length) / length
        return a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share

    return [(along(s), along(s + on)) for s in starts]


def mix(share: float, low: str = PAPER, high: str = ACCENT) -> str:
    """The colour a share of the way from one to the other, 0 to 1."""
    share = min(1.0, max(0.0, share))
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(_rgb(low), _rgb(high), strict=True))
