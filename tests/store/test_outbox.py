"""Sending: whatever the broker is like, what is recorded stands, and nobody waits for long."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
from pydantic import SecretStr

from flowstone import materialize, outbox, save_plan, set_pool
from flowstone.asset import asset
from flowstone.canvas import Publisher, client_app
from flowstone.errors import BadConfig, BrokerUnavailable
from flowstone.registry import build_registry
from tests.store.runs_by_hand import query

AWAY = "redis://127.0.0.1:1/0"


@asset
def noted() -> int:
    return 1


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_broker_that_takes_connections_and_says_nothing_is_away(
    scheme: str, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as mute, ThreadPoolExecutor() as pool:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        sender = Publisher(client_app(f"{scheme}://127.0.0.1:{mute.getsockname()[1]}/0", AWAY))
        # Else it would wait for ever.
        pool.submit(outbox.wake, sender, uuid4()).result(timeout=30)
    (told,) = caplog.records
    assert "the run is recorded, and starts as soon as the broker is back" in told.getMessage()


@pytest.mark.parametrize("address", ["foo://x", "redis://127.0.0.1:port/0"])
def test_where_there_is_no_address_to_send_to_nothing_is_recorded(
    make_runtime: Any, address: str
) -> None:
    urls = {"broker_url": SecretStr(address), "result_url": SecretStr(AWAY)}
    here = make_runtime(build_registry([noted]), **urls)
    saved = save_plan("noted")
    for ask in (lambda: materialize("noted"), saved.start):
        with pytest.raises(BadConfig, match="FLOWSTONE_BROKER_URL is no address of a broker"):
            ask()
    assert query(here.ledger, "SELECT id, state FROM flowstone.runs") == [(saved.id, "paused")]


def test_what_sends_for_others_does_not_need_a_broker(make_runtime: Any) -> None:
    here = make_runtime(build_registry([noted]), broker_url=SecretStr(AWAY))
    run = materialize("noted")
    set_pool("warehouse", 2)
    outbox.wake_others(here, [run.id])
    assert run.cancel().state == "cancelled"


def test_a_publisher_says_what_it_could_not_send() -> None:
    with pytest.raises(BrokerUnavailable, match=r"the broker at redis://.*cannot be reached"):
        Publisher(client_app(AWAY, AWAY)).kill([(1, uuid4())])
