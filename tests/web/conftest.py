"""A server of `flowstone serve` in a thread of the test, on its ledger."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import pytest
from pydantic import SecretStr

from flowstone.registry import build_registry
from flowstone.runtime import Runtime
from flowstone.tokens import HEADER, sign
from flowstone.web.server import serve
from tests.conftest import RuntimeFactory

SECRET: Final = "s" * 32
OLD: Final = "o" * 32
SHARED: Final = "h" * 32
OLD_SHARED: Final = "i" * 32
JSON: Final = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Answer:
    status: int
    headers: http.client.HTTPMessage
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


class Site:
    """A running server, and a client of it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def __call__(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body or None, dict(headers or {}))
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read().decode())
        finally:
            connection.close()

    def signal(self, token: str, body: bytes = b"", at: float = 0, secret: str = SHARED) -> Answer:
        """Send a signal as it should be, or `at` another time."""
        header = sign(secret.encode(), at or time.time(), token, body)
        return self("POST", f"/signals/{token}", body, {HEADER: header, **JSON})


@contextmanager
def serving(here: Runtime) -> Iterator[Site]:
    """Serve until the end of the block."""
    started = threading.Event()
    port: list[int] = []
    loop: list[asyncio.AbstractEventLoop] = []
    stop: list[asyncio.Event] = []

    def ready(number: int) -> None:
        port.append(number)
        started.set()

    async def main() -> None:
        loop.append(asyncio.get_running_loop())
        stop.append(asyncio.Event())
        await serve(here, "127.0.0.1", 0, stop[0], ready)

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    assert started.wait(30)
    try:
        yield Site(port[0])
    finally:
        loop[0].call_soon_threadsafe(stop[0].set)
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture
def here(make_runtime: RuntimeFactory) -> Runtime:
    return make_runtime(
        build_registry([]),
        secret=SecretStr(f"{SECRET},{OLD}"),
        shared_secret=SecretStr(f"{SHARED},{OLD_SHARED}"),
        web_url="https://flow.example",
    )


@pytest.fixture
def site(here: Runtime) -> Iterator[Site]:
    with serving(here) as running:
        yield running
