from json import dumps

import pytest

from videomar.demo.chance import CHANCES
from videomar.demo.coherence import Future
from videomar.demo.evaluate import chance_summary
from videomar.demo.report import as_text
from videomar.demo.shares import interval
from videomar.errors import InputError


def shown(outcome: str, count: int, coherent: bool = True, motion: str = "drifts left or right") -> list[Future]:
    return [Future(f"a red circle {motion}", motion, outcome, 0.1, coherent)] * count


def test_the_summary_counts_by_hand_and_torn_clips_show_no_outcome():
    figures = chance_summary(
        [*shown("drifts left", 6), *shown("drifts right", 10), *shown("drifts right", 4, coherent=False)]
    )
    assert figures["cases"] == 20 and figures["coherence"] == 0.8
    assert figures["coherence_interval"] == interval(16, 20)
    assert list(figures["sentences"]) == ["drifts left or right"]
    row = figures["sentences"]["drifts left or right"]
    assert row["outcomes"] == {
        "drifts left": {"count": 6, "share": 0.375, "interval": interval(6, 16), "truth": 0.5},
        "drifts right": {"count": 10, "share": 0.625, "interval": interval(10, 16), "truth": 0.5},
    }
    assert row["p_value"] == figures["p_value"] == pytest.approx(0.4545, abs=0.012)  # binomial, 16 throws, 6 or fewer
    dumps(figures)


def test_one_sided_outcomes_fail_the_test_of_all_sentences_together():
    fair = [
        clip
        for motion, shares in CHANCES.items()
        for o, p in shares.items()
        for clip in shown(o, int(40 * p), motion=motion)
    ]
    assert chance_summary(fair)["p_value"] > 0.9
    assert chance_summary([*fair, *shown("drifts left", 40)])["p_value"] < 0.01


def test_no_clips_are_refused_and_only_torn_ones_give_no_share():
    with pytest.raises(InputError, match="no clips"):
        chance_summary([])
    figures = chance_summary(shown("drifts left", 3, coherent=False))
    assert figures["coherence"] == 0 and figures["p_value"] == 1
    assert figures["sentences"]["drifts left or right"]["outcomes"]["drifts left"]["share"] is None


def test_the_text_holds_every_figure_of_chance():
    figures = chance_summary([*shown("drifts left", 6), *shown("drifts right", 10)])
    figures["distance"] = {"generated": {"frames": 0.5, "motion": 0.25}, "floor": {"frames": 0.125, "motion": 0.0625}}
    text = "\n".join(as_text({**decided(), "chance": figures}))
    for figure in ("100.0% of 16 clips", "0.50000", "0.06250", "drifts right", "10 clips", "truth 50%"):
        assert figure in text
    assert "not measured" in "\n".join(as_text({**decided(), "chance": None}))


def decided() -> dict:
    errors = dict.fromkeys(("centroid_error_mean", "centroid_error_median", "centroid_error_max"), 0.01)
    return {"tokenizer_psnr_db": 30.0, "followed": 1.0, "cases": 1, "psnr_mean": 30.0, "motions": {}, **errors}
