"""Sending: whatever the broker is like, what is recorded stands, and nobody waits for long."""

from __future__ import annotations

import re
import socket
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
from pydantic import SecretStr

from flowstone import materialize, outbox, save_plan, set_pool
from flowstone.asset import asset
from flowstone.broker import without_password
from flowstone.canvas import Publisher, client_app
from flowstone.errors import BadConfig, BrokerUnavailable
from flowstone.registry import build_registry
from flowstone.urls import readable
from tests.store.runs_by_hand import query

PASSWORD = re.compile("hun|ter2|er2")
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


@pytest.mark.parametrize(
    "address",
    [
        "redis://:hun/ter2@host", "redis://:hun#ter2@host", "redis://:hun?ter2@host",
        "redis://:hunter2#@host/0", "redis://:hunter2/@host/0", "redis://me:hunter2?@host/0",
        "redis://:12/hunter2@host", "redis://hun/ter2@host", "redis://:hun[ter2@host",
        "amqp://me:hun/ter2@host//", "amqp://me:hun@t/er2@host//", "foo://me:hunter2@host",
        "redis://:12;hunter2@host",
    ],
)  # fmt: skip
def test_no_part_of_a_password_is_in_an_error(
    make_runtime: Any, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    urls = {"broker_url": SecretStr(address), "result_url": SecretStr(AWAY)}
    here = make_runtime(build_registry([noted]), **urls)
    saved = save_plan("noted")
    for ask in (lambda: materialize("noted"), saved.start):
        with pytest.raises(BadConfig, match="FLOWSTONE_BROKER_URL is no address") as raised:
            ask()
        # With what it came from.
        assert not PASSWORD.search("".join(traceback.format_exception_only(raised.value)))
        assert raised.value.__cause__ is None
        assert raised.value.__suppress_context__ or raised.value.__context__ is None
    outbox.wake_others(here, [saved.id])
    assert not PASSWORD.search(caplog.text)


def test_what_asks_or_sends_does_not_quote_an_address_that_is_none() -> None:
    publisher = Publisher(client_app("redis://:hun/ter2@host", AWAY))
    for ask in (
        lambda: publisher.knows("mark"),
        lambda: publisher.empty(["control"]),
        lambda: publisher.wake(uuid4()),
        publisher.check,
    ):
        with pytest.raises(BadConfig, match="FLOWSTONE_BROKER_URL is no address") as raised:
            ask()
        assert not PASSWORD.search(str(raised.value))
        assert raised.value.__suppress_context__


def test_an_address_that_can_be_read_is_taken_as_it_is() -> None:
    for url in (
        "redis://:a%2Fb@host:1/0", "redis+socket:///a@b/valkey.sock?virtual_host=0",
        "amqp://me:p@ss@host//", "sentinel://:x@a:1;sentinel://:x@b:2", "redis://[::1]:1/0",
        "db+postgresql+psycopg://me:x@host/name",
    ):  # fmt: skip
        assert readable(url, "no") == url
        assert ":x@" not in without_password(url)


def test_what_sends_for_others_does_not_need_a_broker(make_runtime: Any) -> None:
    here = make_runtime(build_registry([noted]), broker_url=SecretStr(AWAY))
    run = materialize("noted")
    set_pool("warehouse", 2)
    outbox.wake_others(here, [run.id])
    assert run.cancel().state == "cancelled"


def test_a_publisher_says_what_it_could_not_send() -> None:
    with pytest.raises(BrokerUnavailable, match=r"the broker at redis://.*cannot be reached"):
        Publisher(client_app(AWAY, AWAY)).kill([(1, uuid4())])
