"""Train transformer, diffusion head and text encoder by a recipe: from nothing, from a checkpoint, or on with a run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.checkpoint import checkpoint

from videomar.config import PRESETS
from videomar.console import log
from videomar.demo.words import word_tokenizer
from videomar.errors import InputError
from videomar.model.tokenizer import VideoTokenizer
from videomar.model.videomar import PARTS, PartsOfCheckpoint, VideoMAR, load_checkpoint, save_part, save_tensors
from videomar.runtime.prompt import PromptTokenizer
from videomar.training import lora, unfinished_run
from videomar.training.clips import FolderClips, captions_of
from videomar.training.journal import Journal, Row
from videomar.training.loop import Trainer
from videomar.training.loss import TrainingLoss
from videomar.training.memory import say_memory
from videomar.training.ranks import Ranks, joined
from videomar.training.recipe import Recipe, check_stages, sampling_of
from videomar.training.source import Source
from videomar.training.world import WorldClips
from videomar.unfinished import made, scratch

WORDS = "tokenizer.json"
Draw = Callable[[list[Row]], str]


def train_transformer(
    out: Path, recipe: Recipe, device: str = "cpu", recompute: bool = False, draw: Draw | None = None
) -> None:
    """Train by `recipe` and write the whole checkpoint into `out`, averaged weights.

    recompute: activations are computed again on the way back instead of kept. Without `recipe.start`, the video
    tokenizer is the one found in `out`. Raises InputError, ConfigError or ArtifactError for what does not fit, and
    Diverged for a loss that is no number.
    """
    with joined(device) as ranks, made(out, ranks.first), scratch(f"words-{ranks.rank}") as place:
        ranks.wait()
        _trainer(out, place / WORDS, recipe, ranks, recompute, draw).run()


def resume_transformer(out: Path, device: str = "cpu", recompute: bool = False, draw: Draw | None = None) -> None:
    """Go on with the run that `out` holds: with as many processes and threads to the bytes that it would have given."""
    recipe, mark, place = unfinished_run.load(out)
    with joined(device) as ranks:
        now = ranks.count, torch.get_num_threads()
        if now != (mark.processes, mark.threads):
            log.warning(
                f"the run had {mark.processes} processes of {mark.threads} threads and goes on with {now[0]} of "
                f"{now[1]}: its last digits will be others"
            )
        trainer = _trainer(out, out / WORDS, recipe, ranks, recompute, draw, anew=False)
        trainer.resume(mark, place)
        log.info(f"going on after step {mark.step}")
        trainer.run()


def _trainer(
    out: Path, words: Path, recipe: Recipe, ranks: Ranks, recompute: bool, draw: Draw | None, anew: bool = True
) -> Trainer:
    torch.manual_seed(recipe.seed)
    model = _model(out, words, recipe, anew)
    source = _source(out, words, model, recipe, ranks, anew)
    model.transformer.to(ranks.device)
    model.text_encoder.to(ranks.device)
    model.diffusion_head.to(ranks.device)
    if recompute:
        for block in model.transformer.decoder_blocks:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    trained = choose_layers(model, recipe)
    if recipe.lora:
        lora.apply(model, recipe.lora)
    if ranks.first:
        say_memory(recipe, model.config, trained, ranks.device, recompute)
    unsaved = list(PARTS) if anew else []  # what never changes is written once, with the first of what does

    def save(place: Path) -> None:
        for part in unsaved:
            if part not in trained:
                save_part(getattr(model, part), place / f"{part}.safetensors")
        if unsaved:
            (place / WORDS).write_bytes(words.read_bytes())
        unsaved.clear()
        for part in trained:
            save_tensors(lora.merged(getattr(model, part)), place / f"{part}.safetensors")
        (place / "config.json").write_text(model.config.to_json())

    return Trainer(recipe, TrainingLoss(model), source, out, ranks, Journal(out, draw), save)


def words_of(recipe: Recipe) -> bytes:
    """The tokenizer.json that a run reads sentences by: the demo world's, its start's or one of its own captions."""
    if recipe.clips is None:
        return word_tokenizer().encode()
    if recipe.start is None:
        return word_tokenizer(captions_of(recipe).values()).encode()
    return (Path(recipe.start) / WORDS).read_bytes()


def _model(out: Path, words: Path, recipe: Recipe, anew: bool) -> VideoMAR:
    """The model before its first step, and its words; to go on, as the last checkpoint has it."""
    if not anew:  # what the run trains comes from its own place
        model = load_checkpoint(out).train()
        if recipe.lora and recipe.start:  # what the updates are added to
            model.transformer = PartsOfCheckpoint(Path(recipe.start)).transformer.train()
        return model
    if recipe.start is not None:
        start = Path(recipe.start)
        model = load_checkpoint(start).train().requires_grad_(True)
        check_stages(recipe.stages, model.config)
        words.write_bytes(words_of(recipe))
        change_words(model, (start / WORDS).read_bytes(), words.read_bytes())
    else:
        config, file = PRESETS[recipe.preset], out / "video_tokenizer.safetensors"
        if not file.is_file():
            raise InputError(f"{out} lacks {file.name}; run `videomar train tokenizer -o {out}` first or give --from")
        check_stages(recipe.stages, config)
        words.write_bytes(words_of(recipe))
        size = len(json.loads(words.read_text())["model"]["vocab"])
        config = dataclasses.replace(
            config, text=dataclasses.replace(config.text, vocab_size=max(size, config.text.vocab_size))
        )
        tokenizer = VideoTokenizer(config.tokenizer)
        tokenizer.load_state_dict(load_file(file))
        model = VideoMAR(config)
        model.video_tokenizer.load_state_dict(tokenizer.state_dict())
        initialize(model)
    model.config = dataclasses.replace(
        model.config,
        sampling=sampling_of(recipe.stages, model.config.sampling),
        from_text=model.config.from_text or any(stage.first_frame for stage in recipe.stages),
    )
    return model


def _source(out: Path, file: Path, model: VideoMAR, recipe: Recipe, ranks: Ranks, anew: bool) -> Source:
    tokenizer, words = model.video_tokenizer.eval(), PromptTokenizer(file, model.config.text)
    if recipe.clips is not None:
        cache = Path(recipe.cache) if recipe.cache else out / "latents"
        captions = captions_of(recipe)
        source: Source = FolderClips(Path(recipe.clips), captions, tokenizer, words, cache, model.config, ranks)
    else:
        source = WorldClips(tokenizer, words)
    if recipe.start is None and anew:
        # Tokens of unit variance, as the head's noise has: the clips say what that takes.
        source.enter(recipe.stages[0], np.random.default_rng(recipe.seed))
        std = float(source.batch(64, np.random.default_rng(recipe.seed)).latents.std())
        scale = round(1 / std, 3)
        model.config = dataclasses.replace(
            model.config, tokenizer=dataclasses.replace(model.config.tokenizer, latent_scale=scale)
        )
        log.info(f"latent scale {scale}")
    return source


def initialize(model: VideoMAR) -> None:
    """Learned vectors small; the head starts as the identity: its gates and last layer are zero."""
    nn.init.normal_(model.transformer.mask_token, std=0.02)
    nn.init.normal_(model.transformer.fake_latent, std=0.02)
    for module in [*model.diffusion_head.res_blocks, model.diffusion_head.final_layer]:
        nn.init.zeros_(module.adaLN_modulation[1].weight)
        nn.init.zeros_(module.adaLN_modulation[1].bias)
    nn.init.zeros_(model.diffusion_head.final_layer.linear.weight)
    nn.init.zeros_(model.diffusion_head.final_layer.linear.bias)


def change_words(model: VideoMAR, before: bytes, now: bytes) -> None:
    """Let the model read sentences by another tokenizer.json.

    Words that both know keep their embeddings, whatever their ids; new words start as small as any does.
    """
    if before == now:
        return
    old_ids, ids = (json.loads(text)["model"]["vocab"] for text in (before, now))
    with torch.no_grad():
        rows = model.text_encoder.llm.embed_tokens.weight
        old = rows.clone()
        nn.init.normal_(rows, std=0.02)
        for word in ids.keys() & old_ids.keys():
            rows[ids[word]] = old[old_ids[word]]


def choose_layers(model: VideoMAR, recipe: Recipe) -> tuple[str, ...]:
    """Leave gradients to the parameters that are trained, and name the parts that they are in.

    The video tokenizer never is. On own clips a checkpoint's text encoder stays as it is, as its authors left it,
    unless a pattern names it. Raises InputError for a pattern that matches nothing.
    """
    patterns = recipe.layers or ("*",)
    named = {n: p for n, p in model.named_parameters() if not n.startswith("video_tokenizer.")}
    if not recipe.layers and recipe.clips is not None and recipe.start is not None:
        named = {n: p for n, p in named.items() if not n.startswith("text_encoder.")}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in named):
            parts = ", ".join(sorted({f"'{name.partition('.')[0]}.*'" for name in named}))
            raise InputError(f"--layers {pattern} matches no parameter, expected a pattern within {parts}")
    model.requires_grad_(False)
    chosen = {n for n in named if any(fnmatchcase(n, pattern) for pattern in patterns)}
    for name in chosen:
        named[name].requires_grad_(True)
    return tuple(part for part in PARTS if any(name.startswith(f"{part}.") for name in chosen))
