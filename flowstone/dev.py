"""All that a pipeline needs on one machine: servers if none are configured, and Celery."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from flowstone.canvas import Publisher, client_app
from flowstone.embedded import PostgresServer, ValkeyServer
from flowstone.embedded.account import own_account
from flowstone.embedded.process import GUARD, Server, end, launch
from flowstone.errors import ServerError
from flowstone.queues import all_queues
from flowstone.settings import Settings
from flowstone.store import migrate
from flowstone.store.ledger import Ledger

START_SECONDS: Final = 60.0
GRACE_SECONDS: Final = 15
"""How long a part may take to finish what it does; then its guard kills it."""
STOP_SECONDS: Final = 8.0
"""The most that steps have to end; what is left of the grace is for handing them back."""
_POLL_SECONDS: Final = 0.1


@dataclass(frozen=True)
class Part:
    """One line of what `flowstone dev` runs."""

    name: str
    address: str
    log: Path | None


@dataclass(frozen=True)
class _Program:
    part: Part
    process: subprocess.Popen[bytes]


class DevStack:
    """Starts everything on entry, in order; stops it on exit, in reverse.

    On Linux nothing outlives this process, even if that is killed. Raises
    ServerError where something does not start, LedgerUnavailable or
    BrokerUnavailable where a configured server is away, and WrongMigration where
    its database is not migrated.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.parts: list[Part] = []
        self._programs: list[_Program] = []
        self._servers: list[Server] = []
        self._stack = ExitStack()
        self.flower_url = ""

    def __enter__(self) -> Self:
        with self._stack:
            self._start()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def failed(self) -> str | None:
        """Return what has ended by itself, with the end of its log, or None if all is well."""
        for program in self._programs:
            if program.process.poll() is not None:
                return f"{program.part.name} has ended; {_tail(program.part.log)}"
        for server in self._servers:
            if not server.is_running():
                return f"{server.title} has ended; {_tail(server.log_path)}"
        return None

    def _start(self) -> None:
        logs = self.settings.home / "logs"
        try:
            self.settings.home.mkdir(parents=True, exist_ok=True)
            logs.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise ServerError(f"{logs} cannot be made: {error}; set FLOWSTONE_HOME") from error
        self._start_ledger()
        self._start_broker()
        self._celery("worker", *_worker_options(self.settings))
        self._celery("beat", "--schedule", str(self.settings.home / "beat"), "--pidfile=")
        port = free_port(self.settings.flower_port)
        self._celery(
            "flower", "--address=127.0.0.1", f"--port={port}", address=f"http://127.0.0.1:{port}"
        )
        self.flower_url = f"http://127.0.0.1:{port}"
        self._wait_until_ready(port)

    def _start_ledger(self) -> None:
        ledger = Ledger(self.settings.database)
        self._stack.callback(ledger.close)
        if self.settings.database_url is None:
            server = self._stack.enter_context(PostgresServer(self.settings.home))
            self._servers.append(server)
            migrate.upgrade(ledger)
            self.parts.append(Part("PostgreSQL", "embedded", server.log_path))
        else:
            with ledger.begin():
                self.parts.append(Part("PostgreSQL", "configured", None))

    def _start_broker(self) -> None:
        if self.settings.broker_url is None or self.settings.result_url is None:
            server = self._stack.enter_context(ValkeyServer(self.settings.home))
            self._servers.append(server)
            self.parts.append(Part("Valkey", "embedded", server.log_path))
        Publisher(client_app(self.settings.broker, self.settings.results)).check()
        if self.settings.broker_url is not None:
            self.parts.append(Part("broker", "configured", None))

    def _celery(self, command: str, *options: str, address: str = "") -> None:
        log = self.settings.home / "logs" / f"{command}.log"
        program = [sys.executable, "-m", "celery", "-A", "tasks", command]
        process = launch(
            [sys.executable, "-I", "-S", GUARD, str(GRACE_SECONDS), *program, *options],
            account=own_account(),
            death_signal=signal.SIGTERM,
            log=log,
            cwd=Path.cwd(),
            env=self._environment(),
            umask=0o077,
        )
        self._stack.callback(_end_group, process, command)
        part = Part(command, address, log)
        self.parts.append(part)
        self._programs.append(_Program(part, process))

    def _environment(self) -> dict[str, str]:
        return os.environ | {
            "FLOWSTONE_HOME": str(self.settings.home),
            "FLOWSTONE_ASSETS": ",".join(self.settings.assets),
            # Modules of assets are looked for in the current folder, by all processes alike.
            "PYTHONPATH": os.pathsep.join(
                filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")])
            ),
            "PYTHONUNBUFFERED": "1",
            # Steps have to be handed back before the guard kills what runs them.
            "FLOWSTONE_STOP_SECONDS": str(min(self.settings.stop_seconds, STOP_SECONDS)),
        }

    def _wait_until_ready(self, flower_port: int) -> None:
        app: Any = client_app(self.settings.broker, self.settings.results)
        deadline = time.monotonic() + START_SECONDS
        waiting: list[tuple[str, Callable[[], bool]]] = [
            ("worker", lambda: bool(app.control.ping(timeout=0.5))),
            ("flower", lambda: _listens(flower_port)),
        ]
        for name, ready in waiting:
            while not ready():
                if failure := self.failed():
                    raise ServerError(failure)
                if time.monotonic() > deadline:
                    log = self.settings.home / "logs" / f"{name}.log"
                    raise ServerError(
                        f"{name} is not ready after {START_SECONDS:g} s; {_tail(log)}"
                    )
                time.sleep(_POLL_SECONDS)


def _end_group(process: subprocess.Popen[bytes], title: str) -> None:
    """End a program with all its children, also where this is interrupted by a second Ctrl-C."""
    try:
        end(process, ((signal.SIGTERM, GRACE_SECONDS + 5.0),), title)
    finally:
        # It leads a session of its own. Where it was killed, or still runs, so do its children.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _worker_options(settings: Settings) -> list[str]:
    return [
        "--pool=prefork",
        f"--concurrency={max(2, os.cpu_count() or 2)}",
        "--events",
        "--loglevel=INFO",
        f"--queues={','.join(all_queues(settings.queues))}",
        "--hostname=flowstone@%h",
        # Workers do not need to know each other: what they share is in the ledger.
        "--without-mingle",
        "--without-gossip",
    ]


def free_port(wanted: int) -> int:
    """Return `wanted` if that port of this machine is free, else any free one."""
    for port in (wanted, 0):
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                server.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(server.getsockname()[1])
    raise ServerError("this machine has no free port for Flower")


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def _tail(log: Path | None, lines: int = 15) -> str:
    if log is None or not log.exists():
        return "it wrote no log"
    end_of_log = log.read_text(errors="replace").splitlines()[-lines:]
    return f"the end of {log}:\n" + "\n".join(end_of_log)
