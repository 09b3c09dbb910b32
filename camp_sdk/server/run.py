"""Run a server in this process until it is asked to end: uvicorn, with the signals of a service."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import time
from types import FrameType

import uvicorn
from fastapi import FastAPI

from camp_sdk.runtime.errors import CampError
from camp_sdk.server.app import create_app
from camp_sdk.server.logs import configure_logs
from camp_sdk.server.serving import Serving
from camp_sdk.server.settings import Settings

LOG = logging.getLogger("camp_sdk.server")
MAX_HEAD_BYTES = 1 << 18  # of a request's line and headers: a key has up to 10,000 characters, each of up to 12 bytes
KEEP_ALIVE_S = 75  # longer than reverse proxies keep idle connections: they would send a request into a closed one
GRACE_S = 5  # beyond the time limit of a request


def serve(settings: Settings) -> None:
    """Serve until SIGTERM, or Ctrl-C.

    Args:
        settings: The settings.

    Raises:
        CampError: The bundle or the corpus cannot be opened.
        OSError: A file cannot be read, or the address is in use.
    """
    configure_logs(settings.log_format)
    app = create_app(settings)
    server = Server(app, settings)
    server.run([listener(settings)])
    if server.failure is not None:
        raise server.failure


def listener(settings: Settings) -> socket.socket:
    """A socket that listens at the address of the settings.

    Raises:
        OSError: The address is in use, or not one of this machine.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # With the protocol named, asyncio sends small answers at once (TCP_NODELAY), not 40 ms later.
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((settings.host, settings.port))
    except OSError as error:
        found.close()
        raise OSError(error.errno, error.strerror, f"{settings.host}:{settings.port}") from None
    return found


class Server(uvicorn.Server):
    """uvicorn's server. SIGTERM drains it, SIGHUP reloads.

    Args:
        app: The application.
        settings: The settings.
    """

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        # httptools, if it is there, does not limit the size of headers. What other packages bring changes nothing here.
        config = uvicorn.Config(
            app,
            loop="asyncio",
            http="h11",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            root_path=settings.root_path,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(settings.time_limit) + GRACE_S,
        )
        super().__init__(config)
        self._serving: Serving = app.state.serving
        self._drain_s = settings.drain
        self._end_at: float | None = None
        self.failure: CampError | OSError | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        if hasattr(signal, "SIGHUP"):
            loop = asyncio.get_running_loop()
            try:
                loop.add_signal_handler(signal.SIGHUP, lambda: loop.run_in_executor(None, self._reload))
            except (RuntimeError, ValueError):  # not the main thread: a program that runs the server in another one
                LOG.debug("SIGHUP does not reload here")
        for one in sockets or []:
            host, port = one.getsockname()[:2]
            LOG.info("listening at http://%s:%d", f"[{host}]" if ":" in host else host, port)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain; a second Ctrl-C ends at once. The process ends with status 0: uvicorn would repeat the signal."""
        if self._end_at is not None and sig == signal.SIGINT:
            self.force_exit = self.should_exit = True
            return
        self.drain(0.0 if sig == signal.SIGINT else self._drain_s)

    def drain(self, seconds: float) -> None:
        """Be not ready any more, and end when what was accepted is answered.

        Args:
            seconds: How long more requests are taken.
        """
        self._serving.services.draining = True
        end = time.monotonic() + seconds
        self._end_at = end if self._end_at is None else min(end, self._end_at)

    async def on_tick(self, counter: int) -> bool:
        """Whether to end; uvicorn asks ten times a second."""
        loading = self._serving.loading
        if loading is not None and loading.done() and (error := loading.exception()) is not None:
            if not isinstance(error, (CampError, OSError)):
                raise error
            self.failure = error
            return True
        if self._end_at is not None and time.monotonic() >= self._end_at:
            self.should_exit = True
        return await super().on_tick(counter)

    def _reload(self) -> None:
        try:
            fresh = self._serving.services.load()
        except (CampError, OSError) as error:
            LOG.error("reload failed, what was served before stays: %s", error)
        else:
            LOG.info("reloaded: %s, %d items", fresh.name, fresh.items)
