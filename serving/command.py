"""`videomar serve`: options -> settings -> a running server."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace

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


def run(args: argparse.Namespace) -> int:
    """Serve until a signal; raises UserError for what cannot be served."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    settings = settings_of(args)
    site = Site.open(args.artifacts, settings, args.threads, args.backend, args.database)
    print(site.pipe.why)
    server = Server(site)
    server.run()
    return 0 if server.started else 2
