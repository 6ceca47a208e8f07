"""Importing the language model and its words, compared with transformers reading the same files the authors' way."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModel, AutoTokenizer, Qwen2Model

from videomar.cli import main
from videomar.config import ModelConfig
from videomar.errors import ArtifactError, InputError
from videomar.export import importing
from videomar.export.build import GraphBuilder
from videomar.export.emitters import EMITTERS
from videomar.export.importing import import_checkpoint, system_prompt
from videomar.export.importing.words import padding_side
from videomar.export.onnx_files import save
from videomar.graphs import TEXT_ENCODER, TEXT_KEY_VALUES, contract
from videomar.model.videomar import load_checkpoint
from videomar.runtime.backends.ort_session import open_session
from videomar.runtime.pipeline import Pipeline
from videomar.runtime.prompt import PromptTokenizer
from videomar.schedule import SeededNoise

torch.set_num_threads(1)


def load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


made = load("originals", Path(__file__).parent / "originals.py")
SYSTEM, PROMPT = "You describe videos .\n", "a red ball"
PREFIX, TOKENS = 4, 3  # of these two


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("originals")
    made.write_all(directory)
    return directory


@pytest.fixture
def inputs(originals: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(originals, tmp_path / "inputs"))


def run(inputs: Path, out: Path, **options: Any) -> importing.Imported:
    return import_checkpoint(inputs / "videomar.pth", inputs / "cosmos", inputs / "qwen", out, **options)


def states_of(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids).last_hidden_state


# ---- the language model


PLACES = ["model.language_model.", "language_model.model.", "language_model.", "model.", ""]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("head", ["own", "absent"])
def test_the_language_model_is_found_wherever_it_lies(inputs: Path, tmp_path: Path, place: str, head: str) -> None:
    expected = states_of(AutoModel.from_pretrained(inputs / "qwen").eval(), ids := torch.randint(9, (1, 20)))
    file, vision = inputs / "qwen" / "model.safetensors", 0
    renamed = {}
    for name, tensor in load_file(file).items():
        if name.startswith("visual."):
            renamed["model." * (place == "model.language_model.") + name] = tensor
            vision += 1
        elif name.startswith("model."):
            renamed[place + name.removeprefix("model.")] = tensor
        elif head == "own":
            renamed["language_model." * (place == "language_model.model.") + name] = tensor
    save_file(renamed, file)
    notes = run(inputs, tmp_path / "out").notes
    assert any(repr(place) in n and f"{vision} of the vision tower left out" in n and "visual.*" in n for n in notes)
    torch.testing.assert_close(load_checkpoint(tmp_path / "out").text_encoder(ids), expected, rtol=0, atol=1e-6)


def test_a_head_that_is_tied_to_the_words_is_no_other_model(inputs: Path, tmp_path: Path) -> None:
    config = json.loads((inputs / "qwen" / "config.json").read_text())
    state = load_file(inputs / "qwen" / "model.safetensors")
    for head in ({}, {"lm_head.weight": state["model.embed_tokens.weight"].clone()}):
        (inputs / "qwen" / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
        save_file(
            {n: t for n, t in state.items() if n != "lm_head.weight"} | head, inputs / "qwen" / "model.safetensors"
        )
        run(inputs, tmp_path / "out", force=True)
        got = load_file(tmp_path / "out" / "text_encoder.safetensors")
        assert got.keys() == {n.replace("model.", "llm.", 1) for n in state if n.startswith("model.")}


def test_a_model_in_shards_is_the_same(inputs: Path, tmp_path: Path) -> None:
    run(inputs, tmp_path / "one")
    names = sorted(state := load_file(inputs / "qwen" / "model.safetensors"))
    (inputs / "qwen" / "model.safetensors").unlink()
    where = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(where.values()):
        save_file({name: state[name] for name in names if where[name] == file}, inputs / "qwen" / file)
    (inputs / "qwen" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    run(inputs, tmp_path / "two")
    one, two = (load_file(tmp_path / out / "text_encoder.safetensors") for out in ("one", "two"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_a_config_of_older_transformers_is_understood(inputs: Path, tmp_path: Path) -> None:
    """As published: the language model's sizes outside, `rope_scaling`, and no more than differs from the defaults."""
    file = inputs / "qwen" / "config.json"
    rope = {"type": "mrope", "mrope_section": [1, 1, 1]}
    data = made.LANGUAGE | {"model_type": "qwen2_vl", "rms_norm_eps": 1e-6, "rope_theta": 500000.0}
    data |= {"rope_scaling": rope, "use_sliding_window": False, "sliding_window": 32, "torch_dtype": "bfloat16"}
    data |= {"vision_config": {"depth": 1, "embed_dim": 16, "hidden_size": 24, "num_heads": 2, "in_chans": 3}}
    file.write_text(json.dumps(data))
    text = run(inputs, tmp_path / "out").config.text
    assert (text.rope_theta, text.kv_heads, text.width) == (500000.0, 2, 24)
    theirs, ids = AutoModel.from_pretrained(inputs / "qwen", dtype=torch.float32).eval(), torch.randint(9, (1, 20))
    got = load_checkpoint(tmp_path / "out").text_encoder(ids)
    torch.testing.assert_close(got, states_of(theirs, ids), rtol=0, atol=1e-6)


def test_other_rotary_sections_are_the_same_for_text(inputs: Path, tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 3]}
    made.write_qwen(inputs / "qwen", num_attention_heads=2, num_key_value_heads=1, rope_parameters=rope)
    run(inputs, tmp_path / "out")
    theirs, ids = AutoModel.from_pretrained(inputs / "qwen").eval(), torch.randint(9, (1, 30))
    assert theirs.language_model.rotary_emb.mrope_section == [2, 1, 3]
    got = load_checkpoint(tmp_path / "out").text_encoder(ids)
    torch.testing.assert_close(got, states_of(theirs, ids), rtol=0, atol=1e-6)


def test_a_look_alike_is_refused_without_the_word_and_named_with_it(inputs: Path, tmp_path: Path) -> None:
    made.write_plain_qwen(inputs / "qwen")
    with pytest.raises(ArtifactError, match=r"model_type is 'qwen2', expected 'qwen2_vl'.*--plain-qwen2"):
        run(inputs, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    notes = run(inputs, tmp_path / "out", plain_qwen2=True).notes
    assert any(n.startswith("WARNING") and "plain text model" in n for n in notes)
    theirs, ids = Qwen2Model.from_pretrained(inputs / "qwen").eval(), torch.randint(12, (1, 20))
    got = load_checkpoint(tmp_path / "out").text_encoder(ids)
    torch.testing.assert_close(got, states_of(theirs, ids), rtol=0, atol=1e-6)


# ---- the system prompt


def importing_command(inputs: Path, out: Path, *options: object) -> int:
    command = ["import", "--transformer", inputs / "videomar.pth", "--tokenizer", inputs / "cosmos"]
    return main([str(word) for word in (*command, "--text", inputs / "qwen", "-o", out, *options)])


@pytest.mark.parametrize(
    "words", [b"You describe videos .\n", "a\r\nred\tb\u00e4ll \n\n".encode(), b"\xef\xbb\xbfa ball"]
)
def test_a_system_prompt_is_kept_byte_for_byte(inputs: Path, tmp_path: Path, words: bytes) -> None:
    (tmp_path / "words.txt").write_bytes(words)
    assert importing_command(inputs, tmp_path / "out", "--system-prompt-file", tmp_path / "words.txt") == 0
    text = ModelConfig.from_json((tmp_path / "out" / "config.json").read_text()).text
    assert text.system_prompt.encode() == words
    assert text.system_tokens == PromptTokenizer(tmp_path / "out" / "tokenizer.json", text).prefix > 0


def test_the_released_sizes_need_a_system_prompt_or_the_word(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run(inputs, tmp_path / "custom").config  # other sizes do without
    monkeypatch.setattr(importing.originals, "VIDEOMAR_1_4B", config)
    with pytest.raises(InputError, match=r"no system prompt, expected the authors'.*--no-system-prompt"):
        run(inputs, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert any("trained with one" in n for n in run(inputs, tmp_path / "out", no_system_prompt=True).notes)
    assert run(inputs, tmp_path / "out", system_prompt="a ball", force=True).config.text.system_prompt == "a ball"


def test_other_words_than_the_authors_are_noted_loudly(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (note,) = [n for n in run(inputs, tmp_path / "out", system_prompt=SYSTEM).notes if "system prompt" in n]
    assert note.startswith("WARNING") and "22 characters, 4 tokens" in note and "0383c612a9c8" in note
    monkeypatch.setattr(system_prompt, "SHA256", hashlib.sha256(SYSTEM.encode()).hexdigest())
    (note,) = [n for n in run(inputs, tmp_path / "out", system_prompt=SYSTEM, force=True).notes if "system prompt" in n]
    assert not note.startswith("WARNING") and "the authors' words" in note
    (note,) = [
        n for n in run(inputs, tmp_path / "out", system_prompt=SYSTEM.strip(), force=True).notes if "system" in n
    ]
    assert note.startswith("WARNING")  # the newline is one of them


def test_a_file_without_words_is_refused(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "words.txt"
    for content, said in ((None, "cannot be read (No such file"), (b"", "is empty"), (b"a\xff", "is not UTF-8")):
        if content is not None:
            file.write_bytes(content)
        assert importing_command(inputs, tmp_path / "out", "--system-prompt-file", file) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_words_that_give_other_tokens_than_the_config_says_are_refused(inputs: Path, tmp_path: Path) -> None:
    text = run(inputs, tmp_path / "out", system_prompt=SYSTEM).config.text
    made.write_words(tmp_path / "out")
    words = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    words.add_tokens(["You describe"])
    words.save(str(tmp_path / "out" / "tokenizer.json"))
    with pytest.raises(ArtifactError, match="has 3 tokens, expected the 4 of the config"):
        PromptTokenizer(tmp_path / "out" / "tokenizer.json", text)


# ---- where the padding lies


SAID: dict[str, tuple[dict[str, Any] | None, str | None]] = {
    "nothing says": (None, None),
    "left": ({"padding_side": "left"}, None),
    "right": ({"padding_side": "right"}, None),
    "the class alone": ({"tokenizer_class": "Qwen2Tokenizer"}, None),
    "the older class, left": ({"tokenizer_class": "Qwen2TokenizerFast", "padding_side": "left"}, None),
    "the words were padded when they were saved": ({}, "left"),
    "the config overrules that": ({"padding_side": "right"}, "left"),
}


@pytest.mark.parametrize(("said", "saved"), SAID.values(), ids=SAID.keys())
def test_the_side_is_the_one_that_transformers_pads_on(
    inputs: Path, said: dict[str, Any] | None, saved: str | None
) -> None:
    qwen = inputs / "qwen"
    tokenizer = Tokenizer.from_file(str(qwen / "tokenizer.json"))
    if saved:
        tokenizer.enable_padding(direction=saved, length=10)
    tokenizer.save(str(qwen / "tokenizer.json"))
    (qwen / "tokenizer_config.json").unlink()
    if said is not None:
        (qwen / "tokenizer_config.json").write_text(json.dumps(said))
    assert padding_side(qwen)[0] == AutoTokenizer.from_pretrained(qwen).padding_side


def test_a_side_that_there_is_none_of_is_refused(inputs: Path) -> None:
    file = inputs / "qwen" / "tokenizer_config.json"
    file.write_text(json.dumps({"padding_side": "top"}))
    with pytest.raises(ArtifactError, match="padding_side is 'top', expected left or right"):
        padding_side(inputs / "qwen")
    file.write_text(json.dumps({"tokenizer_class": "NoSuchTokenizer"}))
    with pytest.raises(ArtifactError, match="tokenizer_class is 'NoSuchTokenizer'"):
        padding_side(inputs / "qwen")


def the_authors_way(qwen: Path, side: str, tokens: int, counted: str | None) -> tuple[torch.Tensor, torch.Tensor]:
    """(valid states, mask): the prompt padded to the model's tokens, ids concatenated, the last hidden state cut.

    counted: which position ids to give; None leaves them to transformers' AutoModel.
    """
    system, prompt = torch.tensor([[6, 7, 8, 5]]), torch.arange(1, 1 + tokens)[None]
    filler = torch.zeros(1, made.SIZES["text_tokens"] - tokens, dtype=torch.int64)
    ones, zeros = torch.ones_like(prompt), torch.zeros_like(filler)
    padded = torch.cat([prompt, filler] if side == "right" else [filler, prompt], 1)
    mask = torch.cat([ones, zeros] if side == "right" else [zeros, ones], 1)
    whole = torch.cat([torch.ones_like(system), mask], 1)
    positions = {"padded": torch.arange(whole.shape[1])[None], "masked": (whole.cumsum(-1) - 1).clamp(min=0)}
    given = {} if counted is None else {"position_ids": positions[counted].expand(3, 1, -1)}
    model = AutoModel.from_pretrained(qwen).eval()
    with torch.no_grad():
        states = model(input_ids=torch.cat([system, padded], 1), attention_mask=whole, **given).last_hidden_state
    return states[:, system.shape[1] :][mask.bool()], mask[0].bool()


MadeOnce = Callable[[str, Callable[[Path], None]], Path]
RULES = [("right", "padded"), ("right", "masked"), ("left", "padded"), ("left", "masked")]


@pytest.fixture(scope="module", params=RULES, ids=["-".join(rule) for rule in RULES])
def padded(request: pytest.FixtureRequest, made_once: MadeOnce) -> tuple[str, str, Path]:
    """Side, rule, and where a checkpoint of them lies beside its originals and its text graphs."""
    side, rule = request.param

    def fill(place: Path) -> None:
        made.write_all(place, side)
        run(place, place / "checkpoint", system_prompt="You describe videos away", text_positions=rule)
        model = load_checkpoint(place / "checkpoint")
        specs = contract(model.config, "fp32", in_place=False)
        builder = GraphBuilder(model, specs, EMITTERS["portable"], torch.float32, PREFIX)
        for name in (TEXT_ENCODER, TEXT_KEY_VALUES):
            with torch.inference_mode():
                save(builder.build(name), place / f"{name}.onnx")

    return side, rule, made_once(f"padded-{side}-{rule}", fill)


@pytest.mark.parametrize("tokens", [1, 3, 8])
def test_states_are_those_of_the_padded_prompt(padded: tuple[str, str, Path], tokens: int) -> None:
    side, rule, place = padded
    expected, _ = the_authors_way(place / "qwen", side, tokens, rule)
    ids = torch.tensor([[6, 7, 8, 5, *range(1, 1 + tokens)]])
    with torch.no_grad():
        got = load_checkpoint(place / "checkpoint").text_encoder.prompt_states(ids, PREFIX)[0]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    graph = open_session(place / f"{TEXT_ENCODER}.onnx")
    (exported,) = graph.run(None, {"ids": ids.numpy()})
    assert np.abs(exported[0] - expected.numpy()).max() < 1e-6


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_default_rule_is_that_of_the_installed_transformers(inputs: Path, side: str) -> None:
    expected, _ = the_authors_way(inputs / "qwen", side, TOKENS, importing.originals.DEFAULT_POSITIONS)
    got, _ = the_authors_way(inputs / "qwen", side, TOKENS, None)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("tokens", [1, 3, 10])
def test_the_second_branch_sees_the_rows_that_the_mask_lets_through(padded: tuple[str, str, Path], tokens: int) -> None:
    side, rule, place = padded
    _, mask = the_authors_way(place / "qwen", side, tokens, rule)
    model = load_checkpoint(place / "checkpoint").transformer
    rows = model.fake_latent[:, mask]
    torch.testing.assert_close(model.no_text(tokens), rows, rtol=0, atol=0)
    with torch.no_grad():
        pairs = model.text_key_values(rows)
    graph = open_session(place / f"{TEXT_KEY_VALUES}.onnx")
    states = np.ones((1, tokens, made.SIZES["text_width"]), np.float32)
    names = [output.name for output in graph.get_outputs()]
    found = dict(zip(names, graph.run(names, {"states": states}), strict=True))
    for i, (key, value) in enumerate(pairs):
        assert np.abs(found[f"text_key_{i}"][1] - key[0].numpy()).max() < 1e-6
        assert np.abs(found[f"text_value_{i}"][1] - value[0].numpy()).max() < 1e-6


# ---- the whole way


def test_an_official_release_is_imported_exported_and_run_as_the_naive_reading_of_its_file(tmp_path: Path) -> None:
    """Qwen2-VL padded on the left, a system prompt from a file, the corrected last step; nothing but the command."""
    made.write_all(tmp_path, "left")
    # The shallowest tokenizer of the released strides, with attention in a level: each layer takes seconds to trace.
    channels = {f"{n}_block_out_channels": (8, 8, 8, 8) for n in ("encoder", "decode")}
    made.write_cosmos(tmp_path / "cosmos", num_layers=0, **channels)
    (tmp_path / "system.txt").write_text("You describe videos away")
    cv2.imwrite(str(tmp_path / "first.png"), np.random.default_rng(3).integers(0, 256, (32, 48, 3), np.uint8))
    files = [f"--{name}={tmp_path / file}" for name, file in (("transformer", "videomar.pth"), ("tokenizer", "cosmos"))]
    files += [f"--text={tmp_path / 'qwen'}", f"--system-prompt-file={tmp_path / 'system.txt'}"]
    options = ["--frames=25", "--size=32x48", "--mask-steps=2", "--head-steps=125"]
    for command in (
        ["import", *files, "-o", str(tmp_path / "checkpoint")],
        ["export", str(tmp_path / "checkpoint"), "-o", str(tmp_path / "artifacts")],
        ["generate", str(tmp_path / "artifacts"), "--image", str(tmp_path / "first.png"), "--prompt", PROMPT,
         "--seed=4", "--threads=1", "-o", str(tmp_path / "frames"), *options],
    ):  # fmt: skip
        assert main(command) == 0, command[0]
    with Pipeline.open(tmp_path / "artifacts", threads=1, backend="ort-cpu") as pipe:
        config = pipe.config
        sampling = config.sampling.but(frames=25, height=32, width=48, mask_steps=2, head_steps=125)
        video = pipe(tmp_path / "first.png", PROMPT, seed=4, sampling=sampling)
    shown = [cv2.imread(str(file))[..., ::-1] for file in sorted((tmp_path / "frames").iterdir())]
    np.testing.assert_array_equal(np.stack(shown), video.frames)

    states, _ = the_authors_way(tmp_path / "qwen", "left", TOKENS, config.text.positions)
    weights = {name: tensor.double().numpy() for name, tensor in made.official(2).items()}
    expected = made.naive.generate(
        weights, video.latents[:, :1].astype(float), states.reshape(TOKENS, -1).double().numpy(), SeededNoise(4),
        config.transformer.rope_split, 4, 2, 125, sampling.guidance_scale, padding_side="left",
    )  # fmt: skip
    assert np.linalg.norm(video.latents - expected) / np.linalg.norm(expected) < 1e-4
