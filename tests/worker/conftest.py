"""A real worker on real servers for each test, through the fixtures of pytest-celery."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from uuid import uuid4

import pytest
from celery import Celery
from kombu import pools
from pytest_celery import (
    CeleryBackendCluster,
    CeleryBrokerCluster,
    CeleryTestBackend,
    CeleryTestBroker,
    CeleryWorkerCluster,
)
from redis import Redis

from flowstone import reconcile as reconciler
from flowstone import runtime
from flowstone.canvas import Publisher, client_app, wait_for_no_result
from flowstone.embedded import ValkeyServer
from flowstone.embedded.place import socket_folder
from flowstone.registry import Registry, load_registry
from flowstone.runtime import Runtime
from flowstone.settings import Settings, load_settings
from tests.worker import worker_assets
from tests.worker.broker_view import Broker, RedisBroker
from tests.worker.ledger_view import LedgerView
from tests.worker.nodes import DatabaseNode, LocalWorker, ValkeyNode, WorkerProcess
from tests.worker.rabbitmq import RabbitBroker, RabbitNode, RabbitServer

ON_RABBITMQ = os.environ.get("TEST_BROKER") == "rabbitmq"
"""Whether a RabbitMQ of the tests' own is the broker, and not Valkey; see `make test-rabbitmq`."""

RESULTS_IN_POSTGRESQL = os.environ.get("TEST_RESULTS") == "postgresql"
"""Whether PostgreSQL is the result backend, and not Valkey."""

needs_chords = pytest.mark.skipif(
    RESULTS_IN_POSTGRESQL, reason="is about chords, which only Redis counts as a result backend"
)
orders_all_queues = pytest.mark.skipif(
    ON_RABBITMQ, reason="is about the order of queues, each of which RabbitMQ orders by itself"
)

LEASE_SECONDS = 3
PARK_AFTER = 0.5


@pytest.fixture(scope="session")
def definitions() -> Registry:
    """What the workers define."""
    return load_registry([worker_assets.__name__])


@pytest.fixture(scope="session")
def rabbitmq(server_home: Path) -> Iterator[RabbitServer]:
    """The RabbitMQ of this session, where the tests are to run on one."""
    server = RabbitServer(server_home / "rabbitmq")
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def node(request: pytest.FixtureRequest, valkey: ValkeyServer) -> Iterator[ValkeyNode | RabbitNode]:
    """The broker as the process, or the part of one, that it is; empty at first."""
    _valkey_client(valkey).flushall()
    made: ValkeyNode | RabbitNode
    if ON_RABBITMQ:
        made = RabbitNode(request.getfixturevalue("rabbitmq"), f"test_{uuid4().hex}")
    else:
        made = ValkeyNode(valkey, "broker", 0)
    yield made
    made.teardown()


@pytest.fixture
def broker(node: ValkeyNode | RabbitNode) -> Iterator[Broker]:
    """What lies on the broker."""
    if isinstance(node, RabbitNode):
        yield RabbitBroker(node)
        return
    with _valkey_client(node.server) as client:
        yield RedisBroker(client)


@pytest.fixture
def redis(node: ValkeyNode | RabbitNode) -> Iterator[Redis]:
    """The broker as a client of Redis sees it, for tests of what only that can."""
    if isinstance(node, RabbitNode):
        pytest.skip("looks into Redis, or is about what Redis alone does")
    with _valkey_client(node.server) as client:
        yield client


def _valkey_client(server: ValkeyServer) -> Redis:
    return Redis(unix_socket_path=str(socket_folder(server.home, "valkey") / "valkey.sock"))


@pytest.fixture
def celery_broker_cluster(node: ValkeyNode | RabbitNode) -> CeleryBrokerCluster:
    return CeleryBrokerCluster(CeleryTestBroker(node))


@pytest.fixture
def celery_backend_cluster(
    valkey: ValkeyServer, node: ValkeyNode | RabbitNode, database: str
) -> Iterator[CeleryBackendCluster]:
    made = DatabaseNode(database) if RESULTS_IN_POSTGRESQL else ValkeyNode(valkey, "backend", 1)
    yield CeleryBackendCluster(CeleryTestBackend(made))
    made.teardown()


@pytest.fixture
def settings(
    database: str,
    tmp_path: Path,
    celery_broker_cluster: CeleryBrokerCluster,
    celery_backend_cluster: CeleryBackendCluster,
) -> Settings:
    return load_settings(
        home=tmp_path / "home",
        assets=(worker_assets.__name__,),
        database_url=database,
        broker_url=celery_broker_cluster.config()["host_urls"][0],
        result_url=celery_backend_cluster.config()["host_urls"][0],
        lease_seconds=LEASE_SECONDS,
        park_after=PARK_AFTER,
    )


@pytest.fixture
def here(settings: Settings, definitions: Registry) -> Iterator[Runtime]:
    """The runtime of the test, on the same servers and folders as the worker."""
    made = Runtime(settings, definitions)
    runtime.use(made)
    yield made
    runtime.use(None)
    made.close()


@pytest.fixture
def view(here: Runtime) -> LedgerView:
    return LedgerView(here.ledger)


@pytest.fixture
def celery_setup_app(settings: Settings) -> Iterator[Celery]:
    # Kombu keeps its connections for the whole process: some of those that an earlier test has
    # left may be broken, as it has restarted the broker.
    pools.reset()
    app = client_app(settings.broker, settings.results)
    wait_for_no_result(app)
    yield app
    app.close()


@pytest.fixture
def worker_environment(settings: Settings) -> dict[str, str]:
    return {
        "FLOWSTONE_HOME": str(settings.home),
        "FLOWSTONE_ASSETS": ",".join(settings.assets),
        "FLOWSTONE_DATABASE_URL": settings.database,
        "FLOWSTONE_BROKER_URL": settings.broker,
        "FLOWSTONE_RESULT_URL": settings.results,
        "FLOWSTONE_LEASE_SECONDS": str(settings.lease_seconds),
        "FLOWSTONE_PARK_AFTER": str(settings.park_after),
    }


@pytest.fixture
def worker_options() -> tuple[str, ...]:
    """What is added to the command line of the worker."""
    return ()


@pytest.fixture
def celery_worker_cluster(
    settings: Settings,
    worker_environment: dict[str, str],
    worker_options: tuple[str, ...],
    celery_setup_app: Celery,
    here: Runtime,
    tmp_path: Path,
) -> Iterator[CeleryWorkerCluster]:
    process = WorkerProcess(
        "tests@local", worker_environment, tmp_path / "worker.log", settings.broker, *worker_options
    )
    try:
        process.start()
        yield CeleryWorkerCluster(LocalWorker(process, celery_setup_app))
    finally:
        process.teardown()


@pytest.fixture
def publisher(celery_setup_app: Celery) -> Publisher:
    return Publisher(celery_setup_app)


@pytest.fixture
def reconcile(
    here: Runtime, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], Mapping[str, int]]:
    """One pass of the reconciler, which need not wait until a run is old enough for it."""
    monkeypatch.setattr(reconciler, "IDLE_SECONDS", 0)
    return lambda: reconciler.reconcile(here, publisher.wake)


@pytest.fixture
def full_pass(
    here: Runtime, publisher: Publisher, reconcile: object
) -> Callable[[], Mapping[str, int]]:
    """The same as beat has it done, which also asks the broker and ends processes."""
    return lambda: reconciler.reconcile(here, publisher.wake, publisher.kill, publisher)
