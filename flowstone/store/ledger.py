"""The way to the ledger: connections, and database errors in the words of FlowStone."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, TypeVar

import psycopg
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    DisconnectionError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    ProgrammingError,
    SQLAlchemyError,
)
from sqlalchemy.pool import ConnectionPoolEntry

from flowstone.errors import BadConfig, LedgerRefused, LedgerUnavailable, WrongMigration
from flowstone.store.tables import SCHEMA, SINGLE_FLIGHT

__all__ = [
    "HEAD",
    "Connection",
    "Ledger",
    "check_revision",
    "first_line",
    "is_of_database",
    "revision",
    "translated",
]

HEAD: Final = "0007"
"""The revision that this version of FlowStone works with; a test holds it to the migrations."""

IDLE_SECONDS: Final = 0.1
"""A connection that was not used for longer is asked whether it still lives."""

CONNECT_TIMEOUT: Final = 5
"""Seconds after which a database that does not answer counts as away."""

IDLE_IN_TRANSACTION: Final = 120
"""Seconds after which PostgreSQL ends a transaction whose client says nothing.

A process that is paused, or whose network is cut, would keep its locks for ever otherwise. To plan
100,000 steps takes a few seconds.
"""

TRIES: Final = 10
"""How often work is tried for which PostgreSQL gives another transaction precedence."""

T = TypeVar("T")


class Ledger:
    """A pool of connections to one database, at the right revision of the schema.

    `patience` bounds the seconds that a connection, a statement and a lock may each take.
    """

    def __init__(self, url: str, *, patience: float | None = None) -> None:
        self.engine: Engine = _engine(url, patience)
        if patience is not None:
            event.listen(self.engine, "connect", partial(_bound, patience))
        event.listen(self.engine, "connect", _set_up)
        event.listen(self.engine, "checkin", self._take_back)
        event.listen(self.engine, "checkout", _ping_if_idle)
        event.listen(self.engine, "checkout", self._bound_locks)
        self._lock_timeout = _milliseconds(patience)
        self._of_thread = threading.local()
        self._checked = False
        self._closed = False

    @property
    def address(self) -> str:
        """The host and the name of the database."""
        return _address(self.engine)

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """Open a transaction that commits at the end of the block, or rolls back on an error.

        Raises LedgerUnavailable where PostgreSQL cannot be reached, and
        WrongMigration where its schema is not the one of this version.
        """
        with translated(self.engine), self.engine.begin() as conn:
            self._check(conn)
            with _interruptible(conn):
                yield conn

    @contextmanager
    def impatient(self, seconds: float) -> Iterator[None]:
        """Let this thread wait for no lock longer than `seconds` in the block.

        What needs one that somebody else keeps raises LedgerUnavailable (is_locked).
        """
        before = self._patience_of_thread()
        self._of_thread.lock_timeout = _milliseconds(seconds)
        try:
            yield
        finally:
            self._of_thread.lock_timeout = before

    def _patience_of_thread(self) -> int:
        return int(getattr(self._of_thread, "lock_timeout", self._lock_timeout))

    def in_turn(self, work: Callable[[Connection], T]) -> T:
        """Do `work` in a transaction; where another one comes first, do it anew after that.

        PostgreSQL ends one of two transactions that wait for each other, and one of two that
        dispatch the same asset x partition; nothing of it is left. Raises what `begin` raises.
        """
        for tries_left in reversed(range(TRIES)):
            try:
                with self.begin() as conn:
                    return work(conn)
            except LedgerUnavailable as error:
                if not (error.is_overtaken and tries_left):
                    raise
        raise AssertionError("the last try returns or raises")

    @contextmanager
    def autocommit(self) -> Iterator[Connection]:
        """Open a connection on which each statement is a transaction of its own.

        It saves the round trips of BEGIN and COMMIT where one statement does all.
        Raises what `begin` raises.
        """
        with translated(self.engine), self.engine.connect() as plain:
            conn = plain.execution_options(isolation_level="AUTOCOMMIT")
            self._check(conn)
            with _interruptible(conn):
                yield conn

    def _check(self, conn: Connection) -> None:
        if not self._checked:
            check_revision(conn)
            self._checked = True

    def _take_back(self, connection: object, record: ConnectionPoolEntry) -> None:  # noqa: ARG002
        record.info["used"] = time.monotonic()
        if self._closed:
            # A thread was late with it, and nobody would close it any more.
            record.invalidate()

    def _bound_locks(
        self,
        connection: psycopg.Connection[Any],
        record: ConnectionPoolEntry,
        proxy: object,  # noqa: ARG002 - the signature of the event
    ) -> None:
        """Tell a connection how long its next user waits for a lock, if the last one differed.

        To say so in each transaction would cost a round trip for each.
        """
        wanted = self._patience_of_thread()
        if record.info.get("lock_timeout", self._lock_timeout) != wanted:
            connection.execute(f"SET lock_timeout = {wanted}")
            connection.commit()
            record.info["lock_timeout"] = wanted

    def close(self) -> None:
        """Close all connections, those in use as soon as they are given back."""
        self._closed = True
        self.engine.dispose()


def _engine(url: str, patience: float | None) -> Engine:
    try:
        return create_engine(
            url,
            pool_size=2,
            max_overflow=8,
            # Values may hold what an asset has said, and errors are stored and logged.
            hide_parameters=True,
            connect_args={
                "connect_timeout": CONNECT_TIMEOUT if patience is None else max(1, int(patience)),
                "application_name": "flowstone",
            },
        )
    except (ValueError, ArgumentError) as error:
        # The message of the error might quote the password.
        raise BadConfig(
            "FLOWSTONE_DATABASE_URL is no address; write postgresql://user:password@host:port/name"
        ) from error


_JOINS: Final = ("enable_hashjoin", "enable_mergejoin")


def _set_up(connection: psycopg.Connection[Any], record: ConnectionPoolEntry) -> None:  # noqa: ARG001
    """Bound how long a transaction may be idle, and have rows looked up through indexes.

    Every query here has one. PostgreSQL has no statistics of a plan that was just written. It
    would guess that reading a whole table is cheap, and a prepared statement would keep that
    guess while the table grows: the cost of a run would be the square of its steps.
    """
    try:
        for setting in ("enable_seqscan", "enable_bitmapscan", *_JOINS, "enable_material", "jit"):
            connection.execute(f"SET {setting} = off")
        idle = _milliseconds(IDLE_IN_TRANSACTION)
        connection.execute(f"SET idle_in_transaction_session_timeout = {idle}")
        connection.commit()
    except BaseException:
        # SQLAlchemy forgets one that was interrupted here.
        connection.close()
        raise


def _bound(
    patience: float,
    connection: psycopg.Connection[Any],
    record: ConnectionPoolEntry,  # noqa: ARG001 - the signature of the event
) -> None:
    for setting in ("statement_timeout", "lock_timeout"):
        connection.execute(f"SET {setting} = {_milliseconds(patience)}")
    connection.commit()


def _milliseconds(seconds: float | None) -> int:
    """Return what PostgreSQL calls so many seconds; 0 is no bound."""
    return 0 if seconds is None else max(1, int(1000 * seconds))


def _ping_if_idle(
    connection: psycopg.Connection[Any],
    record: ConnectionPoolEntry,
    proxy: object,  # noqa: ARG001 - the signature of the event
) -> None:
    """Have a connection replaced that was dropped while nobody used it.

    To ask each time, as SQLAlchemy's pre-ping does, would cost a busy worker one more
    round trip for each transaction.
    """
    if time.monotonic() - record.info.get("used", math.inf) > IDLE_SECONDS:
        try:
            connection.execute("SELECT 1")
            connection.rollback()
        except psycopg.OperationalError as error:
            raise DisconnectionError from error


@contextmanager
def _interruptible(conn: Connection) -> Iterator[None]:
    """Give a connection up whose statement was interrupted, by a timeout or Ctrl-C.

    It could not even be rolled back; PostgreSQL does so when it is closed.
    """
    try:
        yield
    except BaseException:
        driver = None if conn.closed or conn.invalidated else conn.connection.driver_connection
        if driver is not None and driver.info.transaction_status == TransactionStatus.ACTIVE:
            conn.invalidate()
        raise


def is_of_database(error: BaseException) -> bool:
    """Return whether an error comes from PostgreSQL or from the way to it, translated or not."""
    return isinstance(error, SQLAlchemyError | psycopg.Error | LedgerUnavailable | LedgerRefused)


@contextmanager
def translated(engine: Engine) -> Iterator[None]:
    """Turn the errors of a database that is away or empty into FlowStone's."""
    try:
        yield
    except (OperationalError, InterfaceError) as error:
        unavailable = LedgerUnavailable(
            f"PostgreSQL at {_address(engine)} cannot be used: {first_line(error)}; start "
            "`flowstone dev`, or set FLOWSTONE_DATABASE_URL to a server that runs",
            original=error,
        )
        unavailable.is_overtaken = isinstance(error.orig, psycopg.errors.DeadlockDetected)
        unavailable.is_locked = isinstance(error.orig, psycopg.errors.LockNotAvailable)
        raise unavailable from error
    except IntegrityError as error:
        if not _is_single_flight(error):
            raise _refused(error) from error
        overtaken = LedgerUnavailable(
            "another run has begun to compute the same asset x partition", original=error
        )
        overtaken.is_overtaken = True
        raise overtaken from error
    except DBAPIError as error:
        raise _refused(error) from error


def _refused(error: DBAPIError) -> LedgerRefused:
    return LedgerRefused(
        f"the ledger refused what was to be written: {first_line(error)}", original=error
    )


def _is_single_flight(error: IntegrityError) -> bool:
    refused = error.orig
    return (
        isinstance(refused, psycopg.errors.UniqueViolation)
        and refused.diag.constraint_name == SINGLE_FLIGHT
    )


def revision(conn: Connection) -> str | None:
    """Return the revision of the schema, or None for a database without one."""
    exists = conn.scalar(text("SELECT to_regclass(:name)"), {"name": f"{SCHEMA}.alembic_version"})
    if exists is None:
        return None
    found: str | None = conn.scalar(text(f"SELECT version_num FROM {SCHEMA}.alembic_version"))
    return found


def check_revision(conn: Connection) -> None:
    """Raise WrongMigration unless the schema is at HEAD."""
    try:
        found = revision(conn)
    except ProgrammingError as error:
        raise WrongMigration(
            f"the ledger's version cannot be read: {first_line(error)}; the role of "
            f"FLOWSTONE_DATABASE_URL needs all rights on the schema {SCHEMA}"
        ) from error
    if found is None:
        raise WrongMigration("the database holds no ledger yet; run `flowstone db upgrade`")
    if found < HEAD:
        raise WrongMigration(
            f"the ledger is at revision {found}, this version needs {HEAD}; "
            "run `flowstone db upgrade`"
        )
    if found > HEAD:
        raise WrongMigration(
            f"the ledger is at revision {found}, newer than {HEAD} of this version; "
            "upgrade the package flowstone"
        )


def first_line(error: DBAPIError) -> str:
    """Return what the driver said, without SQL and without a password."""
    lines = str(error.orig).strip().splitlines()
    return lines[0] if lines else type(error.orig).__name__


def _address(engine: Engine) -> str:
    url = engine.url
    host = url.host or url.query.get("host") or "localhost"
    return f"{host}/{url.database}"
