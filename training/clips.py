"""Own clips and their sentences: latents from the cache of `windows.py`, sentences from a file of JSON lines."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from videomar.config import ModelConfig
from videomar.errors import InputError
from videomar.fields import FieldError, Fields, parse
from videomar.files import regular
from videomar.model.tokenizer import VideoTokenizer
from videomar.runtime.prompt import PromptTokenizer
from videomar.training.ranks import Ranks
from videomar.training.recipe import Recipe, Stage
from videomar.training.source import Clips, to_pixels
from videomar.training.windows import Windows

MOST_HELD_OUT = 32  # windows


def captions_of(recipe: Recipe) -> dict[str, str]:
    """File name -> sentence, of the recipe's clips; see `read_captions`."""
    if recipe.clips is None or recipe.captions is None:
        raise InputError("there are no clips, expected --clips and --captions")
    return read_captions(Path(recipe.captions), Path(recipe.clips))


def read_captions(file: Path, clips: Path) -> dict[str, str]:
    """File name -> sentence from JSON lines of "file" and "caption" (or "file_name" and "text").

    Raises InputError for a line that is no such object, a file that is not in the folder, and a name that comes twice.
    """
    try:
        lines = regular(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read ({error}), expected lines of JSON; check --captions") from None
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        at = f"{file}, line {number},"
        try:
            row = Fields(parse(line))
            name = row.text("file" if "file" in row else "file_name")
            caption = row.text("caption" if "caption" in row else "text")
        except FieldError as error:
            wanted = '{"file": "clip.mp4", "caption": "what happens"}'
            raise InputError(f"{at} {error}; expected {wanted}") from None
        if name in found:
            raise InputError(f"{at} names {name} again, expected each clip once; drop one of them")
        if not (clips / name).is_file():
            raise InputError(f"{at} names {name}, which is not in {clips}; mend the name or the folder")
        found[name] = caption
    if len(found) < 2:
        raise InputError(f"{file} names {len(found)} clips, expected at least 2, one of them held out; add lines")
    return found


class FolderClips:
    """Windows of own clips; a `Source`."""

    def __init__(
        self,
        clips: Path,
        captions: dict[str, str],
        tokenizer: VideoTokenizer,
        words: PromptTokenizer,
        cache: Path,
        config: ModelConfig,
        ranks: Ranks,
    ) -> None:
        self._stride, self._ranks = config.tokenizer.spatial_stride, ranks
        self._prompts = {name: tuple(words(caption)[0].tolist()) for name, caption in captions.items()}
        weights = b"".join(t.detach().numpy().tobytes() for t in tokenizer.state_dict().values())
        kind = f"latents-{hashlib.sha256(weights).hexdigest()[:12]}"

        @torch.no_grad()
        def encode(window: np.ndarray) -> np.ndarray:
            z = tokenizer.vae.encode(to_pixels(window[None])).latent_dist.mode()
            found: np.ndarray = z[0].flatten(2).permute(1, 2, 0).contiguous().numpy()
            return found

        self._windows = Windows(clips, cache, config.sampling.fps, config.sampling.fit, kind, encode)

    def enter(self, stage: Stage, rng: np.random.Generator) -> None:
        names = list(self._prompts)
        if self._ranks.first:
            self._windows.fill(names, stage)
        self._ranks.wait()
        self._arrays, kept = self._windows.read(names, stage)
        self._grid = (stage.height // self._stride, stage.width // self._stride)
        self._rows = [(name, i) for name, array in self._arrays.items() for i in range(len(array))]
        self._kept = self._of(
            kept, [(name, i) for name, array in kept.items() for i in range(len(array))][:MOST_HELD_OUT]
        )

    def batch(self, count: int, rng: np.random.Generator) -> Clips:
        return self._of(self._arrays, [self._rows[i] for i in rng.integers(len(self._rows), size=count)])

    def held_out(self) -> Clips:
        return self._kept

    def state(self) -> dict[str, Tensor]:
        return {}  # all is on disk, or drawn from the step's generator

    def restore(self, stage: Stage, state: dict[str, Tensor]) -> None:
        self.enter(stage, np.random.default_rng(0))

    def _of(self, arrays: dict[str, np.ndarray], rows: list[tuple[str, int]]) -> Clips:
        latents = torch.from_numpy(np.stack([arrays[name][i] for name, i in rows]))
        return Clips(latents, self._grid, tuple(self._prompts[name] for name, _ in rows))
