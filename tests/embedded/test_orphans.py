from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import psycopg
import pytest
from redis import Redis

from flowstone.embedded import PostgresServer, ValkeyServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux ends a child with its parent"
)

REPOSITORY = Path(__file__).parents[2]
# A forked child outlives the parent, as a process of Celery's pool may: it must not hold the home.
PARENT = """
import os, signal, sys
from pathlib import Path
from flowstone.embedded import PostgresServer, ValkeyServer
home = Path(sys.argv[1])
PostgresServer(home).start()
ValkeyServer(home).start()
child = os.fork()
if child:
    print(child, flush=True)
signal.pause()
"""
STARTING = """
import sys
from pathlib import Path
from flowstone.embedded import PostgresServer
PostgresServer(Path(sys.argv[1])).start()
"""


@contextlib.contextmanager
def running(program: str, home: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", program, str(home)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def connect(home: Path) -> psycopg.Connection[tuple[object, ...]]:
    url = PostgresServer(home).url.replace("+psycopg", "")
    return psycopg.connect(url, autocommit=True)


def redis(home: Path) -> Redis:
    return Redis(unix_socket_path=str(ValkeyServer(home).sockets / "valkey.sock"))


def test_servers_end_with_a_killed_parent_and_keep_their_data(
    home: Path,
    servers: Callable[[], list[object]],
    wait_until: Callable[[Callable[[], object], str], None],
) -> None:
    with running(PARENT, home) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        try:
            with connect(home) as connection, redis(home) as client:
                connection.execute("CREATE TABLE kept AS SELECT 7 AS value")
                client.set("key", "value")
            assert len(servers()) > 2
            parent.kill()
            wait_until(lambda: not servers(), "the servers end with their parent")
            with (
                PostgresServer(home),
                ValkeyServer(home),
                connect(home) as connection,
                redis(home) as client,
            ):
                assert connection.execute("SELECT value FROM kept").fetchone() == (7,)
                assert client.get("key") == b"value"
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_start_right_after_the_parent_was_killed_waits_for_the_servers_to_end(
    home: Path,
) -> None:
    with running(PARENT, home) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        try:
            parent.kill()
            parent.wait()
            with PostgresServer(home), ValkeyServer(home), redis(home) as client:
                assert client.ping()
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_start_right_after_everything_was_killed_succeeds(
    home: Path, wait_until: Callable[[Callable[[], object], str], None]
) -> None:
    with running(PARENT, home) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        postmaster = int((home / "postgres" / "postmaster.pid").read_text().split()[0])
        for pid in (parent.pid, child, postmaster):
            os.kill(pid, signal.SIGKILL)
        parent.wait()
        wait_until(lambda: not psutil.pid_exists(child), "the forked child is gone")
        with PostgresServer(home), ValkeyServer(home), connect(home) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_parent_killed_while_it_creates_the_database_leaves_nothing_half_made(
    home: Path,
    servers: Callable[[], list[object]],
    wait_until: Callable[[Callable[[], object], str], None],
) -> None:
    with running(STARTING, home) as parent:
        wait_until(lambda: list(home.glob("postgres-*.new/PG_VERSION")), "initdb has begun")
        parent.kill()
    wait_until(lambda: not servers(), "initdb ends with its parent")
    assert not (home / "postgres").exists()
    with PostgresServer(home, durable=False), connect(home) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert list(home.glob("postgres-*")) == []
