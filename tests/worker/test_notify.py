"""People are told at once of what a worker asks, and of what is decided."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from pytest_celery import CeleryTestSetup

import flowstone
from flowstone import RunState
from flowstone.registry import Registry, load_registry
from flowstone.settings import Settings
from tests.hook import Hook
from tests.worker import notify_assets
from tests.worker.ledger_view import LedgerView
from tests.worker.waiting import wait_until


@pytest.fixture
def definitions() -> Registry:
    return load_registry([notify_assets.__name__])


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"assets": (notify_assets.__name__,)})


@pytest.fixture
def hook() -> Iterator[Hook]:
    with Hook() as made:
        yield made


@pytest.fixture
def worker_environment(worker_environment: dict[str, str], hook: Hook) -> dict[str, str]:
    return {**worker_environment, "FLOWSTONE_NOTIFY": json.dumps({"team": hook.url})}


def test_a_worker_tells_of_what_it_asks_and_of_what_is_decided_also_where_nobody_answers(
    celery_setup: CeleryTestSetup, hook: Hook, view: LedgerView
) -> None:
    # No beat runs here: whoever asks and decides sends for it.
    first = flowstone.materialize("asked")
    wait_until(lambda: hook.events == ["requested"], "people are told that they are asked")
    hook.is_open.clear()
    flowstone.approve(hook.got[0].said["approval"], by="ann", reason="it is right")
    wait_until(lambda: len(hook.got) > 1, "the webhook is asked, and hangs")
    first.wait(timeout=30)
    assert first.status() == RunState.SUCCEEDED
    assert first.result() == 1
    hook.is_open.set()
    told = "SELECT FROM flowstone.notifications WHERE done_at IS NULL OR error IS NOT NULL"
    wait_until(lambda: not view.rows(told), "all is told")
    assert hook.events == ["requested", "decided"]
    assert hook.got[1].said["decision"]["reason"] == "it is right"
