"""The endpoints of the Videos API. Knows nothing of fields, of making or of files' forms."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import cv2
import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, Response
from starlette.concurrency import run_in_threadpool

from videomar.errors import InputError
from videomar.runtime.media import contact_sheet
from videomar.runtime.recording import load_clip
from videomar.serving.api.accept import Door
from videomar.serving.api.asked import whole_number
from videomar.serving.api.bodies import read_body
from videomar.serving.api.errors import ApiError, no_video
from videomar.serving.api.forms import video
from videomar.serving.api.watching import watched
from videomar.serving.jobs import COMPLETED, Job
from videomar.serving.keeping.place import Place
from videomar.serving.site import Site


def routes(site: Site) -> APIRouter:
    """All under /v1/videos but those that watch (watching.py)."""
    router, door = APIRouter(prefix="/v1/videos"), Door(site)

    def shown(job: Job) -> dict[str, Any]:
        return video(job, site.settings, site.live.progress(job.id), site.pipe.tokenizer.cut(job.prompt))

    def found(id: str) -> Job:
        job = site.store.get(id)
        if job is None:
            raise no_video(id)
        return job

    def forget(id: str) -> bool:
        there = site.store.forget(id)
        if there:
            site.maker.cancel(id)
            site.place.drop(id)
            site.live.changed()
        return there

    @router.post("")
    async def create(request: Request) -> dict[str, Any]:
        fields, data = await read_body(request)
        return shown(await door.create(request.state.client, fields, data))

    @router.post("/sync")
    async def sync(request: Request) -> Response:
        """Answers when the clip is made; a client that leaves before takes the job with it."""
        fields, data = await read_body(request)
        job = await door.create(request.state.client, fields, data)
        ended = await _while_connected(request, site, job.id)
        if ended is None:
            await run_in_threadpool(forget, job.id)
            raise ApiError(499, "the client has gone", code="cancelled")
        if ended.status != COMPLETED:
            raise ApiError(500, ended.error_message or "the clip could not be made", code=ended.error_code)
        return _clip(site.place, ended, {"x-video-id": job.id})

    @router.get("")
    def page(request: Request) -> dict[str, Any]:
        query = request.query_params
        order = query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise ApiError(400, f"order is {order!r:.60}, expected asc or desc", "order", "invalid_value")
        limit = whole_number(query, "limit", 1, 100) or 20
        try:
            jobs, more = site.store.page(query.get("after"), limit, order == "desc")
        except KeyError as error:
            message = f"after is {error.args[0]!r:.80}, expected a video's id"
            raise ApiError(400, message, "after", "not_found") from None
        return {
            "object": "list",
            "data": [shown(job) for job in jobs],
            "has_more": more,
            "first_id": jobs[0].id if jobs else None,
            "last_id": jobs[-1].id if jobs else None,
        }

    @router.get("/{id}")
    def one(id: str) -> dict[str, Any]:
        return shown(found(id))

    @router.delete("/{id}")
    def delete(id: str) -> dict[str, Any]:
        if not forget(id):
            raise no_video(id)
        return {"id": id, "object": "video.deleted", "deleted": True}

    @router.post("/{id}/remix")
    async def remix(id: str, request: Request) -> dict[str, Any]:
        fields, data = await read_body(request)
        if data is not None:
            raise ApiError(400, "input_reference is given, expected none: a remix has its picture", "input_reference")
        return shown(await door.remix(request.state.client, id, fields))

    @router.api_route("/{id}/content", methods=["GET", "HEAD"])
    def content(id: str, variant: str = "video") -> Response:
        if variant not in ("video", "thumbnail", "spritesheet"):
            raise ApiError(
                400, f"variant is {variant!r:.60}, expected video, thumbnail or spritesheet", "variant", "invalid_value"
            )
        job = found(id)
        if job.status != COMPLETED:
            raise ApiError(409, f"the video is {job.status}, expected completed; ask for its stream", code="not_ready")
        if variant == "video":
            return _clip(site.place, job, {})
        try:
            frames = load_clip(site.place.clip(id))
        except InputError:
            raise no_video(id) from None
        picture = (
            frames[len(frames) // 2] if variant == "thumbnail" else contact_sheet(frames[:: len(frames) // 16 + 1], 4)
        )
        return Response(_png(picture), media_type="image/png")

    return router


def _clip(place: Place, job: Job, headers: dict[str, str]) -> FileResponse:
    """The mp4; parts of it where a range is asked for."""
    file = place.clip(job.id)
    if not file.is_file():
        raise no_video(job.id)
    return FileResponse(file, headers=headers, media_type="video/mp4", filename=f"{job.id}.mp4")


def _png(picture: np.ndarray) -> bytes:
    return cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]))[1].tobytes()


async def _while_connected(request: Request, site: Site, id: str) -> Job | None:
    """The job once it has ended; None if it is gone, the server stops, or the client leaves first."""

    async def left() -> None:
        while not await request.is_disconnected():
            await asyncio.sleep(0.5)

    async def end() -> Job | None:
        last = None
        async for job in watched(site, id):
            last = job
        return last if last is not None and last.ended else None

    leaving, ending = asyncio.create_task(left()), asyncio.create_task(end())
    try:
        await asyncio.wait((leaving, ending), return_when=asyncio.FIRST_COMPLETED)
        return ending.result() if ending.done() else None
    finally:
        for task in (leaving, ending):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
