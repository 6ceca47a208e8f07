"""What stands before every endpoint: who may ask, how large a body may be and how long it may take, safe headers.

Plain ASGI, so that a stream passes through unbuffered and a body is refused before it has been read.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from videomar.serving.api.errors import ApiError
from videomar.serving.meters import Meters
from videomar.serving.settings import LOOPBACK, Settings

OPEN = ("/", "/health", "/ready")  # without a key: nothing of anybody's is told there
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
STRICT = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
UNKEPT = (b"cache-control", b"no-store")


class Guard:
    """Wraps an application; sets `scope["state"]["client"]` to who asks."""

    def __init__(self, app: ASGIApp, settings: Settings, meters: Meters) -> None:
        self._app, self._settings, self._meters = app, settings, meters
        self._keys = [hashlib.sha256(key.encode()).digest() for key in settings.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name: value for name, value in scope["headers"]}
        started = False

        async def answer(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self._meters.requests.labels(str(message["status"])).inc()
                message["headers"] = _with(message.get("headers", []), (*HEADERS, STRICT, UNKEPT))
            await send(message)

        try:
            self._host(headers)
            self._origin(headers)
            scope.setdefault("state", {})["client"] = self._client(scope, headers)
            await self._app(scope, self._limited(headers, receive), answer)
        except ApiError as error:
            if started:
                raise
            await error.response()(scope, receive, answer)

    def _host(self, headers: dict[bytes, bytes]) -> None:
        """Only names of this machine, where only this machine is meant: another name was made to point here."""
        if self._settings.host in LOOPBACK:
            host = urlsplit(f"//{headers.get(b'host', b'').decode('latin1')}").hostname
            if host not in LOOPBACK:
                raise ApiError(403, f"the host is {host!r:.80}, expected localhost", code="host")

    def _origin(self, headers: dict[bytes, bytes]) -> None:
        """Pages of other places may not ask, not even without reading the answer."""
        origin = headers.get(b"origin", b"").decode("latin1")
        own = urlsplit(origin).netloc == headers.get(b"host", b"").decode("latin1")
        if origin and not own and origin not in self._settings.origins:
            raise ApiError(403, f"pages of {origin:.80} may not use this server", code="origin")

    def _client(self, scope: Scope, headers: dict[bytes, bytes]) -> str:
        address = (scope.get("client") or ("unknown",))[0]
        # What a browser asks before a page of `--allow-origin` may ask; answered before any endpoint.
        first = scope["method"] == "OPTIONS" and b"access-control-request-method" in headers
        if not self._keys or scope["path"] in OPEN or (first and self._settings.origins):
            return f"address {address}"
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        digest = hashlib.sha256(key.strip()).digest()
        # All of them, of equal length: the time tells neither which key was near nor how near.
        if not sum([hmac.compare_digest(digest, known) for known in self._keys]) or scheme.lower() != b"bearer":
            message = "the API key is missing or wrong, expected one as `Authorization: Bearer KEY`"
            raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        return f"key {digest.hex()[:16]}"

    def _limited(self, headers: dict[bytes, bytes], receive: Receive) -> Receive:
        """The body, as long as it stays within its bytes and its time."""
        limits = self._settings.limits
        most = limits.upload
        too_large = ApiError(413, f"the body is larger than {most} bytes; send a smaller picture", code="too_large")
        announced = headers.get(b"content-length", b"0")
        if not announced.isdigit() or int(announced[:20]) > most:
            raise too_large
        taken, whole = 0, False
        deadline = asyncio.get_running_loop().time() + limits.body_seconds

        async def limited() -> Message:
            nonlocal taken, whole
            if whole:  # from here on it is the client's leaving that is waited for
                return await receive()
            try:
                left = deadline - asyncio.get_running_loop().time()
                message = await asyncio.wait_for(receive(), max(0.001, left))
            except (TimeoutError, asyncio.TimeoutError):
                raise ApiError(408, f"the body took more than {limits.body_seconds:g} s", code="timeout") from None
            taken += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if taken > most:
                raise too_large
            return message

        return limited


def _with(headers: list[tuple[bytes, bytes]], more: tuple[tuple[bytes, bytes], ...]) -> list[tuple[bytes, bytes]]:
    there = {name.lower() for name, _ in headers}
    return [*headers, *((name, value) for name, value in more if name not in there)]
