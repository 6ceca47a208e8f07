"""Clips as people have them: several containers, codecs, sizes and rates, with a sentence each."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from videomar.demo.world import MOTIONS, render, sample_scene

FILMS = {  # file: codec, pixel format, height, width, frames a second
    "a.mp4": ("libx264", "yuv420p", 64, 64, 24),
    "b.avi": ("mpeg4", "yuv420p", 96, 128, 25),
    "c.webm": ("libvpx-vp9", "yuv420p", 80, 64, 30),
    "d.mov": ("mjpeg", "yuvj420p", 64, 96, 12),
    "e.mkv": ("libx265", "yuv420p10le", 128, 128, 60),
    "ein Ball, von rechts.mp4": ("libx264", "yuv444p", 64, 64, 24),
}
SECONDS = 1.5


def film(file: Path, codec: str, form: str, height: int, width: int, rate: int, seed: int) -> str:
    """Write a clip of the demo world and return its sentence."""
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng, MOTIONS[seed % len(MOTIONS)], 17, 64)
    frames = render(scene, 17, 64)
    with av.open(str(file), "w") as container:
        quiet = {"x265-params": "log-level=none"} if codec == "libx265" else {}
        stream = container.add_stream(codec, rate=Fraction(rate), options=quiet)
        stream.height, stream.width, stream.pix_fmt = height, width, form
        for index in range(round(SECONDS * rate)):
            picture = frames[min(16, round(index * 16 / (SECONDS * rate)))]
            shown = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(shown.reformat(width=width, height=height, format=form)))
        container.mux(stream.encode(None))
    return scene.prompt


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of clips with captions.jsonl in it."""
    folder = tmp_path_factory.mktemp("films")
    rows = []
    for seed, (name, how) in enumerate(FILMS.items()):
        rows.append({"file": name, "caption": film(folder / name, *how, seed)})
    (folder / "captions.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def own_clips(films: Path) -> list[str]:
    """The options that train on them."""
    return ["--clips", str(films), "--captions", str(films / "captions.jsonl")]
