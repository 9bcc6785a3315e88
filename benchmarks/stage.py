"""The stage of a benchmark: servers of its own, and one prefork worker of two processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from redis import Redis

from flowstone import runtime
from flowstone.embedded import PostgresServer, ValkeyServer
from flowstone.queues import QUEUES
from flowstone.runtime import Runtime
from flowstone.settings import load_settings
from flowstone.store import migrate

ROOT = Path(__file__).resolve().parents[1]
DEADLINE = 900.0


class Stage:
    """Servers in a folder of their own; `worker` starts a Celery worker on them."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.postgres = PostgresServer(home)
        self.valkey = ValkeyServer(home)

    @contextmanager
    def open(self) -> Iterator[Stage]:
        """Run the servers during the block."""
        with self.postgres, self.valkey:
            runtime.use(Runtime(load_settings(home=self.home, assets=("benchmarks.shapes",))))
            migrate.upgrade(runtime.current().ledger)
            yield self
            runtime.current().close()
            runtime.use(None)

    @contextmanager
    def worker(
        self, app: str, queues: str, shape: str = "chain 1", processes: int = 2
    ) -> Iterator[None]:
        """Run a worker during the block, from the moment at which it is ready."""
        log = self.home / f"{app.replace(':', '-')}.log"
        log.unlink(missing_ok=True)
        command = [
            sys.executable,
            "-m",
            "celery",
            "-A",
            app,
            "worker",
            f"--concurrency={processes}",
        ]
        options = ["--loglevel=INFO", f"--queues={queues}", "--without-mingle", "--without-gossip"]
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603 - our own command
                [*command, *options, "--hostname=bench@%h"],
                cwd=ROOT,
                env=self._environment(shape),
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            wait_until(lambda: " ready." in log.read_text(), "the worker")
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)

    def redis(self) -> Redis:
        """Return a client of the broker's database."""
        return Redis(unix_socket_path=str(self.valkey.sockets / "valkey.sock"), db=0)

    def _environment(self, shape: str) -> dict[str, str]:
        return os.environ | {
            "FLOWSTONE_HOME": str(self.home),
            "FLOWSTONE_ASSETS": "benchmarks.shapes",
            "BENCH_SHAPE": shape,
            # As for anybody whose steps take milliseconds; the peers read the same setting.
            "FLOWSTONE_PREFETCH": "4",
            "PYTHONPATH": str(ROOT),
        }


@contextmanager
def stage() -> Iterator[Stage]:
    """Open a stage in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="flowstone-bench-") as folder:
        # As root, PostgreSQL runs as another user, who must be able to get here.
        Path(folder).chmod(0o755)
        os.environ["FLOWSTONE_HOME"] = folder
        with Stage(Path(folder)).open() as made:
            yield made


def wait_until(condition: Callable[[], object], what: str, pause: float = 0.05) -> None:
    """Wait for a condition; raise TimeoutError at the deadline."""
    end = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {DEADLINE:g} s for {what}")
        time.sleep(pause)


ALL_QUEUES = ",".join(QUEUES)
