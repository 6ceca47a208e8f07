"""`tune`: what is tried, what is measured, what a run goes on from, and the page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from videomar.cli import main
from videomar.config import DEMO, VIDEOMAR_1_4B, SamplingConfig
from videomar.errors import InputError
from videomar.parity.tuning import measure
from videomar.parity.tuning.grid import settings
from videomar.parity.tuning.measure import Start, Tuning, load, save, tune
from videomar.parity.tuning.page import write
from videomar.runtime.pipeline import Pipeline
from videomar.steps import ClipSteps

PROMPT = "a red circle grows"


@pytest.fixture(scope="module")
def pipe(tiny_native: Path) -> Iterator[Pipeline]:
    with Pipeline.open(tiny_native, threads=1, backend="ort-cpu") as pipe:
        yield pipe


def cases() -> list[Start]:
    pictures = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), dtype=np.uint8)
    return [Start(str(i), picture, PROMPT, i) for i, picture in enumerate(pictures)]


def few(pipe: Pipeline) -> dict[str, SamplingConfig]:
    own = pipe.config.sampling.but(mask_steps=6)
    return {
        "exact": own, "the same": own.but(head_steps_end=own.head_steps), "none": own.but(mask_steps=1, head_steps=1),
    }  # fmt: skip


@pytest.mark.parametrize("config", [DEMO, VIDEOMAR_1_4B])
def test_every_setting_can_be_sampled_and_the_exact_one_comes_first(config: Any) -> None:
    clip = ClipSteps.of(config, config.sampling, 1)
    found = settings(clip)
    assert next(iter(found)) == "exact" and found["exact"] == config.sampling and len(found) > 15
    assert {"high", "fast", "draft", "order structure", "refresh every 4"} <= set(found)
    for sampling in found.values():
        ClipSteps.of(config, sampling, 1)
    assert len({repr(s) for s in found.values()}) == len(found)


def test_settings_that_a_small_clip_cannot_have_are_left_out() -> None:
    own = DEMO.sampling.but(height=8, width=8, mask_steps=1, head_steps=1, guidance_scale=1.0)
    assert set(settings(ClipSteps.of(DEMO, own, 1))) >= {"exact"}


def test_a_setting_that_changes_nothing_is_not_apart_and_one_without_steps_is(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = measure.clip
    monkeypatch.setattr(measure, "clip", lambda *a: (float(a[2].mask_steps + a[2].head_steps), *made(*a)[1:]))
    tuning = Tuning({})
    assert list(tune(pipe, cases(), few(pipe), tuning)) == ["exact", "the same", "none"]
    assert tuning.rows["exact"]["apart"] == tuning.rows["the same"]["apart"] == 0
    assert tuning.rows["none"]["apart"] > 0.1 and tuning.rows["none"]["apart_most"] >= tuning.rows["none"]["apart"]
    exact, none = tuning.rows["exact"], tuning.rows["none"]
    assert none["seconds"] == 2 and none["faster"] == exact["seconds"] / 2 and exact["faster"] == 1
    assert tuning.front == ["exact", "none"]


def test_one_is_as_far_as_another_seed_is(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def clip(pipe: Pipeline, start: Start, sampling: SamplingConfig, seed: int) -> tuple[float, np.ndarray, np.ndarray]:
        value = {0: 0.0, measure.OTHER_SEED: 4.0}[seed] + (1.0 if sampling.mask_steps == 1 else 0.0)
        return 1.0, np.full((1, 1, 2, 2), value), np.zeros(0)

    monkeypatch.setattr(measure, "clip", clip)
    tuning = Tuning({})
    list(tune(pipe, cases()[:1], few(pipe), tuning))
    assert tuning.rows["none"]["apart"] == pytest.approx(1 / 4)


def test_the_front_holds_what_nothing_beats_in_time_and_loss() -> None:
    times = {"exact": (10, 0.0), "good": (5, 0.1), "slow": (6, 0.2), "worse": (5, 0.3), "draft": (1, 0.9)}
    tuning = Tuning({}, {name: {"seconds": s, "loss": loss} for name, (s, loss) in times.items()})
    assert tuning.front == ["exact", "good", "draft"]


def test_a_run_goes_on_from_what_was_found_and_refuses_another_models(pipe: Pipeline, tmp_path: Path) -> None:
    file = tmp_path / "tune.json"
    key = {"model": "tiny", "backend": "ort-cpu"}
    tuning = load(file, key)
    next(tune(pipe, cases(), few(pipe), tuning))
    save(file, tuning)
    again = load(file, key)
    assert again.rows == tuning.rows and list(tune(pipe, cases(), few(pipe), again)) == ["the same", "none"]
    with pytest.raises(InputError, match="was measured with another backend; give another -o"):
        load(file, key | {"backend": "trt"})
    for rubbish in ("", "[]", "{}", '{"key": {}, "settings": {"exact": {}}}', '{"key": 1, "settings": 2}'):
        file.write_text(rubbish)
        with pytest.raises(InputError, match="is not a file of `videomar tune`"):
            load(file, key)


def test_minutes_end_a_run_between_two_settings(pipe: Pipeline) -> None:
    tuning = Tuning({})
    assert list(tune(pipe, cases()[:1], few(pipe), tuning, minutes=1e-9)) == ["exact"]


def test_a_judges_figures_stand_beside_and_its_loss_counts(pipe: Pipeline) -> None:
    tuning = Tuning({})
    list(tune(pipe, cases()[:1], few(pipe), tuning, judge=lambda s: {"coherence": 0.9, "loss": s.mask_steps / 10}))
    assert {row["loss"] for row in tuning.rows.values()} == {0.6, 0.1} and tuning.rows["none"]["apart"] > 0


class Checked(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_page_holds_every_setting_and_the_clips_and_asks_for_nothing_outside() -> None:
    rows = {
        name: {"seconds": s, "faster": 10 / s, "apart": loss, "loss": loss}
        for name, s, loss in (("exact", 10.0, 0.0), ("a <b> dial", 4.0, 0.2), ("no use", 11.0, 0.4))
    }
    clips = {name: [np.full((3, 16, 16, 3), 128, np.uint8)] for name in ("exact", "a <b> dial")}
    text = write(Tuning({"model": "tiny"}, rows), clips, ["a red <i>circle"], 12.0)
    page = Checked()
    page.feed(text)
    assert page.tags.count("video") == 2 and page.tags.count("circle") == 3 and page.tags.count("tr") == 4
    assert all(source.startswith("data:video/mp4;base64,") for source in page.sources)
    assert "a &lt;b&gt; dial" in text and "red &lt;i&gt;circle" in text and "http" not in text


def test_the_command_measures_writes_and_goes_on(tiny_native: Path, tmp_path: Path, capsys: Any) -> None:
    cv2 = pytest.importorskip("cv2")
    cv2.imwrite(str(tmp_path / "a.png"), cases()[0].given)
    (tmp_path / "cases.txt").write_text(f"a.png\t{PROMPT}\n", encoding="utf-8")
    command = ["tune", str(tiny_native), "-o", str(tmp_path / "t.json"), "--cases", str(tmp_path / "cases.txt")]
    command += ["--threads", "1", "--mask-steps", "2", "--head-steps", "2", "--html", str(tmp_path / "t.html")]
    assert main([*command, "--minutes", "0.01"]) == 0
    found = json.loads((tmp_path / "t.json").read_text())
    assert "exact" in found["settings"] and found["key"]["cases"] == 1 and found["front"]
    assert main(command) == 0
    assert len(json.loads((tmp_path / "t.json").read_text())["settings"]) >= len(found["settings"])
    assert "no other beats these" in capsys.readouterr().out and "<video" in (tmp_path / "t.html").read_text()
    assert main([*command, "--seed", "5"]) == 2
    assert "was measured with another starts" in capsys.readouterr().err


def test_a_list_that_cannot_be_used_names_its_line(tiny_native: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "cases.txt").write_text("# nothing yet\npicture.png a red circle\n", encoding="utf-8")
    command = ["tune", str(tiny_native), "-o", str(tmp_path / "t.json"), "--cases", str(tmp_path / "cases.txt")]
    assert main(command) == 2
    assert "line 2 is 'picture.png a red circle', expected picture-or-clip<TAB>prompt" in capsys.readouterr().err
    assert not (tmp_path / "t.json").exists()
