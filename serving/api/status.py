"""What the server is and how it fares: models, health, readiness, figures. Knows nothing of jobs' contents."""

from __future__ import annotations

import dataclasses
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from videomar.quality import LEVELS
from videomar.serving.api.errors import ApiError
from videomar.serving.jobs import QUEUED
from videomar.serving.site import Site


def routes(site: Site) -> APIRouter:
    """/v1/models, /health, /ready, /metrics."""
    router, config = APIRouter(), site.pipe.config

    def model() -> dict[str, Any]:
        limits, tokenizer = site.settings.limits, config.tokenizer
        return {
            "id": config.name,
            "object": "model",
            "created": 0,
            "owned_by": "videomar",
            "task": "image-to-video",
            "precision": site.budget.manifest.precision,
            "backend": site.pipe.backend.name,
            "defaults": dataclasses.asdict(config.sampling),
            "levels": LEVELS,
            "from_text": config.from_text,  # whether a request may leave the picture out
            "frame_stride": tokenizer.temporal_stride,
            "size_stride": tokenizer.spatial_stride,
            "limits": {
                "frames": limits.frames,
                "size": limits.size,
                "head_steps": min(limits.head_steps, config.head.train_steps),
                "steps": limits.steps,
                "prompt": limits.prompt,
                "prompt_tokens": config.text.max_tokens,
                "upload": limits.upload,
            },
        }

    @router.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [model()]}

    @router.get("/v1/models/{name}")
    def one(name: str) -> Response:
        if name != config.name:
            raise ApiError(404, f"there is no model {name!r:.80}, this server has {config.name}", "model", "not_found")
        return JSONResponse(model())

    @router.get("/health")
    def health() -> Response:
        """Whether the process should go on living."""
        return JSONResponse({"status": "ok"}) if site.maker.alive else JSONResponse({"status": "failed"}, 503)

    @router.get("/ready")
    def ready() -> Response:
        """Whether it takes clips."""
        good = site.maker.alive and not site.maker.stopping
        return JSONResponse({"status": "ready"}) if good else JSONResponse({"status": "stopping"}, 503)

    @router.get("/metrics")
    def metrics() -> Response:
        return Response(site.meters.text(lambda: site.store.counts()[QUEUED]), media_type=CONTENT_TYPE_LATEST)

    return router
