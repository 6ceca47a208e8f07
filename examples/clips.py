"""Clips to try `videomar train --clips` with: the demo world in several containers, codecs, sizes and rates.

    python examples/clips.py FOLDER [--count 40] [--negative]
    videomar train transformer --from models/demo --clips FOLDER --captions FOLDER/captions.jsonl -o mine --minutes 2

--negative: in colours that the demo model has not seen.
"""

from __future__ import annotations

import argparse
import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from videomar.demo.world import FRAMES, MOTIONS, SIZE, render, sample_scene

FORMS = {  # suffix: codec, pixel format, height, width, frames a second
    ".mp4": ("libx264", "yuv420p", 64, 64, 24),
    ".avi": ("mpeg4", "yuv420p", 96, 128, 25),
    ".webm": ("libvpx-vp9", "yuv420p", 80, 64, 30),
    ".mov": ("mjpeg", "yuvj420p", 64, 96, 12),
    ".mkv": ("libx265", "yuv420p10le", 128, 128, 60),
    ".m4v": ("libx264", "yuv444p", 64, 64, 24),
}
SECONDS = 1.5


def write_clip(file: Path, seed: int, negative: bool = False) -> str:
    """Write a clip in the form of its suffix and return its sentence."""
    codec, form, height, width, rate = FORMS[file.suffix]
    scene = sample_scene(np.random.default_rng(seed), MOTIONS[seed % len(MOTIONS)], FRAMES, SIZE)
    frames = render(scene, FRAMES, SIZE)
    frames = np.ascontiguousarray(255 - frames) if negative else frames
    count = round(SECONDS * rate)
    with av.open(str(file), "w") as container:
        options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
        stream = container.add_stream(codec, rate=Fraction(rate), options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, form
        for index in range(count):
            picture = frames[min(FRAMES - 1, round(index * (FRAMES - 1) / count))]
            shown = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(shown.reformat(width=width, height=height, format=form)))
        container.mux(stream.encode(None))
    return scene.prompt


def write_folder(folder: Path, names: list[str], negative: bool = False) -> None:
    """Clips of these names, and captions.jsonl."""
    rows = [{"file": name, "caption": write_clip(folder / name, i, negative)} for i, name in enumerate(names)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "captions.jsonl").write_text(lines, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--negative", action="store_true")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    suffixes = list(FORMS)
    write_folder(args.folder, [f"{i:03d}{suffixes[i % len(suffixes)]}" for i in range(args.count)], args.negative)


if __name__ == "__main__":
    main()
