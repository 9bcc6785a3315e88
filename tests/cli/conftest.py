"""The command line as a user calls it: a process of its own, its output, its exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from flowstone.embedded import ValkeyServer

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 90.0


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    def refused(self, code: int) -> str:
        """Return the one line that explains a refusal; there must be no more than that."""
        assert self.code == code, self
        assert "Traceback" not in self.out + self.err
        assert len(self.err.strip().splitlines()) == 1, self.err
        assert self.err.startswith("error: ")
        return self.err.strip()


class Cli:
    """Calls the command line in a folder, with the settings of one home."""

    def __init__(self, home: Path, folder: Path = ROOT) -> None:
        self.home = home
        self.folder = folder

    def inside(self, folder: Path) -> Cli:
        """Return the same for a user in another folder, where no assets can be imported."""
        return Cli(self.home, folder)

    def environment(self, **settings: str) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("FLOWSTONE_")}
        named = {f"FLOWSTONE_{k.upper()}": v for k, v in settings.items()}
        # Two tests at once would look for the same free port at the same moment.
        worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
        own = {
            "FLOWSTONE_HOME": str(self.home),
            "FLOWSTONE_FLOWER_PORT": str(5600 + 10 * int(worker)),
            "COLUMNS": "100",
        }
        return clean | own | named

    def __call__(self, *arguments: str, **settings: str) -> Ran:
        done = subprocess.run(
            [sys.executable, "-m", "flowstone.cli", *arguments],
            cwd=self.folder,
            env=self.environment(**settings) | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        return Ran(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path / "home")


@pytest.fixture
def flowstone(cli: Cli, database: str, valkey: ValkeyServer) -> Any:
    """Call the command line on the test's ledger."""

    def call(*arguments: str, **settings: str) -> Any:
        urls = {"database_url": database, "broker_url": valkey.url, "result_url": valkey.url}
        return cli(*arguments, **{**urls, **settings})

    return call


class Dev:
    """A `flowstone dev` in the background."""

    def __init__(self, cli: Cli, assets: str, log: Path) -> None:
        self.cli = cli
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flowstone.cli", "dev"],
                cwd=ROOT,
                env=cli.environment(assets=assets),
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def wait_until_ready(self) -> None:
        wait_until(
            lambda: "ready; " in self.output() or self.process.poll() is not None, "dev to be ready"
        )
        assert self.process.poll() is None, self.output()

    def output(self) -> str:
        return self.log.read_text()

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(DEADLINE)


@pytest.fixture
def start_dev(tmp_path: Path) -> Iterator[Callable[..., Dev]]:
    started: list[Dev] = []

    def start(cli: Cli, assets: str) -> Dev:
        started.append(Dev(cli, assets, tmp_path / "dev.log"))
        return started[-1]

    yield start
    for dev in started:
        dev.stop()


def wait_until(condition: Callable[[], object], what: str, deadline: float = DEADLINE) -> None:
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, f"waited {deadline:g} s for {what}"
        time.sleep(0.05)
