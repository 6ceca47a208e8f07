"""Importing random weights in other people's layouts, compared with independent readers of those layouts: naive.py for
VideoMAR's, transformers and diffusers for their own, nvidia_cosmos.py for NVIDIA's archives."""

from __future__ import annotations

import dataclasses
import importlib.util
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLCosmos
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from videomar.config import VIDEOMAR_1_4B, ModelConfig, SamplingConfig, TokenizerConfig
from videomar.export import importing
from videomar.export.importing import cosmos_archives, import_checkpoint
from videomar.export.importing.torchscript import read_torchscript
from videomar.export.importing.transformer import infer
from videomar.model.generate import generate
from videomar.model.head import DiffusionHead
from videomar.model.tokenizer import VideoTokenizer
from videomar.model.transformer import Transformer
from videomar.model.videomar import load_checkpoint
from videomar.runtime.prompt import PromptTokenizer
from videomar.schedule import SeededNoise

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")


def load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


made = load("originals", Path(__file__).parent / "originals.py")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("originals")
    made.write_all(directory)
    return directory


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


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
    expected = made.naive.generate(
        weights, given.double().numpy(), states.double().numpy(), SeededNoise(0), made.SPLIT, 3, 3, 125, 3.0
    )
    error = np.abs(latents[0].double().numpy() - expected).max() / np.sqrt((expected**2).mean())
    assert error < 1e-4


def test_the_imported_language_model_equals_what_transformers_loads(originals: Path, imported: Path) -> None:
    """Qwen2-VL's three rotary sections, for text alone, are the positions 0, 1, 2... of a Qwen2 model."""
    theirs = AutoModel.from_pretrained(originals / "qwen").eval()
    assert type(theirs).__name__ == "Qwen2VLModel"
    ids = torch.randint(9, (1, 20))  # 9 and beyond stand for pictures
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
    assert t.rope_split == made.SPLIT and (h.width, h.depth, h.time_features, h.train_steps) == (32, 2, 256, 1000)
    assert (c.encoder_channels, c.decoder_channels) == ((4, 8, 8, 8), (4, 8, 8, 12))
    assert (c.spatial_stride, c.temporal_stride, c.latent_channels, c.latent_scale) == (16, 8, 4, 0.5)
    assert (c.attention_resolutions, c.resolution, c.patch_size, c.patch_type) == ((8,), 32, 4, "haar")
    assert (q.vocab_size, q.width, q.depth, q.heads, q.kv_heads, q.mlp_width) == (12, 24, 2, 4, 2, 40)
    assert (q.rope_theta, q.max_positions, q.max_tokens) == (1e6, 64, 10)
    assert q.system_prompt == "You describe videos ." and config.sampling == VIDEOMAR_1_4B.sampling
    assert (q.system_tokens, q.padding_side, q.positions) == (4, "right", "padded")


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
    torch.save(made.official(0, **sizes), inputs / "videomar.pth")
    config = run(inputs, tmp_path / "out", rope_split=split).config
    expected = {**made.SIZES, "mlp_ratio": 4, "time_features": 256, **sizes}
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


def test_the_released_model_is_recognised(tmp_path: Path) -> None:
    preset = VIDEOMAR_1_4B
    with torch.device("meta"):
        transformer = Transformer(preset.transformer, preset.text)
        head = DiffusionHead(preset.head, 16, 1536)
    tensors = transformer.state_dict() | {f"diffloss.net.{n}": t for n, t in head.state_dict().items()}
    assert infer(tensors, tmp_path) == (preset.transformer, preset.head, 1536, 300)
    assert round(sum(t.numel() for t in transformer.state_dict().values()) / 1e9, 2) == 1.36  # as published


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
    many = isinstance(content, dict)
    state = {k: made.official(s) for k, s in content.items()} if many else made.official(content)
    torch.save(state, inputs / "videomar.pth")
    notes = run(inputs, tmp_path / "out", **options).notes
    assert said in notes[0] and "2 unused scale_shift_table" in notes[0]
    assert torch.equal(first(tmp_path / "out"), made.official(seed)["decoder_blocks.1.attn1.wqkv.weight"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_half_precision_arrives_as_the_same_numbers_in_float32(
    inputs: Path, tmp_path: Path, dtype: torch.dtype, form: str
) -> None:
    state = {name: tensor.to(dtype) for name, tensor in made.official(4).items()}
    file = inputs / f"weights.{form}"
    save_file(state, file) if form == "safetensors" else torch.save(state, file)
    import_checkpoint(file, inputs / "cosmos", inputs / "qwen", tmp_path / "out")
    got, expected = first(tmp_path / "out"), state["decoder_blocks.1.attn1.wqkv.weight"]
    assert got.dtype == torch.float32 and torch.equal(got.to(dtype), expected)


def test_tensors_that_are_parts_of_one_memory_are_written_alone(inputs: Path, tmp_path: Path) -> None:
    state = made.official(5)
    flat = torch.cat([tensor.flatten() for tensor in state.values()])
    parts = flat.split([tensor.numel() for tensor in state.values()])
    views = {name: part.view(state[name].shape) for name, part in zip(state, parts, strict=True)}
    torch.save(views, inputs / "videomar.pth")
    run(inputs, tmp_path / "out")
    assert torch.equal(first(tmp_path / "out"), state["decoder_blocks.1.attn1.wqkv.weight"])


# ---- NVIDIA's archives


@pytest.mark.parametrize(
    ("whole", "sizes", "options", "said"),
    [
        (False, {}, {}, "16 in space and 8 in time (assumed"),
        (True, {"strides": (8, 8)}, {"tokenizer_strides": (8, 8)}, "8 in space and 8 in time (as asked"),
        (False, {"attended": (0, 2), "patch": 2, "strides": (8, 4)}, {"tokenizer_strides": (8, 4)}, "as asked"),
    ],
    ids=["8x16x16", "8x8x8 in one archive", "attention in the levels"],
)
def test_nvidias_archives_become_a_tokenizer_that_computes_the_same(
    inputs: Path, tmp_path: Path, whole: bool, sizes: dict[str, Any], options: dict[str, Any], said: str
) -> None:
    encoder, decoder, pixels = made.write_traced(inputs / "cosmos", whole, **sizes)
    assert said in run(inputs, tmp_path / "out", **options).notes[1]
    ours = load_checkpoint(tmp_path / "out").video_tokenizer
    with torch.no_grad():
        latents = encoder(pixels)[0]
        torch.testing.assert_close(ours.encode(pixels), 0.5 * latents, rtol=0, atol=1e-6)
        torch.testing.assert_close(ours.decode(0.5 * latents), decoder(latents), rtol=0, atol=5e-5)


def test_an_archive_of_the_released_size_has_the_shapes_of_the_released_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.device("meta"):
        whole = made.nvidia.Whole(*made.nvidia.halves(128, (2, 4, 4), 2, 4, 16))
        expected = VideoTokenizer(TokenizerConfig()).vae.state_dict()
    state = whole.state_dict()
    monkeypatch.setattr(cosmos_archives, "read_torchscript", lambda path: (state, {}))
    config, tensors, _ = cosmos_archives.read_archives([tmp_path / "autoencoder.jit"], None)
    assert config == dataclasses.replace(TokenizerConfig(), attention_resolutions=())  # no level has side 32
    assert {n: t.shape for n, t in tensors.items()} == {n: t.shape for n, t in expected.items()}
    assert len(state) == len(tensors) + 4  # the idle ones: in time of the second level down and of the first level up


def test_an_archive_is_read_as_torch_itself_reads_it(tmp_path: Path) -> None:
    named = made.archive_content(told=True)
    for i, (name, tensor) in enumerate(list(named.items())):
        if isinstance(tensor, torch.Tensor):
            named[name] = tensor.to([torch.float32, torch.float16, torch.bfloat16][i % 3])
    named["encoder.counts"] = torch.arange(5)
    named["encoder.nothing"] = torch.zeros(0, dtype=torch.int64)
    made.script(named, tmp_path / "a.jit")
    tensors, flags = read_torchscript(tmp_path / "a.jit")
    expected = torch.jit.load(tmp_path / "a.jit").state_dict()
    assert tensors.keys() == expected.keys()
    assert all(tensors[n].dtype == t.dtype and torch.equal(tensors[n], t) for n, t in expected.items())
    assert {name: value for name, value in named.items() if isinstance(value, bool)}.items() <= flags.items()


def test_strides_that_an_archive_tells_are_taken(inputs: Path, tmp_path: Path) -> None:
    shutil.rmtree(inputs / "cosmos")
    (inputs / "cosmos").mkdir()
    made.script(made.archive_content((8, 8), told=True), inputs / "cosmos" / "autoencoder.jit")
    result = run(inputs, tmp_path / "out")
    assert "8 in space and 8 in time (as the archives say)" in result.notes[1]
    assert (result.config.tokenizer.spatial_stride, result.config.tokenizer.temporal_stride) == (8, 8)
    load_checkpoint(tmp_path / "out")


def test_what_is_in_no_computation_is_left_out_by_name(inputs: Path, tmp_path: Path) -> None:
    extra = {"index_cond_embed.weight": torch.zeros(3, 48), "index_cond_embed.bias": torch.zeros(48)}
    torch.save(made.official(1) | extra, inputs / "videomar.pth")
    note = run(inputs, tmp_path / "out").notes[0]
    assert "2 unused scale_shift_table left out" in note and "2 unused index_cond_embed left out" in note
    load_checkpoint(tmp_path / "out")


@pytest.mark.parametrize(
    ("frames", "size", "tokens"), [(33, (256, 256), 256), (None, (768, 1024), 3072), (9, None, 1440)]
)
def test_the_authors_other_variants_become_the_default_that_is_sampled(
    inputs: Path, tmp_path: Path, frames: int | None, size: tuple[int, int] | None, tokens: int
) -> None:
    config = run(inputs, tmp_path / "out", frames=frames, size=size).config
    s, stride = config.sampling, config.tokenizer.spatial_stride
    assert (s.frames, (s.height, s.width)) == (frames or 25, size or (480, 768))
    assert s.height * s.width // stride**2 == tokens
    assert dataclasses.replace(s, frames=25, height=480, width=768) == VIDEOMAR_1_4B.sampling
