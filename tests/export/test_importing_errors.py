"""Importing what cannot be imported: one line that names the thing, no code run, nothing left behind."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from videomar.config import ModelConfig
from videomar.errors import UserError
from videomar.export import importing
from videomar.export.importing import import_checkpoint, writing

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
Spoil = Callable[[Path], None]


def load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


made = load("originals", Path(__file__).parent / "originals.py")


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("originals")
    made.write_all(directory)
    return directory


@pytest.fixture
def inputs(originals: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(originals, tmp_path / "inputs"))


def refused(inputs: Path, *parts: str, file: str = "videomar.pth", **options: Any) -> str:
    """The one line; with nothing left behind."""
    beside = inputs.parent / "beside"
    beside.mkdir(exist_ok=True)
    with pytest.raises(UserError) as caught:
        import_checkpoint(inputs / file, inputs / "cosmos", inputs / "qwen", beside / "out", **options)
    message = str(caught.value)
    assert "\n" not in message and all(part in message for part in parts), message
    assert list(beside.iterdir()) == []
    return message


# ---- VideoMAR's checkpoint


def change_state(change: Callable[[dict[str, Any]], None]) -> Spoil:
    def spoil(inputs: Path) -> None:
        data = torch.load(inputs / "videomar.pth", weights_only=False)
        change(data["model_ema"])
        torch.save(data, inputs / "videomar.pth")

    return spoil


def put(name: str, value: Any) -> Spoil:
    return change_state(lambda state: state.update({name: value}))


def drop(*starts: str) -> Spoil:
    def change(state: dict[str, Any]) -> None:
        for name in [name for name in state if name.startswith(starts)]:
            del state[name]

    return change_state(change)


def shrink(name: str, *shape: int) -> Spoil:
    return put(name, torch.zeros(shape))


WKV = "decoder_blocks.1.attn2.wkv.weight"
CHECKPOINTS: dict[str, tuple[Spoil, tuple[str, ...]]] = {
    "unknown tensor": (put("decoder_blocks.0.surprise", torch.zeros(1)), ("unknown", "'decoder_blocks.0.surprise'")),
    "unknown head tensor": (put("diffloss.net.more.bias", torch.zeros(1)), ("unknown", "'diffloss.net.more.bias'")),
    "missing tensor": (drop(WKV), ("lacks", repr(WKV), "[96, 48]")),
    "missing head tensor": (drop("diffloss.net.final_layer.linear.bias"), ("'diffloss.net.final_layer.linear.bias'",)),
    "missing size": (drop("z_proj.weight"), ("lacks", "'z_proj.weight'")),
    "no head": (drop("diffloss"), ("lacks", "'diffloss.net.input_proj.weight'")),
    "a block left out": (drop("decoder_blocks.0.", "no"), ("'decoder_blocks.0.attn1.q_norm.weight'",)),
    "a head block left out": (drop("diffloss.net.res_blocks.0."), ("every tensor of diffloss.net.res_blocks.0",)),
    "odd shape": (shrink(WKV, 95, 48), (repr(WKV), "[95, 48]", "expected [96, 48]")),
    "odd heads": (shrink("decoder_blocks.0.attn1.q_norm.weight", 7), ("width is 48", "7 channels")),
    "flat size": (shrink("z_proj.weight", 48), ("'z_proj.weight'", "[48]", "expected 2")),
    "empty size": (shrink("fake_latent", 1, 0, 48), ("'fake_latent'", "[1, 0, 48]")),
    "fp8": (put(WKV, torch.zeros(96, 48, dtype=torch.float8_e4m3fn)), (repr(WKV), "float8_e4m3fn", "quantised")),
    "int8": (put(WKV, torch.zeros(96, 48, dtype=torch.int8)), (repr(WKV), "int8", "quantised")),
    "sparse": (put(WKV, torch.zeros(96, 48).to_sparse()), (repr(WKV),)),
    "no tensor": (put(WKV, [1.0, 2.0]), (repr(WKV), "list", "expected a tensor")),
}


@pytest.mark.parametrize(("spoil", "parts"), CHECKPOINTS.values(), ids=CHECKPOINTS.keys())
def test_a_checkpoint_of_another_shape_is_refused_by_name(inputs: Path, spoil: Spoil, parts: tuple[str, ...]) -> None:
    spoil(inputs)
    refused(inputs, "videomar.pth", *parts)


def test_heads_that_do_not_split_evenly_need_the_split(inputs: Path) -> None:
    torch.save(made.official(0, head_dim=12), inputs / "videomar.pth")
    refused(inputs, "12 channels", "--rope-split")
    refused(inputs, "rope_split is (4, 4, 2)", rope_split=(4, 4, 2))


def test_frames_and_sizes_that_no_clip_has_are_refused(inputs: Path) -> None:
    refused(inputs, "frames is 24, expected 1 + 8k", "--frames", frames=24)
    refused(inputs, "frames is 1,", "--frames", frames=1)
    refused(inputs, "size is 256x250, expected multiples of 16", "--size", size=(256, 250))
    refused(inputs, "positions is 'counted', expected padded or masked", text_positions="counted")


def test_other_dictionaries_and_options_are_refused(inputs: Path) -> None:
    refused(inputs, "'best'", "ema or model", weights="best")
    torch.save({"model_ema": made.official(2)}, inputs / "videomar.pth")
    refused(inputs, "no 'model'", "model_ema", weights="model")
    torch.save({"weights": made.official(2), "epoch": 1}, inputs / "videomar.pth")
    refused(inputs, "'weights' is dict", "'model_ema'")
    torch.save([torch.zeros(1)], inputs / "videomar.pth")
    refused(inputs, "holds list")
    torch.save({}, inputs / "videomar.pth")
    refused(inputs, "'z_proj.weight'")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_half_a_download_is_called_so(inputs: Path, share: float) -> None:
    whole = (inputs / "videomar.pth").read_bytes()
    for file in ("videomar.pth", "cosmos/diffusion_pytorch_model.safetensors", "qwen/model.safetensors"):
        data = (inputs / file).read_bytes()
        (inputs / file).write_bytes(data[: int(share * len(data))])
        said = refused(inputs, Path(file).name, "get it again" if share or "pth" not in file else "get the file itself")
        if file == "videomar.pth" and share:
            assert "half a download" in said and f"{int(share * len(whole))} bytes" in said
        (inputs / file).write_bytes(data)
    state = made.official(1)
    save_file(state, inputs / "v.safetensors")
    data = (inputs / "v.safetensors").read_bytes()
    (inputs / "v.safetensors").write_bytes(data[: int(share * len(data))])
    refused(inputs, "v.safetensors", "get it again", file="v.safetensors")


def test_code_in_a_pickle_is_refused_and_not_run(inputs: Path) -> None:
    trap = inputs / "trap"
    for data in ({"model_ema": made.official(2), "args": Trap(trap)}, Trap(trap)):
        torch.save(data, inputs / "videomar.pth")
        refused(inputs, "videomar.pth", "would run code", "torch.save")
    torch.save(torch.nn.Linear(2, 2), inputs / "videomar.pth")
    refused(inputs, "would run code", "torch.nn.modules.linear.Linear")
    assert not trap.exists()


def test_other_files_are_told_apart(inputs: Path) -> None:
    file = inputs / "videomar.pth"
    torch.save(made.official(0), file, _use_new_zipfile_serialization=False)
    refused(inputs, "before 1.6", "torch.save it again")
    file.write_bytes(pickle.dumps({"a": 1}))
    refused(inputs, "pickle")
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    refused(inputs, "Git LFS", "version https")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(inputs, "cannot be read", "torch.save")
    made.script({"a": torch.zeros(1)}, file)
    refused(inputs, "is a TorchScript archive")
    refused(inputs, "does not exist", file="nowhere.pth")
    refused(inputs, "is a directory", file="cosmos")


# ---- parts that do not belong together


def test_parts_of_different_models_are_refused(inputs: Path) -> None:
    torch.save(made.official(0, channels=6), inputs / "videomar.pth")
    refused(inputs, "cosmos has 4 latent channels, expected 6")
    torch.save(made.official(0, text_width=32), inputs / "videomar.pth")
    refused(inputs, "qwen has width 24, expected 32")


# ---- the tokenizer


def edit(file: Path, **values: Any) -> None:
    data = {k: v for k, v in {**json.loads(file.read_text()), **values}.items() if v is not None}
    file.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"_class_name": "AutoencoderKL"}, ("'AutoencoderKL'", "AutoencoderKLCosmos")),
        ({"in_channels": 1}, ("in_channels is 1", "colour")),
        ({"num_layers": -1}, ("num_layers is -1",)),
        ({"num_layers": 2}, ("lacks the tensor 'encoder.down_blocks.0.resnets.1.norm1.norm.weight'",)),
        ({"patch_type": "fourier"}, ("patch_type is 'fourier'",)),
        ({"encoder_block_out_channels": "4"}, ("encoder_block_out_channels is '4'",)),
        ({"encoder_block_out_channels": [4, 8]}, ("1 levels", "strides 16 in space")),
        ({"spatial_compression_ratio": 12}, ("strides 12 in space",)),
        ({"spatial_compression_ratio": 64}, ("strides 64 in space",)),
        ({"spatial_compression_ratio": 8}, ("unknown tensor 'decoder.up_blocks.0.upsamplers.0.conv2.bias'",)),
        ({"latent_channels": True}, ("latent_channels is True",)),
    ],
)
def test_a_tokenizer_config_that_cannot_be_is_refused(inputs: Path, values: dict[str, Any], parts: tuple[str]) -> None:
    edit(inputs / "cosmos" / "config.json", **values)
    refused(inputs, "cosmos", *parts)


def test_a_directory_that_is_no_tokenizer_is_refused(inputs: Path) -> None:
    cosmos = inputs / "cosmos"
    refused(inputs, "says strides (16, 8)", "--tokenizer-strides", tokenizer_strides=(8, 8))
    (cosmos / "config.json").write_text("{")
    refused(inputs, "config.json", "not JSON")
    (cosmos / "config.json").write_text("[]")
    refused(inputs, "config.json", "holds list")
    shutil.copytree(cosmos, cosmos / "vae")
    (cosmos / "config.json").unlink()
    refused(inputs, "is no Cosmos tokenizer", "vae/")
    (cosmos / "encoder.jit").write_bytes(b"")
    refused(inputs, "decoder.jit is missing")
    shutil.rmtree(cosmos)
    refused(inputs, "cosmos is no directory")


def archive(inputs: Path, change: Callable[[dict[str, Any]], Any], told: bool = False) -> Path:
    named = made.archive_content(told=told)
    change(named)
    shutil.rmtree(inputs / "cosmos")
    (inputs / "cosmos").mkdir()
    made.script(named, inputs / "cosmos" / "autoencoder.jit")
    return inputs / "cosmos" / "autoencoder.jit"


def test_archives_of_another_tokenizer_are_refused(inputs: Path) -> None:
    archive(inputs, lambda named: named.update({"quantizer.levels": torch.zeros(3)}))
    refused(inputs, "unknown tensor 'quantizer.levels'")
    archive(inputs, lambda named: named.pop("encoder.down.1.block.0.norm1.norm.bias"))
    refused(inputs, "lacks the tensor 'encoder.down_blocks.1.resnets.0.norm1.norm.bias'")
    archive(inputs, lambda named: named.update({"decoder.up.2.upsample.temporal_up": True}), told=True)
    refused(inputs, "decoder.up.2.upsample.temporal_up is True, expected False", "not supported")
    archive(inputs, lambda named: None, told=True)
    refused(inputs, "says strides (16, 8)", "--tokenizer-strides", tokenizer_strides=(8, 8))
    archive(inputs, lambda named: None)
    refused(inputs, "strides 64 in space", tokenizer_strides=(64, 8))
    made.script({"a": 1}, inputs / "cosmos" / "autoencoder.jit")
    refused(inputs, "no named tensors", "frozen")


def test_a_cut_altered_or_foreign_archive_is_refused(inputs: Path) -> None:
    file = archive(inputs, lambda named: None)
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    refused(inputs, "autoencoder.jit", "half a download")
    with zipfile.ZipFile(file, "w") as target:
        target.writestr("model/data.pkl", b"")
    refused(inputs, "autoencoder.jit", "no TorchScript module")
    torch.save({"a": torch.zeros(1)}, file)
    refused(inputs, "autoencoder.jit", "no TorchScript module")
    altered = bytearray(data)
    altered[len(data) // 2] ^= 255
    file.write_bytes(altered)
    refused(inputs, "autoencoder.jit", "cannot be read as TorchScript")


def test_code_in_an_archive_is_refused_and_not_run(inputs: Path) -> None:
    file, trap = archive(inputs, lambda named: None), inputs / "trap"
    for payload in (Trap(trap), {"weights": Trap(trap)}):
        with zipfile.ZipFile(file, "w") as target:
            target.writestr("a/data.pkl", pickle.dumps(payload, protocol=2))
            target.writestr("a/constants.pkl", b"")
        refused(inputs, "autoencoder.jit", "cannot be read as TorchScript", "asks for")
    assert not trap.exists()


# ---- the language model


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"model_type": "llama"}, ("model_type is 'llama'", "Qwen2-VL")),
        ({"model_type": "qwen2"}, ("model_type is 'qwen2', expected 'qwen2_vl'", "--plain-qwen2")),
        ({"model_type": "qwen2_5_vl"}, ("model_type is 'qwen2_5_vl'",)),
        ({"model_type": None}, ("model_type is None",)),
        ({"quantization_config": {"bits": 4}}, ("quantised", "original")),
        ({"hidden_act": "gelu"}, ("hidden_act is 'gelu'",)),
        ({"rms_norm_eps": 1e-5}, ("rms_norm_eps is 1e-05, expected 1e-06",)),
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, ("use_sliding_window is True",)),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}}, ("rope_type is 'yarn'",)),
        ({"rope_parameters": {"rope_theta": 1e6, "mrope_section": [1, 1]}}, ("sum of mrope_section is 2, expected 3",)),
        ({"num_hidden_layers": 3}, ("config.json is no whole qwen2_vl config", "layer_types")),
        ({"num_hidden_layers": 3, "layer_types": None}, ("lacks the tensor 'model.layers.2.self_attn.q_proj.weight'",)),
        ({"num_attention_heads": 5}, ("width left over by the heads is 4",)),
        ({"hidden_size": "wide"}, ("config.json",)),
        ({"vocab_size": 9}, ("tokenizer.json has token 9", "less than the model's 9")),
        ({"max_position_embeddings": 8}, ("make 10, expected at most 8",)),
    ],
)
def test_a_language_model_that_ours_cannot_compute_is_refused(
    inputs: Path, values: dict[str, Any], parts: tuple[str]
) -> None:
    file = inputs / "qwen" / "config.json"
    within = json.loads(file.read_text())["text_config"]
    sizes = {
        k: v
        for k, v in {**within, **values}.items()
        if v is not None and k not in ("model_type", "quantization_config")
    }
    edit(file, text_config=sizes, **{k: v for k, v in values.items() if k in ("model_type", "quantization_config")})
    refused(inputs, "qwen", *parts)


def test_missing_or_foreign_files_of_a_language_model_are_refused(inputs: Path) -> None:
    qwen = inputs / "qwen"
    state = load_file(qwen / "model.safetensors")
    save_file({**state, "model.layers.0.mlp.up_proj.weight_scale": torch.ones(1)}, qwen / "model.safetensors")
    refused(inputs, "unknown tensor 'model.layers.0.mlp.up_proj.weight_scale'")
    save_file({**state, "adapter.weight": torch.ones(1)}, qwen / "model.safetensors")
    refused(inputs, "unknown tensor 'adapter.weight'")
    (qwen / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "b.safetensors"}}))
    (qwen / "model.safetensors").unlink()
    refused(inputs, "b.safetensors does not exist")
    save_file({"b": torch.ones(1)}, qwen / "b.safetensors")
    refused(inputs, "lacks the tensor 'a'", "index.json")
    (qwen / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    refused(inputs, "weight_map")
    (qwen / "model.safetensors.index.json").unlink()
    (qwen / "b.safetensors").unlink()
    refused(inputs, "no model.safetensors", ".bin")
    save_file(state, qwen / "model.safetensors")
    (qwen / "tokenizer.json").write_text("{}")
    refused(inputs, "tokenizer.json is no tokenizer")
    (qwen / "tokenizer.json").unlink()
    refused(inputs, "tokenizer.json is missing", "save_pretrained")
    shutil.rmtree(qwen)
    refused(inputs, "qwen is no directory")


# ---- the directory that is written


@pytest.fixture
def out(inputs: Path, tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "place" / "out"
    assert [p.name for p in (tmp_path / "place").iterdir()] == ["out"]  # whatever happened, nothing beside it


def run(inputs: Path, out: Path, **options: Any) -> importing.Imported:
    return import_checkpoint(inputs / "videomar.pth", inputs / "cosmos", inputs / "qwen", out, **options)


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_checkpoint_is_replaced_only_by_force_and_other_files_never(inputs: Path, out: Path) -> None:
    out.mkdir(parents=True)  # an empty directory is fine
    run(inputs, out)
    before = files(out)
    with pytest.raises(UserError, match="not empty, expected none or an empty one"):
        run(inputs, out)
    assert files(out) == before
    run(inputs, out, weights="model", force=True)
    assert files(out).keys() == before.keys() and files(out) != before
    (out / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match=r"holds thesis\.txt, which is no file of a checkpoint"):
        run(inputs, out, force=True)
    assert (out / "thesis.txt").read_text() == "precious"


def test_a_file_where_the_directory_should_be_is_left_alone(inputs: Path, out: Path) -> None:
    out.parent.mkdir()
    out.write_text("precious")
    with pytest.raises(UserError, match="is a file, expected a directory"):
        run(inputs, out, force=True)
    assert out.read_text() == "precious"


@pytest.mark.parametrize("place", ["save_float32", "rename"])
def test_a_full_disk_leaves_the_old_checkpoint_whole(
    inputs: Path, out: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    run(inputs, out)
    before, calls = files(out), 0
    target = writing if place == "save_float32" else os
    real = getattr(target, place)

    def fail_at_second(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args)

    monkeypatch.setattr(target, place, fail_at_second)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        run(inputs, out, weights="model", force=True)
    assert files(out) == before
    ModelConfig.from_json((out / "config.json").read_text())
