"""The server of `flowstone serve`: it starts, answers, and stops when what it does is done."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable
from typing import Final

from tornado.httpserver import HTTPServer
from tornado.web import Application

from flowstone.errors import LedgerUnavailable, ServerError
from flowstone.log import get_logger
from flowstone.payload import MAX_PAYLOAD
from flowstone.runtime import Runtime
from flowstone.tokens import UNSHARED, newest
from flowstone.web.approvals import ApprovalHandler
from flowstone.web.handler import Nothing, Served, log_request
from flowstone.web.health import HealthHandler
from flowstone.web.signals import SignalHandler

log = get_logger("flowstone.web")

THREADS: Final = 8
"""How many requests ask the ledger at once; it has as many connections, and two to spare."""

STOP_SECONDS: Final = 10.0
"""How long requests have to be answered when the server is asked to stop."""

IDLE_SECONDS: Final = 60.0
"""How long a connection is kept on which nothing is asked."""
BODY_SECONDS: Final = 30.0
"""How long the body of a request may take to come."""


def check(here: Runtime) -> None:
    """Raise where a server could never do its work: BadConfig, or WrongMigration.

    Where the ledger is away, it starts all the same, and answers when that is back.
    """
    newest(here.settings.secrets)
    if not here.settings.shared_secrets:
        log.warning("signals are refused", why=UNSHARED)
    try:
        with here.ledger.begin():
            pass
    except LedgerUnavailable as error:
        log.warning("started without the ledger", error=error.message)
    if here.settings.assets and here.definitions(importing=True) is None:
        log.warning("the assets cannot be loaded, so that payloads are not checked")


def application(served: Served) -> Application:
    """Return all addresses that there are."""
    shared = {"served": served}
    return Application(
        [
            (r"/signals/([^/]+)", SignalHandler, shared),
            (r"/approvals/([^/]+)", ApprovalHandler, shared),
            (r"/health", HealthHandler, shared),
        ],
        default_handler_class=Nothing,
        default_handler_args=shared,
        log_function=log_request,
    )


async def serve(
    here: Runtime, host: str, port: int, stop: asyncio.Event, ready: Callable[[int], None]
) -> bool:
    """Answer until `stop` is set; `ready` is told the port, which may be given as 0.

    Return whether all that was begun has ended; if not, a thread still hangs. Raises ServerError
    where it cannot listen there.
    """
    served = Served(here, THREADS)
    server = HTTPServer(
        application(served),
        max_body_size=17 * MAX_PAYLOAD,
        idle_connection_timeout=IDLE_SECONDS,
        body_timeout=BODY_SECONDS,
    )
    try:
        listening = _listen(host, port)
    except OSError as error:
        served.close()
        raise ServerError(
            f"nobody can be served at {host}:{port}: {error.strerror}; choose another --port, or "
            "another --host"
        ) from error
    server.add_socket(listening)
    try:
        ready(listening.getsockname()[1])
        await stop.wait()
    finally:
        server.stop()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(served.idle.wait(), STOP_SECONDS)
        served.close()
        all_ended = served.idle.is_set()
        await server.close_all_connections()
    return all_ended


def _listen(host: str, port: int) -> socket.socket:
    # Not tornado's, which leaves a socket behind where it cannot.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, port), family=family, backlog=128)
    listening.setblocking(False)
    return listening


def run(here: Runtime, host: str, port: int, ready: Callable[[int], None]) -> bool:
    """Serve until SIGTERM or Ctrl-C; return, and raise, what `check` and `serve` do."""
    check(here)

    async def until_asked() -> bool:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        return await serve(here, host, port, stop, ready)

    return asyncio.run(until_asked())
