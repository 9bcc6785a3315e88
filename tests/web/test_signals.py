"""Signals over HTTP: who may send them, what is answered, and what is not told."""

from __future__ import annotations

import json
import logging
import re
import time
from functools import partial
from typing import Final

import pytest
from pydantic import SecretStr

from flowstone import asset, runtime
from flowstone.errors import BadSignal
from flowstone.payload import MAX_PAYLOAD, checked
from flowstone.registry import build_registry
from flowstone.signalling import SignalAsk
from flowstone.states import GateState
from flowstone.store import gates
from flowstone.store.ledger import Ledger
from flowstone.tokens import HEADER, sign, signal_token
from flowstone.web import signals
from tests.conftest import RuntimeFactory
from tests.store.gates_by_hand import ask_for, row
from tests.store.runs_by_hand import HandRun, count
from tests.store.test_concurrency import at_once
from tests.web.conftest import JSON, OLD_SHARED, SECRET, SHARED, Site, serving

TOKEN: Final = "token-of-mine"  # noqa: S105 - of no use to anybody
ASK: Final = SignalAsk(name="done", token=TOKEN)
ALSO: Final = {"Content-Type": "application/json; charset=utf-8"}


def headers(body: bytes, token: str = TOKEN) -> dict[str, str]:
    return {HEADER: sign(SHARED.encode(), time.time(), token, body)}


def test_a_signal_is_taken_once(
    site: Site, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    gate = ask_for(ledger, ASK, driver="inline")
    answer = site.signal(TOKEN, b'{"rows": 3}')
    assert answer.status == 202
    assert answer.json["signal"] == "received"
    assert answer.json.keys() == {"signal", "step", "run_id"}
    found = row(ledger, gate)
    assert (found.state, found.payload, found.closed_by, found.channel) == (
        "received", {"value": {"rows": 3}}, "http", "http",
    )  # fmt: skip
    again = site.signal(TOKEN, b"4")
    assert again.status == 409
    assert found.closed_at.isoformat(timespec="seconds") in again.json["message"]
    assert row(ledger, gate).payload == {"value": {"rows": 3}}
    assert "status=202" in caplog.text
    assert TOKEN not in caplog.text


def test_what_is_refused_leaves_the_step_waiting_and_says_why(site: Site, ledger: Ledger) -> None:
    gate = ask_for(ledger, ASK, driver="inline")
    path, now = f"/signals/{TOKEN}", time.time()
    large = b'"' + b"x" * 65_536 + b'"'
    cases: list[tuple[bytes, dict[str, str], int, str]] = [
        (b"1", JSON, 401, "it needs the header FlowStone-Signature"),
        (b"1", {HEADER: "t=1", **JSON}, 401, "is not t=SECONDS"),
        (b"1", {HEADER: sign(b"x" * 32, now, TOKEN, b"1"), **JSON}, 401, "does not fit"),
        (b"2", {HEADER: sign(SHARED.encode(), now, TOKEN, b"1"), **JSON}, 401, "does not fit"),
        (b"1", {HEADER: sign(SHARED.encode(), now, "other-token", b"1"), **JSON}, 401, "not fit"),
        (b"1", {HEADER: sign(SHARED.encode(), now - 301, TOKEN, b"1"), **JSON}, 401, "clocks"),
        # What makes tokens signs no request.
        (b"1", {HEADER: sign(SECRET.encode(), now, TOKEN, b"1"), **JSON}, 401, "does not fit"),
        (b"1", headers(b"1"), 415, "application/json"),
        (b"a=1", {**headers(b"a=1"), "Content-Type": "text/plain"}, 415, "application/json"),
        (b"{", {**headers(b"{"), **JSON}, 400, "is no JSON"),
        (b"[" * 9999, {**headers(b"[" * 9999), **JSON}, 400, "is no JSON"),
        (b"\xff\xfe", {**headers(b"\xff\xfe"), **JSON}, 400, "is no JSON"),
        (b"NaN", {**headers(b"NaN"), **JSON}, 422, "is no JSON"),
        (b'"\\u0000"', {**headers(b'"\\u0000"'), **ALSO}, 422, "PostgreSQL does not keep"),
        (large, {**headers(large), **JSON}, 413, "at most 65,536 bytes"),
    ]
    for body, given, status, said in cases:
        answer = site("POST", path, body, given)
        assert (answer.status, said in answer.json["message"]) == (status, True), answer
        assert TOKEN not in answer.text
        assert "Traceback" not in answer.text
        assert answer.headers["Cache-Control"] == "no-store"
        assert ("WWW-Authenticate" in answer.headers) == (status == 401)
    assert site("GET", path).status == 405
    assert site("POST", "/signals/").status == 404
    assert site("GET", "/").json == {
        "error": "http_404", "message": "there is nothing at this address",
    }  # fmt: skip
    assert row(ledger, gate).state == "open"
    # Nothing at all is a payload, too; and the secret before this one is still believed.
    assert site.signal(TOKEN, secret=OLD_SHARED).status == 202


def test_without_a_shared_secret_it_says_which_setting_is_missing(
    make_runtime: RuntimeFactory,
) -> None:
    with serving(make_runtime(build_registry([]), secret=SecretStr(SECRET))) as site:
        answer = site.signal(TOKEN, b"1", secret=SECRET)
    assert (answer.status, answer.headers["Retry-After"]) == (503, None)
    assert "FLOWSTONE_SHARED_SECRET is not set" in answer.json["message"]


def test_what_is_quoted_is_quoted_as_it_is(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    of_error = signals._line
    monkeypatch.setattr(signals, "_line", lambda error: f"100% {of_error(error)} %s")
    answer = site.signal(TOKEN, b"{")
    assert answer.status == 400
    assert re.search(r"is no JSON: 100% Expecting .* %s$", answer.json["message"])


def test_a_payload_of_64_kb_is_measured_as_it_was_sent() -> None:
    many = [1] * 32_767
    sent = json.dumps(many, separators=(",", ":"))
    assert len(sent) == MAX_PAYLOAD - 1
    assert checked(many) == many
    with pytest.raises(BadSignal, match="65,537 bytes"):
        checked([*many, 1])


def test_a_body_that_says_that_it_is_huge_is_not_read(site: Site) -> None:
    huge = {**headers(b""), **JSON, "Content-Length": str(10**9)}
    assert site("POST", f"/signals/{TOKEN}", b"", huge).status == 413


def test_who_waits_for_nothing_is_not_found(site: Site, ledger: Ledger) -> None:
    unknown = site.signal("nobodys-token")
    # One of the user's own may be too early.
    assert (unknown.status, unknown.headers["Retry-After"]) == (404, "30")
    run = HandRun(ledger, {0: ()}, driver="inline")
    own = signal_token(SECRET.encode(), run.ids[0], "done")
    kept = site.signal(own, b"1")
    assert (kept.status, kept.json["signal"]) == (202, "kept")
    replayed = site.signal(own, b"1")
    assert (replayed.status, "kept until a0 waits" in replayed.json["message"]) == (409, True)
    changed = own[:-1] + ("A" if own[-1] != "A" else "B")
    assert site.signal(changed).status == 404
    run.do(0)
    ended = site.signal(signal_token(SECRET.encode(), run.ids[0], "other"))
    assert (ended.status, ended.headers["Retry-After"]) == (404, None)
    gate = ask_for(ledger, ASK, driver="inline")
    with ledger.begin() as conn:
        asked = gates.lock(conn, gate)
        assert asked is not None
        gates.close(conn, asked, GateState.EXPIRED, by="timeout")
    late = site.signal(TOKEN)
    assert (late.status, "too late" in late.json["message"]) == (404, True)


def test_a_payload_that_the_asset_does_not_take_is_refused(
    make_runtime: RuntimeFactory, ledger: Ledger
) -> None:
    def on_signal(payload: list[int]) -> int:
        return len(payload)

    job = asset(name="job0", on_signal=on_signal)(lambda: 1)
    gate = ask_for(ledger, ASK, driver="inline", name="job")
    with serving(make_runtime(build_registry([job]), shared_secret=SecretStr(SHARED))) as site:
        refused = site.signal(TOKEN, b'["x"]')
        assert (refused.status, refused.json["error"]) == (422, "bad_signal")
        assert "job0" in refused.json["message"]
        assert row(ledger, gate).state == "open"
        assert site.signal(TOKEN, b"[1]").status == 202


def test_of_two_at_once_one_is_taken(site: Site, ledger: Ledger) -> None:
    for number in range(5):
        token = f"{TOKEN}-{number}"
        gate = ask_for(ledger, SignalAsk(name="done", token=token), driver="inline")
        sends = [partial(site.signal, token, json.dumps(n).encode()) for n in range(3)]
        answers = at_once(*sends)
        statuses = [getattr(answer, "status", None) for answer in answers]
        assert sorted(map(str, statuses)) == ["202", "409", "409"]
        assert row(ledger, gate).payload == {"value": statuses.index(202)}
    assert count(ledger, "gates") == 5


def test_while_the_ledger_is_away_that_is_said(
    site: Site, here: runtime.Runtime, make_runtime: RuntimeFactory
) -> None:
    assert (site("GET", "/health").status, site("GET", "/health").json) == (200, {"status": "ok"})
    gone = here.settings.database.replace("/test_", "/gone_")
    away = make_runtime(
        build_registry([]),
        shared_secret=SecretStr(SHARED),
        database_url=SecretStr(gone.replace("postgresql+psycopg", "postgresql")),
    )
    with serving(away) as other:
        health = other("GET", "/health")
        assert (health.status, health.json) == (503, {"status": "ledger_unavailable"})
        answer = other.signal(TOKEN, b"1")
        assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
        assert answer.json["message"] == "the ledger is away; try again later"
    away.close()
