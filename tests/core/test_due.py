"""What time asks for at a gate, by a clock of the test's own: once each, in order, to one end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from flowstone.approval import Ask, Escalation, OnTimeout
from flowstone.due import Approve, Continue, Due, Escalate, Fail, Reject, Remind, due
from flowstone.gate import Gate, Kind
from flowstone.quorum import Vote
from flowstone.states import GateState

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
ENDINGS: tuple[OnTimeout | None, ...] = ("approve", "reject", "fail", None)
ENDS = {"approve": Approve, "reject": Reject, "fail": Fail, "continue": Continue}


def after(seconds: float | None) -> datetime | None:
    return None if seconds is None else BEGIN + timedelta(seconds=seconds)


def gate_of(ask: Ask, kind: Kind = "approval", on_timeout: str | None = None) -> Gate:
    """Return the row of what has just been asked."""
    empty = dict.fromkeys(Gate.__dataclass_fields__)
    given = {
        "id": 1,
        "kind": kind,
        "state": GateState.OPEN,
        "created_at": BEGIN,
        "options": ask.options,
        "approvers": ask.approvers,
        "quorum": ask.quorum,
        "level": 0,
        "expires_at": after(ask.timeout),
        "on_timeout": on_timeout or ask.on_timeout,
        "remind_every": ask.remind_every,
        "remind_at": after(ask.remind_every),
        "escalation": [asdict(level) for level in ask.escalation],
    }
    return Gate(**{**empty, **given})  # type: ignore[arg-type]


def tick(gate: Gate, now: datetime) -> tuple[Gate, Due | None]:
    """Do what is due, as the ledger does: what has ended is asked no more."""
    found = due(gate, now) if gate.state == GateState.OPEN else None
    match found:
        case None:
            return gate, None
        case Remind() | Escalate():
            return replace(gate, **vars(found)), found
    return replace(gate, state=GateState.EXPIRED), found


def told(gate: Gate, ticks: Iterable[float]) -> tuple[Gate, list[tuple[datetime, Due]]]:
    """Return what ticks at so many seconds find, and when."""
    found = []
    for seconds in ticks:
        now = BEGIN + timedelta(seconds=seconds)
        gate, what = tick(gate, now)
        if what is not None:
            found.append((now, what))
    return gate, found


seconds = st.integers(1, 50)


@st.composite
def asks(draw: st.DrawFn, last: st.SearchStrategy[OnTimeout | None] | None = None) -> Ask:
    """Draw what is asked, with a chain of levels, the last of which may wait for ever."""
    end = draw(last if last is not None else st.sampled_from(ENDINGS))
    levels = draw(st.integers(0, 4))
    escalate: OnTimeout = "escalate"
    ends = [*[escalate] * levels, end]
    timeouts = [None if what is None else draw(seconds) for what in ends]
    return Ask(
        options=draw(st.sampled_from([(), ("a", "b")])),
        approvers=["zero"],
        timeout=timeouts[0],
        on_timeout=ends[0],
        escalation=[
            Escalation(approvers=[f"level{n}"], timeout=timeouts[n], on_timeout=ends[n])
            for n in range(1, levels + 1)
        ],
        remind_every=draw(st.none() | seconds),
    )


rhythms = st.lists(st.integers(0, 400), max_size=30).map(sorted)
"""Ticks that are early, late, doubled or missing."""


@given(asks(), rhythms)
def test_whatever_the_rhythm_each_level_is_reached_once_and_in_order(
    ask: Ask, rhythm: Sequence[int]
) -> None:
    # At the end, ticks come until nothing is due any more.
    final = [1000.0 * n for n in range(1, len(ask.escalation) + 3)]
    gate, found = told(gate_of(ask), [*rhythm, *final])

    escalated = [what for _, what in found if isinstance(what, Escalate)]
    assert [what.level for what in escalated] == list(range(1, len(ask.escalation) + 1))
    assert [what.approvers for what in escalated] == [level.approvers for level in ask.escalation]
    end = [*[ask.on_timeout], *(level.on_timeout for level in ask.escalation)][-1]
    ended = [what for _, what in found if not isinstance(what, Remind | Escalate)]
    if end is None:
        assert ended == []
        assert gate.state == GateState.OPEN
    else:
        (only,) = ended
        assert isinstance(only, ENDS[end])
        assert only == found[-1][1]
        assert gate.state != GateState.OPEN
        if isinstance(only, Approve):
            assert only.chosen == (ask.options[0] if ask.options else None)


@given(asks(), rhythms)
def test_each_level_has_its_whole_time_and_reminders_are_as_far_apart_as_said(
    ask: Ask, rhythm: Sequence[int]
) -> None:
    gate, found = told(gate_of(ask), rhythm)
    timeouts = [ask.timeout, *(level.timeout for level in ask.escalation)]
    begun, said = BEGIN, BEGIN
    for now, what in found:
        if isinstance(what, Remind):
            assert ask.remind_every is not None
            assert now - said >= timedelta(seconds=ask.remind_every)
        else:
            timeout = timeouts.pop(0)
            assert timeout is not None
            assert now - begun >= timedelta(seconds=timeout)
            begun = now
        said = now
    assert (gate.state == GateState.OPEN) == (
        not found or isinstance(found[-1][1], Remind | Escalate)
    )


@given(asks(), rhythms)
def test_a_tick_that_comes_twice_finds_nothing_more(ask: Ask, rhythm: Sequence[int]) -> None:
    doubled = [tick for tick in rhythm for _ in range(2)]
    assert told(gate_of(ask), doubled) == told(gate_of(ask), rhythm)


@given(asks(st.none()), st.integers(1, 400))
def test_the_end_comes_before_a_reminder_and_reminders_that_were_missed_are_told_once(
    ask: Ask, late: int
) -> None:
    gate = gate_of(ask)
    now = BEGIN + timedelta(seconds=late)
    found = due(gate, now)
    if ask.timeout is not None and ask.timeout <= late:
        assert isinstance(found, Escalate)
    elif ask.remind_every is not None and ask.remind_every <= late:
        assert isinstance(found, Remind)
    else:
        assert found is None


def test_what_has_no_end_and_no_reminder_waits_for_ever() -> None:
    assert due(gate_of(Ask(message="May it?")), datetime.max.replace(tzinfo=UTC)) is None


def test_a_signal_that_does_not_come_ends_as_it_says() -> None:
    ask = Ask(timeout=10)
    late = BEGIN + timedelta(seconds=10)
    assert due(gate_of(ask, "signal", "fail"), late - timedelta(seconds=1)) is None
    assert due(gate_of(ask, "signal", "fail"), late) == Fail()
    assert due(gate_of(ask, "signal", "continue"), late) == Continue()


def test_a_quorum_is_all_of_those_who_are_asked_next_where_they_are_fewer() -> None:
    for approvers, approved, quorum in (
        (["boss"], [], 1),
        (["boss"], ["ann"], 2),
        (["a", "b", "A@host"], [], 2),
        (["a", "b"], ["B@host"], 2),
        (["role:heads"], [], 3),
        (["role:heads", "ann"], ["ann"], 3),
    ):
        found = escalated(approvers, approved)
        assert isinstance(found, Escalate)
        assert found.quorum == quorum


def test_where_all_who_are_asked_next_have_approved_it_is_approved() -> None:
    for approvers, approved in (
        (["ann"], ["ann@host"]),
        (["ann", "Ann "], ["bob", "ANN"]),
        (["ann", "bob"], ["bob", "ann"]),
    ):
        assert escalated(approvers, approved, "b") == Approve("b", by_votes=True)
    assert escalated(["ann"], ["ann"]) == Approve(None, by_votes=True)


def escalated(
    approvers: Sequence[str], approved: Sequence[str], option: str | None = None
) -> Due | None:
    """Return what is due where a quorum of three has not decided, and these are asked next."""
    level = Escalation(approvers=approvers)
    options = ["a", "b"] if option else []
    ask = Ask(quorum=3, options=options, timeout=1, on_timeout="escalate", escalation=[level])
    votes = [Vote(actor, True, "test", option=option) for actor in approved]
    return due(gate_of(ask), BEGIN + timedelta(seconds=1), votes)
