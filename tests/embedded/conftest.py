"""Homes for real servers, and the proof that none of these outlives its test."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from flowstone.embedded import place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PROGRAMS = {"postgres", "initdb", "valkey-server"}


@pytest.fixture
def yard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that every user can enter, unlike pytest's own, and what else is written beside."""
    folder = Path(tempfile.mkdtemp(prefix="flowstone-test-"))
    folder.chmod(0o755)
    cache = folder / "cache"
    cache.mkdir(mode=0o755)
    monkeypatch.setattr(place, "CACHE", cache)
    yield folder
    left = servers_below(folder)
    for process in left:
        process.kill()
    psutil.wait_procs(left, timeout=5)
    shutil.rmtree(folder)
    assert not left


@pytest.fixture
def home(yard: Path) -> Path:
    return yard / "home"


def servers_below(folder: Path) -> list[psutil.Process]:
    return [process for process in psutil.process_iter() if _serves(process, folder)]


def _serves(process: psutil.Process, folder: Path) -> bool:
    try:
        if process.name() not in PROGRAMS or process.status() == psutil.STATUS_ZOMBIE:
            return False
        # The children of PostgreSQL have no arguments, but all work in the data folder.
        return str(folder) in " ".join([process.cwd(), *process.cmdline()])
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def servers(yard: Path) -> Callable[[], list[psutil.Process]]:
    return lambda: servers_below(yard)


@pytest.fixture
def wait_until() -> Callable[[Callable[[], object], str], None]:
    def wait(condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain: {what}"
            time.sleep(0.005)

    return wait
