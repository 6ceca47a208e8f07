"""Draw held-out scenes as a picture: the true clip above, its first frame and sentence continued below.

python examples/contact_sheet.py [ARTIFACTS] [-o docs/contact-sheet.png]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from videomar.demo.evaluate import SEED
from videomar.demo.world import render, sample_scene
from videomar.runtime.media import contact_sheet, write_picture
from videomar.runtime.pipeline import Pipeline

MOTIONS = ("bounces", "moves right quickly", "grows", "falls")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", nargs="?", default="out/demo-fp32")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/contact-sheet.png"))
    args = parser.parse_args()
    rows = []
    with Pipeline.open(args.artifacts) as pipe:
        for i, motion in enumerate(MOTIONS):
            scene = sample_scene(np.random.default_rng([SEED, 10_000 + i]), motion)
            truth = render(scene)
            video = pipe(truth[0], scene.prompt, seed=i)
            print(scene.prompt)
            rows += [truth[::2], video.frames[::2]]
    frames = np.concatenate(rows)
    write_picture(args.output, contact_sheet(frames, columns=len(rows[0]), scale=2))
    print(args.output)


if __name__ == "__main__":
    main()
