from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from videomar.calibration.overflow import closest
from videomar.calibration.ranges import BINS, Ranges, Seen, bin_edges, percentile
from videomar.errors import ArtifactError, InputError


@pytest.fixture
def parts() -> list[np.ndarray]:
    """Calls of one linear: uneven shapes and channels of very different sizes, some exactly zero."""
    rng = np.random.default_rng(0)
    sizes = np.exp2(rng.uniform(-12, 6, 24))
    values = [(rng.standard_normal((b, s, 24)) * sizes).astype(np.float32) for b, s in ((2, 40), (1, 7), (2, 311))]
    values[1][0, 3] = 0
    return values


def seen(parts: list[np.ndarray]) -> Seen:
    one = Seen()
    for part in parts:
        one.add(part)
    return one


def test_statistics_of_a_stream_are_those_of_all_values_at_once(parts: list[np.ndarray]) -> None:
    whole = np.concatenate([part.reshape(-1, 24) for part in parts])
    one = seen(parts)
    assert (one.count, one.bad) == (whole.size, 0)
    assert (one.least, one.most) == (whole.min(), whole.max())
    np.testing.assert_array_equal(one.channels, np.abs(whole).max(axis=0))
    for channel in range(24):
        values = np.clip(np.abs(whole[:, channel]).astype(np.float64), bin_edges()[0], None)  # 0 is in the first bin
        np.testing.assert_array_equal(one.histogram[channel], np.histogram(values, bin_edges())[0])


@pytest.mark.parametrize("share", [0.5, 0.9, 0.999])
def test_a_percentile_is_within_a_bin_of_the_true_one(parts: list[np.ndarray], share: float) -> None:
    true = np.quantile(np.abs(np.concatenate([p.ravel() for p in parts])), share)
    assert percentile(seen(parts).histogram.sum(axis=0), bin_edges(), share) == pytest.approx(true, rel=1 / 8)


def test_values_beyond_the_bins_count_in_the_outer_ones() -> None:
    one = seen([np.array([[1e9, 1e-9, 0.0, 3e38]], np.float32)])
    assert [np.flatnonzero(row).tolist() for row in one.histogram] == [[BINS - 1], [0], [0], [BINS - 1]]
    assert one.absmax == np.float32(3e38)


def test_more_octaves_keep_the_edges_and_add_some() -> None:
    np.testing.assert_allclose(bin_edges(2)[16:-16], bin_edges())
    np.testing.assert_allclose(bin_edges(1)[8:] / 2, bin_edges(1)[:-8])


def test_what_two_machines_saw_adds_up_in_either_order(parts: list[np.ndarray]) -> None:
    together = seen(parts[:1]), seen(parts[1:])
    one, other = Seen(), Seen()
    for piece in together:
        one.merge(piece)
    for piece in reversed(together):
        other.merge(piece)
    whole = seen(parts)
    for merged in (one, other):
        assert (merged.count, merged.least, merged.most) == (whole.count, whole.least, whole.most)
        np.testing.assert_array_equal(merged.histogram, whole.histogram)
        np.testing.assert_array_equal(merged.channels, whole.channels)


def test_nan_and_infinite_numbers_are_counted_and_left_out(parts: list[np.ndarray]) -> None:
    broken = parts[0].copy()
    broken[0, 0, 0], broken[1, 5, 2], broken[1, 5, 3] = np.nan, np.inf, -np.inf
    one = seen([broken, *parts[1:]])
    assert one.bad == 3
    assert np.isfinite([one.least, one.most]).all()
    assert np.isfinite(one.channels).all()
    assert one.histogram.sum() == one.count - 2 * 24  # the rows they were in


def test_half_precision_is_taken_in_like_any_other(parts: list[np.ndarray]) -> None:
    half = [part.astype(np.float16) for part in parts]
    assert seen(half).most == max(float(part.max()) for part in half)


def test_a_file_gives_back_what_was_saved(parts: list[np.ndarray], tmp_path: Path) -> None:
    ranges = Ranges("m", {"a": seen(parts)}, {"g": {"t": 3.5}}, {"k": "clip"}, ["k2/a"])
    ranges.save(tmp_path / "r.npz")
    back = Ranges.load(tmp_path / "r.npz")
    assert (back.model, back.largest, back.clips, back.parts) == ("m", {"g": {"t": 3.5}}, {"k": "clip"}, ["k2/a"])
    for name in ("count", "bad", "least", "most"):
        assert getattr(back.inputs["a"], name) == getattr(ranges.inputs["a"], name)
    for name in ("histogram", "channels"):
        np.testing.assert_array_equal(getattr(back.inputs["a"], name), getattr(ranges.inputs["a"], name))


@pytest.mark.parametrize("rubbish", [b"", b"no ranges", b"PK\x03\x04 cut off"])
def test_a_file_that_holds_no_ranges_is_refused_in_one_line(tmp_path: Path, rubbish: bytes) -> None:
    (tmp_path / "r.npz").write_bytes(rubbish)
    with pytest.raises(ArtifactError, match="is not a file of ranges") as error:
        Ranges.load(tmp_path / "r.npz")
    assert "\n" not in str(error.value)


def test_an_array_file_without_a_header_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "r.npz", other=np.zeros(3))
    with pytest.raises(ArtifactError, match="is not a file of ranges"):
        Ranges.load(tmp_path / "r.npz")
    with pytest.raises(ArtifactError, match="does not exist"):
        Ranges.load(tmp_path / "none.npz")


def test_ranges_of_another_model_and_the_same_clip_twice_are_refused() -> None:
    ranges = Ranges("one", clips={"k": "ball"})
    with pytest.raises(InputError, match="another checkpoint"):
        ranges.merge(Ranges("two"))
    with pytest.raises(InputError, match="both hold clip 'ball'"):
        ranges.merge(Ranges("one", clips={"k": "ball"}))


def test_largest_values_are_ranked_against_half_precision_and_overflows_come_first() -> None:
    rows = closest({"a": {"x": 10.0, "y/reshape": 20000.0, "y": 20000.0}, "b": {"over": 70000.0, "nan": float("inf")}})
    assert [(r.tensor, r.verdict) for r in rows] == [
        ("nan", "overflow"),
        ("over", "overflow"),
        ("y", "island"),  # and not its reshape, which holds the same numbers
        ("x", "ok"),
    ]
