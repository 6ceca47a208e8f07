"""Five hundred malformed requests: only the client's errors, in the API's form, and the server is what it was."""

from __future__ import annotations

import json
import random
import socket
import struct
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import cv2
import numpy as np

from videomar.runtime.probes import resident
from videomar.runtime.system import System

CASES = 500
ODD = [
    None,
    True,
    -1,
    0,
    1e308,
    10**40,
    "",
    "x" * 5000,
    "\u0000",
    [],
    [1],
    {},
    {"a": {}},
    "nan",
    "../../etc/passwd",
    "64x64x64",
]
FIELDS = "prompt size seconds num_frames fps seed mask_steps head_steps temperature model given extend".split()
REFERENCES: list[Any] = [
    "http://169.254.169.254/latest/meta-data",
    "file:///etc/passwd",
    "/etc/passwd",
    "data:image/png;base64,////",
    "data:image/png;base64,AAAA",
    {"image_url": "https://example.org/a.png"},
    {"file_id": "file-1"},
    {"image_url": {"url": "file:///etc/passwd"}},
    7,
    [],
]
PATHS = ["/v1/videos/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "/v1/videos/../../etc/passwd", "/v1/videos/video_%00/content",
         "/v1/videos/x/content?variant=../..", "/v1/videos?limit=-1", "/v1/videos?limit=zebra", "/v1/videos?order=up",
         "/v1/models/..", "/v1/videos/" + "a" * 3000, "/static/../page.html"]  # fmt: skip


def test_malformed_requests_are_the_clients_errors_and_leave_no_trace(server: Any, serve: Callable[..., Any]) -> None:
    rng, system = random.Random(14), System()
    kinds = [*KINDS, partial(wrong_key, serve(keys=("k" * 20,)))]
    before, statuses = 0, set()
    for case in range(CASES):
        status, text = kinds[case % len(kinds)](server, rng)
        statuses.add(status)
        assert 400 <= status < 500, (case, status, text[:300])
        error = json.loads(text)["error"]
        assert set(error) == {"message", "type", "param", "code"} and "Traceback" not in text
        if case == CASES // 3:
            before = resident(system)
    assert resident(system) - before < 32 << 20
    assert {400, 401, 404, 413, 415} <= statuses
    assert (
        server.site.store.counts() == dict.fromkeys(server.site.store.counts(), 0) and server.site.place.ids() == set()
    )
    assert server.ended(server.create())["status"] == "completed"


def odd_json(server: Any, rng: random.Random) -> tuple[int, str]:
    body = {name: rng.choice(ODD) for name in rng.sample(FIELDS, rng.randint(1, 5))}
    body["seconds"], body["num_frames"] = rng.choice(ODD[4:8]), rng.choice(ODD[2:5])
    answer = server.http.post("/v1/videos", content=json.dumps(body), headers={"content-type": "application/json"})
    return answer.status_code, answer.text


def odd_reference(server: Any, rng: random.Random) -> tuple[int, str]:
    body = {"prompt": "a red circle falls", "input_reference": rng.choice(REFERENCES)}
    answer = server.http.post(rng.choice(["/v1/videos", "/v1/videos/sync"]), json=body)
    return answer.status_code, answer.text


def no_json(server: Any, rng: random.Random) -> tuple[int, str]:
    bodies = [b"{", b"[" * 100_000, b'{"prompt": NaN}', b"\xff\xfe", b'{"seed": ' + b"9" * 10_000 + b"}", b"null", b"3"]
    kind = rng.choice(["application/json", "application/json; charset=utf-16", "text/plain", "application/xml"])
    answer = server.http.post("/v1/videos", content=rng.choice(bodies), headers={"content-type": kind})
    return answer.status_code, answer.text


def odd_form(server: Any, rng: random.Random) -> tuple[int, str]:
    data = {rng.choice(FIELDS): rng.choice(["", "x", "-1", "1e999", "9" * 3000]) for _ in range(3)} | {"zebra": "1"}
    file = rng.choice(
        [b"", rng.randbytes(2000), b"\x89PNG\r\n\x1a\n" + rng.randbytes(200), b"#EXTM3U\nfile:///etc/passwd"]
    )
    if rng.random() < 0.5:
        data = {"prompt": "a red circle falls"}
    answer = server.http.post("/v1/videos", data=data, files={"input_reference": ("../../a.png", file)})
    return answer.status_code, answer.text


def cut_form(server: Any, rng: random.Random) -> tuple[int, str]:
    whole = b'--b\r\nContent-Disposition: form-data; name="input_reference"; filename="a"\r\n\r\nabc\r\n--b--\r\n'
    kind = rng.choice(["multipart/form-data; boundary=b", "multipart/form-data", "multipart/form-data; boundary=c"])
    body = whole[: rng.randrange(len(whole))]
    answer = server.http.post("/v1/videos", content=body, headers={"content-type": kind})
    return answer.status_code, answer.text


def odd_path(server: Any, rng: random.Random) -> tuple[int, str]:
    """As it stands: a client's library would tidy it up."""
    method = rng.choice(["GET", "DELETE", "POST", "PUT", "PATCH"])
    path = rng.choice(PATHS)
    if method == "GET" and path.startswith("/v1/videos?"):
        path = rng.choice(["/v1/videos?limit=-1", "/v1/videos?limit=zebra", "/v1/videos?order=up"])
    return raw(server, f"{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")


def too_large(server: Any, rng: random.Random) -> tuple[int, str]:
    length = rng.choice(["99999999999", "33554433"])
    head = "POST /v1/videos HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n"
    return raw(server, f"{head}content-length: {length}\r\n\r\n{{")


def bomb(server: Any, rng: random.Random) -> tuple[int, str]:
    """A picture of a few bytes that says it is large."""
    data = bytearray(cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes())
    data[16:24] = struct.pack(">II", rng.choice([8192, 50_000]), rng.choice([8192, 2**31 - 1]))
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    files = {"input_reference": ("a.png", bytes(data), "image/png")}
    answer = server.http.post("/v1/videos", data={"prompt": "a red circle falls"}, files=files)
    return answer.status_code, answer.text


def wrong_key(keyed: Any, server: Any, rng: random.Random) -> tuple[int, str]:
    """To a server that has keys."""
    given = rng.choice(["", "Bearer", "Bearer " + "k" * 19, "Basic " + "k" * 20, "Bearer " + "x" * 5000, "k" * 20])
    method, path = rng.choice([("GET", "/v1/videos"), ("POST", "/v1/videos"), ("GET", "/metrics"), ("DELETE", "/v1/x")])
    answer = keyed.http.request(method, path, headers={"authorization": given})
    return answer.status_code, answer.text


def raw(server: Any, request: str) -> tuple[int, str]:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=120) as connection:
        connection.sendall(request.encode())
        data = b""
        while chunk := connection.recv(1 << 16):
            data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode()


KINDS = [odd_json, odd_reference, no_json, odd_form, cut_form, odd_path, too_large, bomb]
