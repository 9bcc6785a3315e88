"""People are told of approvals, each once; who cannot be reached holds up nobody."""

from __future__ import annotations

import hashlib
import hmac
import logging
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import text

import flowstone
from flowstone import notifiers, notify
from flowstone.announcement import Announcement
from flowstone.approval import Ask
from flowstone.gate import TIMEOUT
from flowstone.registry import build_registry
from flowstone.runtime import Runtime
from flowstone.states import GateState
from flowstone.store import gates, notifications
from flowstone.store.ledger import Ledger
from flowstone.tokens import read_approval_token
from tests.conftest import RuntimeFactory
from tests.hook import Hook
from tests.store.gates_by_hand import ask_for
from tests.store.runs_by_hand import query
from tests.worker.waiting import wait_until

SECRET = "s" * 32
SHARED = "h" * 32
HIDDEN = "tell-nobody-this"

# A library that Apprise loads for one of its services.
of_apprise = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")

At = Callable[..., Runtime]


@pytest.fixture
def hook() -> Iterator[Hook]:
    with Hook() as made:
        yield made


@pytest.fixture
def at(make_runtime: RuntimeFactory) -> At:
    """Make a runtime that tells the named addresses."""

    def made(secret: str | None = None, more: Any = None, **addresses: str) -> Runtime:
        hidden = {name: SecretStr(address) for name, address in addresses.items()}
        made_by = None if secret is None else SecretStr(secret)
        return make_runtime(build_registry([]), notify=hidden, secret=made_by, **more or {})

    return made


def rows(ledger: Ledger) -> list[Any]:
    return list(query(ledger, "SELECT * FROM flowstone.notifications ORDER BY id"))


def later(ledger: Ledger) -> None:
    """Let as much time pass as the next try is away."""
    with ledger.begin() as conn:
        conn.execute(text("UPDATE flowstone.notifications SET due_at = now()"))


def close(
    ledger: Ledger, gate: int, state: GateState = GateState.APPROVED, by: str = "ann"
) -> None:
    """Decide, as whoever does; nothing must keep them waiting."""
    with ledger.impatient(5), ledger.begin() as conn:
        asked = gates.lock(conn, gate)
        assert asked is not None
        assert gates.close(conn, asked, state, by=by, reason="it is right", chosen="today")


def test_a_webhook_is_told_what_happens_once_and_signed(at: At, ledger: Ledger, hook: Hook) -> None:
    shared = {"shared_secret": SecretStr(f"{SHARED},{'o' * 32}")}
    here = at(secret=SECRET, more=shared, team=hook.url)
    ask = Ask(message="May it?", context={"rows": 3}, options=["today"], approvers=["ann"])
    gate = ask_for(ledger, ask, name="report")
    assert [notify.deliver(here), notify.deliver(here)] == [1, 0]
    (got,) = hook.got
    assert got.said["event"] == "requested"
    for name, value in {
        "approval": gate,
        "state": "open",
        "asset": "report0",
        "partition": None,
        "message": "May it?",
        "context": {"rows": 3},
        "options": ["today"],
        "approvers": ["ann"],
        "expires_at": None,
        "decision": None,
    }.items():
        assert got.said[name] == value
    headers = {name.lower(): value for name, value in got.headers.items()}
    seconds, _, digest = headers["flowstone-signature"].partition(",v1=")
    signed = f"{seconds.removeprefix('t=')}.".encode() + got.body
    assert hmac.new(SHARED.encode(), signed, hashlib.sha256).hexdigest() == digest
    assert headers["flowstone-id"] == str(rows(ledger)[0].id)

    close(ledger, gate)
    assert notify.deliver(here) == 1
    assert hook.events == ["requested", "decided"]
    decision = hook.got[1].said["decision"]
    assert (decision["by"], decision["option"]) == ("ann", "today")
    assert all(row.done_at and row.told == ["team"] and not row.error for row in rows(ledger))


def test_only_those_are_told_whom_the_asset_names_and_the_settings_know(
    at: At, ledger: Ledger, hook: Hook, caplog: pytest.LogCaptureFixture
) -> None:
    ask_for(ledger, Ask(notify=["boss", "nobody"]))
    ask_for(ledger, Ask(notify=[]))
    assert notify.deliver(at(team="http://127.0.0.1:1/", boss=hook.url)) == 2
    assert len(hook.got) == 1
    assert [row.told for row in rows(ledger)] == [["boss"], []]
    assert "name=nobody" in caplog.text
    # Where nobody is named at all, it is done with.
    ask_for(ledger)
    assert notify.deliver(at()) == 1
    assert all(row.done_at and row.error is None for row in rows(ledger))


def test_who_cannot_be_told_is_tried_again_and_the_others_are_not(
    at: At, ledger: Ledger, hook: Hook
) -> None:
    with Hook() as other:
        here = at(team=hook.url, boss=other.url)
        gate = ask_for(ledger)
        for status, delay in ((503, 30), (302, 60), (500, 120)):
            hook.status = status
            assert [notify.deliver(here), notify.deliver(here)] == [1, 0]
            (row,) = rows(ledger)
            assert (row.error, row.told) == (f"team: it answers HTTP {status}", ["boss"])
            wait = "SELECT round(extract(epoch FROM due_at - now())) FROM flowstone.notifications"
            assert delay - 5 <= query(ledger, wait)[0][0] <= delay
            later(ledger)
        # A redirect was not followed.
        assert {got.path for got in hook.got} == {"/hook"}
        hook.status = 200
        assert notify.deliver(here) == 1
        assert (len(hook.got), len(other.got)) == (4, 1)
        assert {got.headers.get("Flowstone-Id") for got in hook.got} == {str(rows(ledger)[0].id)}
        assert [(row.gate_id, row.error) for row in rows(ledger)] == [(gate, None)]


def test_after_many_tries_it_is_given_up_and_an_operator_knows(
    at: At, ledger: Ledger, hook: Hook, caplog: pytest.LogCaptureFixture
) -> None:
    delays = [notify.delay_after(tries) for tries in range(1, 13)]
    assert delays == [30, 60, 120, 240, 480, 960, 1920, *[3600] * 4, None]
    hook.status = 500
    here = at(team=hook.url)
    ask_for(ledger)
    for tries in range(1, 13):
        with ledger.begin() as conn:
            assert notifications.stuck(conn).number == (1 if tries > 4 else 0)
        assert notify.deliver(here) == 1
        if tries < 12:
            later(ledger)
    (row,) = rows(ledger)
    assert (row.tries, row.error) == (12, "team: it answers HTTP 500")
    assert row.done_at is not None
    assert "given up" in caplog.text
    with ledger.begin() as conn:
        assert notifications.stuck(conn) == notifications.Stuck(1, "team: it answers HTTP 500")
        conn.execute(text("UPDATE flowstone.notifications SET done_at = now() - interval '2 days'"))
        assert notifications.stuck(conn).number == 0


def test_who_hangs_keeps_nobody_from_deciding_and_is_told_later(
    at: At, ledger: Ledger, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifiers, "TIMEOUT_SECONDS", 1.0)
    here = at(team=hook.url)
    gate, other = ask_for(ledger), ask_for(ledger)
    hook.is_open.clear()
    with ThreadPoolExecutor(1) as pool:
        delivering = pool.submit(notify.deliver, here)
        wait_until(lambda: hook.got, "the webhook is asked")
        close(ledger, gate)
        assert delivering.result(30) == 3
    # Once it has not answered, it is not asked for the others in the same pass.
    assert len(hook.got) == 1
    assert [row.error for row in rows(ledger)] == [
        "team: it has not answered within 1 s",
        *["team: it has just not answered for another one"] * 2,
    ]
    # Those were not tried, so that they are not given up for it.
    assert [row.tries for row in rows(ledger)] == [1, 0, 0]
    hook.is_open.set()
    later(ledger)
    assert notify.deliver(here) == 3
    assert [got.said["approval"] for got in hook.got[1:]] == [gate, other, gate]
    assert hook.events[1:] == ["requested", "requested", "decided"]
    # It is told late, and says how it has ended.
    assert hook.got[1].said["decision"]["by"] == "ann"


def test_who_answers_without_end_is_left_behind_and_holds_up_one_process_alone(
    at: At, ledger: Ledger, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifiers, "TIMEOUT_SECONDS", 0.5)
    hook.drips = True
    with Hook() as other:
        here = at(drips=hook.url, team=other.url)
        ask_for(ledger)
        with ThreadPoolExecutor(1) as pool:
            delivering = pool.submit(notify.deliver, here)
            wait_until(lambda: hook.got, "the webhook is asked")
            ask_for(ledger)
            # While one process waits, no other one does.
            assert notify.deliver(here) == 0
            delivering.result(30)
        later(ledger)
        assert notify.deliver(here) == 2
        assert [row.error for row in rows(ledger)] == [
            "drips: it has still not answered what it was told before",
            "drips: it has just not answered for another one",
        ]
        assert (len(hook.got), len(other.got)) == (1, 2)
    hook.drips = False
    wait_until(lambda: not any(one.is_alive() for one in notifiers._left.values()), "an end")
    later(ledger)
    assert notify.deliver(here) == 2
    assert all(row.done_at and row.told == ["team", "drips"] for row in rows(ledger))


def test_an_address_is_told_by_what_is_wrong_with_it() -> None:
    def why(address: str) -> str:
        with pytest.raises(notifiers.NotTold) as caught:
            notifiers.tell(address, Announcement(1, "title", "text", {}), None)
        return str(caught.value)

    for address in ("http:///x", "https://", "http://127.0.0.1:a/", "http://[::1/"):
        assert why(address) == "its address makes no sense"
    assert why("HTTP://127.0.0.1:1/") == "Connection refused"
    for error, text_ in (
        (ssl.SSLCertVerificationError(1, f"not valid for {HIDDEN}"), "certificate is not accepted"),
        (ssl.SSLError(1, f"wrong version {HIDDEN}"), "does not speak TLS"),
    ):
        assert text_ in notifiers._why(error)
        assert HIDDEN not in notifiers._why(error)


def test_a_server_that_is_away_is_told_when_it_is_back(at: At, ledger: Ledger) -> None:
    with Hook() as gone:
        port = gone.port
    here = at(team=f"http://127.0.0.1:{port}/hook")
    close(ledger, ask_for(ledger))
    assert notify.deliver(here) == 2
    assert rows(ledger)[0].error == "team: Connection refused"
    later(ledger)
    with Hook(port) as back:
        assert notify.deliver(here) == 2
        assert back.events == ["requested", "decided"]


def test_many_who_deliver_at_once_tell_each_once(at: At, ledger: Ledger, hook: Hook) -> None:
    here = at(team=hook.url)
    for _ in range(10):
        close(ledger, ask_for(ledger))
    with ThreadPoolExecutor(4) as pool:
        counts = list(pool.map(lambda _: notify.deliver(here), range(8)))
    assert sum(counts) == len(hook.got) == 20
    assert {got.headers["Flowstone-Id"] for got in hook.got} == {
        str(row.id) for row in rows(ledger)
    }


def test_whoever_dies_while_telling_is_followed_by_another_one_and_not_for_ever(
    at: At, ledger: Ledger, hook: Hook
) -> None:
    here = at(team=hook.url)
    ask_for(ledger)
    for _ in range(12):
        with ledger.begin() as conn:
            assert notifications.take(conn, 60) is not None
            assert notifications.take(conn, 60) is None
        later(ledger)
    assert notify.deliver(here) == 1
    (row,) = rows(ledger)
    assert (row.tries, hook.got) == (13, [])
    assert row.done_at is not None
    assert "dies" in row.error


def test_a_late_one_writes_nothing_over_what_another_one_has_done(ledger: Ledger) -> None:
    ask_for(ledger)
    with ledger.begin() as conn:
        late = notifications.take(conn, 0)
        assert late is not None
    with ledger.begin() as conn:
        next_one = notifications.take(conn, 60)
        assert next_one is not None
        notifications.settle(conn, late, error="late", delay=None)
    (row,) = rows(ledger)
    assert (row.done_at, row.error) == (None, None)


@pytest.mark.parametrize("event", ["reminder", "escalated"])
def test_nobody_is_reminded_of_what_has_ended(
    at: At, ledger: Ledger, hook: Hook, event: str
) -> None:
    here = at(team=hook.url)
    gate = ask_for(ledger)
    with ledger.begin() as conn:
        notifications.tell(conn, gate, event)
    assert notify.deliver(here) == 2
    with ledger.begin() as conn:
        notifications.tell(conn, gate, event)
    close(ledger, gate, GateState.EXPIRED, by=TIMEOUT)
    assert notify.deliver(here) == 2
    assert hook.events == ["requested", event, "expired"]


@of_apprise
def test_apprise_tells_in_words(at: At, ledger: Ledger, hook: Hook) -> None:
    pytest.importorskip("apprise")
    here = at(chat=f"json://127.0.0.1:{hook.port}/chat")
    ask = Ask(
        message="May <b>it</b>?",
        context={"rows": 3, **{f"long{n}": "x" * 500 for n in range(9)}},
        options=["today", "later"],
        approvers=["ann", "role:finance"],
        quorum=2,
        timeout=3600,
        on_timeout="reject",
    )
    gate = ask_for(ledger, ask, name="report")
    assert notify.deliver(here) == 1
    said = hook.got[0].said
    assert said["title"] == f"Approval {gate}: report0 waits for a decision"
    lines = said["message"].splitlines()
    assert lines[0] == "May <b>it</b>?"
    assert "rows: 3" in lines
    assert "Options: today, later" in lines
    assert "Asked: ann, role:finance; 2 of them have to approve" in lines
    assert "UTC; then it counts as rejected" in said["message"]
    assert lines[-1] == f"flowstone approvals show {gate}"
    # What is long is cut off; the program that wants all of it gets JSON.
    assert "long0: " + "x" * 193 + "..." in lines
    assert len(said["message"]) < 2000
    close(ledger, gate, GateState.APPROVED)
    assert notify.deliver(here) == 1
    said = hook.got[1].said
    assert said["title"] == f"Approval {gate}: report0 was approved by ann"
    assert "Reason: it is right" in said["message"]
    assert "Chosen: today" in said["message"]


def test_those_who_are_asked_by_name_get_a_link_of_their_own(
    at: At, ledger: Ledger, hook: Hook
) -> None:
    web: dict[str, Any] = {"web_url": "https://web", "roles": {"finance": ("Bob",)}}
    people = {name: f"{hook.url}/{name}" for name in ("ann", "bob", "eve")}
    here = at(secret=SECRET, more=web, **people)
    gate = ask_for(ledger, Ask(approvers=["Ann", "role:finance"]))
    ask_for(ledger, Ask(message="of anybody"))
    assert notify.deliver(here) == 2
    links = [(got.path.removeprefix("/hook/"), got.said["link"]) for got in hook.got]
    assert [name for name, link in links if link] == ["ann", "bob"]
    for name, link in links[:2]:
        address, _, token = link.rpartition("/")
        assert address == flowstone.approval_link(gate, name).rpartition("/")[0]
        invited = read_approval_token([SECRET.encode()], token, time.time())
        assert (invited.gate_id, invited.by) == (gate, name)
    # What has ended is decided by nobody any more.
    close(ledger, gate)
    assert notify.deliver(here) == 1
    assert {got.said["link"] for got in hook.got[-3:]} == {None}
    # Without an address of the web there is no link.
    ask_for(ledger, Ask(approvers=["ann"]))
    assert notify.deliver(at(secret=SECRET, **people)) == 1
    assert hook.got[-3].said["link"] is None


@of_apprise
def test_an_address_is_told_to_nobody(
    at: At, ledger: Ledger, hook: Hook, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("apprise")
    place = f"127.0.0.1:{hook.port}/{HIDDEN}"
    here = at(
        right=f"http://user:{HIDDEN}@{place}",
        chat=f"json://user:{HIDDEN}@{place}",
        away=f"http://user:{HIDDEN}@127.0.0.1:1/{HIDDEN}",
        unknown=f"https://{HIDDEN}.invalid:a/{HIDDEN}",
        wrong=f"http://127.0.0.1:{hook.port}/{HIDDEN} with blanks",
        no_service=f"nothing://{HIDDEN}",
        chat_away=f"json://user:{HIDDEN}@127.0.0.1:1/{HIDDEN}",
    )
    ask_for(ledger)
    with caplog.at_level(logging.DEBUG):
        assert notify.deliver(here) == 1
    assert HIDDEN not in caplog.text
    (row,) = rows(ledger)
    assert HIDDEN not in str(row)
    assert sorted(row.told) == ["chat", "right"]
    why = dict(part.split(": ", 1) for part in row.error.split("; "))
    assert set(why) == {"away", "unknown", "wrong", "no_service", "chat_away"}
    assert why["no_service"] == "its address is none that Apprise knows"
    # User and password of an address have come to where they belong.
    for got in hook.got:
        assert got.headers["Authorization"].startswith("Basic ")


def test_without_apprise_its_error_says_what_to_do(
    at: At, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "apprise", None)
    here = at(chat="json://127.0.0.1:1")
    ask_for(ledger)
    assert notify.deliver(here) == 1
    assert rows(ledger)[0].error == "chat: it needs Apprise: pip install 'flowstone[notify]'"
