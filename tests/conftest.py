"""Real servers for the tests: one PostgreSQL and one Valkey a session, a database a test."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from flowstone import runtime
from flowstone.embedded import PostgresServer, ValkeyServer
from flowstone.registry import Registry
from flowstone.runtime import Runtime
from flowstone.settings import load_settings
from flowstone.store import migrate
from flowstone.store.ledger import Ledger
from tests.s3 import S3Service

TEMPLATE = "flowstone_template"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test sees the settings of whoever runs it, nor a server of theirs."""
    import os  # noqa: PLC0415

    for name in list(os.environ):
        if name.startswith("FLOWSTONE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("FLOWSTONE_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="session")
def server_home() -> Iterator[Path]:
    home = Path(tempfile.mkdtemp(prefix="flowstone-tests-"))
    # As root, PostgreSQL runs as another user, who must be able to get here.
    home.chmod(0o755)
    yield home
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres(server_home: Path) -> Iterator[PostgresServer]:
    """A PostgreSQL server with a template database that the migrations have made."""
    with PostgresServer(server_home, durable=False) as server:
        _sql(server, f"CREATE DATABASE {TEMPLATE}")
        ledger = Ledger(database_url(server, TEMPLATE))
        migrate.upgrade(ledger)
        ledger.close()
        yield server


@pytest.fixture(scope="session")
def valkey(server_home: Path) -> Iterator[ValkeyServer]:
    with ValkeyServer(server_home) as server:
        yield server


@pytest.fixture
def empty_database(postgres: PostgresServer) -> Iterator[str]:
    """The URL of a database without any table."""
    yield from _database(postgres, "template1")


@pytest.fixture
def database(postgres: PostgresServer) -> Iterator[str]:
    """The URL of a database of its own, migrated, so that tested code may commit."""
    yield from _database(postgres, TEMPLATE)


def _database(server: PostgresServer, template: str) -> Iterator[str]:
    name = f"test_{uuid4().hex}"
    _sql(server, f"CREATE DATABASE {name} TEMPLATE {template}")
    yield database_url(server, name)
    _sql(server, f"DROP DATABASE {name} WITH (FORCE)")


def database_url(server: PostgresServer, name: str) -> str:
    return server.url.replace("/flowstone?", f"/{name}?")


def _sql(server: PostgresServer, statement: str) -> None:
    url = server.url.replace("postgresql+psycopg://", "postgresql://")
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(statement)


@pytest.fixture
def ledger(database: str) -> Iterator[Ledger]:
    made = Ledger(database)
    yield made
    made.close()


@pytest.fixture(scope="session")
def s3_service() -> Iterator[S3Service]:
    """An S3 API on this machine."""
    service = S3Service()
    yield service
    service.stop()


@pytest.fixture
def s3(s3_service: S3Service, monkeypatch: pytest.MonkeyPatch) -> S3Service:
    """The same, which this test uses; a client that is refused does not try again."""
    for name, value in s3_service.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    return s3_service


@pytest.fixture
def bucket(s3: S3Service) -> str:
    """The URL of a bucket of its own."""
    return s3.bucket()


class RuntimeFactory:
    """Makes runtimes on the test's database, with the given definitions, and closes them."""

    def __init__(self, database: str, home: Path) -> None:
        self.settings = load_settings(database_url=database, home=home)
        self.made: list[Runtime] = []

    def __call__(self, registry: Registry, **settings: object) -> Runtime:
        made = Runtime(self.settings.model_copy(update=settings), registry)
        self.made.append(made)
        runtime.use(made)
        return made


@pytest.fixture
def make_runtime(database: str, tmp_path: Path) -> Iterator[RuntimeFactory]:
    factory = RuntimeFactory(database, tmp_path / "home")
    yield factory
    runtime.use(None)
    for made in factory.made:
        made.close()
