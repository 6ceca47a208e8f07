"""The application: endpoints of one site behind its guard, and what starts and ends with it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.middleware.cors import CORSMiddleware

from videomar.serving.api import errors, page, status, videos, watching
from videomar.serving.api.guard import Guard
from videomar.serving.site import Site

log = logging.getLogger("videomar.serving")
TIDY = 30.0  # seconds between looks at what has to go


def make_app(site: Site) -> FastAPI:
    """The application of a site, which it starts and closes."""

    @contextlib.asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        site.live.attach(asyncio.get_running_loop())
        await site.decoder.start()
        site.maker.start()
        tidying = asyncio.create_task(_tidy(site))
        try:
            yield
        finally:
            tidying.cancel()
            if not site.maker.stopping:  # of a fleet; a server's own has had its grace before (serving/server.py)
                site.maker.stop(site.settings.grace)
                await run_in_threadpool(site.maker.join)
            await site.decoder.close()
            await run_in_threadpool(site.close)

    # No pages of documentation: FastAPI's load scripts from elsewhere.
    app = FastAPI(title="videomar", lifespan=life, docs_url=None, redoc_url=None, openapi_url=None)
    errors.install(app)
    for part in (page, status, watching, videos):
        app.include_router(part.routes(site))
    if site.settings.origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=site.settings.origins, allow_methods=["*"], allow_headers=["*"]
        )
    app.add_middleware(Guard, settings=site.settings, meters=site.meters)
    return app


async def _tidy(site: Site) -> None:
    while True:
        try:
            await run_in_threadpool(site.housekeeping.tidy)
        except Exception:
            log.exception("tidying up has failed")
        await asyncio.sleep(TIDY)
