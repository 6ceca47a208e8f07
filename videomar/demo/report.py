"""The figures of `evaluate` as lines to read."""

from __future__ import annotations

from typing import Any


def as_text(figures: dict[str, Any]) -> list[str]:
    """Both worlds: what is decided by picture and sentence, then what is drawn."""
    return [
        f"tokenizer reconstruction        {figures['tokenizer_psnr_db']:.2f} dB PSNR",
        f"motion of the prompt followed   {figures['followed']:.1%} of {figures['cases']} clips",
        f"centroid error, mean            {figures['centroid_error_mean']:.2%} of the width",
        f"centroid error, median and max  {figures['centroid_error_median']:.2%}, {figures['centroid_error_max']:.2%}",
        f"PSNR against the true future    {figures['psnr_mean']:.2f} dB",
        *(
            f"  {motion:22} {row['followed']:6.1%} followed, centroid error {row['centroid_error']:.2%}"
            for motion, row in figures["motions"].items()
        ),
        *_chance(figures["chance"]),
    ]


def _chance(figures: dict[str, Any] | None) -> list[str]:
    if figures is None:
        return ["drawn futures that are whole    not measured: a frame is given that shows them, or a word is unknown"]
    low, high = figures["coherence_interval"]
    lines = [
        f"drawn futures that are whole    {figures['coherence']:.1%} of {figures['cases']} clips, "
        f"95 % interval {low:.1%} to {high:.1%}",
        f"shares of the futures           p = {figures['p_value']:.3f}: how often true draws are as far off",
    ]
    for part in ("frames", "motion") if "distance" in figures else ():
        generated, floor = (figures["distance"][side][part] for side in ("generated", "floor"))
        lines.append(f"Frechet distance, {part}        {generated:.5f}; of two true sets {floor:.5f}")
    for sentence, row in figures["sentences"].items():
        lines.append(f"  {sentence:22} {row['coherence']:6.1%} whole, p = {row['p_value']:.3f}")
        for outcome, seen in row["outcomes"].items():
            low, high = seen["interval"]
            lines.append(
                f"    {outcome:20} {seen['count']:4} clips, {low:.0%} to {high:.0%}; truth {seen['truth']:.0%}"
            )
    return lines
