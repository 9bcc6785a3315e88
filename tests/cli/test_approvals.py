"""`flowstone approvals`: what people see of what waits for them, and how they decide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from flowstone import outbox
from flowstone.approval import Ask
from flowstone.partition_key import Month
from flowstone.registry import load_registry
from tests.cli import approved_assets
from tests.cli.in_process import InProcess
from tests.store.gates_by_hand import ask_for, shift
from tests.store.local_worker import LocalWorker
from tests.store.runs_by_hand import query


@pytest.fixture
def flowstone() -> InProcess:
    return InProcess()


@pytest.fixture
def asked(make_runtime: Any, monkeypatch: pytest.MonkeyPatch) -> LocalWorker:
    """Two months of a report, approvals 1 and 2, and a value that needs two people, 3."""
    # There is no broker to ask, which takes a second each time.
    monkeypatch.setattr(outbox, "carry_on", lambda *_: None)
    registry = load_registry([approved_assets.__name__])
    local = LocalWorker(make_runtime(registry, roles={"finance": ("carl",)}))
    for month in (1, 2):
        local.submit("monthly_report", partition=Month(2013, month), upstream=False)
    local.submit("ledger_of", partition=Month(2013, 1), upstream=False)
    shift(local.runtime.ledger, 1, 300)
    return local


def test_what_waits_is_listed_and_decided(flowstone: InProcess, asked: LocalWorker) -> None:
    listed = flowstone("approvals", "list").stdout
    for said in ("monthly_report[2013-01]", "5 min", "0 of 2", "role:finance", "full, sample"):
        assert said in listed
    assert all(len(line) <= 80 for line in listed.splitlines())
    mine = flowstone("approvals", "list", "--approver", "carl", "--json")
    first, _, third = json.loads(mine.stdout)
    assert (first["id"], first["partition"], first["tally"]) == (1, "2013-01", "0 of 1")
    assert (third["asset"], third["four_eyes"], third["votes"]) == ("ledger_of", True, [])
    assert json.loads(flowstone("approvals", "list", "--approver", "me", "--json").stdout) == []

    why = ("--option", "full", "--reason", "fine")
    done = flowstone("approvals", "approve", "1", "2", "--by", "ann", *why)
    assert done.exit_code == 0
    assert done.stdout == (
        "approval 1 (monthly_report[2013-01]): approved by ann\n"
        "approval 2 (monthly_report[2013-02]): approved by ann\n"
    )
    said = flowstone.refused("approvals", "reject", "1", "--by", "ann")
    assert "approval 1 is decided: ann has approved with 'full' at " in said
    part = flowstone("approvals", "approve", "3", "--by", "ann").stdout
    assert part == "approval 3 (ledger_of[2013-01]): 1 of 2 have approved\n"
    history = flowstone("approvals", "list", "--state", "all").stdout
    assert "approved by ann: fine" in " ".join(history.split())
    assert "nothing waits" in flowstone("approvals", "list", "--asset", "monthly_report").stdout
    status = flowstone("status", str(third["run_id"])[:8]).stdout
    assert "ledger_of[2013-01] waits for approval 3 since " in status
    assert "(flowstone approvals approve 3)" in status


def test_many_are_decided_each_on_its_own(flowstone: InProcess, asked: LocalWorker) -> None:
    as_ann = ("--by", "ann", "--option", "full")
    done = flowstone("approvals", "approve", "2", "77", "3", *as_ann)
    assert done.exit_code == 1
    assert done.stdout == "approval 2 (monthly_report[2013-02]): approved by ann\n"
    assert [line.split(";")[0] for line in done.stderr.splitlines()] == [
        "error: there is no approval 77",
        "error: approval 3 has no options",
    ]
    none = flowstone(
        "approvals", "reject", "--all", "--approver", "eve", "--asset", "monthly_report"
    )
    assert (none.exit_code, none.stdout) == (0, "nothing waits for a decision\n")
    wanted = ("--all", "--approver", "me", "--asset", "monthly_report")
    done = flowstone("approvals", "reject", *wanted, "--by", "ann", "--reason", "no")
    assert done.stdout == "approval 1 (monthly_report[2013-01]): rejected by ann\n"


def test_a_role_that_there_is_not_stops_no_others(flowstone: InProcess, asked: LocalWorker) -> None:
    odd = ask_for(asked.runtime.ledger, Ask(approvers=["role:nobodys"]))
    done = flowstone("approvals", "reject", str(odd), "3", "--by", "ann")
    assert done.exit_code == 1
    assert "has no role 'nobodys'" in done.stderr
    assert done.stdout == "approval 3 (ledger_of[2013-01]): rejected by ann\n"


def test_no_text_gives_an_order_to_the_terminal(flowstone: InProcess, asked: LocalWorker) -> None:
    ledger, order = asked.runtime.ledger, "\x1b[2J\x9b1A"
    gate = str(ask_for(ledger, Ask(message=order, context={order: order}, options=[order])))
    run = str(query(ledger, f"SELECT run_id FROM flowstone.steps WHERE gate = {gate}")[0][0])
    said = [
        flowstone("approvals", "list").output,
        flowstone("approvals", "list", "--json").output,
        flowstone("approvals", "show", gate).output,
        flowstone("status", run).output,
    ]
    done = flowstone("approvals", "reject", gate, "--by", f"ann{order}", "--reason", order)
    said += [done.output, flowstone("approvals", "show", gate).output]
    said += [flowstone("approvals", "list", "--state", "all").output]
    said += [flowstone("audit", "log").output]
    for text in said:
        assert "\x1b" not in text
        assert "\x9b" not in text
    assert r"\x1b[2J\x9b1A" in said[2]


def test_a_link_is_printed_for_one_who_is_asked(flowstone: InProcess, asked: LocalWorker) -> None:
    settings = asked.runtime.settings
    more = {"secret": SecretStr("s" * 32), "web_url": "https://flow.example"}
    asked.runtime.settings = settings.model_copy(update=more)
    link = flowstone("approvals", "link", "1", "--by", "ann", "--expires", "60").stdout
    assert link.startswith("https://flow.example/approvals/fa1.")
    assert "eve may not decide" in flowstone.refused("approvals", "link", "1", "--by", "eve")
    assert "Example: flowstone approvals link" in flowstone("approvals", "link", "--help").stdout


def test_all_of_one_is_shown_and_an_edit_with_its_difference(
    flowstone: InProcess, asked: LocalWorker, tmp_path: Path
) -> None:
    shown = flowstone("approvals", "show", "1").stdout
    for said in (
        "Publish a total of 1,234 to the whole company?",
        '{"source": "flights"}',
        '{"total": 1234, "rows": [1, 2]}',
        "then: reject",
    ):
        assert said in shown
    assert all(len(line) <= 80 for line in shown.splitlines())
    edit = tmp_path / "edit.json"
    edit.write_text('{"total": 1300, "rows": [1, 2, 3]}')
    as_ann = ("--by", "ann", "--option", "full", "--edit", f"@{edit}")
    done = flowstone("approvals", "approve", "1", *as_ann)
    assert done.stdout == (
        "approval 1 (monthly_report[2013-01]): approved by ann, with an edited value\n"
    )
    shown = flowstone("approvals", "show", "1").stdout
    assert [line.split() for line in shown.splitlines() if line.startswith(" /")] == [
        ["/total", "1234", "1300"],
        ["/rows/2", "3"],
    ]
    known = json.loads(flowstone("approvals", "show", "1", "--json").stdout)
    assert "(the hash of what was reviewed)" in " ".join(shown.split())
    assert len(known["subject"]) == 64
    assert known["value"] == {"total": 1234, "rows": [1, 2]}
    assert known["edited"] == {"total": 1300, "rows": [1, 2, 3]}
    assert known["difference"][1] == {"path": "/rows/2", "after": 3}
    asked.carry_on(1)
    made = flowstone("produced", "monthly_report", "-p", "2013-01").stdout
    assert "approved, edited" in made
    assert "[full]" in made


WRONG = [
    (("approve",), "no approval is named; give ids, or --all"),
    (("reject", "--asset", "x"), "give ids, or add --all to decide all that these options name"),
    (("approve", "1", "--all"), "ids and --all both say what to decide"),
    (("approve", "1", "2", "--edit", "1"), "--edit takes one approval"),
    (("approve", "1", "--edit", "{"), "--edit is no JSON"),
    (("approve", "1", "--edit", "@no/such.json"), "--edit @no/such.json: the file cannot be read"),
    (("list", "--state", "opne"), "did you mean 'open'?"),
]


def test_what_makes_no_sense_is_refused_in_one_line(
    flowstone: InProcess, asked: LocalWorker
) -> None:
    for command, said in WRONG:
        assert said in flowstone.refused("approvals", *command), command


def test_a_plan_says_who_will_wait_for_an_approval(
    flowstone: InProcess, asked: LocalWorker
) -> None:
    one = ("monthly_report", "--partition", "2013-03")
    said = "each step of monthly_report waits for an approval"
    assert said in flowstone("plan", *one).stdout
    (step,) = json.loads(flowstone("plan", *one, "--json").stdout)["steps"]
    assert step["asks"] == "always"
    (other,) = json.loads(flowstone("plan", "nobodys", "--json").stdout)["steps"]
    assert other["asks"] is None


def test_a_frame_is_shown_by_its_first_rows(flowstone: InProcess, asked: LocalWorker) -> None:
    asked.submit("table_of")
    shown = flowstone("approvals", "show", str(asked.newest_gate())).stdout
    assert "9 rows, 2 columns; the first 5 rows below" in shown
    assert [line.split() for line in shown.splitlines() if "row 4" in line] == [
        ["row", "4", "0.333333"]
    ]
    assert "row 5" not in shown
    assert max(map(len, shown.splitlines())) <= 80
