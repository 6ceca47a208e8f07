"""Requests without a picture: served where the model was trained for them, refused in words of the API elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from videomar.runtime.pipeline import NO_FRAMES

PROMPT = "a red circle falls"


@pytest.fixture(scope="module")
def sentence(serve: Callable[..., Any], tiny_artifacts: Path, from_text: Callable[[Path], Path]) -> Any:
    """A server of a model that makes first frames, too."""
    return serve(artifacts=from_text(tiny_artifacts), client=1000, queue=1000)


def test_a_request_without_a_picture_is_made_streamed_remixed_and_extended(sentence: Any, alone: Any) -> None:
    created = sentence.http.post("/v1/videos", json={"prompt": PROMPT, "seed": 4}).json()
    assert created["given_frames"] == 0
    assert sentence.ended(created["id"])["status"] == "completed"
    content = sentence.http.get(f"/v1/videos/{created['id']}/content").content
    assert content == alone(sentence.site.pipe, 4, NO_FRAMES)
    film = sentence.http.get(f"/v1/videos/{created['id']}/stream").content
    assert film == alone(sentence.site.pipe, 4, NO_FRAMES, film=True)
    remix = sentence.http.post(f"/v1/videos/{created['id']}/remix", json={"seed": 4, "num_frames": 1}).json()
    assert remix["given_frames"] == 0 and sentence.ended(remix["id"])["num_frames"] == 1
    further = sentence.http.post("/v1/videos", json={"prompt": PROMPT, "extend": created["id"]}).json()
    assert further["given_frames"] == 9 and sentence.ended(further["id"])["status"] == "completed"


def test_a_form_without_a_picture_and_one_with_a_picture_are_both_taken(sentence: Any) -> None:
    form = sentence.http.post("/v1/videos", data={"prompt": PROMPT, "num_frames": "9"})
    assert form.status_code == 200 and form.json()["given_frames"] == 0
    assert sentence.get(sentence.create(seed=1))["given_frames"] == 1


def test_the_model_says_whether_a_picture_may_be_left_out(sentence: Any, server: Any) -> None:
    assert [s.http.get("/v1/models").json()["data"][0]["from_text"] for s in (sentence, server)] == [True, False]


def test_a_model_that_needs_a_picture_says_so(server: Any) -> None:
    answer = server.http.post("/v1/videos", json={"prompt": PROMPT})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "input_reference"
    assert answer.json()["error"]["message"] == (
        "input_reference is missing, expected a picture or clip to continue: tiny was not trained to make a clip's "
        "first frame from the sentence alone"
    )


def test_frames_of_a_clip_that_was_not_sent_are_missed(sentence: Any) -> None:
    answer = sentence.http.post("/v1/videos", json={"prompt": PROMPT, "given": 9})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "given"
    assert answer.json()["error"]["message"].startswith("given is 9, but there is no input_reference")
