"""What a scenario runs on: PostgreSQL, Valkey, two workers, two beats; all processes of our own."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import psutil
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from flowstone.embedded import PostgresServer, ValkeyServer, valkey_url
from flowstone.embedded.account import own_account
from flowstone.embedded.place import socket_folder
from flowstone.embedded.process import launch
from flowstone.settings import Settings, load_settings
from flowstone.store import migrate
from flowstone.store.ledger import Ledger
from tests.chaos import chaos_assets
from tests.chaos.world import POOL, POOL_SLOTS
from tests.worker.nodes import ROOT, WorkerProcess, outer_environment

LEASE_SECONDS: Final = 3.0
RECONCILE_SECONDS: Final = 1.0
MESSAGE_SECONDS: Final = 2.0
PARK_AFTER: Final = 0.3


class BeatProcess:
    """`celery -A tasks beat`, which dies with the process of the tests."""

    def __init__(self, name: str, env: dict[str, str], folder: Path) -> None:
        self._log = folder / f"{name}.log"
        self._command = [sys.executable, "-m", "celery", "-A", "tasks", "beat", "--pidfile="]
        self._command += [f"--schedule={folder / name}", "-l", "INFO"]
        self._env = {**outer_environment(), **env, "PYTHONPATH": str(ROOT)}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        self._process = launch(
            self._command,
            account=own_account(),
            death_signal=signal.SIGKILL,
            log=self._log,
            env=self._env,
            cwd=ROOT,
        )

    def logs(self) -> str:
        return self._log.read_text(errors="replace")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)


class Cluster:
    """All processes, and the settings with which they are reached."""

    def __init__(self, home: Path, seeds: Iterable[int]) -> None:
        self.home = home
        self.orders = home / "orders"
        self.orders.mkdir()
        self.postgres = PostgresServer(home)
        self.valkey = ValkeyServer(home)
        self.environment = {
            "FLOWSTONE_HOME": str(home),
            "FLOWSTONE_ASSETS": chaos_assets.__name__,
            "FLOWSTONE_DATABASE_URL": self.postgres.url,
            "FLOWSTONE_BROKER_URL": valkey_url(home, 0),
            "FLOWSTONE_RESULT_URL": valkey_url(home, 1),
            "FLOWSTONE_LEASE_SECONDS": str(LEASE_SECONDS),
            "FLOWSTONE_RECONCILE_SECONDS": str(RECONCILE_SECONDS),
            "FLOWSTONE_MESSAGE_SECONDS": str(MESSAGE_SECONDS),
            "FLOWSTONE_PARK_AFTER": str(PARK_AFTER),
            "FLOWSTONE_POOLS": f'{{"{POOL}": {POOL_SLOTS}}}',
            "FLOWSTONE_STOP_SECONDS": "1",
            chaos_assets.SEEDS: ",".join(map(str, seeds)),
            chaos_assets.FOLDER: str(self.orders),
        }
        self.workers = [self._worker(number) for number in (1, 2)]
        self.beats = [BeatProcess(f"beat{number}", self.environment, home) for number in (1, 2)]

    def _worker(self, number: int) -> WorkerProcess:
        return WorkerProcess(
            f"chaos{number}@local",
            self.environment,
            self.home / f"worker{number}.log",
            valkey_url(self.home, 0),
            "--include",
            chaos_assets.__name__,
        )

    @property
    def settings(self) -> Settings:
        """The settings of a process that only submits."""
        return load_settings(
            home=self.home,
            database_url=self.postgres.url,
            broker_url=valkey_url(self.home, 0),
            result_url=valkey_url(self.home, 1),
            lease_seconds=LEASE_SECONDS,
            pools={POOL: POOL_SLOTS},
        )

    def start(self) -> None:
        self.postgres.start()
        ledger = Ledger(self.postgres.url)
        migrate.upgrade(ledger)
        ledger.close()
        self.valkey.start()
        for worker in self.workers:
            worker.launch()
        for beat in self.beats:
            beat.start()
        for worker in self.workers:
            assert worker.ready(), worker.logs()

    def ended(self) -> list[str]:
        """Return the last words of the processes that should run and do not."""
        dead = [worker.logs() for worker in self.workers if worker.status != "running"]
        dead += [beat.logs() for beat in self.beats if not beat.is_running]
        return [log[-5000:] for log in dead]

    def stop(self) -> list[psutil.Process]:
        """End all processes, and return those that are left."""
        ours = list(self.processes())
        for beat in self.beats:
            beat.kill()
        for worker in self.workers:
            worker.teardown()
        self.valkey.stop()
        self.postgres.stop()
        return psutil.wait_procs(ours, timeout=10)[1]

    def processes(self) -> Iterator[psutil.Process]:
        """Yield every process that was ever started for this cluster and still runs."""
        for server in (self.postgres.pid, self.valkey.pid):
            if server is not None:
                process = psutil.Process(server)
                yield from (process, *process.children(recursive=True))
        # By what they were given, as those whose parent has died are nobody's children.
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(chaos_assets.FOLDER) == str(self.orders):
                    yield process

    def pool(self) -> list[psutil.Process]:
        """Return the processes of the pools of all workers that run."""
        found: list[psutil.Process] = []
        for worker in self.workers:
            if worker.status == "running":
                found += worker.pool()
        return found

    def broker(self) -> Redis:
        """Return a client of Valkey that gives up at once."""
        path = str(socket_folder(self.home, "valkey") / "valkey.sock")
        return Redis(unix_socket_path=path, socket_timeout=5, retry=Retry(NoBackoff(), 0))
