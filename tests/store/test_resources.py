"""Resources in runs, on a real ledger: overrides, freshness, failures, and no secret in a row."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from pydantic import BaseModel, SecretStr

from flowstone import Env, materialize, planning, preview, save_plan, submission
from flowstone.asset import Asset, asset
from flowstone.client import materialize_sync
from flowstone.context import Context
from flowstone.embedded import ValkeyServer
from flowstone.errors import BadConfig, KeyReused, RunFailed, UnknownResource
from flowstone.registry import Registry, build_registry
from flowstone.request import Request
from flowstone.resource import Resource, resource
from flowstone.retry import Retry
from flowstone.runtime import Runtime
from flowstone.store import runs
from tests.store.runs_by_hand import query
from tests.store.test_reuse import states
from tests.worker.waiting import wait_until

CALLS: Counter[str] = Counter()
SECRET = "hunter2-and-more"  # noqa: S105 - to be found, if it is anywhere


class Config(BaseModel):
    url: str = "default"
    password: SecretStr | None = None


@resource(config=Config)
def db(config: Config) -> Iterator[Config]:
    CALLS[f"open {config.url}"] += 1
    yield config
    CALLS[f"close {config.url}"] += 1


@asset(requires=["db"])
def users(db: Config) -> str:
    CALLS["users"] += 1
    return db.url


@asset
def size(users: str) -> int:
    CALLS["size"] += 1
    return len(users)


@asset
def beside() -> int:
    CALLS["beside"] += 1
    return 1


@asset
def report(size: int, beside: int) -> int:
    return size + beside


@pytest.fixture(autouse=True)
def _afresh() -> None:
    CALLS.clear()


@pytest.fixture
def here(make_runtime: Any, valkey: ValkeyServer) -> Runtime:
    urls = {"broker_url": SecretStr(valkey.url), "result_url": SecretStr(valkey.url)}
    made: Runtime = make_runtime(registry(), **urls)
    return made


def registry(*assets: Asset, resources: tuple[Resource, ...] = ()) -> Registry:
    return build_registry([users, size, beside, report, *assets], [db, *resources])


def at(url: str) -> dict[str, Any]:
    return {"db": {"url": url}}


def test_an_override_reaches_the_function_and_is_stored_with_the_run(here: Runtime) -> None:
    handle = materialize_sync(users, resources=at("there"))
    assert handle.result() == "there"
    with here.ledger.begin() as conn:
        assert runs.get(conn, handle.id).request.resources == at("there")
    assert materialize_sync(users).result() == "default"
    here.close()
    assert CALLS["close there"] == CALLS["close default"] == 1


def test_an_override_counts_as_config_of_what_requires_the_resource(here: Runtime) -> None:
    materialize_sync(report, upstream=True)
    again = materialize_sync(report, upstream=True, resources=at("another"))
    assert dict(CALLS) | {"users": 2, "beside": 1} == dict(CALLS)
    assert states(again)["users"] == "succeeded"
    assert states(again)["beside"] == "skipped"
    plan = preview(report, upstream=True)
    assert {s.asset: s.reason for s in plan.steps}["users"] == "config changed"
    plan = preview(report, upstream=True, resources=at("another"))
    assert {step.reason for step in plan.steps} == {"fresh"}
    plan = preview(report, upstream=True, resources={"db": {"url": None}})
    assert {s.asset: s.reason for s in plan.steps}["users"] == "config changed"


def test_the_settings_of_an_environment_do_not_count(make_runtime: Any) -> None:
    make_runtime(registry(), resources=at("one"))
    assert materialize_sync(users).result() == "one"
    make_runtime(registry(), resources=at("two"))
    assert {s.reason for s in preview(users, force=False).steps} == {"fresh"}
    assert materialize_sync(users).result() == "two"
    assert materialize_sync(users, resources=at("three")).result() == "three"


def test_runs_with_different_overrides_do_not_share_a_step(make_runtime: Any) -> None:
    begun, go = threading.Event(), threading.Event()

    @asset(requires=["db"])
    def slow(db: Config) -> str:
        if not begun.is_set():
            begun.set()
            assert go.wait(30)
        return db.url

    here = make_runtime(registry(slow))
    found: dict[str, Any] = {}

    def run(name: str, url: str) -> None:
        found[name] = materialize_sync(slow, resources=at(url))

    threads = [threading.Thread(target=run, args=("first", "a"))]
    threads[0].start()
    assert begun.wait(30)
    for name, url in (("same", "a"), ("other", "b")):
        threads.append(threading.Thread(target=run, args=(name, url)))
        threads[-1].start()
    joined = "SELECT count(*) FROM flowstone.steps WHERE state = 'joined'"
    wait_until(lambda: query(here.ledger, joined) == [(2,)], "both wait for the first")
    go.set()
    for thread in threads:
        thread.join(30)
    assert {name: handle.result() for name, handle in found.items()} == {
        "first": "a",
        "same": "a",
        "other": "b",
    }
    reuses = query(
        here.ledger,
        "SELECT run_id FROM flowstone.steps WHERE reuses IS NOT NULL AND asset = 'slow'",
    )
    assert reuses == [(found["same"].id,)]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"dbs": {"url": "a"}}, UnknownResource, "'dbs', as given for the run.* mean 'db'"),
        ({"db": {"ulr": "a"}}, BadConfig, "no field 'ulr'; did you mean 'url'"),
        ({"db": {"url": 7}}, BadConfig, "url: Input should be a valid string"),
        ({"db": {"password": SECRET}}, BadConfig, "password is a secret, and runs are stored"),
        ({"db": 7}, BadConfig, "must be a mapping of resource -> mapping of values"),
        ({"db": {"url": object()}}, BadConfig, "must hold JSON values only"),
    ],
)
def test_an_override_that_cannot_be_is_refused_and_nothing_is_recorded(
    here: Runtime, given: Any, error: Any, message: str
) -> None:
    for submit in (materialize_sync, materialize, preview, save_plan):
        with pytest.raises(error, match=message) as caught:
            submit(users, resources=given)
        assert SECRET not in str(caught.value)
    assert query(here.ledger, "SELECT count(*) FROM flowstone.runs") == [(0,)]
    assert query(here.ledger, "SELECT count(*) FROM flowstone.audit") == [(0,)]


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("users", {"dbs": {"url": "a"}}, "resource 'dbs', as given for the run, is not defined"),
        ("users", {"db": {"url": 7}}, "url: Input should be a valid string"),
        ("beside", {"db": {"url": "a"}}, "computes nothing that requires it"),
    ],
)
def test_a_run_whose_override_cannot_be_fails_when_it_is_planned_with_one_line(
    here: Runtime, name: str, given: Any, message: str
) -> None:
    """As where the worker has other definitions than whoever submitted it."""
    run_id = uuid4()
    request = Request((name,), "-", upstream=False, resources=given)
    with here.ledger.begin() as conn:
        submission.create(conn, run_id, request, {}, 10, driver="celery")
    planning.plan_run(here, run_id)
    with here.ledger.begin() as conn:
        found = runs.get(conn, run_id)
    assert found.state == "failed"
    assert found.error is not None
    assert message in found.error["message"]
    assert "\n" not in found.error["message"]


def test_settings_that_cannot_be_fail_what_needs_the_definitions(make_runtime: Any) -> None:
    make_runtime(registry(), resources={"db": {"ulr": "a"}})
    with pytest.raises(RunFailed, match=r"'db', in the settings .*no field 'ulr'"):
        materialize_sync(users)


def test_a_key_belongs_to_one_override(here: Runtime) -> None:
    first = materialize(users, resources=at("a"), idempotency_key="k")
    assert materialize(users, resources=at("a"), idempotency_key="k").id == first.id
    for other in (at("b"), None, {}):
        with pytest.raises(KeyReused, match="belongs to run"):
            materialize(users, resources=other, idempotency_key="k")
    nothing = materialize(users, resources={"db": {"url": None}}, idempotency_key="n")
    assert materialize(users, idempotency_key="n").id == nothing.id


def test_a_saved_plan_keeps_its_override(here: Runtime) -> None:
    handle = save_plan(users, resources=at("saved"))
    with here.ledger.begin() as conn:
        assert runs.get(conn, handle.id).request.resources == at("saved")


def test_a_resource_that_does_not_start_fails_only_what_needs_it_and_is_retried(
    make_runtime: Any,
) -> None:
    @resource
    def away() -> None:
        CALLS["away"] += 1
        raise ValueError("no such host")

    @resource
    def moody() -> str:
        CALLS["moody"] += 1
        if CALLS["moody"] < 2:
            raise RuntimeError("not yet")
        return "there"

    retry = Retry(max_attempts=2, base=0)

    @asset(requires=["away"], retry=retry)
    def injected(away: None) -> None:
        CALLS["called"] += 1

    @asset(requires=["away", "moody"], retry=retry)
    def asks(context: Context) -> str:
        # Of the two only one is made: the other is not needed after all.
        return str(context.resources["moody"])

    @asset(deps=["injected", "asks"])
    def both() -> None: ...

    here = make_runtime(registry(injected, asks, both, resources=(away, moody)))
    with pytest.raises(RunFailed, match="'away' could not be started: no such host") as caught:
        materialize_sync("both", upstream=True)
    assert (CALLS["away"], CALLS["called"], CALLS["moody"]) == (2, 0, 2)
    assert "resource_unavailable" in str(caught.value)
    rows = query(here.ledger, "SELECT asset, state FROM flowstone.steps ORDER BY asset")
    assert rows == [("asks", "succeeded"), ("both", "upstream_failed"), ("injected", "failed")]


def dump(here: Runtime) -> str:
    """Return all that the ledger holds, in whatever table."""
    tables = query(
        here.ledger, "SELECT tablename FROM pg_tables WHERE schemaname = 'flowstone' ORDER BY 1"
    )
    assert len(tables) > 10
    return "\n".join(
        row
        for (table,) in tables
        for (row,) in query(here.ledger, f"SELECT t::text FROM flowstone.{table} t")
    )


def test_no_row_holds_a_secret_whoever_says_it(
    make_runtime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    @resource(config=Config)
    def leaky(config: Config) -> None:
        assert config.password is not None
        try:
            raise_with(config.password.get_secret_value())
        except ValueError as error:
            raise ConnectionError("refused") from error

    def raise_with(secret: str) -> None:
        raise ValueError(f"login with {secret!r} failed")

    @asset(requires=["leaky"], retry=Retry(max_attempts=2, base=0))
    def starts(leaky: None) -> None: ...

    @asset(requires=["db"], retry=Retry(max_attempts=1))
    def says(db: Config) -> None:
        assert db.password is not None
        raise KeyError(db.password.get_secret_value())

    @asset(requires=["db"])
    def leaves(db: Config) -> None:
        assert db.password is not None
        raise SystemExit(db.password.get_secret_value())

    monkeypatch.setenv("DB_PASSWORD", SECRET)
    reference = {"password": Env("DB_PASSWORD")}
    here = make_runtime(registry(starts, says, leaves, resources=(leaky,)))
    for name, needs in (("starts", "leaky"), ("says", "db"), ("leaves", "db")):
        with pytest.raises(RunFailed) as caught:
            materialize_sync(name, resources={needs: reference})
        assert SECRET not in str(caught.value)
    assert materialize_sync(users, resources={"db": reference}).result() == "default"
    dumped = dump(here)
    assert "DB_PASSWORD" in dumped
    assert "login with '***' failed" in dumped
    assert SECRET not in dumped
    types = query(here.ledger, "SELECT error_type FROM flowstone.attempts WHERE outcome = 'failed'")
    assert types == [("resource_unavailable",), ("KeyError",), ("SystemExit",)]
