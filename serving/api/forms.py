"""Jobs as the API shows them. Knows nothing of HTTP."""

from __future__ import annotations

import json
import math
from typing import Any

from videomar.serving.jobs import COMPLETED, IN_PROGRESS, QUEUED, Job
from videomar.serving.live import Progress
from videomar.serving.settings import Settings


def video(job: Job, settings: Settings, progress: Progress | None, note: str | None) -> dict[str, Any]:
    """A `video` object of the Videos API, with this server's own fields behind; note: what its client should know."""
    ends = job.completed_at + settings.keep if job.completed_at is not None and settings.keep is not None else None
    error = None if job.error_code is None else {"code": job.error_code, "message": job.error_message}
    return {
        "id": job.id,
        "object": "video",
        "status": job.status,
        "progress": _percent(job, progress),
        "created_at": int(job.created_at),
        "completed_at": None if job.completed_at is None else int(job.completed_at),
        "expires_at": None if ends is None else int(ends),
        "error": error,
        "model": job.model,
        "prompt": job.prompt,
        "note": note,
        "seconds": f"{job.frames / job.fps:g}",
        "size": f"{job.width}x{job.height}",
        "remixed_from_video_id": job.remix_of,
        "seed": job.seed,
        "fps": job.fps,
        "num_frames": job.frames,
        "given_frames": job.given,
        "steps": job.steps,
        "sampling": json.loads(job.sampling),
    }


def event(job: Job, position: int | None, progress: Progress | None) -> dict[str, Any]:
    """What a watcher of a job is told."""
    shown: dict[str, Any] = {"status": job.status, "progress": _percent(job, progress), "steps": job.steps}
    if job.status == QUEUED:
        shown["position"] = position
    if job.status == IN_PROGRESS:
        shown["step"] = job.step if progress is None else progress.step
        if progress is not None:
            left = progress.seconds_left
            shown |= {"frame": progress.frame, "frames": progress.frames}
            shown["seconds_left"] = None if left is None else round(left, 1 if left < 10 else None)
    if job.error_code is not None:
        shown["error"] = {"code": job.error_code, "message": job.error_message}
    return shown


def _percent(job: Job, progress: Progress | None) -> int:
    """100 only once it is completed."""
    if job.status == COMPLETED:
        return 100
    step = job.step if progress is None else progress.step
    return min(99, math.floor(100 * step / max(1, job.steps)))
