from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass

import pytest

from videomar.parity.reporting.training import picture


@dataclass(frozen=True)
class Row:
    stage: int
    step: int
    loss: float
    held_out: float


@pytest.mark.parametrize("first", [0.5, 500.0])
def test_a_run_is_a_file_that_any_viewer_shows_with_its_stages_and_both_losses(first: float) -> None:
    rows = [Row(1, 0, first, first), Row(1, 100, 0.4, 0.45), Row(2, 200, 0.3, 0.35), Row(2, 250, 0.2, 0.3)]
    root = ET.fromstring(picture(rows))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"stage 1", "stage 2", "step 250", "training", "held out"} <= texts
    curves = [e.get("points", "").split() for e in root.iter("{http://www.w3.org/2000/svg}polyline")]
    assert sum(len(points) == 4 for points in curves) == 2


def test_a_run_of_one_row_is_drawn() -> None:
    assert "stage 1" in picture([Row(1, 0, 0.5, 0.5)])
