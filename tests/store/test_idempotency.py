"""Idempotency keys: however often a request is submitted, there is one run of it."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from pydantic import BaseModel, SecretStr

from flowstone import materialize, materialize_sync, runtime, submission
from flowstone.asset import asset
from flowstone.embedded import ValkeyServer
from flowstone.errors import BadConfig, KeyReused, RunFailed
from flowstone.registry import build_registry
from flowstone.request import OnConflict
from flowstone.runtime import Runtime
from tests.store.runs_by_hand import query
from tests.store.test_concurrency import at_once


class Limit(BaseModel):
    limit: int = 9


@pytest.fixture
def calls() -> list[str]:
    return []


@pytest.fixture
def here(make_runtime: Any, calls: list[str], valkey: ValkeyServer) -> Runtime:
    @asset(config=Limit)
    def noted() -> int:
        calls.append("noted")
        return len(calls)

    @asset
    def fails() -> None:
        calls.append("fails")
        raise ValueError("no")

    urls = {"broker_url": SecretStr(valkey.url), "result_url": SecretStr(valkey.url)}
    made: Runtime = make_runtime(build_registry([noted, fails]), **urls)
    return made


def test_a_second_submission_gets_the_run_of_the_first(here: Runtime) -> None:
    first = materialize("noted", idempotency_key="today")
    assert materialize("noted", idempotency_key="today").id == first.id
    assert materialize("noted", idempotency_key="tomorrow").id != first.id
    assert materialize("noted").id != materialize("noted").id
    assert query(here.ledger, "SELECT count(*) FROM flowstone.runs") == [(4,)]
    requested = "SELECT count(*) FROM flowstone.audit WHERE action = 'run.requested'"
    assert query(here.ledger, requested) == [(4,)]


def test_of_many_that_submit_at_once_all_get_one_run(here: Runtime) -> None:
    for number in range(10):
        found = at_once(*[lambda n=number: materialize("noted", idempotency_key=f"{n}").id] * 4)
        assert len(set(found)) == 1


def test_a_key_belongs_to_one_request(here: Runtime) -> None:
    first = materialize("noted", idempotency_key="today")
    for wanted in (
        {"asset": "fails"},
        {"asset": "noted", "partition": "2024"},
        {"asset": "noted", "force": False},
        {"asset": "noted", "on_conflict": "queue"},
        {"asset": "noted", "config": {"noted": {"limit": 1}}},
    ):
        with pytest.raises(KeyReused, match=f"key 'today' belongs to run {first.id}"):
            materialize(**wanted, idempotency_key="today")
    assert query(here.ledger, "SELECT count(*) FROM flowstone.runs") == [(1,)]


@pytest.mark.parametrize("key", ["", "  ", "a" * 201, "a\0", "caf\udce9", 7])
def test_a_key_that_is_none_is_refused(here: Runtime, key: Any) -> None:
    with pytest.raises(BadConfig, match="idempotency key"):
        materialize("noted", idempotency_key=key)
    assert query(here.ledger, "SELECT count(*) FROM flowstone.runs") == [(0,)]


def test_a_conflict_policy_that_is_none_is_refused(here: Runtime) -> None:
    with pytest.raises(BadConfig, match="it must be one of 'join', 'queue', 'refuse'"):
        materialize("noted", on_conflict="wait")  # type: ignore[arg-type]


def test_a_key_has_its_run_while_the_broker_is_away(
    here: Runtime, make_runtime: Any, caplog: pytest.LogCaptureFixture
) -> None:
    away = {"broker_url": SecretStr("redis://127.0.0.1:1/0")}
    make_runtime(build_registry([]), **away)
    run = materialize("noted", idempotency_key="today")
    assert run.status() == "requested"
    assert "the broker at redis://127.0.0.1:1/0 cannot be reached" in caplog.text
    assert materialize("noted", idempotency_key="today").id == run.id
    assert len(caplog.records) == 2
    runtime.use(here)
    assert materialize("noted", idempotency_key="today").id == run.id
    assert len(caplog.records) == 2


def test_a_sync_run_is_not_run_again(here: Runtime, calls: list[str]) -> None:
    first = materialize_sync("noted", idempotency_key="today")
    again = materialize_sync("noted", idempotency_key="today")
    assert (again.id, again.result(), calls) == (first.id, 1, ["noted"])
    for _ in range(2):
        with pytest.raises(RunFailed, match="fails: ValueError: no"):
            materialize_sync("fails", idempotency_key="tomorrow")
    assert calls == ["noted", "fails"]


def test_a_sync_run_of_another_process_is_waited_for(here: Runtime, calls: list[str]) -> None:
    runs = at_once(*[lambda: materialize_sync("noted", idempotency_key="today").id] * 3)
    assert (len(set(runs)), calls) == (1, ["noted"])


def test_client_has_the_choices_of_the_request() -> None:
    assert set(OnConflict) == set(get_args(submission.Conflicts))
