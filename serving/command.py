"""`videomar serve`: options -> settings -> a running server."""

from __future__ import annotations

import argparse
import logging
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

from videomar.console import log
from videomar.runtime.prompt import PromptCut
from videomar.serving.server import Server
from videomar.serving.settings import Limits, Settings, read_keys
from videomar.serving.site import Site


def settings_of(args: argparse.Namespace) -> Settings:
    """What the command line says; raises InputError."""
    limits = replace(
        Limits(),
        upload=args.max_upload,
        pixels=args.max_pixels,
        frames=args.max_frames,
        steps=args.max_steps,
        prompt=args.max_prompt,
        queue=args.max_queue,
        client=args.max_per_client,
    )
    return Settings(
        directory=args.directory,
        host=args.host,
        port=args.port,
        in_flight=args.in_flight,
        keys=read_keys(args.api_key_file) if args.api_key_file else (),
        open_to_all=args.no_api_key,
        origins=tuple(args.allow_origin),
        keep=args.keep,
        max_disk=args.max_disk,
        memory=args.memory,
        grace=args.grace,
        lease=args.lease,
        limits=limits,
    )


@dataclass(frozen=True)
class Given:
    """A server that is yet to be opened, here or in another process."""

    artifacts: Path
    settings: Settings
    threads: int | None
    backend: str
    database: str | None
    clips: str | None

    def open(self) -> Site:
        """Load it; raises UserError for what cannot be served."""
        # A job says so itself.
        warnings.simplefilter("ignore", PromptCut)
        return Site.open(self.artifacts, self.settings, self.threads, self.backend, self.database, self.clips)


def given_of(args: argparse.Namespace) -> Given:
    """The command line's server; raises InputError."""
    return Given(args.artifacts, settings_of(args), args.threads, args.backend, args.database, args.clips)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal; raises UserError for what cannot be served."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    given = given_of(args)
    if args.fleet:
        from videomar.serving import fleet

        return fleet.run(given, *args.fleet, args.replica_gpus)
    site = given.open()
    log.info("%s", site.pipe.why)
    server = Server(site)
    server.run()
    return 0 if server.started else 2
