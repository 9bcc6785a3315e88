"""The page behind a link to an approval: it shows what is asked, and decides once."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

import polars as pl
import pytest
from pydantic import SecretStr

from flowstone import approval_link, approvals, asset
from flowstone.approval import Ask
from flowstone.errors import (
    AlreadyDecided,
    BadConfig,
    BadQuery,
    BadToken,
    NotAllowed,
    UnknownApproval,
)
from flowstone.io import Place
from flowstone.io.edits import readable
from flowstone.outcome import StoredOutput
from flowstone.registry import build_registry
from flowstone.runtime import Runtime
from flowstone.signalling import SignalAsk
from flowstone.states import GateState
from flowstone.store import gates
from flowstone.store.ledger import Ledger
from flowstone.tokens import approval_token
from tests.conftest import RuntimeFactory
from tests.store.gates_by_hand import ask_for, row
from tests.store.runs_by_hand import query
from tests.store.test_concurrency import at_once
from tests.web.conftest import OLD, SECRET, Answer, Site, serving

CHROMIUM = shutil.which("chromium")
FORM = {"Content-Type": "application/x-www-form-urlencoded", "Sec-Fetch-Site": "same-origin"}
ASK = Ask(
    message="Publish <b>January</b>?",
    context={"rows": 31, "from": {"source": "<script>alert(1)</script>"}, "late": None},
    options=["as it is", "with a <note>"],
    timeout=3600,
)


def stage(here: Runtime, value: Any) -> StoredOutput:
    return here.outputs.store(value, Place("asset0", "-", 1, 1, uuid4()))


def path_of(link: str) -> str:
    """Return where a link leads to on the server of the test."""
    assert link.startswith("https://flow.example/approvals/")
    return link.removeprefix("https://flow.example")


def decide(site: Site, path: str, **fields: str) -> Answer:
    return site("POST", path, urlencode(fields).encode(), FORM)


def shown(answer: Answer) -> str:
    """Return what people read on a page."""
    body = answer.text.partition("<main>")[2]
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


def test_the_page_shows_what_is_asked_and_opening_it_decides_nothing(
    site: Site, here: Runtime, ledger: Ledger
) -> None:
    gate = ask_for(ledger, ASK, staged=stage(here, {"delay": 20.5, "by": "é"}), driver="inline")
    path = path_of(approval_link(gate, "Ann"))
    assert site("HEAD", path).status == 200
    answer = site("GET", path)
    assert answer.status == 200
    text = shown(answer)
    run = query(ledger, "SELECT id, actor FROM flowstone.runs")[0]
    for said in (
        "Publish <b>January</b>?", f"{run.id}, started by {run.actor}", "rows 31", "late null",
        '{"source": "<script>alert(1)</script>"}', '"delay": 20.5, "by": "é"', "with a <note>",
        "You decide as Ann, once", "Expires", "then: reject",
        f"{row(ledger, gate).subject} (the hash of what was reviewed)",
    ):  # fmt: skip
        assert said in text, text
    assert "<b>" not in answer.text
    assert "<script" not in answer.text
    assert row(ledger, gate).state == "open"
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "form-action 'self'; base-uri 'none'; frame-ancestors 'none'" in policy
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_a_decision_counts_once_and_the_page_then_tells_it(
    site: Site, here: Runtime, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    gate = ask_for(ledger, ASK, staged=stage(here, 1), driver="inline")
    path = path_of(approval_link(gate, "ann"))
    # What does not fit decides nothing.
    for fields, status, said in (
        ({}, 422, "to approve, or to reject"),
        ({"decision": "approve"}, 422, "option"),
        ({"decision": "approve", "option": "neither"}, 422, "neither"),
        ({"decision": "reject", "reason": "x" * 2_001}, 422, "at most 2,000"),
    ):
        refused = decide(site, path, **fields)
        assert (refused.status, said in shown(refused)) == (status, True), shown(refused)
    other = {**FORM, "Sec-Fetch-Site": "cross-site"}
    assert site("POST", path, b"decision=reject", other).status == 403
    assert row(ledger, gate).state == "open"
    done = decide(site, path, decision="approve", option="with a <note>", reason=" fine\r\nby me ")
    assert done.status == 303
    assert f"/approvals/{done.headers['Location']}" == path
    found = row(ledger, gate)
    assert (found.state, found.closed_by, found.channel) == ("approved", "ann", "link")
    assert (found.chosen, found.reason) == ("with a <note>", "fine\nby me")
    for again in (site("GET", path), decide(site, path, decision="reject")):
        assert "ann has approved with 'with a <note>'" in shown(again)
        assert "Your decision" not in shown(again)
    assert decide(site, path, decision="reject").status == 409
    assert row(ledger, gate).state == "approved"
    assert path.rpartition("/")[2] not in caplog.text


def test_two_decisions_at_once_are_one(site: Site, here: Runtime, ledger: Ledger) -> None:
    gate = ask_for(ledger, Ask(message="?"), staged=stage(here, 1), driver="inline")
    ann, bob = (path_of(approval_link(gate, by)) for by in ("ann", "bob"))
    answers = at_once(
        partial(decide, site, ann, decision="approve"),
        partial(decide, site, bob, decision="reject"),
    )
    assert sorted(getattr(one, "status", 0) for one in answers) == [303, 409]


def test_who_may_not_decide_is_told_so_and_a_quorum_counts_each_once(
    site: Site, here: Runtime, ledger: Ledger
) -> None:
    ask = Ask(message="?", approvers=["ann", "bob"], quorum=2)
    gate = ask_for(ledger, ask, staged=stage(here, 1), driver="inline")
    ann = path_of(approval_link(gate, "ann"))
    # One who was asked when the link was made, perhaps.
    token = approval_token(SECRET.encode(), gate, "eve", int(time.time()) + 60)
    eve = f"/approvals/{token}"
    assert "You cannot decide this" in shown(site("GET", eve))
    refused = decide(site, eve, decision="approve")
    assert (refused.status, "eve" in shown(refused)) == (403, True)
    assert decide(site, ann, decision="approve").status == 303
    assert "by 1 of 2" in shown(site("GET", ann))
    assert "Your decision" not in shown(site("GET", ann))
    assert decide(site, ann, decision="approve").status == 403
    assert row(ledger, gate).state == "open"


def test_a_void_approval_was_asked_again(site: Site, here: Runtime, ledger: Ledger) -> None:
    gate = ask_for(ledger, ASK, staged=stage(here, 1), driver="inline")
    path = path_of(approval_link(gate, "ann"))
    with ledger.begin() as conn:
        asked = gates.lock(conn, gate)
        assert asked is not None
        gates.void(conn, asked, by="test", reason="an input has changed")
    assert "Void. approval" in shown(site("GET", path))
    assert "asked again" in shown(site("GET", path))
    assert decide(site, path, decision="approve").status == 409


def test_a_link_that_is_not_true_shows_nothing(site: Site, here: Runtime, ledger: Ledger) -> None:
    gate = ask_for(ledger, ASK, driver="inline")
    path = path_of(approval_link(gate, "ann"))
    expired = approval_token(SECRET.encode(), gate, "ann", int(time.time()) - 1)
    unknown = approval_token(SECRET.encode(), gate + 1, "ann", int(time.time()) + 60)
    for wrong, status, said in (
        (path[:-1] + ("A" if path[-1] != "A" else "B"), 403, "not a true one"),
        (f"/approvals/{expired}", 403, "too old"),
        (f"/approvals/{unknown}", 404, "there is no approval"),
        ("/approvals/x", 403, "not a true one"),
    ):
        for answer in (site("GET", wrong), decide(site, wrong, decision="approve")):
            assert (answer.status, said in shown(answer)) == (status, True), shown(answer)
            assert "January" not in answer.text
    old = approval_token(OLD.encode(), gate, "ann", int(time.time()) + 60)
    assert site("GET", f"/approvals/{old}").status == 200


def test_what_no_link_is_made_for(
    here: Runtime, ledger: Ledger, make_runtime: RuntimeFactory
) -> None:
    gate = ask_for(ledger, ASK, driver="inline")
    signal = ask_for(ledger, SignalAsk(name="done", token="x" * 8), driver="inline")
    for wrong in (0, "x", gate + 9, signal, 2**63, "9" * 30, "9" * 5000):
        with pytest.raises(UnknownApproval):
            approval_link(wrong, "ann")
    with pytest.raises(BadToken):
        approval_link(gate, "x" * 201)
    for nobody in (" ", "timeout", "Timeout@host"):
        with pytest.raises(NotAllowed, match="nobody's name"):
            approval_link(gate, nobody)
    of_ann = ask_for(ledger, Ask(approvers=["ann", "role:finance"]), driver="inline")
    with pytest.raises(BadConfig, match="no role 'finance'"):
        approval_link(of_ann, "eve")
    make_runtime(
        here.registry,
        secret=here.settings.secret,
        web_url="https://flow.example",
        roles={"finance": ("bob",)},
    )
    with pytest.raises(NotAllowed, match=r"these may: ann, role:finance \(bob\)"):
        approval_link(of_ann, "eve")
    assert path_of(approval_link(of_ann, "Bob@host"))
    for seconds in (0, -1, 10**9, float("nan")):
        with pytest.raises(BadQuery):
            approval_link(gate, "ann", expires=seconds)
    approvals.reject(gate, by="ann")
    with pytest.raises(AlreadyDecided, match="rejected"):
        approval_link(gate, "ann")
    make_runtime(here.registry)
    with pytest.raises(BadConfig, match="FLOWSTONE_SECRET is not set"):
        approval_link(gate, "ann")
    make_runtime(here.registry, secret=here.settings.secret)
    with pytest.raises(BadConfig, match="FLOWSTONE_WEB_URL is not set"):
        approval_link(gate, "ann")


def test_a_frame_is_shown_by_its_first_rows_and_what_is_too_long_is_cut(
    site: Site, here: Runtime, ledger: Ledger
) -> None:
    frame = pl.DataFrame(
        {"day": [f"<{n}>" for n in range(100)], "delay": [n / 2 for n in range(100)]}
    )
    wide = pl.DataFrame({f"c{n}": [n] for n in range(30)})
    for value, said, unsaid in (
        (frame, ("day delay <0> 0.0 <1> 0.5", "<19> 9.5", "100 rows", "first 20 rows"), "<20>"),
        (frame.to_pandas(), ("day delay <0> 0.0 <1> 0.5", "<19> 9.5"), "<20>"),
        (frame.to_arrow(), ("day delay <0> 0.0 <1> 0.5", "<19> 9.5"), "<20>"),
        (wide, ("c0 c1", "30 columns", "and 20 columns"), "c20"),
        ("x" * 30_000, ("10,000 more characters",), "x" * 20_001),
        (b"\xff" * 6_000_000, ("which is too much for a page",), "/////"),
    ):
        name = f"asset{len(query(ledger, 'SELECT 1 FROM flowstone.gates'))}_"
        gate = ask_for(ledger, Ask(), staged=stage(here, value), driver="inline", name=name)
        text = shown(site("GET", path_of(approval_link(gate, "ann"))))
        assert all(part in text for part in said), text
        assert unsaid not in text
    query_ = "SELECT location FROM flowstone.gates ORDER BY id LIMIT 1"
    (first,) = query(ledger, query_)
    (Path(here.settings.outputs) / first.location).unlink()
    link = approval_link(query(ledger, "SELECT min(id) FROM flowstone.gates")[0][0], "ann")
    assert "cannot be read here" in shown(site("GET", path_of(link)))


class Knot:
    """What holds itself, and says so when it is read from its pickle."""

    def __setstate__(self, _: object) -> None:
        raise AssertionError("it is read")


def test_a_pickle_is_not_read_and_what_holds_itself_has_a_note(
    ledger: Ledger, make_runtime: RuntimeFactory
) -> None:
    @asset(pickle=True)
    def knot0() -> object: ...

    here = make_runtime(
        build_registry([knot0]), secret=SecretStr(SECRET), web_url="https://flow.example"
    )
    tied = Knot()
    tied.own = tied  # type: ignore[attr-defined]
    staged = here.outputs.store(tied, Place("knot0", "-", 1, 1, uuid4()), pickle=True)
    gate = ask_for(ledger, Ask(), staged=staged, driver="inline", name="knot")
    with serving(here) as site:
        page = site("GET", path_of(approval_link(gate, "ann")))
    assert (page.status, "pickled, which is not read here" in shown(page)) == (200, True)
    assert "it is a pickle, which can run any code" in approvals.get_approval(gate).value
    loop: list[object] = []
    loop.append(loop)
    for value in (loop, {"a": loop}):
        assert readable(value) == f"a {type(value).__name__} that cannot be shown"


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium; `make browser` installs it")
def test_a_browser_shows_the_page_with_its_style(
    site: Site, here: Runtime, ledger: Ledger, tmp_path: Path
) -> None:
    gate = ask_for(ledger, ASK, staged=stage(here, {"delay": 20}), driver="inline")
    page = f"{site.url}{path_of(approval_link(gate, 'ann'))}"
    assert CHROMIUM is not None
    shot = tmp_path / "page.png"
    options = [
        "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--enable-logging=stderr", "--window-size=412,1300", f"--screenshot={shot}",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]  # fmt: skip
    done = subprocess.run(
        [CHROMIUM, *options, page], capture_output=True, text=True, timeout=60, check=True
    )
    # It says so where a policy keeps something out.
    assert "Content Security Policy" not in done.stderr
    assert shot.stat().st_size > 10_000
    assert row(ledger, gate).state == GateState.OPEN
