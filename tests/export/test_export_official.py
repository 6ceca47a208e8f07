"""The way back to the authors' layout: the import of what was written is the source, and other people's readers of each
layout (torch.load, diffusers, transformers, naive.py's list of names) take it whole and compute the same."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLCosmos
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer, Qwen2VLForConditionalGeneration

from videomar.checkpoint import read_config
from videomar.cli import main
from videomar.config import ModelConfig
from videomar.errors import ArtifactError
from videomar.export.importing import import_checkpoint
from videomar.export.official import export_official
from videomar.model.videomar import PARTS, VideoMAR, load_checkpoint

torch.set_num_threads(1)
ROOT = Path(__file__).parents[2]
PROMPT = "a red circle bounces"


def load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


made = load("originals", Path(__file__).parent / "originals.py")


def import_again(written: Path, out: Path, **choices: Any) -> ModelConfig:
    return import_checkpoint(written / "videomar.pth", written / "cosmos", written / "qwen", out, **choices).config


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    return {f"{p} {n}": t for p in PARTS for n, t in load_file(checkpoint / f"{p}.safetensors").items()}


def bits(checkpoint: Path) -> dict[str, list[int]]:
    return {name: tensor.flatten().view(torch.int32).tolist() for name, tensor in tensors(checkpoint).items()}


@pytest.fixture
def tiny(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "tiny"))


def rewrite(checkpoint: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads((checkpoint / "config.json").read_text())
    change(data)
    (checkpoint / "config.json").write_text(json.dumps(data))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("official") / "demo"
    export_official(ROOT / "models" / "demo", out)
    return out


def test_the_demo_comes_back_bit_for_bit(written: Path, tmp_path: Path) -> None:
    config = import_again(written, tmp_path / "again")
    demo = ROOT / "models" / "demo"
    assert config == read_config(demo) == read_config(tmp_path / "again")
    ours, theirs = tensors(demo), tensors(tmp_path / "again")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[n].view(torch.int32), theirs[n].view(torch.int32)) for n in ours)
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == (demo / "tokenizer.json").read_bytes()


def unlike(data: dict[str, Any]) -> None:
    """Every field that their layout does not hold, off its default."""
    data["text"] |= {"padding_side": "left", "positions": "masked", "rope_theta": 12345.678}
    data["transformer"] |= {"rope_theta": 777.5, "rope_split": data["transformer"]["rope_split"][::-1]}
    data["head"]["train_steps"] = 500
    data |= {"name": "größe", "from_text": True}
    data["tokenizer"]["latent_scale"] = 0.1 + 0.2
    data["sampling"] |= {"temperature": 1 / 3, "order": "structure", "kv_window": 2, "fit": "stretch", "fps": 29.97}


@pytest.mark.parametrize("change", [lambda data: None, unlike], ids=["as it is", "all unlike the release"])
def test_a_tiny_model_with_odd_numbers_comes_back_bit_for_bit(
    tiny: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    rewrite(tiny, change)
    state = load_file(tiny / "transformer.safetensors")
    state["mask_token"].view(-1)[:4] = torch.tensor([-0.0, float("nan"), 1e-42, float("-inf")])
    save_file(state, tiny / "transformer.safetensors")
    export_official(tiny, tmp_path / "official")
    assert import_again(tmp_path / "official", tmp_path / "again") == read_config(tiny)
    assert bits(tmp_path / "again") == bits(tiny)


def test_what_was_imported_is_written_as_it_was(tmp_path: Path) -> None:
    made.write_all(tmp_path, "left")
    import_again(tmp_path, tmp_path / "ours")
    export_official(tmp_path / "ours", tmp_path / "back")
    places = (tmp_path, tmp_path / "back")
    before, after = (torch.load(p / "videomar.pth", weights_only=False)["model_ema"] for p in places)
    assert before.keys() == after.keys()
    unused = {name for name in before if name.endswith("scale_shift_table")}
    assert all(torch.equal(before[name], after[name]) for name in before.keys() - unused)
    before, after = (load_file(p / "cosmos" / "diffusion_pytorch_model.safetensors") for p in places)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    before, after = (load_file(p / "qwen" / "model.safetensors") for p in places)
    language = {name for name in before if name.startswith("model.")}
    assert language == {name for name in after if name.startswith("model.")}
    assert all(torch.equal(before[name], after[name]) for name in language)


# ---- other people's readers


def test_torch_loads_the_weights_alone_under_the_names_of_the_description(written: Path) -> None:
    file = torch.load(written / "videomar.pth", weights_only=True)
    config = read_config(ROOT / "models" / "demo")
    t, h = config.transformer, config.head
    expected = made.official(
        0, depth=t.depth, heads=t.heads, head_dim=t.head_dim, channels=t.token_channels, text_width=config.text.width,
        text_tokens=config.text.max_tokens, head_width=h.width, head_depth=h.depth,
    )  # fmt: skip
    assert set(file) == {"model", "model_ema"}
    for state in file.values():
        assert {n: v.shape for n, v in state.items()} == {n: v.shape for n, v in expected.items()}
    name = "decoder_blocks.0.attn1.wqkv.weight"
    assert file["model"][name].data_ptr() == file["model_ema"][name].data_ptr()  # written once
    assert not any(v.any() for n, v in file["model"].items() if n.endswith("scale_shift_table"))


def test_diffusers_loads_the_tokenizer_whole_and_computes_the_same(written: Path) -> None:
    theirs, told = AutoencoderKLCosmos.from_pretrained(
        written / "cosmos", local_files_only=True, output_loading_info=True
    )
    assert not any(told.values()), told
    ours = load_checkpoint(ROOT / "models" / "demo").video_tokenizer
    pixels = torch.rand(1, 3, 9, 32, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        latents = theirs.encode(pixels).latent_dist.mode()
        assert torch.equal(ours.encode(pixels), latents * ours.config.latent_scale)
        again = ours.decode(latents * ours.config.latent_scale)
        torch.testing.assert_close(again, theirs.decode(latents).sample, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [AutoModel, Qwen2VLForConditionalGeneration])
def test_transformers_loads_the_text_encoder_whole_and_computes_the_same(written: Path, kind: Any) -> None:
    theirs, told = kind.from_pretrained(written / "qwen", local_files_only=True, output_loading_info=True)
    assert not any(told.values()), told
    ids = torch.tensor([[1, 18, 5, 4, 7]])
    ours = load_checkpoint(ROOT / "models" / "demo").text_encoder(ids)
    body = theirs if kind is AutoModel else theirs.model
    with torch.no_grad():
        torch.testing.assert_close(body(input_ids=ids).last_hidden_state, ours, rtol=0, atol=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
def test_transformers_pads_words_on_the_side_that_the_model_was_trained_with(
    tiny: Path, tmp_path: Path, side: str
) -> None:
    rewrite(tiny, lambda data: data["text"].update(padding_side=side))
    export_official(tiny, tmp_path / "official")
    words = AutoTokenizer.from_pretrained(tmp_path / "official" / "qwen", local_files_only=True)
    padded = words(PROMPT, padding="max_length", max_length=7)
    expected = [1] * 4
    assert padded["attention_mask"] == ([0] * 3 + expected if side == "left" else expected + [0] * 3)
    vocabulary = json.loads((tiny / "tokenizer.json").read_text())["model"]["vocab"]
    kept = [i for i, real in zip(padded["input_ids"], padded["attention_mask"], strict=True) if real]
    assert kept == [vocabulary[word] for word in PROMPT.split()]


# ---- videomar.json


def test_choices_come_before_what_is_told_and_that_before_the_release(written: Path, tmp_path: Path) -> None:
    demo = read_config(ROOT / "models" / "demo")
    chosen = import_again(
        written, tmp_path / "a", frames=9, rope_split=(16, 24, 24), text_positions="masked", system_prompt="a red"
    )
    assert chosen.sampling == dataclasses.replace(demo.sampling, frames=9)
    assert chosen.transformer == dataclasses.replace(demo.transformer, rope_split=(16, 24, 24))
    assert (chosen.text.system_prompt, chosen.text.system_tokens, chosen.text.positions) == ("a red", 2, "masked")
    bare = Path(shutil.copytree(written, tmp_path / "bare"))
    (bare / "videomar.json").unlink()
    untold = import_again(bare, tmp_path / "b")
    assert (untold.name, untold.sampling) == ("custom", ModelConfig().sampling)
    assert untold.tokenizer == dataclasses.replace(demo.tokenizer, latent_scale=0.5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ('{"format": 2}', "format is 2, expected 1"),
        ('{"format": 1, "name": 3}', "model.name is 3, expected str"),
        ('{"format": 1, "head": {"width": 9}}', "head.width is not told here"),
        ('{"format": 1, "heads": {}}', "'heads' is not told here"),
        ('{"format": 1, "head": 4}', "'head' is not told here"),
        ('{"format": 1, "sampling": {"frames": "many"}}', "frames is 'many'"),
        ('{"format": 1, "sampling": {"speed": 1}}', "unknown key 'speed'"),
        ('{"format": 1, "transformer": {"rope_split": [1.5]}}', "expected a list of whole numbers"),
    ],
)
def test_a_spoilt_file_is_refused_by_name(written: Path, tmp_path: Path, text: str, said: str) -> None:
    spoilt = Path(shutil.copytree(written, tmp_path / "spoilt"))
    (spoilt / "videomar.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"videomar\.json") as error:
        import_again(spoilt, tmp_path / "out")
    assert said in str(error.value) and not (tmp_path / "out").exists()


# ---- the command


def test_the_command_says_how_to_come_back(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "official"
    assert main(["export-official", str(tiny), "-o", str(out)]) == 0
    command = next(line for line in capsys.readouterr().out.splitlines() if "videomar import" in line)
    words = command.partition("videomar ")[2].replace("CHECKPOINT", str(tmp_path / "again")).split()
    assert main(words) == 0
    assert read_config(tmp_path / "again") == read_config(tiny)


def test_force_replaces_an_earlier_result_and_never_other_files(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "official"
    command = ["export-official", str(tiny), "-o", str(out)]
    assert main(command) == 0
    assert main(command) == 2 and "is not empty" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0
    (out / "qwen" / "preprocessor_config.json").write_text("mine")
    assert main([*command, "--force"]) == 2
    assert "holds qwen/preprocessor_config.json" in capsys.readouterr().err
    assert (out / "qwen" / "preprocessor_config.json").read_text() == "mine"


def test_a_checkpoint_that_would_come_back_as_another_is_refused(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(tiny, lambda data: data["text"].update(system_tokens=3))
    assert main(["export-official", str(tiny), "-o", str(tmp_path / "official")]) == 2
    assert "text.system_tokens is 3, but its other files make it 4" in capsys.readouterr().err
    (tiny / "diffusion_head.safetensors").unlink()
    assert main(["export-official", str(tiny), "-o", str(tmp_path / "official")]) == 2
    assert "lacks diffusion_head.safetensors" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"tiny"}


def test_numbers_that_read_back_as_others_are_never_kept(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from videomar.export import official

    def spoil(file: Path, state: dict[str, torch.Tensor], *others: Any) -> None:
        real(file, state | {"mask_token": state["mask_token"] + 1}, *others)

    real = official.write_videomar
    monkeypatch.setattr(official, "write_videomar", spoil)
    with pytest.raises(ArtifactError, match="transformer mask_token reads back as other numbers"):
        export_official(tiny, tmp_path / "official")
    assert {path.name for path in tmp_path.iterdir()} == {"tiny"}


def test_the_released_sizes_are_recognised_again(tmp_path: Path) -> None:
    """Nothing of the way back depends on the sizes; the names of all parts at the preset's, without numbers."""
    from videomar.config import VIDEOMAR_1_4B
    from videomar.export.importing.layout import to_ours, to_theirs

    with torch.device("meta"):
        model = VideoMAR(VIDEOMAR_1_4B)
    for part in PARTS:
        state = getattr(model, part).state_dict()
        assert list(to_ours(part, to_theirs(part, state))) == list(state)
