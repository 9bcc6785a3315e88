"""Nodes of pytest-celery that are local processes: what it else asks a Docker engine for."""

from __future__ import annotations

import os
import signal as signals
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import celery
import psutil
from pytest_celery import CeleryTestWorker

from flowstone.embedded import ValkeyServer, valkey_url
from flowstone.embedded.account import own_account
from flowstone.embedded.process import launch
from tests.worker.waiting import wait_until

ROOT = Path(__file__).parents[2]


class ServerOfNode(Protocol):
    """A broker that the tests have started; it outlives each of them."""

    log_path: Path

    @property
    def pid(self) -> int | None:
        """Its process id, or None if it does not run."""

    def is_running(self) -> bool:
        """Return whether it runs."""


class BrokerNode:
    """What pytest-celery asks of any broker."""

    server: ServerOfNode
    url: str

    @property
    def celeryconfig(self) -> dict[str, str]:
        return {"url": self.url, "host_url": self.url}

    @property
    def id(self) -> str:
        return str(self.server.pid)

    @property
    def status(self) -> str:
        return "running" if self.server.is_running() else "exited"

    def logs(self) -> str:
        return self.server.log_path.read_text()

    def ready(self) -> bool:
        return self.server.is_running()

    def reload(self) -> None:
        """Nothing is cached here."""


class ValkeyNode(BrokerNode):
    """One database of an embedded Valkey server; the server itself outlives the test."""

    server: ValkeyServer

    def __init__(self, server: ValkeyServer, name: str, db: int) -> None:
        self.server = server
        self.name = name
        self.url = valkey_url(server.home, db)

    def kill(self, signal: str = "SIGKILL") -> None:
        if signal == "SIGKILL":
            self.server.kill()
        else:
            self.server.stop()

    def restart(self, timeout: float = 0) -> None:  # noqa: ARG002 - the signature is Docker's
        self.server.stop()
        self.server.start()

    def teardown(self) -> None:
        """Leave the next test a server that runs, without this one's messages."""
        if not self.server.is_running():
            self.server.start()


class DatabaseNode:
    """The database of a test as a result backend; its server serves the ledger, too."""

    name = id = "database"
    status = "running"

    def __init__(self, database: str) -> None:
        self.url = f"db+{database}"

    @property
    def celeryconfig(self) -> dict[str, str]:
        return {"url": self.url, "host_url": self.url}

    def logs(self) -> str:
        return ""

    def ready(self) -> bool:
        return True

    def teardown(self) -> None:
        """The fixture of the database drops it."""


class WorkerProcess:
    """`celery -A tasks worker` with two pool processes, in a session of its own.

    It dies with the process of the tests, and its pool with it.
    """

    def __init__(
        self,
        nodename: str,
        env: Mapping[str, str],
        log: Path,
        broker_url: str,
        *options: str,
    ) -> None:
        self._options = options
        self.name = nodename
        self.celeryconfig = {"url": broker_url, "host_url": broker_url}
        self._env = {**outer_environment(), **env, "PYTHONPATH": str(ROOT)}
        self._log = log
        self._log_start = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def id(self) -> str:
        return str(self.pid)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def status(self) -> str:
        running = self._process is not None and self._process.poll() is None
        return "running" if running else "exited"

    def start(self) -> None:
        """Start the worker and return when it takes messages."""
        self.launch()
        assert self.ready(), self.logs()

    def launch(self) -> None:
        """Start the worker, and do not wait for it."""
        self._log_start = self._log.stat().st_size if self._log.exists() else 0
        options = ["-P", "prefork", "-c", "2", "-l", "INFO", "-E", "-n", self.name]
        quick = ["--without-mingle", "--without-gossip"]
        command = [sys.executable, "-m", "celery", "-A", "tasks", "worker", *options, *quick]
        command += self._options
        self._process = launch(
            command,
            account=own_account(),
            death_signal=signals.SIGKILL,
            log=self._log,
            env=self._env,
            cwd=ROOT,
        )

    def ready(self) -> bool:
        wait_until(self._has_started_or_ended, f"worker ready:\n{self.logs()}")
        return self.status == "running"

    def _has_started_or_ended(self) -> bool:
        ready = f"{self.name} ready.".encode() in self._log.read_bytes()[self._log_start :]
        return ready or self.status != "running"

    def logs(self) -> str:
        return self._log.read_text(errors="replace")

    def pool(self) -> list[psutil.Process]:
        """Return the processes that run the tasks."""
        return psutil.Process(self.pid).children()

    def kill(self, signal: str = "SIGKILL") -> None:
        """Send a signal to the worker, and wait until its pool is gone, too."""
        assert self._process is not None
        pool = self.pool()
        self._process.send_signal(signals.Signals[signal])
        try:
            self._process.wait(30)
        finally:
            _end(self._process, pool)

    def reload(self) -> None:
        """Nothing is cached here."""

    def restart(self, timeout: float = 0) -> None:  # noqa: ARG002 - the signature is Docker's
        self.teardown()
        self.start()

    def teardown(self) -> None:
        if self.status == "running":
            self.kill()

    def version(self) -> str:
        return str(celery.__version__)

    def log_level(self) -> str:
        return "INFO"

    def worker_name(self) -> str:
        return self.name

    def worker_queue(self) -> str:
        return "assets"


class LocalWorker(CeleryTestWorker):  # type: ignore[misc] # pytest-celery has no types
    """A worker node whose host is this machine."""

    container: WorkerProcess

    def hostname(self) -> str:
        return self.container.worker_name()

    def wait_for_log(self, log: str, message: str = "", timeout: int = 30) -> None:
        """Look more often than once a second, as pytest-celery does."""
        wait_until(lambda: log in self.logs(), message or f"{self.name()} logs {log!r}", timeout)


def _end(master: subprocess.Popen[bytes], pool: list[psutil.Process]) -> None:
    if master.poll() is None:
        master.kill()
        master.wait(10)
    try:
        wait_until(lambda: not any(map(_lives, pool)), "the pool ends with its worker", 10)
    finally:
        for process in filter(_lives, pool):
            process.kill()


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def outer_environment() -> dict[str, Any]:
    """Return the environment without settings of whoever runs the tests."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("FLOWSTONE_", "CELERY_"))}
