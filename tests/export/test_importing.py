"""Importing: random weights in other people's layouts, compared with independent readers of those layouts, and every
bad input. tests/naive.py reads VideoMAR's, transformers and diffusers their own, nvidia_cosmos.py NVIDIA's archives."""

from __future__ import annotations

import argparse
import errno
import importlib.util
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLCosmos
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Model

from videomar.config import VIDEOMAR_1_4B, ModelConfig, SamplingConfig
from videomar.errors import UserError
from videomar.export import importing
from videomar.export.importing import import_checkpoint
from videomar.export.importing.torchscript import read_torchscript
from videomar.model.generate import generate
from videomar.model.videomar import VideoMAR, load_checkpoint
from videomar.runtime.prompt import PromptTokenizer
from videomar.schedule import SeededNoise

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
Change = Callable[[Path], None]


def load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


naive = load("naive", Path(__file__).parents[1] / "naive.py")
nvidia = load("nvidia_cosmos", Path(__file__).parent / "nvidia_cosmos.py")

# ---- what users have, at a small size

SIZES: dict[str, int] = dict(
    depth=2, heads=3, head_dim=16, channels=4, text_width=24, text_tokens=10, head_width=32, head_depth=2
)
SPLIT = (8, 4, 4)
WORDS = ["[UNK]", "a", "red", "ball", "rolls", "away", "You", "describe", "videos", "."]


def official(seed: int, **sizes: int) -> dict[str, torch.Tensor]:
    """A state dict in the authors' layout (tests/naive.py writes it down from the description)."""
    weights = naive.random_weights(np.random.default_rng(seed), **{**SIZES, **sizes})
    return {name: torch.from_numpy(value).float() for name, value in weights.items()}


def write_videomar(path: Path, **others: Any) -> None:
    """As the authors' training script saves: also the optimizer and the command line."""
    command = argparse.Namespace(lr=1e-4, output_dir="runs")
    torch.save({"model": official(1), "model_ema": official(2), "epoch": 3, "args": command, **others}, path)


def write_cosmos(directory: Path, **others: Any) -> None:
    torch.manual_seed(0)
    vae = AutoencoderKLCosmos(
        **{
            "latent_channels": 4, "encoder_block_out_channels": (4, 8, 8, 8), "decode_block_out_channels": (4, 8, 8, 12),
            "attention_resolutions": (8,), "resolution": 32, "num_layers": 1, "patch_size": 4,
            "spatial_compression_ratio": 16, "temporal_compression_ratio": 8, **others,
        }
    )  # fmt: skip
    vae.save_pretrained(directory)


def write_qwen(directory: Path, model: type = Qwen2ForCausalLM, **others: Any) -> None:
    torch.manual_seed(0)
    config = Qwen2Config(
        **{
            "vocab_size": 12, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "intermediate_size": 40, "max_position_embeddings": 64,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, **others,
        }
    )  # fmt: skip
    model(config).save_pretrained(directory)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(directory / "tokenizer.json"))


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("originals")
    write_videomar(directory / "videomar.pth")
    write_cosmos(directory / "cosmos")
    write_qwen(directory / "qwen")
    return directory


@pytest.fixture
def inputs(originals: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(originals, tmp_path / "inputs"))


def run(inputs: Path, out: Path, **options: Any) -> importing.Imported:
    return import_checkpoint(inputs / "videomar.pth", inputs / "cosmos", inputs / "qwen", out, **options)


# ---- the parts compute what their original readers compute


@pytest.fixture(scope="module")
def imported(originals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("imported") / "deep" / "checkpoint"
    run(originals, out, system_prompt="You describe videos .")
    return out


def test_generation_from_the_import_equals_the_naive_reading_of_the_file(originals: Path, imported: Path) -> None:
    model = load_checkpoint(imported)
    file = torch.load(originals / "videomar.pth", weights_only=False)["model_ema"]
    weights = {name: tensor.double().numpy() for name, tensor in file.items()}
    pixels, ids = torch.rand(1, 3, 1, 32, 48) * 2 - 1, torch.randint(12, (1, 7))
    sampling = SamplingConfig(frames=17, height=32, width=48, mask_steps=3, head_steps=125)
    latents, _ = generate(model, pixels, ids, 2, sampling, SeededNoise(0))
    with torch.no_grad():
        given, states = model.video_tokenizer.encode(pixels)[0], model.text_encoder(ids)[0, 2:]
    expected = naive.generate(
        weights, given.double().numpy(), states.double().numpy(), SeededNoise(0), SPLIT, 3, 3, 125, 3.0
    )
    error = np.abs(latents[0].double().numpy() - expected).max() / np.sqrt((expected**2).mean())
    assert error < 1e-4


def test_the_imported_language_model_equals_what_transformers_loads(originals: Path, imported: Path) -> None:
    theirs = Qwen2Model.from_pretrained(originals / "qwen").eval()
    ids = torch.randint(12, (1, 20))
    with torch.no_grad():
        expected, got = theirs(ids).last_hidden_state, load_checkpoint(imported).text_encoder(ids)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_the_imported_tokenizer_equals_what_diffusers_loads(originals: Path, imported: Path) -> None:
    theirs, ours = AutoencoderKLCosmos.from_pretrained(originals / "cosmos"), load_checkpoint(imported).video_tokenizer
    pixels = torch.rand(1, 3, 17, 32, 48) * 2 - 1
    with torch.no_grad():
        latents = theirs.encode(pixels).latent_dist.mode()
        torch.testing.assert_close(ours.encode(pixels), 0.5 * latents, rtol=0, atol=1e-6)
        torch.testing.assert_close(ours.decode(0.5 * latents), theirs.decode(latents).sample, rtol=0, atol=1e-6)


def test_the_config_says_what_the_files_say(imported: Path) -> None:
    config = ModelConfig.from_json((imported / "config.json").read_text())
    t, h, c, q = config.transformer, config.head, config.tokenizer, config.text
    assert (t.width, t.depth, t.heads, t.head_dim, t.token_channels, t.mlp_ratio) == (48, 2, 3, 16, 4, 4)
    assert t.rope_split == SPLIT and (h.width, h.depth, h.time_features, h.train_steps) == (32, 2, 256, 1000)
    assert (c.encoder_channels, c.decoder_channels) == ((4, 8, 8, 8), (4, 8, 8, 12))
    assert (c.spatial_stride, c.temporal_stride, c.latent_channels, c.latent_scale) == (16, 8, 4, 0.5)
    assert (c.attention_resolutions, c.resolution, c.patch_size, c.patch_type) == ((8,), 32, 4, "haar")
    assert (q.vocab_size, q.width, q.depth, q.heads, q.kv_heads, q.mlp_width) == (12, 24, 2, 4, 2, 40)
    assert (q.rope_theta, q.max_positions, q.max_tokens) == (1e6, 64, 10)
    assert q.system_prompt == "You describe videos ." and config.sampling == VIDEOMAR_1_4B.sampling


def test_the_words_file_is_copied_and_the_system_prompt_is_in_front(originals: Path, imported: Path) -> None:
    file = imported / "tokenizer.json"
    assert file.read_bytes() == (originals / "qwen" / "tokenizer.json").read_bytes()
    prompt = PromptTokenizer(file, ModelConfig.from_json((imported / "config.json").read_text()).text)
    assert prompt.prefix == 4 and prompt("a red ball").tolist() == [[6, 7, 8, 9, 1, 2, 3]]


# ---- VideoMAR's checkpoint


@pytest.mark.parametrize(
    ("sizes", "split"),
    [
        (dict(depth=1, heads=1, head_dim=64, mlp_ratio=2, head_depth=1), None),
        (dict(depth=4, heads=2, head_dim=8, head_width=24, time_features=64, text_tokens=5), None),
        (dict(head_dim=12), (4, 4, 4)),
    ],
)
def test_sizes_are_inferred_from_the_tensors(
    inputs: Path, tmp_path: Path, sizes: dict[str, int], split: tuple[int, int, int] | None
) -> None:
    torch.save(official(0, **sizes), inputs / "videomar.pth")
    config = run(inputs, tmp_path / "out", rope_split=split).config
    expected = {**SIZES, "mlp_ratio": 4, "time_features": 256, **sizes}
    t, h = config.transformer, config.head
    got = dict(
        depth=t.depth, heads=t.heads, head_dim=t.head_dim, channels=t.token_channels, mlp_ratio=t.mlp_ratio,
        text_width=config.text.width, text_tokens=config.text.max_tokens, head_width=h.width, head_depth=h.depth,
        time_features=h.time_features,
    )  # fmt: skip
    assert got == expected
    dim = t.head_dim
    assert t.rope_split == (split or (dim // 2, dim // 4, dim // 4))
    load_checkpoint(tmp_path / "out")


def first(directory: Path) -> torch.Tensor:
    return load_file(directory / "transformer.safetensors")["decoder_blocks.1.attn1.wqkv.weight"]


@pytest.mark.parametrize(
    ("content", "options", "seed", "said"),
    [
        ({"model": 1, "model_ema": 2}, {}, 2, "'model_ema'"),
        ({"model": 1, "model_ema": 2}, {"weights": "model"}, 1, "'model'"),
        ({"model": 1}, {}, 1, "'model'"),
        (3, {}, 3, "bare"),
    ],
)
def test_the_ema_is_preferred_and_the_note_says_what_was_taken(
    inputs: Path, tmp_path: Path, content: Any, options: dict[str, str], seed: int, said: str
) -> None:
    made = {k: official(s) for k, s in content.items()} if isinstance(content, dict) else official(content)
    torch.save(made, inputs / "videomar.pth")
    notes = run(inputs, tmp_path / "out", **options).notes
    assert said in notes[0] and "2 unused scale_shift_table" in notes[0]
    assert torch.equal(first(tmp_path / "out"), official(seed)["decoder_blocks.1.attn1.wqkv.weight"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_half_precision_arrives_as_the_same_numbers_in_float32(
    inputs: Path, tmp_path: Path, dtype: torch.dtype, form: str
) -> None:
    state = {name: tensor.to(dtype) for name, tensor in official(4).items()}
    file = inputs / f"weights.{form}"
    save_file(state, file) if form == "safetensors" else torch.save(state, file)
    import_checkpoint(file, inputs / "cosmos", inputs / "qwen", tmp_path / "out")
    got, expected = first(tmp_path / "out"), state["decoder_blocks.1.attn1.wqkv.weight"]
    assert got.dtype == torch.float32 and torch.equal(got.to(dtype), expected)


def test_tensors_that_are_parts_of_one_memory_are_written_alone(inputs: Path, tmp_path: Path) -> None:
    state = official(5)
    flat = torch.cat([tensor.flatten() for tensor in state.values()])
    parts = flat.split([tensor.numel() for tensor in state.values()])
    views = {name: part.view(state[name].shape) for name, part in zip(state, parts, strict=True)}
    torch.save(views, inputs / "videomar.pth")
    run(inputs, tmp_path / "out")
    assert torch.equal(first(tmp_path / "out"), state["decoder_blocks.1.attn1.wqkv.weight"])


# ---- NVIDIA's archives


def write_traced(directory: Path, whole: bool = False, **sizes: Any) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    encoder, decoder = nvidia.halves(**sizes)
    space, time = sizes.get("strides", (16, 8))
    pixels = torch.rand(1, 3, 1 + time, 2 * space, space) * 2 - 1
    shutil.rmtree(directory)
    directory.mkdir()
    with torch.no_grad():
        halves = {"encoder": (encoder, pixels), "decoder": (decoder, encoder(pixels)[0])}
        archives = {"autoencoder": (nvidia.Whole(encoder, decoder), pixels)} if whole else halves
        for name, (module, example) in archives.items():
            torch.jit.trace(module, example, check_trace=False).save(directory / f"{name}.jit")
    return encoder, decoder, pixels


@pytest.mark.parametrize(
    ("whole", "sizes", "options", "said"),
    [
        (False, {"decoder_seed": 0}, {}, "16 in space and 8 in time (assumed"),
        (True, {"strides": (8, 8)}, {"tokenizer_strides": (8, 8)}, "8 in space and 8 in time (as asked"),
        (False, {"attended": (0, 2), "patch": 2, "strides": (8, 4)}, {"tokenizer_strides": (8, 4)}, "as asked"),
    ],
    ids=["8x16x16", "8x8x8 in one archive", "attention in the levels"],
)
def test_nvidias_archives_become_a_tokenizer_that_computes_the_same(
    inputs: Path, tmp_path: Path, whole: bool, sizes: dict[str, Any], options: dict[str, Any], said: str
) -> None:
    sizes.pop("decoder_seed", None)
    encoder, decoder, pixels = write_traced(inputs / "cosmos", whole, **sizes)
    assert said in run(inputs, tmp_path / "out", **options).notes[1]
    ours = load_checkpoint(tmp_path / "out").video_tokenizer
    with torch.no_grad():
        latents = encoder(pixels)[0]
        torch.testing.assert_close(ours.encode(pixels), 0.5 * latents, rtol=0, atol=1e-6)
        torch.testing.assert_close(ours.decode(0.5 * latents), decoder(latents), rtol=0, atol=5e-5)


class Node(nn.Module):
    """A module of any shape that can be scripted."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def script(named: dict[str, Any], path: Path) -> None:
    """An archive of these tensors and switches; scripted, so the switches stay."""
    root = Node()
    for name, value in named.items():
        at: nn.Module = root
        *folders, last = name.split(".")
        for folder in folders:
            if not hasattr(at, folder):
                setattr(at, folder, Node())
            at = getattr(at, folder)
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            at.register_parameter(last, nn.Parameter(value, requires_grad=False))
        elif isinstance(value, torch.Tensor):
            at.register_buffer(last, value)
        else:
            setattr(at, last, value)
    torch.jit.script(root).save(path)


def archive_content(strides: tuple[int, int] = (16, 8), told: bool = False) -> dict[str, Any]:
    """Names and values of `autoencoder.jit`, with the switches of a scripted one where they are told."""
    whole = nvidia.Whole(*nvidia.halves(strides=strides))
    named: dict[str, Any] = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    for name, module in whole.named_modules() if told else ():
        for switch in ("spatial_down", "temporal_down", "spatial_up", "temporal_up"):
            if hasattr(module, switch):
                named[f"{name}.{switch}"] = getattr(module, switch)
    return named


def test_an_archive_is_read_as_torch_itself_reads_it(tmp_path: Path) -> None:
    named = archive_content(told=True)
    for i, (name, tensor) in enumerate(list(named.items())):
        if isinstance(tensor, torch.Tensor):
            named[name] = tensor.to([torch.float32, torch.float16, torch.bfloat16][i % 3])
    named["encoder.counts"] = torch.arange(5)
    named["encoder.nothing"] = torch.zeros(0, dtype=torch.int64)
    script(named, tmp_path / "a.jit")
    tensors, flags = read_torchscript(tmp_path / "a.jit")
    expected = torch.jit.load(tmp_path / "a.jit").state_dict()
    assert tensors.keys() == expected.keys()
    assert all(tensors[n].dtype == t.dtype and torch.equal(tensors[n], t) for n, t in expected.items())
    assert {name: value for name, value in named.items() if isinstance(value, bool)}.items() <= flags.items()


def test_strides_that_an_archive_tells_are_taken(inputs: Path, tmp_path: Path) -> None:
    shutil.rmtree(inputs / "cosmos")
    (inputs / "cosmos").mkdir()
    script(archive_content((8, 8), told=True), inputs / "cosmos" / "autoencoder.jit")
    made = run(inputs, tmp_path / "out")
    assert "8 in space and 8 in time (as the archives say)" in made.notes[1]
    assert (made.config.tokenizer.spatial_stride, made.config.tokenizer.temporal_stride) == (8, 8)
    load_checkpoint(tmp_path / "out")


# ---- language models


@pytest.mark.parametrize("shards", [False, True])
def test_a_model_in_shards_or_without_a_head_is_the_same(inputs: Path, tmp_path: Path, shards: bool) -> None:
    write_qwen(inputs / "qwen", Qwen2Model)
    expected = Qwen2Model.from_pretrained(inputs / "qwen").state_dict()
    if shards:
        names = sorted(state := load_file(inputs / "qwen" / "model.safetensors"))
        (inputs / "qwen" / "model.safetensors").unlink()
        where = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
        for file in set(where.values()):
            save_file({name: state[name] for name in names if where[name] == file}, inputs / "qwen" / file)
        (inputs / "qwen" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    run(inputs, tmp_path / "out")
    got = load_file(tmp_path / "out" / "text_encoder.safetensors")
    assert got.keys() == {f"llm.{name}" for name in expected}
    assert all(torch.equal(got[f"llm.{name}"], tensor) for name, tensor in expected.items())
