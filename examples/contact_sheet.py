"""Draw held-out scenes as a picture: what is decided, what is drawn, or what the levels of quality make of it.

python examples/contact_sheet.py [ARTIFACTS] [-o docs/contact-sheet.png]
python examples/contact_sheet.py [ARTIFACTS] --futures -o docs/futures.png
python examples/contact_sheet.py [ARTIFACTS] --levels -o docs/levels.png

By default the true clip above, its first frame and sentence continued below. --futures: one picture and one sentence,
several seeds. --levels: one picture, sentence and seed, one row a level.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from videomar.demo.evaluate import SEED
from videomar.demo.world import render, sample_scene
from videomar.quality import LEVELS
from videomar.runtime.media import contact_sheet, write_picture
from videomar.runtime.pipeline import Pipeline

MOTIONS = ("bounces", "moves right quickly", "grows", "falls")
DRAWN = "drifts away"
FUTURES = 6


def decided(pipe: Pipeline) -> Iterator[np.ndarray]:
    """True clips and their continuations, in turn."""
    for i, motion in enumerate(MOTIONS):
        scene = sample_scene(np.random.default_rng([SEED, 10_000 + i]), motion)
        truth = render(scene)
        print(scene.prompt)
        yield from (truth, pipe(truth[0], scene.prompt, seed=i).frames)


def futures(pipe: Pipeline) -> Iterator[np.ndarray]:
    """One picture and sentence under several seeds."""
    scene = sample_scene(np.random.default_rng([SEED, 20_000]), DRAWN)
    print(scene.prompt)
    for seed in range(FUTURES):
        yield pipe(render(scene)[0], scene.prompt, seed=seed).frames


def levels(pipe: Pipeline) -> Iterator[np.ndarray]:
    """One scene at every level, under one seed."""
    scene = sample_scene(np.random.default_rng([SEED, 20_000]), DRAWN)
    for level in LEVELS:
        print(f"{scene.prompt}: {level}")
        yield pipe(render(scene)[0], scene.prompt, seed=3, quality=level).frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", nargs="?", default="out/demo-fp32")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/contact-sheet.png"))
    parser.add_argument("--futures", dest="rows", action="store_const", const=futures, default=decided)
    parser.add_argument("--levels", dest="rows", action="store_const", const=levels)
    args = parser.parse_args()
    with Pipeline.open(args.artifacts) as pipe:
        rows = [frames[::2] for frames in args.rows(pipe)]
    write_picture(args.output, contact_sheet(np.concatenate(rows), columns=len(rows[0]), scale=2))
    print(args.output)


if __name__ == "__main__":
    main()
