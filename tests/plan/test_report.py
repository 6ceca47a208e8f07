"""Times by hand, the table, the chart, and the command from its options to its exit code."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from videomar.cli import main
from videomar.config import DEMO, VIDEOMAR_1_4B
from videomar.options import PLANNED
from videomar.plan.devices import DEVICES, LOCAL, device, local
from videomar.plan.measure import speed
from videomar.plan.report import as_data, as_svg, as_text, bar, make_report, size_text, time_text
from videomar.plan.request import Request
from videomar.plan.roofline import operator_seconds, plan_times
from videomar.plan.tape import Op, Tape, Value

SLOW = dataclasses.replace(
    DEVICES["agx-orin-64"], fp16=1e12, int8=2e12, fp32=1e11, bandwidth=1e9, of_peak=0.5, of_bandwidth=0.5, launch=1e-3
)
FULL = Request(VIDEOMAR_1_4B, VIDEOMAR_1_4B.sampling)


def test_an_operator_takes_its_arithmetic_or_its_bytes_whichever_is_longer_and_a_launch() -> None:
    tape, x = Tape("fp16"), Value(1000, 2)
    heavy = Op((x,), Value(1000, 2), flops=1e12, params=10, linear=True)
    assert operator_seconds(heavy, SLOW, tape, False, 0.25) == pytest.approx(1e12 / 0.5e12 + 0.25)
    assert operator_seconds(heavy, SLOW, tape, True, 0.0) == pytest.approx(1e12 / 1e12)
    wide = Op((x,), Value(10**9, 2), flops=1.0)
    assert operator_seconds(wide, SLOW, tape, False, 0.0) == pytest.approx((2e9 + 2000) / 0.5e9)
    folded = dataclasses.replace(wide, folded=True)
    assert operator_seconds(folded, SLOW, tape, False, 0.25) < 1e-9


def test_a_table_of_which_rows_are_read_costs_no_bandwidth() -> None:
    rows = Op((Value(8, 8),), Value(100, 2), params=10**9)
    assert operator_seconds(rows, SLOW, Tape("fp16"), False, 0.0) == pytest.approx(264 / 0.5e9)


def test_a_clip_is_its_passes() -> None:
    t = plan_times(FULL, DEVICES["agx-orin-64"])
    # 64 steps of three frames, later ones with more to attend to, and three passes that only store.
    assert 3 * 64 * 0.8 * t.step < t.transformer < (3 * 64 + 3) * t.step
    assert t.heads == pytest.approx(3 * 64 * t.head)
    assert t.frame == pytest.approx(64 * (t.step + t.head))
    assert t.clip == pytest.approx(t.text + t.encoder + t.transformer + t.heads + t.decoder)
    assert t.first < t.clip


def test_times_change_as_the_work_does() -> None:
    d = DEVICES["orin-nx-16"]
    t = plan_times(FULL, d)
    assert plan_times(FULL.but(mask_steps=32), d).clip < 0.6 * t.clip
    assert plan_times(FULL.but(guidance_scale=1.0), d).step < 0.6 * t.step
    assert plan_times(FULL.but(head_steps=50), d).heads == pytest.approx(t.heads / 2, rel=0.05)
    assert plan_times(FULL.but(precision="int8"), d).step < t.step
    assert plan_times(FULL.but(kv_window=1), d).transformer < t.transformer
    assert t.clip > plan_times(FULL, DEVICES["h200"]).clip


def test_no_device_is_faster_than_its_peak() -> None:
    from videomar.plan.roofline import pass_flops

    for d in DEVICES.values():
        assert plan_times(FULL, d).step > pass_flops(FULL, 3) * 0.95 / d.fp16


def test_numbers_read_well() -> None:
    assert [size_text(n) for n in (1, 5 << 20, 3 << 30)] == ["0.0 MiB", "5.0 MiB", "3.00 GiB"]
    assert [time_text(s) for s in (7500, 200, 12.34, 0.0123)] == ["2 h 5 min", "3 min 20 s", "12.3 s", "12.3 ms"]


def test_bars_are_as_long_as_their_share() -> None:
    assert [len(bar(p, 8)) for p in (0, 0.5, 1, 2)] == [0, 4, 8, 8]
    assert bar(1e-6, 8) == "▏" and bar(0.5 + 1 / 64, 8) == "████▏"


def test_the_chart_is_well_formed_and_its_bars_are_in_proportion() -> None:
    reports = [make_report(FULL, d) for d in DEVICES.values()]
    root = ElementTree.fromstring(as_svg(reports))
    bars = [r for r in root.iter("{http://www.w3.org/2000/svg}rect") if len(r)]
    widths = sum(float(r.get("width", 0)) for r in bars[: len(bars) // len(reports)])
    first = reports[0]
    most = max(max(r.memory.peak, r.memory.build) for r in reports) * 1.08
    assert widths == pytest.approx(665 * first.memory.peak / most, rel=0.01)
    text = "".join(root.itertext())
    assert all(d.title in text for d in DEVICES.values()) and "does not fit" in text


def test_the_table_says_what_decides() -> None:
    text = as_text(make_report(FULL, DEVICES["orin-nano-8"]))
    assert "does not fit: generating needs" in text and "the smallest change that fits: " in text
    assert "building the engines needs 9.68 GiB: add 3.28 GiB of swap" in text
    assert "480 (4 latent frames of 1440 tokens)" in text


def test_json_holds_every_moment_and_second() -> None:
    report = make_report(FULL, DEVICES["orin-nano-8"])
    data = json.loads(json.dumps(as_data(report)))
    assert data["fits"] is False and data["change"]["options"]
    assert data["peak"] == max(sum(parts.values()) for parts in data["memory"].values())
    assert data["seconds"]["clip"] == pytest.approx(report.times.clip)


# ---- the command


def test_options_name_the_devices_of_the_table() -> None:
    assert PLANNED == (*DEVICES, LOCAL)
    assert device("h200").name == "h200"


@pytest.mark.parametrize(("where", "code"), [("orin-nano-8", 1), ("orin-nx-16", 0), ("h200", 0)])
def test_the_exit_code_says_whether_it_fits(where: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "videomar-1.4b", "--device", where]) == code
    assert ("does not fit" in capsys.readouterr().out) == bool(code)


def test_several_devices_share_one_chart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "chart.svg"
    assert main(["plan", "demo", "--device", "orin-nano-8", "h200", "--json", "--svg", str(file)]) == 0
    assert [d["device"]["name"] for d in json.loads(capsys.readouterr().out)] == ["orin-nano-8", "h200"]
    assert ElementTree.parse(file).getroot().tag.endswith("svg")


def test_a_checkpoint_and_this_machine_can_be_planned(capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = Path(__file__).parents[2] / "models" / "demo"
    assert main(["plan", str(checkpoint), "--device", "local", "--json", "--precision", "fp32"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["device"]["backend"] == "ort-cpu" and data["model"] == "demo"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["videomar-1.4b", "--device", "orin-nano-16"], "device is 'orin-nano-16', expected one of orin-nano-8"),
        (["nowhere", "--device", "h200"], "nowhere is neither a checkpoint"),
        (["demo", "--device", "h200", "--frames", "10"], "frames is 10, expected 1 + 8k"),
        (["demo", "--device", "h200", "--height", "60"], "height is 60, expected a multiple of 8, such as 64"),
        (["demo", "--device", "h200", "--frames", "40001"], "rotary positions"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *words]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_a_broken_config_names_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(DEMO.to_json().replace('"depth"', '"deepness"', 1))
    assert main(["plan", str(tmp_path), "--device", "h200"]) == 2
    assert "config.json" in capsys.readouterr().err


def test_this_machines_speed_is_a_machines() -> None:
    flops, bandwidth = speed(1, 0.02)
    assert 1e8 < flops < 1e15 and 1e7 < bandwidth < 1e13
    d = local(16 << 30, 8 << 30, flops, bandwidth)
    assert d.backend == "ort-cpu" and plan_times(Request(DEMO, DEMO.sampling, precision="fp32"), d).clip > 0
