"""Watching a clip being made: its stream and its events. A reader takes from a file at its own pace, so that a slow one
neither holds up the making nor fills memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.types import Send

from videomar.serving.api.errors import no_video
from videomar.serving.api.forms import event
from videomar.serving.jobs import COMPLETED, QUEUED, Job
from videomar.serving.making.film import content_type
from videomar.serving.site import Site

CHUNK = 64 << 10  # bytes of a stream in memory, each reader
QUIET = 10.0  # seconds without an event before a comment says that the line is alive
ELSEWHERE = 0.5  # seconds between looks at a job that another server makes


class Broken(Exception):
    """A stream that cannot be completed; the connection ends without the mark of a whole answer."""


def routes(site: Site) -> APIRouter:
    """What can be watched under /v1/videos/{id}."""
    router = APIRouter(prefix="/v1/videos/{id}")

    async def found(id: str) -> Job:
        job = await run_in_threadpool(site.store.get, id)
        if job is None:
            raise no_video(id)
        return job

    @router.get("/stream")
    async def stream(id: str) -> StreamingResponse:
        job = await found(id)
        kind = await run_in_threadpool(content_type, job.width, job.height, job.fps)
        return _Patient(_fragments(site, id), site.settings.limits.stalled_seconds, kind)

    @router.get("/events")
    async def events(id: str) -> StreamingResponse:
        await found(id)
        return _Patient(_events(site, id), site.settings.limits.stalled_seconds, "text/event-stream")

    return router


async def watched(site: Site, id: str, quiet: float | None = None) -> AsyncIterator[Job | None]:
    """A job each time that it may have changed, the last time when it has ended; nothing more once it is gone.

    quiet: also None after so many seconds without a change.
    """
    loop = asyncio.get_running_loop()
    with site.live.watch(id) as watch:
        silent = loop.time()
        while (job := await run_in_threadpool(site.store.get, id)) is not None and not site.live.stopping:
            yield job
            if job.ended:
                return
            here = site.live.progress(id) is not None
            changed = await watch.wait(QUIET if here or site.alone else ELSEWHERE)
            if changed:
                silent = loop.time()
            elif quiet is not None and loop.time() - silent >= quiet:
                silent = loop.time()
                yield None


async def _events(site: Site, id: str) -> AsyncIterator[bytes]:
    last: dict[str, Any] = {}
    async for job in watched(site, id, QUIET):
        if job is None:
            yield b": still here\n\n"
            continue
        position = await run_in_threadpool(site.position, id) if job.status == QUEUED else None
        now = event(job, position, site.live.progress(id))
        if now != last:
            last = now
            name = "done" if job.ended else "progress"
            yield f"event: {name}\ndata: {json.dumps(now)}\n\n".encode()
    if last.get("status") not in ("completed", "failed"):
        yield b'event: gone\ndata: {"status": "gone"}\n\n'


async def _fragments(site: Site, id: str) -> AsyncIterator[bytes]:
    """The film of a clip as it grows, from its start.

    A clip that begins anew elsewhere, since its worker has died, grows by the same bytes: the stream goes on in the
    new film where the old one broke off.
    """
    file, attempt, sent = None, 0, 0
    try:
        async for job in watched(site, id):
            if job is None or job.status == QUEUED:
                continue
            if file is None or job.attempts != attempt:
                try:
                    newer = await run_in_threadpool(open, site.place.stream(id, job.attempts), "rb", 0)
                except FileNotFoundError:
                    continue  # claimed, and not begun
                if file is not None:
                    file.close()
                file, attempt = newer, job.attempts
                file.seek(sent)
            while data := await run_in_threadpool(file.read, CHUNK):
                sent += len(data)
                yield data
            if job.status == COMPLETED:
                return
        raise Broken(id)
    finally:
        if file is not None:
            file.close()


class _Patient(StreamingResponse):
    """Gives up a reader that takes nothing for long."""

    def __init__(self, content: AsyncIterator[bytes], stalled: float, kind: str) -> None:
        super().__init__(content, media_type=kind, headers={"x-accel-buffering": "no"})
        self._stalled = stalled

    async def stream_response(self, send: Send) -> None:
        async def timed(message: Any) -> None:
            await asyncio.wait_for(send(message), self._stalled)

        await super().stream_response(timed)
