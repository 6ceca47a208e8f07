"""The API as its clients see it: the real `openai` package against a real server."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import socket
import time
from collections.abc import Callable
from typing import Any

import av
import numpy as np
import pytest

from videomar.serving.api import watching
from videomar.serving.jobs import QUEUED, new_id

openai = pytest.importorskip("openai", reason="needs the package openai: pip install openai")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
PROMPT = "a red circle falls"


def until(true: Callable[[], Any], seconds: float = 120.0) -> Any:
    """What it gives once that is true."""
    end = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.01)
    return value


@pytest.fixture(scope="module")
def client(server: Any) -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (16, 24, 3), np.uint8)


def png(seed: int) -> bytes:
    import cv2

    return cv2.imencode(".png", picture(seed)[..., ::-1])[1].tobytes()


def test_the_official_client_creates_polls_downloads_lists_and_deletes(client: Any, server: Any, alone: Any) -> None:
    video = client.videos.create_and_poll(
        prompt=PROMPT, input_reference=("start.png", png(3), "image/png"), extra_body={"seed": 3}, poll_interval_ms=50
    )
    assert (video.status, video.progress, video.size, video.model) == ("completed", 100, "24x16", "tiny")
    assert (video.object, video.prompt, video.error) == ("video", PROMPT, None)
    assert video.created_at <= video.completed_at < video.expires_at
    data = client.videos.download_content(video.id).read()
    assert data == alone(server.site.pipe._pipe, 3)
    assert client.videos.retrieve(video.id).id == video.id
    assert video.id in [each.id for each in client.videos.list(limit=1)]
    assert client.videos.delete(video.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(video.id)
    with pytest.raises(openai.NotFoundError):
        client.videos.download_content(video.id)


def test_json_with_a_data_url_asks_for_the_same_clip_as_a_form(server: Any, alone: Any) -> None:
    url = "data:image/png;base64," + base64.b64encode(png(4)).decode()
    for reference in (url, {"image_url": url}):
        asked = {"prompt": PROMPT, "input_reference": reference, "seed": 4, "size": "16x24", "mask_steps": 2}
        answer = server.http.post("/v1/videos/sync", json=asked)
        assert answer.status_code == 200 and answer.headers["content-type"] == "video/mp4"
        assert answer.content == alone(server.site.pipe._pipe, 4, width=16, height=24, mask_steps=2)


def test_a_client_that_waits_for_a_clip_and_leaves_takes_its_job_along(serve: Callable[..., Any]) -> None:
    server = serve()
    server.gate.shut()
    url = "data:image/png;base64," + base64.b64encode(png(0)).decode()
    body = json.dumps({"prompt": PROMPT, "input_reference": url}).encode()
    head = "POST /v1/videos/sync HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])), timeout=120) as connection:
        connection.sendall(head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body)
        until(lambda: server.site.store.counts()["in_progress"] == 1)
    until(lambda: server.site.store.known() == set())
    server.gate.open()
    until(lambda: not server.site.maker.busy)
    assert server.site.place.ids() == set()


def test_a_clip_under_which_servers_died_ten_times_fails_and_one_that_was_parked_as_often_is_made(server: Any) -> None:
    site, id = server.site, server.create()
    server.ended(id)
    for parked, code in ((0, "crashed"), (10, None)):
        job = dataclasses.replace(site.store.get(id), id=new_id(), status=QUEUED, attempts=10, parked=parked)
        site.place.put_given(job.id, site.place.given(id))
        site.store.add(job)
        site.maker.wake()
        assert (server.ended(job.id)["error"] or {}).get("code") == code


def test_clips_in_flight_together_are_each_what_they_are_alone(server: Any, alone: Any) -> None:
    asked = {seed: 9 + 8 * (seed % 3) for seed in range(10, 16)}
    ids = {seed: server.create(seed, num_frames=frames) for seed, frames in asked.items()}
    for seed, id in ids.items():
        assert server.ended(id)["status"] == "completed"
        data = server.http.get(f"/v1/videos/{id}/content").content
        assert data == alone(server.site.pipe._pipe, seed, frames=asked[seed])


def test_seconds_become_the_nearest_number_of_frames_and_come_back(client: Any, server: Any) -> None:
    video = client.videos.create(
        prompt=PROMPT, input_reference=png(0), seconds="2", extra_body={"fps": 8, "mask_steps": 1}
    )
    assert server.get(video.id)["num_frames"] == 17 and float(video.seconds) == pytest.approx(17 / 8)
    client.videos.delete(video.id)


def test_parts_of_a_clip_can_be_asked_for_and_only_its_head(server: Any) -> None:
    id = server.create()
    server.ended(id)
    url = f"/v1/videos/{id}/content"
    whole = server.http.get(url)
    part = server.http.get(url, headers={"range": "bytes=10-29"})
    assert part.status_code == 206 and part.content == whole.content[10:30]
    assert part.headers["content-range"] == f"bytes 10-29/{len(whole.content)}"
    assert server.http.get(url, headers={"range": "bytes=999999999-"}).status_code == 416
    head = server.http.head(url)
    assert head.content == b"" and int(head.headers["content-length"]) == len(whole.content)
    for variant in ("thumbnail", "spritesheet"):
        assert server.http.get(url, params={"variant": variant}).content.startswith(b"\x89PNG")


def test_the_list_pages_through_all_jobs_without_repeating_one(server: Any) -> None:
    made = [server.create(seed) for seed in range(5)]
    for id in made:
        server.ended(id)
    seen: list[str] = []
    after = None
    while True:
        page = server.http.get("/v1/videos", params={"limit": 2} | ({"after": after} if after else {})).json()
        seen += [job["id"] for job in page["data"]]
        if not page["has_more"]:
            break
        after = page["last_id"]
    assert seen[:5] == made[::-1] and len(seen) == len(set(seen))


def test_a_stream_shows_frames_while_the_clip_is_made_and_late_joiners_begin_at_the_start(server: Any) -> None:
    server.gate.shut()
    id = server.create(7)
    steps = server.get(id)["steps"]
    server.gate.let(steps - 1)  # the last of three latent frames is missing
    data = b""
    with server.http.stream("GET", f"/v1/videos/{id}/stream") as answer:
        assert answer.headers["content-type"].startswith('video/mp4; codecs="avc1.')
        chunks = answer.iter_raw()
        while count_frames(data) < 9:
            data += next(chunks)
        assert server.get(id)["status"] == "in_progress"
        with server.http.stream("GET", f"/v1/videos/{id}/stream") as late:
            later = b""
            for chunk in late.iter_raw():
                later += chunk
                server.gate.open()
        data += b"".join(chunks)
    assert later == data and count_frames(data) == 17
    codec = answer.headers["content-type"].split('"')[1]
    at = data.index(b"avcC") + 5
    assert codec == f"avc1.{data[at : at + 3].hex()}"


def count_frames(data: bytes) -> int:
    import io

    try:
        with av.open(io.BytesIO(data)) as container:
            return sum(1 for _ in container.decode(video=0))
    except av.FFmpegError:
        return 0


def test_a_reader_that_takes_nothing_holds_up_nobody(server: Any) -> None:
    server.gate.shut()
    id = server.create(8)
    with server.http.stream("GET", f"/v1/videos/{id}/stream"):
        server.gate.open()
        assert server.ended(id)["status"] == "completed"


def events(server: Any, id: str) -> Any:
    with server.http.stream("GET", f"/v1/videos/{id}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        name = ""
        for line in answer.iter_lines():
            if line.startswith("event: "):
                name = line[7:]
            if line.startswith("data: "):
                yield name, json.loads(line[6:])


def test_events_tell_the_place_in_the_queue_then_the_steps_then_the_end(server: Any) -> None:
    server.gate.shut()
    before = [server.create(0)]
    until(lambda: server.site.store.counts()["in_progress"] == 1)  # and stands in a step until the gate opens
    before += [server.create(seed) for seed in (1, 2)]
    id = server.create(9)
    told = events(server, id)
    waits = {"status": "queued", "progress": 0, "steps": server.get(id)["steps"], "position": 2}
    assert next(told) == ("progress", waits)
    server.gate.open()
    rest = list(told)
    steps = [data["step"] for _, data in rest if "step" in data]
    assert steps == sorted(steps)
    assert rest[-1][0] == "done" and rest[-1][1]["status"] == "completed" and rest[-1][1]["progress"] == 100
    for each in before:
        server.ended(each)


def test_a_deleted_clip_stops_at_its_next_step_and_its_watchers_are_told(server: Any) -> None:
    server.gate.shut()
    id = server.create(1)
    told = events(server, id)
    while next(told)[1]["status"] != "in_progress":
        pass
    (making,) = (m for key, m in server.site.maker._making.items() if key == id)
    assert server.http.delete(f"/v1/videos/{id}").json() == {"id": id, "object": "video.deleted", "deleted": True}
    server.gate.let(2)
    assert list(told)[-1][0] == "gone"
    server.gate.open()
    after = server.create(2)
    assert server.ended(after)["status"] == "completed"
    assert making.run.done <= 2 and not making.run._open
    assert id not in server.site.place.ids()


def test_a_remix_keeps_picture_and_options_and_says_where_it_comes_from(server: Any, alone: Any) -> None:
    id = server.create(5, mask_steps=2)
    answer = server.http.post(f"/v1/videos/{id}/remix", json={"prompt": PROMPT, "seed": 6}).json()
    assert answer["remixed_from_video_id"] == id and answer["sampling"]["mask_steps"] == 2
    server.ended(answer["id"])
    data = server.http.get(f"/v1/videos/{answer['id']}/content").content
    assert data == alone(server.site.pipe._pipe, 6, picture(5), mask_steps=2)


def test_a_clip_goes_on_from_the_last_frames_of_a_finished_one(server: Any) -> None:
    id = server.create(5)
    server.ended(id)
    frames = frames_of(server.http.get(f"/v1/videos/{id}/content").content)
    answer = server.http.post("/v1/videos", json={"prompt": PROMPT, "extend": id}).json()
    assert answer["given_frames"] == 9
    assert np.array_equal(server.site.place.given(answer["id"]), frames[-9:])
    assert server.ended(answer["id"])["status"] == "completed"


def frames_of(data: bytes) -> np.ndarray:
    import tempfile

    from videomar.runtime.recording import load_clip

    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        file.write(data)
        file.flush()
        return load_clip(file.name)


def test_an_uploaded_clip_is_continued(server: Any) -> None:
    id = server.create(5)
    server.ended(id)
    clip = server.http.get(f"/v1/videos/{id}/content").content
    answer = server.http.post("/v1/videos", data={"prompt": PROMPT}, files={"input_reference": ("a.mp4", clip)})
    assert answer.json()["given_frames"] == 9
    server.ended(answer.json()["id"])


def test_models_health_and_figures_are_told(server: Any) -> None:
    (model,) = server.http.get("/v1/models").json()["data"]
    assert (model["id"], model["task"], model["precision"]) == ("tiny", "image-to-video", "fp32")
    assert server.http.get("/v1/models/tiny").json() == model
    assert server.http.get("/health").status_code == server.http.get("/ready").status_code == 200
    server.ended(server.create())
    text = server.http.get("/metrics").text
    for name in (
        "videomar_queue_length 0.0",
        'videomar_clips_total{outcome="completed"}',
        "videomar_first_frame_seconds_count",
        "videomar_clip_seconds_count",
        'videomar_stage_seconds_total{stage="head"}',
        "videomar_memory_bytes",
        "videomar_steps_total",
    ):
        assert name in text


def test_a_full_queue_and_a_full_share_say_when_to_come_again(serve: Callable[..., Any]) -> None:
    server = serve(queue=2, client=4, in_flight=1)
    server.gate.shut()
    server.create()
    until(lambda: server.site.store.counts()["in_progress"] == 1)
    server.create(), server.create()
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)
    with pytest.raises(openai.RateLimitError) as failure:
        client.videos.create(prompt=PROMPT, input_reference=png(0))
    assert int(failure.value.response.headers["retry-after"]) >= 1
    assert failure.value.code == "rate_limit_exceeded"


def test_a_clip_that_never_fits_is_refused_and_one_that_does_not_fit_now_waits(serve: Callable[..., Any]) -> None:
    server = serve(in_flight=4)
    budget = server.site.budget
    one = budget.need(server.site.pipe.config.sampling, 1)
    object.__setattr__(budget, "total", one.shared + 2 * one.own)
    refused = server.http.post(
        "/v1/videos", data={"prompt": PROMPT, "num_frames": "257"}, files={"input_reference": png(0)}
    )
    assert refused.status_code == 400 and "memory" in refused.json()["error"]["message"]
    server.gate.shut()
    ids = [server.create(seed) for seed in range(3)]
    server.gate.let(2)  # clips enter between steps
    states = {"in_progress": 2, "queued": 1}
    while (now := {k: v for k, v in server.site.store.counts().items() if v}) != states:
        assert now.get("in_progress", 0) <= 2
    server.gate.open()
    assert [server.ended(id)["status"] for id in ids] == ["completed"] * 3


def test_keys_are_asked_for_everywhere_but_at_the_page_and_the_probes(serve: Callable[..., Any]) -> None:
    server = serve(keys=("k" * 20, "another key of 20 ch".replace(" ", "-")))
    for path in ("/", "/health", "/ready"):
        assert server.http.get(path).status_code == 200
    for path in ("/v1/videos", "/v1/models", "/metrics", "/v1/videos/x/stream", "/nothing"):
        answer = server.http.get(path)
        assert answer.status_code == 401 and answer.json()["error"]["type"] == "authentication_error"
        assert server.http.get(path, headers={"authorization": "Bearer wrong"}).status_code == 401
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="k" * 20)
    assert client.videos.list().data == []


def test_pages_of_other_places_and_other_names_of_this_machine_are_refused(server: Any) -> None:
    for headers in ({"origin": "https://evil.example"}, {"host": "evil.example"}, {"origin": "null"}):
        answer = server.http.get("/v1/videos", headers=headers)
        assert answer.status_code == 403, headers
        assert "access-control-allow-origin" not in answer.headers
    assert server.http.get("/v1/videos", headers={"origin": server.url}).status_code == 200


def test_every_answer_carries_the_safe_headers_and_names_no_server(server: Any) -> None:
    for path in ("/", "/v1/videos", "/nothing", "/v1/videos/video_x"):
        headers = server.http.get(path).headers
        assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
        assert "default-src 'none'" in headers["content-security-policy"] and "server" not in headers


@pytest.mark.filterwarnings("ignore::videomar.runtime.prompt.PromptCut")
def test_a_prompt_of_which_the_end_is_not_read_says_so_in_its_job(server: Any) -> None:
    id = server.create(prompt="a red circle moves right a red circle moves")  # nine words, of which eight are read
    assert server.get(id)["note"] == "the prompt has 9 tokens, of which the model reads 8"
    assert server.get(server.create())["note"] is None


def test_a_client_with_its_share_waits_while_another_is_served(serve: Callable[..., Any]) -> None:
    keys = ("one" * 8, "two" * 8)
    server = serve(keys=keys, client=2, in_flight=1)
    server.gate.shut()

    def ask(key: str) -> Any:
        headers = {"authorization": f"Bearer {key}"}
        return server.http.post(
            "/v1/videos", data={"prompt": PROMPT}, files={"input_reference": png(0)}, headers=headers
        )

    assert [ask(keys[0]).status_code for _ in range(3)] == [200, 200, 429]
    full = ask(keys[0])
    assert "2 of your jobs" in full.json()["error"]["message"] and int(full.headers["retry-after"]) >= 1
    assert ask(keys[1]).status_code == 200


def test_no_page_elsewhere_may_call_unless_it_is_named(server: Any, serve: Callable[..., Any]) -> None:
    page = "https://studio.example"
    asks = {"origin": page, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    for method, headers in (("OPTIONS", asks), ("GET", {"origin": page})):
        answer = server.http.request(method, "/v1/videos", headers=headers)
        assert answer.status_code == 403
        assert not [name for name in answer.headers if name.startswith("access-control")]
    lets = serve(origins=(page,), keys=("k" * 20,))  # of which a browser's first question holds none
    answer = lets.http.options("/v1/videos", headers=asks)
    assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == page
    assert "access-control-allow-credentials" not in answer.headers
    answer = lets.http.get("/v1/videos", headers={"origin": page, "authorization": "Bearer " + "k" * 20})
    assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == page
    assert lets.http.get("/v1/videos", headers={"origin": page}).status_code == 401
    assert lets.http.get("/v1/videos", headers={"origin": "https://evil.example"}).status_code == 403


def test_a_body_that_never_ends_is_given_up(serve: Callable[..., Any]) -> None:
    server = serve(body_seconds=0.2)
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])), timeout=120) as connection:
        head = (
            "POST /v1/videos HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n"
        )
        connection.sendall(head.encode() + b"{")
        data = b""
        while b"\r\n\r\n{" not in data:
            data += connection.recv(1 << 16)
    assert data.startswith(b"HTTP/1.1 408 ") and b"more than 0.2 s" in data


def test_a_reader_that_takes_nothing_of_a_stream_for_long_is_given_up(serve: Callable[..., Any]) -> None:
    server = serve(stalled_seconds=0.2)
    id = server.create(8)
    server.ended(id)
    film = server.site.place.stream(id, 1)
    film.write_bytes(bytes(64 << 20))  # more than the buffers between two sockets hold
    given_up = []
    _patient, stream = watching._Patient, watching._Patient.stream_response

    async def told(self: Any, send: Any) -> None:
        try:
            await stream(self, send)
        except (TimeoutError, asyncio.TimeoutError):
            given_up.append(True)
            raise

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_patient, "stream_response", told)
        with server.http.stream("GET", f"/v1/videos/{id}/stream"):
            until(lambda: given_up)
    film.unlink()


def test_a_prompt_that_the_model_cannot_read_is_said_in_words_of_the_api(server: Any) -> None:
    answer = server.http.post("/v1/videos", data={"prompt": "zebra " * 3}, files={"input_reference": png(0)})
    error = answer.json()["error"]
    assert answer.status_code == 400 and set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error" and "zebra" in error["message"]
