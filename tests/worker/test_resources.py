"""Resources on real workers: forked, closed at the end, overridden alike, and silent on secrets."""

from __future__ import annotations

import base64
import binascii
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_celery import CeleryTestSetup
from redis import Redis

import flowstone
from flowstone import Env, RunState
from flowstone.embedded import ValkeyServer
from flowstone.embedded.place import socket_folder
from flowstone.registry import Registry, load_registry
from flowstone.runtime import Runtime
from flowstone.settings import Settings
from flowstone.store import runs
from tests.store.runs_by_hand import query
from tests.worker import resource_assets
from tests.worker.ledger_view import LedgerView
from tests.worker.nodes import WorkerProcess
from tests.worker.waiting import wait_until

SECRET = "hunter2-and-more"  # noqa: S105 - to be found, if it is anywhere


@pytest.fixture(scope="module")
def definitions() -> Registry:
    return load_registry([resource_assets.__name__])


@pytest.fixture
def settings(settings: Settings, folder: Path) -> Settings:
    return settings.model_copy(
        update={
            "assets": (resource_assets.__name__,),
            "resources": {name: {"folder": str(folder)} for name in ("journal", "leaky")},
        }
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "journal"
    made.mkdir()
    return made


@pytest.fixture
def worker_environment(worker_environment: dict[str, str], settings: Settings) -> dict[str, str]:
    return environment(worker_environment, settings)


def environment(base: dict[str, str], settings: Settings, **journal: str) -> dict[str, str]:
    resources = settings.resources | {"journal": settings.resources["journal"] | journal}
    return base | {"FLOWSTONE_RESOURCES": json.dumps(resources), "DB_PASSWORD": SECRET}


def notes(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()}


def test_each_process_of_a_pool_has_its_own_and_closes_it_when_the_worker_stops(
    celery_setup: CeleryTestSetup, folder: Path
) -> None:
    lives = set()
    for _ in range(3):
        for _, pid, name in flowstone.materialize_all("both", force=True).result(timeout=60):
            lives.add(f"{pid}-{name}")
        for path in (folder / "meeting").iterdir():
            path.unlink()
    assert len(lives) == 2
    assert notes(folder) == {f"open-{life}" for life in lives}
    worker = celery_setup.worker.container
    worker.kill("SIGTERM")
    assert notes(folder) == {f"{what}-{life}" for what in ("open", "close") for life in lives}
    assert "Traceback" not in worker.logs()


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_a_pool_in_one_process_closes_them_too(
    pool: str, here: Runtime, worker_environment: dict[str, str], tmp_path: Path, folder: Path
) -> None:
    worker = WorkerProcess(
        "one@local", worker_environment, tmp_path / "one.log", here.settings.broker, "-P", pool
    )
    try:
        worker.start()
        handles = [flowstone.materialize("single") for _ in range(4)]
        assert [handle.result(timeout=60) for handle in handles] == ["default"] * 4
        life = f"{worker.pid}-default"
        assert notes(folder) == {f"open-{life}"}
        worker.kill("SIGTERM")
        assert notes(folder) == {f"open-{life}", f"close-{life}"}
        assert "Traceback" not in worker.logs()
    finally:
        worker.teardown()


@pytest.fixture
def two_workers(
    here: Runtime, settings: Settings, worker_environment: dict[str, str], tmp_path: Path
) -> Iterator[list[WorkerProcess]]:
    """Two workers whose environments differ in the name that they give to the journal."""
    workers = [
        WorkerProcess(
            f"{name}@local",
            environment(worker_environment, settings, name=name),
            tmp_path / f"{name}.log",
            settings.broker,
        )
        for name in ("one", "two")
    ]
    try:
        for worker in workers:
            worker.start()
        yield workers
    finally:
        for worker in workers:
            worker.teardown()


def test_an_override_is_the_same_on_every_worker_at_every_attempt_and_after_a_resume(
    two_workers: list[WorkerProcess], here: Runtime, view: LedgerView, folder: Path
) -> None:
    names = {worker.pid: name for worker, name in zip(two_workers, ("one", "two"), strict=True)}
    found = flowstone.materialize_all("all_four").result(timeout=60)
    assert {(worker, name) for worker, _, name in found} == set(names.items())
    for path in (folder / "meeting").iterdir():
        path.unlink()
    override = {"journal": {"name": "chosen"}}
    # Not forced: the override alone makes what there is stale.
    found = flowstone.materialize_all("all_four", resources=override).result(timeout=60)
    assert {(worker, name) for worker, _, name in found} == {(pid, "chosen") for pid in names}

    broken = flowstone.materialize_all("mended", resources=override)
    assert broken.wait(timeout=60) == RunState.FAILED
    assert view.attempts(broken.id, "retried") == [(1, "retrying"), (2, "succeeded")]
    (folder / "mended").touch()
    resumed = broken.resume()
    assert resumed.result(timeout=60) == ["chosen", "chosen"]
    with here.ledger.begin() as conn:
        assert runs.get(conn, resumed.id).request.resources == override
    assert view.states(resumed.id) == {"mended": "succeeded"}


def test_a_resource_that_does_not_start_fails_only_what_needs_it_and_is_retried(
    celery_setup: CeleryTestSetup, view: LedgerView
) -> None:
    handle = flowstone.materialize_all(["after_away", "beside_away"])
    assert handle.wait(timeout=60) == RunState.FAILED
    assert view.states(handle.id) == {
        "beside_away": "succeeded",
        "needs_away": "failed",
        "after_away": "upstream_failed",
    }
    assert view.attempts(handle.id, "needs_away") == [(1, "retrying"), (2, "failed")]
    error = view.steps(handle.id)["needs_away"].error
    assert (error["type"], error["retryable"]) == ("resource_unavailable", True)


class Overheard:
    """All that anybody says to the broker and the result backend, as they hear it."""

    def __init__(self, broker: Redis) -> None:
        self._broker = broker
        self.said: list[str] = []
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()
        wait_until(self._is_heard, "the broker tells what it hears")

    def _is_heard(self) -> bool:
        self._broker.echo("begin")
        return self._listening.is_set()

    def _listen(self) -> None:
        with self._broker.monitor() as monitor:
            for command in monitor.listen():
                self.said.append(str(command["command"]))
                self._listening.set()
                if self.said[-1] == "ECHO the end":
                    return

    def stop(self) -> str:
        """Return all that was said, and what is written in base64 in the clear, too."""
        self._broker.echo("the end")
        self._thread.join(30)
        assert not self._thread.is_alive()
        said = "\n".join(self.said)
        return said + "\n".join(map(_decoded, re.findall(r"[A-Za-z0-9+/]{16,}={0,2}", said)))


def _decoded(text: str) -> str:
    try:
        return base64.b64decode(text).decode(errors="replace")
    except binascii.Error:
        return ""


@pytest.fixture
def overheard(redis: Redis, valkey: ValkeyServer) -> Iterator[Overheard]:
    path = str(socket_folder(valkey.home, "valkey") / "valkey.sock")
    # However long nothing is said: the worker may take its time to start.
    with Redis(unix_socket_path=path, socket_timeout=None) as client:
        made = Overheard(client)
        yield made
        made.stop()


def test_a_secret_is_in_no_row_no_message_no_event_and_no_log(
    overheard: Overheard, celery_setup: CeleryTestSetup, here: Runtime
) -> None:
    reference = {"password": Env("DB_PASSWORD")}
    ends = [
        flowstone.materialize(name, resources={resource: reference}).wait(timeout=60)
        for name, resource in (("single", "journal"), ("starts", "leaky"), ("says", "journal"))
    ]
    assert ends == ["succeeded", "failed", "failed"]
    # What comes after is heard later than what came before.
    assert flowstone.materialize("beside_away").result(timeout=60) == 1
    said, logs = overheard.stop(), celery_setup.worker.logs()
    tables = query(here.ledger, "SELECT tablename FROM pg_tables WHERE schemaname = 'flowstone'")
    rows = "\n".join(
        row
        for (table,) in tables
        for (row,) in query(here.ledger, f"SELECT t::text FROM flowstone.{table} t")
    )
    for place, text in {"rows": rows, "messages": said, "logs": logs}.items():
        assert SECRET not in text, place
        # Each does hold the errors, but for what must not be told.
        assert "***" in text, place
    assert "flowstone.step" in said
    assert "DB_PASSWORD" in rows
    assert "DB_PASSWORD" not in said
