"""A configuration that asks for absurd work, or whose numbers do not go together, is refused before any of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from videomar.bounds import BOUNDS
from videomar.carried import Carried
from videomar.checkpoint import read_config
from videomar.config import DEMO, PRESETS, ModelConfig, SamplingConfig
from videomar.errors import ArtifactError, ConfigError, InputError
from videomar.steps import ClipSteps


def changed(part: str, **changes: Any) -> ModelConfig:
    data = json.loads(DEMO.to_json())
    data[part] |= changes
    return ModelConfig.from_json(json.dumps(data))


def test_every_number_of_every_part_has_its_bounds() -> None:
    for part, bounds in BOUNDS.items():
        numbers = [f.name for f in dataclasses.fields(getattr(DEMO, part)) if not str(f.type).startswith("str")]
        assert sorted(bounds) == sorted(numbers)


@pytest.mark.parametrize("part", BOUNDS)
def test_a_number_beyond_its_bounds_is_named_with_them(part: str) -> None:
    for name, (least, most) in BOUNDS[part].items():
        several = isinstance(getattr(getattr(DEMO, part), name), tuple)
        for value in (10**400, most * 2, most + 1, least - 1):
            value = int(value) if several or isinstance(getattr(getattr(DEMO, part), name), int) else value
            count = 3 if name == "rope_split" else 4
            with pytest.raises(ConfigError, match=rf"{part}\.{name} is .*, expected \S+ to \S+$"):
                changed(part, **{name: [value] * count if several else value})


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("tokenizer", {"patch_size": 3}, "patch_size is 3, expected a power of two"),
        ("tokenizer", {"spatial_stride": 2}, "spatial_stride is 2, expected a power of two, a patch or more"),
        ("tokenizer", {"patch_type": "fourier"}, "patch_type is 'fourier', expected haar or rearrange"),
        ("tokenizer", {"decoder_channels": [8]}, "decoder_channels has 1 numbers, expected 2 to 8"),
        ("tokenizer", {"decoder_channels": [True, 8, 8, 8]}, "decoder_channels is True, expected 1 to 65536"),
        ("tokenizer", {"latent_scale": float("nan")}, "latent_scale is nan, expected 1e-06 to 1e"),
        ("tokenizer", {"latent_channels": 8}, "token_channels is 16, expected the tokenizer's 8"),
        ("text", {"heads": 3}, "multiple of the next"),
        ("text", {"kv_heads": 2, "heads": 1}, "multiple of the next"),
        ("text", {"system_prompt": "\ud800"}, "system_prompt is no Unicode text"),
        ("text", {"system_prompt": "x" * 100_001}, "has 100001 characters, expected at most 100000"),
        ("text", {"positions": "x" * 1000}, "text positions is 'x"),
        ("transformer", {"rope_split": [32, 32]}, "rope_split has 2 numbers, expected 3"),
        ("transformer", {"rope_split": [32, 16, 8]}, "add up to 64"),
        ("transformer", {"heads": 4}, "expected heads \\* head_dim = 256"),
        ("head", {"time_features": 7}, "time_features is 7, expected an even number"),
        ("sampling", {"head_steps": 2**31}, "head steps is 2147483648, expected .* and at most 1000000"),
        ("sampling", {"height": 2**31}, "height is 2147483648, expected .* and at most 1000000"),
        ("sampling", {"guidance_scale": 1e9}, "guidance scale is 1000000000.0"),
        ("sampling", {"guidance_scale": 10**400}, "guidance scale is 1000"),
        ("sampling", {"temperature": float("inf")}, "temperature is inf"),
    ],
)
def test_what_does_not_go_together_is_named(part: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        changed(part, **changes)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("changes", [{"spatial_stride": 32}, {"temporal_stride": 16}, {"decoder_channels": [8, 8]}])
def test_levels_that_do_not_make_the_strides_are_named(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"levels behind patches of 4 make strides \d+ in space and \d+ in time"):
        Carried.of(changed("tokenizer", **changes).tokenizer)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_within_all_bounds(name: str) -> None:
    config = PRESETS[name]
    assert ModelConfig.from_json(config.to_json()) == config
    Carried.of(config.tokenizer)
    ClipSteps.of(config, config.sampling, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 8 * 4096, "width": 8 * 4096}, "16777216 tokens a frame, expected at most 131072; lower --height"),
        ({"frames": 8 * 4095 + 1, "mask_steps": 100_000}, "steps, expected at most 300000; lower --frames or --mask"),
    ],
)
def test_a_clip_without_end_is_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ClipSteps.of(DEMO, SamplingConfig(**options), 1)  # type: ignore[arg-type]


def test_a_damaged_config_is_named_with_its_file(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=rf"{tmp_path}/config.json cannot be read \(No such file"):
        read_config(tmp_path)
    for text in (b"", b"\xff", b"[" * 100_000, b"[]"):
        (tmp_path / "config.json").write_bytes(text)
        with pytest.raises(ArtifactError, match=rf"{tmp_path}/config.json: config is .*copy it again"):
            read_config(tmp_path)
    (tmp_path / "config.json").write_text(DEMO.to_json())
    assert read_config(tmp_path) == DEMO
