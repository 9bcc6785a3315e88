"""What docs/signals.md and docs/web.md say of signals and links."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from typing import Any, Final

import pytest
import typer.main
from pydantic import SecretStr

import flowstone
from flowstone import asset, materialize_sync, wait_for_signal
from flowstone.approval import Ask
from flowstone.cli import app
from flowstone.errors import UnknownSignal
from flowstone.payload import MAX_PAYLOAD
from flowstone.reconcile import make_pass
from flowstone.registry import build_registry
from flowstone.signalling import SignalAsk
from flowstone.store.ledger import Ledger
from flowstone.tokens import MAX_AGE
from flowstone.web import links, server
from flowstone.web.signals import SignalHandler
from tests.conftest import RuntimeFactory
from tests.pages import PAGES, ROOT, block, blocks, section
from tests.store.gates_by_hand import ask_for, row, shift
from tests.store.local_worker import LocalWorker
from tests.store.runs_by_hand import query
from tests.web.conftest import Site, serving

SECRET: Final = "s" * 32
TOKEN: Final = "token-of-mine"  # noqa: S105 - of no use to anybody


def secret() -> dict[str, SecretStr]:
    return {"secret": SecretStr("m" * 32), "shared_secret": SecretStr(SECRET)}


@pytest.fixture
def running(make_runtime: RuntimeFactory) -> Iterator[Site]:
    with serving(make_runtime(build_registry([]), **secret())) as site:
        yield site


def test_the_example_waits_for_its_job_and_counts_what_that_says(
    make_runtime: RuntimeFactory,
) -> None:
    """Its job has ended at once, so that the signal is early."""
    named: dict[str, Any] = {"__name__": "guide"}
    named["start_job"] = lambda token: flowstone.signal(token, {"rows": 120}, by="export job")
    exec(block("python", "Waiting for a signal"), named)  # noqa: S102 - the page is ours
    make_runtime(build_registry([named["export"]]), **secret())
    assert materialize_sync("export").result() == 120


def test_a_timeout_ends_it_as_the_page_says(make_runtime: RuntimeFactory, ledger: Ledger) -> None:
    assert "type `signal_expired`" in section("When no signal comes")

    @asset
    def fails() -> int:
        raise wait_for_signal(name="done", token=TOKEN, timeout=60)

    @asset(on_signal=lambda payload, signal: [payload, signal.timed_out])
    def goes_on() -> list[Any]:
        token = f"{TOKEN}-2"
        raise wait_for_signal(name="done", token=token, timeout=60, on_timeout="continue")

    local = LocalWorker(make_runtime(build_registry([fails, goes_on])))
    handle = local.submit(fails, goes_on)
    for (gate,) in query(ledger, "SELECT id FROM flowstone.gates"):
        shift(ledger, gate, 61)
    make_pass(local.runtime, lambda *_: None).check()
    local.coordinate(handle.id)
    local.work()
    assert local.step(handle, fails).error["type"] == "signal_expired"
    assert flowstone.get(goes_on) == [None, True]
    with pytest.raises(UnknownSignal, match="come too late"):
        flowstone.signal(TOKEN)


def test_each_way_to_send_it_works(running: Site, ledger: Ledger) -> None:
    send, _ = blocks("python", section("Sending it"))[0], None
    http = block("python", "Over HTTP")
    named = {"secret": SECRET, "url": running.url}
    for number, code in enumerate((send, http)):
        token = f"{TOKEN}-{number}"
        gate = ask_for(ledger, SignalAsk(name="done", token=token), driver="inline")
        exec(code, {**named, "token": token})  # noqa: S102 - the page is ours
        assert row(ledger, gate).payload == {"value": {"rows": 120}}
    commands = block("console", "Sending it")
    arguments = {p.name for p in typer.main.get_command(app).commands["signal"].params}  # type: ignore[attr-defined]
    assert arguments == {"token", "payload"}
    assert len(re.findall(r"flowstone signal (?:\"\$TOKEN\"|-) ", commands)) == 3


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("python3")), reason="no curl")
def test_curl_sends_it(running: Site, ledger: Ledger) -> None:
    gate = ask_for(ledger, SignalAsk(name="done", token=TOKEN), driver="inline")
    done = subprocess.run(
        ["sh", "-euc", block("sh", "Over HTTP")],
        env={**os.environ, "TOKEN": TOKEN, "SECRET": SECRET, "URL": running.url},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert '"signal": "received"' in done.stdout
    assert row(ledger, gate).payload == {"value": {"rows": 120}}


def test_the_numbers_of_the_pages_are_those_of_the_code() -> None:
    text = section("Over HTTP")
    assert (MAX_PAYLOAD, MAX_AGE) == (64 * 1024, 5 * 60)
    assert "at most five minutes" in text
    assert "more than 64 KB" in text
    # tests/web/test_signals.py gets each of these.
    told = {int(status) for row_ in re.findall(r"^\| ([\d, ]+) \|", text, re.MULTILINE)
            for status in row_.split(", ")}  # fmt: skip
    assert told == {202, 400, 401, 404, 409, 413, 415, 422, 503}
    tested = (ROOT / "tests/web/test_signals.py").read_text()
    assert all(str(status) in tested for status in told)
    web = PAGES[ROOT / "docs/web.md"]
    assert "by default a week" in web
    assert links.WEEK.days == 7
    assert "at most ten seconds" in web
    assert server.STOP_SECONDS == 10
    assert hasattr(SignalHandler, "post")


def test_links_are_made_as_the_page_says(make_runtime: RuntimeFactory, ledger: Ledger) -> None:
    make_runtime(build_registry([]), web_url="https://flowstone.example.com", **secret())
    named: dict[str, Any] = {"approval_id": ask_for(ledger, Ask(message="?"), driver="inline")}
    exec(block("python", "Links to approvals"), named)  # noqa: S102 - the page is ours
    assert named["link"].startswith("https://flowstone.example.com/approvals/fa1.")


def test_the_addresses_are_those_that_the_server_has(running: Site) -> None:
    table = dict(re.findall(r"^\| `(\w+) (/\w+)", PAGES[ROOT / "docs/web.md"], re.MULTILINE))
    assert table == {"POST": "/approvals", "GET": "/health"}
    rows = re.findall(r"^\| `(\w+) (/\w+)(?:/TOKEN)?`", PAGES[ROOT / "docs/web.md"], re.MULTILINE)
    assert len(rows) == 4
    for method, path in rows:
        token = "" if path == "/health" else f"/{TOKEN}-{int(time.time())}"
        assert running(method, path + token).status in (200, 401, 403)
