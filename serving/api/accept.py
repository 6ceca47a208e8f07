"""A request for a clip -> an accepted job: checked whole, before anything is kept. One way in for every endpoint."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from starlette.concurrency import run_in_threadpool

from videomar.config import SamplingConfig
from videomar.errors import UserError
from videomar.runtime.pipeline import NO_FRAMES
from videomar.runtime.recording import load_clip
from videomar.runtime.resize import fit
from videomar.serving.api.asked import Asked, read
from videomar.serving.api.bodies import REFERENCE
from videomar.serving.api.errors import ApiError, no_video
from videomar.serving.jobs import COMPLETED, Job, new_id
from videomar.serving.site import Site, as_json


@dataclass(frozen=True)
class Door:
    """Lets requests of a site in, or says why not."""

    site: Site

    async def create(self, client: str, fields: Mapping[str, Any], data: bytes | None) -> Job:
        """A clip of an uploaded picture or clip, one that goes on where a finished clip ends (`extend`), or one of the
        sentence alone."""
        site = self.site
        self._open()
        asked = read(fields, site.pipe.config, site.settings.limits)
        await run_in_threadpool(self._room, client)
        if data is not None and asked.extend is not None:
            what = f"{REFERENCE} and extend are both given"
            raise ApiError(400, f"{what}, expected a picture or clip to continue", REFERENCE, "missing")
        if data is None and asked.extend is None:
            frames = self._nothing(asked)
        elif data is not None:
            try:
                frames = await site.decoder(data, asked.given)
            except UserError as error:
                raise ApiError(400, str(error), REFERENCE, "invalid_value") from None
        else:
            frames = await run_in_threadpool(self._end_of, asked)
        return await run_in_threadpool(self._accept, client, asked, frames, None)

    async def remix(self, client: str, id: str, fields: Mapping[str, Any]) -> Job:
        """The same picture and options with another prompt, or others of its options."""
        self._open()
        return await run_in_threadpool(self._remix, client, id, fields)

    def _remix(self, client: str, id: str, fields: Mapping[str, Any]) -> Job:
        site = self.site
        job = site.store.get(id)
        if job is None:
            raise no_video(id)
        self._room(client)
        kept = {"prompt": job.prompt}
        asked = read(
            kept | dict(fields), site.pipe.config, site.settings.limits, SamplingConfig(**json.loads(job.sampling))
        )
        try:
            frames = site.place.given(id)
        except OSError:
            raise no_video(id) from None
        return self._accept(client, asked, frames, id)

    def _open(self) -> None:
        if self.site.maker.stopping:
            raise ApiError(503, "the server is stopping; ask again in a while", code="stopping", headers=_LATER)

    def _room(self, client: str) -> None:
        """Raise where the queue, this client's share or the disk is full."""
        limits = self.site.settings.limits
        waiting, theirs = self.site.store.unfinished(client)
        for full, what in (
            (waiting >= limits.queue, f"{waiting} jobs wait, which is all that may"),
            (theirs >= limits.client, f"{theirs} of your jobs wait or are made, which is all that may"),
        ):
            if full:
                raise ApiError(429, f"{what}; ask again in a while", code="rate_limit_exceeded", headers=self._later())
        if self.site.housekeeping.full():
            raise ApiError(507, "the disk space for clips is used up; delete some", code="disk_full", headers=_LATER)

    def _later(self) -> dict[str, str]:
        """When the next job is likely to have gone."""
        a_step = self.site.maker.seconds_a_step or 0.0
        steps = min((job.steps for job in self.site.maker.busy), default=1)
        return {"Retry-After": str(max(1, min(600, round(a_step * steps))))}

    def _nothing(self, asked: Asked) -> np.ndarray:
        """No frames to continue; raises where the model needs some, or the client means to have sent some."""
        config = self.site.pipe.config
        if not config.from_text:
            why = f"{config.name} was not trained to make a clip's first frame from the sentence alone"
            message = f"{REFERENCE} is missing, expected a picture or clip to continue: {why}"
            raise ApiError(400, message, REFERENCE, "missing")
        if asked.given is not None:
            message = f"given is {asked.given}, but there is no {REFERENCE} to take frames from; leave one or send both"
            raise ApiError(400, message, "given", "invalid_value")
        return NO_FRAMES

    def _end_of(self, asked: Asked) -> np.ndarray:
        """The last frames of a finished clip: as many as make one latent frame and one more, or as are asked for."""
        id = asked.extend or ""
        job = self.site.store.get(id)
        if job is None or job.status != COMPLETED:
            raise ApiError(400, f"extend is {id!r:.60}, expected the id of a finished clip", "extend", "invalid_value")
        count = asked.given or 1 + self.site.pipe.config.tokenizer.temporal_stride
        return load_clip(self.site.place.clip(id))[-count:]

    def _accept(self, client: str, asked: Asked, frames: np.ndarray, remix_of: str | None) -> Job:
        site, sampling = self.site, asked.sampling
        most = site.settings.limits.steps  # asked before the list of steps is made
        about = sampling.mask_steps * (sampling.frames - len(frames)) // site.pipe.config.tokenizer.temporal_stride
        if about > most:
            message = f"the clip takes about {about} steps, expected at most {most}; lower mask_steps"
            raise ApiError(400, message, "mask_steps", "too_large")
        if refused := site.budget.refuses(site.budget.need(sampling, len(frames))):
            raise ApiError(400, refused, code="too_large")
        given = fit(frames, sampling.height, sampling.width, sampling.fit) if len(frames) else frames
        with site.pipe.start(given, asked.prompt, seed=asked.seed, sampling=sampling) as run:
            steps = len(run.steps)
        job = Job(
            id=new_id(),
            client=client,
            prompt=asked.prompt,
            sampling=as_json(sampling),
            seed=asked.seed,
            fps=sampling.fps,
            frames=sampling.frames,
            width=sampling.width,
            height=sampling.height,
            steps=steps,
            given=len(given),
            model=site.pipe.config.name,
            created_at=time.time(),
            remix_of=remix_of,
        )
        site.place.put_given(job.id, given)
        job = site.store.add(job)
        site.maker.wake()
        site.live.changed()
        return job


_LATER = {"Retry-After": "30"}
