"""What docs/approvals.md says is so: its examples are asked, decided, edited and told."""

from __future__ import annotations

import re
from typing import Any, get_args

import pytest

from flowstone import Approval, RunState, approve, asset, get_approval, lineage, outbox, reject
from flowstone.approval import ON_TIMEOUT, Ask, OnTimeout
from flowstone.errors import ApprovalVoid
from flowstone.registry import build_registry
from tests.conftest import RuntimeFactory
from tests.pages import block, blocks, section
from tests.store.local_worker import LocalWorker


def named(title: str) -> dict[str, Any]:
    """Return what the Python of a section defines."""
    found: dict[str, Any] = {"__name__": "guide"}
    exec(block("python", title), found)  # noqa: S102 - the page is ours
    return found


@pytest.fixture
def guide() -> dict[str, Any]:
    return named("Ask for a value")


@pytest.fixture
def local(
    make_runtime: RuntimeFactory, guide: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> LocalWorker:
    # There is no broker to ask, which takes a second each time.
    monkeypatch.setattr(outbox, "carry_on", lambda *_: None)
    middle = named("Ask in the middle")
    assets = [guide["monthly_report"], guide["published"], middle["delays"], middle["publication"]]
    return LocalWorker(make_runtime(build_registry(assets), roles={"finance": ("carl",)}))


def test_a_value_is_asked_about_listed_and_approved(
    local: LocalWorker, capsys: pytest.CaptureFixture[str]
) -> None:
    handle = local.submit("published")
    assert handle.status() == RunState.WAITING
    named("Decide")
    listed, value = capsys.readouterr().out.splitlines()
    assert listed.startswith("1 monthly_report Publish a mean delay of 20 minutes? 0 of 1 ")
    assert value in block("python", "Decide")
    local.carry_on(1)
    assert handle.result() == 20
    (told,) = lineage.produced("monthly_report").approvals
    assert (told.decided_by, told.reason) == ("ann", "the winter was hard")
    # It is fresh, and nobody is asked again.
    assert local.submit("published").status() == RunState.SUCCEEDED


def test_a_rejection_fails_the_step_and_to_resume_asks_again(local: LocalWorker) -> None:
    handle = local.submit("published")
    reject(1, by="carl", reason="no")
    local.carry_on(1)
    assert handle.status() == RunState.FAILED
    assert local.step(handle, "monthly_report").error["type"] == "approval_rejected"
    again = handle.resume()
    local.coordinate(again.id)
    local.work()
    assert again.status() == RunState.WAITING
    assert local.open_gate() > 1


@pytest.mark.parametrize(
    ("decide", "made"),
    [
        (lambda: approve(1, by="ann", option="first"), "[12], says ann"),
        (lambda: reject(1, by="ann", reason="too late"), "kept back: too late"),
    ],
)
def test_handlers_make_the_value(local: LocalWorker, decide: Any, made: str) -> None:
    handle = local.submit("publication")
    decide()
    local.carry_on(1)
    assert handle.result() == made


def test_an_edit_is_kept_with_what_has_changed(local: LocalWorker, guide: dict[str, Any]) -> None:
    handle = local.submit("published")
    named("Edit")
    (told,) = re.findall(r"`\[(\{.*?\})\]`", section("Edit"))
    assert get_approval(1).difference[0] == eval(told)  # noqa: S307 - as above
    local.carry_on(1)
    report = handle.result("monthly_report")
    assert report == guide["Report"](delay=12.5, note="without the storm")
    (shown, _) = blocks("console", section("Edit"))[0].splitlines()
    assert block("python", "Edit").split("edit=")[1].strip()[:-1] in shown


def test_it_is_void_where_an_input_has_changed(
    local: LocalWorker, make_runtime: RuntimeFactory
) -> None:
    local.submit("publication")
    other = LocalWorker(make_runtime(build_registry([asset(name="delays")(lambda: [30])])))
    other.submit("delays")
    with pytest.raises(ApprovalVoid):
        approve(1, by="ann", option="all")


def test_the_tables_name_the_options_and_all_that_can_be_at_the_end() -> None:
    ends = re.findall(r'^\| `"(\w+)"`', section("In time"), re.MULTILINE)
    assert sorted(ends) == sorted(ON_TIMEOUT) == sorted(get_args(OnTimeout))
    assert ends[0] == Ask(timeout=1).on_timeout
    options = re.findall(r"^\| `(\w+)=", section("Who may decide"), re.MULTILINE)
    assert options == ["approvers", "quorum", "four_eyes"]
    assert set(options) <= set(Approval.__dataclass_fields__)
