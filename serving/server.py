"""Running one server: address, signals, and an orderly end."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType

import uvicorn
from starlette.concurrency import run_in_threadpool

from videomar.serving.api.app import make_app
from videomar.serving.site import Site


class Server(uvicorn.Server):
    """Ends with 0 on SIGTERM and SIGINT: takes nothing new, grants the clips in flight their grace, parks the rest."""

    def __init__(self, site: Site) -> None:
        self.site, self.port = site, 0
        settings = site.settings
        super().__init__(
            uvicorn.Config(
                make_app(site),
                host=settings.host,
                port=settings.port,
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=int(settings.grace) + 5,
                timeout_keep_alive=30,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, which would raise the signal again at the end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {kind: signal.signal(kind, self.handle_exit) for kind in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, and says where it listens."""
        for each in sockets or ():
            if each.family in (socket.AF_INET, socket.AF_INET6):
                # What asyncio does for sockets of its own; else an answer's body waits 40 ms for its head's receipt.
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await super().startup(sockets)
        for server in self.servers:
            for each in server.sockets:
                host, self.port = each.getsockname()[:2]
                shown = f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"
                print(f"the page is at {shown}/, the API at {shown}/v1", flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, once the clips in flight have had their grace: until then, whoever watches them may."""
        if not self.site.maker.stopping:  # ended by a program, not by a signal
            self.site.maker.stop(0.0)
        await run_in_threadpool(self.site.maker.join)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal asks, the second one insists."""
        self.site.maker.stop(0.0 if self.should_exit else self.site.settings.grace)
        super().handle_exit(sig, frame)
