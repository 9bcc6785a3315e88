"""A webhook on this machine, which answers as it is told to, or not at all."""

from __future__ import annotations

import json
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any, Self

HANG_SECONDS = 60


@dataclass(frozen=True)
class Got:
    """A request that the webhook has got."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def said(self) -> Any:
        return json.loads(self.body)


class Hook:
    """A server for the time of a block.

    While `is_open` is not set, it does not answer; while `drips`, it answers without end.
    """

    def __init__(self, port: int = 0) -> None:
        self.status = 204
        self.drips = False
        self.got: list[Got] = []
        self.is_open = Event()
        self.is_open.set()
        self.dropped = Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self._server.daemon_threads = False
        self._thread = Thread(target=self._server.serve_forever, args=[0.02])

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    @property
    def events(self) -> list[str]:
        """What it was told, in order."""
        return [got.said["event"] for got in self.got]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.drips = False
        self.is_open.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _handler(hook: Hook) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            hook.got.append(Got(self.path, dict(self.headers.items()), body))
            hook.is_open.wait(HANG_SECONDS)
            try:
                if hook.drips:
                    self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Drops: ")
                while hook.drips:
                    self.wfile.write(b".")
                    hook.dropped.wait(0.05)
                self.send_response(hook.status)
                if 300 <= hook.status < 400:
                    self.send_header("Location", hook.url + "/elsewhere")
                self.end_headers()
            except OSError:
                # Whoever has asked did not wait for so long.
                self.close_connection = True

        def log_message(self, *_: object) -> None: ...

    return Handler
