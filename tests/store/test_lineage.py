"""Lineage: what outputs were made of, and what was made of them, on histories of every kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection

from flowstone.store import lineage, pointers
from flowstone.store.ledger import Ledger
from flowstone.store.lineage import Standing, TracedOutput
from tests.store.bulk_lineage import commit_all, ladder
from tests.store.histories import Deed, History, Moment
from tests.store.runs_by_hand import HandRun, query, run_sql
from tests.store.test_linear import rows_read
from tests.strategies import Dag, dags

WALKS: Mapping[str, Callable[..., Sequence[TracedOutput]]] = {
    "up": lineage.upstream,
    "down": lineage.downstream,
    "impact": lineage.impact,
}

Leads = Mapping[int, Iterable[int]]


def every_way(start: int, leads: Leads) -> dict[int, int]:
    """Return what is reached from `start`, and by how many steps at least, trying every way."""
    found = {start: 0}

    def go(one: int, steps: int) -> None:
        for after in leads.get(one, ()):
            found[after] = min(found.get(after, steps + 1), steps + 1)
            go(after, steps + 1)

    go(start, 0)
    return found


def turned(leads: Leads) -> dict[int, set[int]]:
    back: dict[int, set[int]] = {}
    for one, afters in leads.items():
        for after in afters:
            back.setdefault(after, set()).add(one)
    return back


def reads_latest(history: History, then: Moment) -> dict[int, set[int]]:
    """Return for each latest output the latest outputs of the nodes that it has read."""
    return {
        output: {then.latest[history.node[read]] for read in history.made_of[output]}
        for output in then.latest.values()
    }


def standing(history: History, then: Moment, start: int, output: int) -> Standing:
    """Tell naively how an affected output stands, looking only at what is affected, too."""
    cone = every_way(start, turned(reads_latest(history, then)))

    def is_behind(one: int) -> bool:
        return one != start and any(
            history.sha[read] != history.sha[now] or now in then.stale or is_behind(now)
            for read in history.made_of[one]
            for now in [then.latest[history.node[read]]]
            if now in cone
        )

    if output in then.stale:
        return Standing.STALE
    return Standing.OUT_OF_DATE if is_behind(output) else Standing.CURRENT


@st.composite
def histories(draw: st.DrawFn, ledger: Ledger) -> History:
    history = History(ledger, draw(dags(max_steps=6)))
    nodes = st.sampled_from(sorted(history.dag))
    for _ in range(draw(st.integers(1, 4))):
        deeds: st.SearchStrategy[Deed] = st.sampled_from(("make", "make", "skip", "pin"))
        drawn: dict[int, Deed] = {n: draw(deeds) for n in history.dag}
        shas = {n: draw(st.sampled_from("abc")) * 64 for n in history.dag}
        earlier = {n: draw(st.integers(0, 5)) for n in history.dag}
        history.run(drawn, shas, earlier)
        if draw(st.booleans()):
            history.roll_back(draw(nodes), draw(st.integers(0, 5)))
        if draw(st.integers(0, 3)) == 0:
            history.declare_stale(draw(nodes))
    return history


def check(history: History, conn: Connection, node: int, then: Moment, *, is_past: bool) -> None:
    at = then.at if is_past else None
    start = pointers.latest(conn, (history.asset(node), "-"), at).output_id
    assert start == then.latest[node]
    made = {one: history.made_of[one] & then.outputs for one in then.outputs}
    expected = {
        "up": every_way(start, made),
        "down": every_way(start, turned(made)),
        "impact": every_way(start, turned(reads_latest(history, then))),
    }
    for name, walk in WALKS.items():
        for depth in (None, 1, 2, 100):
            found = walk(conn, start, depth, at)
            near = {o: d for o, d in expected[name].items() if depth is None or d <= depth}
            assert {one.output_id: one.depth for one in found} == near, (name, depth)
            assert [one.depth for one in found] == sorted(near.values())
            for one in found:
                check_one(history, then, one)
                assert (one.depth == 0) == (one.output_id == start)
                assert {near[via] for via in one.via} >= ({one.depth - 1} if one.depth else set())
            if name == "impact":
                assert {
                    a.output_id: a.standing for a in lineage.impact(conn, start, depth, at)
                } == {output: standing(history, then, start, output) for output in near}


def check_one(history: History, then: Moment, one: TracedOutput) -> None:
    o = one.output_id
    assert (one.asset, one.step_id) == (history.asset(history.node[o]), history.step[o])
    assert (one.sha256, one.run_id) == (history.sha[o], history.run_of[o])
    assert one.is_latest == (then.latest[history.node[o]] == o)
    assert (one.stale is not None) == (o in then.stale)
    assert one.requested_by == "test"


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_the_answers_are_those_of_a_naive_walk_now_and_at_each_moment(
    ledger: Ledger, data: st.DataObject
) -> None:
    history = data.draw(histories(ledger))
    with ledger.begin() as conn:
        for node in history.dag:
            check(history, conn, node, history.moments[-1], is_past=False)
        for then in history.moments:
            node = data.draw(st.sampled_from(sorted(then.latest)))
            check(history, conn, node, then, is_past=True)
        for (run_id, node), output in history.used.items():
            asked = pointers.of_run(conn, (history.asset(node), "-"), run_id)
            assert asked.output_id == output


def upstream_of_run(ledger: Ledger, run_id: UUID, asset: str) -> list[TracedOutput]:
    with ledger.begin() as conn:
        start = pointers.of_run(conn, (asset, "-"), run_id)
        return lineage.upstream(conn, start.output_id, None, None)[1:]


def test_two_runs_of_the_same_assets_are_never_mixed(ledger: Ledger) -> None:
    history = History(ledger, {1: (), 2: (1,), 3: (2,)})
    make: dict[int, Deed] = {1: "make", 2: "make", 3: "make"}
    one, two = (history.run(make, dict.fromkeys(make, sha * 64), {}) for sha in "ab")
    for run_id, sha in ((one, "a"), (two, "b")):
        found = upstream_of_run(ledger, run_id, history.asset(3))
        assert [(o.asset, o.run_id) for o in found] == [(history.asset(n), run_id) for n in (2, 1)]
        assert {o.sha256 for o in found} == {sha * 64}
        assert {o.is_latest for o in found} == {run_id == two}


def test_what_is_reused_leads_to_what_its_maker_has_read(ledger: Ledger) -> None:
    history = History(ledger, {1: (), 2: (1,), 3: (2,)})
    one = history.run({1: "make", 2: "make", 3: "make"}, dict.fromkeys((1, 2, 3), "a" * 64), {})
    # 1 is made anew and comes out the same, so 2 is skipped; 3 is made of what stands for 2.
    two = history.run({1: "make", 2: "skip", 3: "make"}, dict.fromkeys((1, 2, 3), "a" * 64), {})
    found = upstream_of_run(ledger, two, history.asset(3))
    assert [(o.asset, o.run_id, o.is_latest) for o in found] == [
        (history.asset(2), one, True),
        (history.asset(1), one, False),
    ]


def test_a_run_that_joined_another_one_has_the_output_and_the_history_of_that(
    ledger: Ledger,
) -> None:
    leader, follower = HandRun(ledger, {1: (), 2: (1,)}), HandRun(ledger, {1: (), 2: (1,), 3: (2,)})
    leader.dispatch()
    for number in (1, 2):
        follower.dispatch()
        assert follower.states()[number] == "joined"
        leader.do(number)
        leader.settle()
    follower.do(3)
    found = upstream_of_run(ledger, follower.id, "a3")
    assert [(o.asset, o.step_id) for o in found] == [("a2", leader.ids[2]), ("a1", leader.ids[1])]


def test_a_pinned_input_is_traced_and_not_the_latest(ledger: Ledger) -> None:
    before = HandRun(ledger, {1: ()})
    before.do(1)
    run = HandRun(ledger, {2: (1,)}, pinned={("a1", "-"): before.ids[1]})
    newer = HandRun(ledger, {1: ()})
    newer.do(1)
    run.do(2)
    (found,) = upstream_of_run(ledger, run.id, "a2")
    assert (found.step_id, found.run_id, found.is_latest) == (before.ids[1], before.id, False)
    with ledger.begin() as conn:
        start = pointers.latest(conn, ("a1", "-")).output_id
        assert lineage.downstream(conn, start, None, None)[1:] == []
        (affected,) = lineage.impact(conn, start, None, None)[1:]
    assert (affected.asset, affected.standing) == ("a2", Standing.OUT_OF_DATE)


def test_how_something_near_stands_depends_on_what_is_far_too(ledger: Ledger) -> None:
    history = History(ledger, {1: (), 2: (1,), 3: (1, 2)})
    history.run({1: "make", 2: "make", 3: "make"}, dict.fromkeys((1, 2, 3), "a" * 64), {})
    # 3 reads the new 1, and 2, which was made of the old one.
    history.run({1: "make", 2: "pin", 3: "make"}, dict.fromkeys((1, 2, 3), "b" * 64), {2: 0})
    with ledger.begin() as conn:
        start = pointers.latest(conn, (history.asset(1), "-")).output_id
        for depth in (None, 1):
            found = lineage.impact(conn, start, depth, None)[1:]
            assert [(one.asset, one.depth, one.standing) for one in found] == [
                (history.asset(n), 1, Standing.OUT_OF_DATE) for n in (2, 3)
            ]


def test_lineage_is_written_in_the_transaction_of_the_success(ledger: Ledger) -> None:
    run = HandRun(ledger, {1: (), 2: (1,)})
    run.do(1, 2)
    (row,) = query(
        ledger,
        "SELECT l.xmin AS lineage, o.xmin AS output, s.xmin AS step, l.upstream_sha256, u.sha256 "
        "FROM flowstone.lineage l JOIN flowstone.outputs o USING (step_id) "
        "JOIN flowstone.steps s ON s.id = l.step_id "
        "JOIN flowstone.outputs u ON u.id = l.upstream_output_id",
    )
    assert row.lineage == row.output == row.step
    assert row.upstream_sha256 == row.sha256


@pytest.mark.parametrize("name", WALKS)
def test_rows_that_were_made_a_circle_do_not_hold_a_walk(ledger: Ledger, name: str) -> None:
    run = HandRun(ledger, {1: (), 2: (1,), 3: (2,)})
    run.do(1, 2, 3)
    with ledger.begin() as conn:
        run_sql(
            conn,
            "INSERT INTO flowstone.lineage SELECT :one, o.step_id, o.id, o.sha256 "
            "FROM flowstone.outputs o WHERE o.step_id IN (:one, :three)",
            one=run.ids[1],
            three=run.ids[3],
        )
        run_sql(conn, "SET LOCAL statement_timeout = '20s'")
        start = pointers.latest(conn, ("a2", "-")).output_id
        for depth in (None, 7, 1000):
            found = WALKS[name](conn, start, depth, None)
            # The one before the start is as far from it as the one after.
            ways = {"up": ["a2", "a1", "a3"], "down": ["a2", "a3", "a1"]}
            assert [one.asset for one in found] == ways.get(name, ["a2", "a3", "a1"])


def rows_of(ledger: Ledger, ask: Callable[[Connection], object]) -> int:
    before = rows_read(ledger)
    with ledger.begin() as conn:
        ask(conn)
    return rows_read(ledger) - before


def ends(ledger: Ledger, dag: Dag) -> tuple[int, int]:
    """Return the outputs of the first and the last asset of a graph."""
    with ledger.begin() as conn:
        first, last = (pointers.latest(conn, (f"a{n}", "-")) for n in (min(dag), max(dag)))
    return first.output_id, last.output_id


@pytest.mark.parametrize("name", WALKS)
def test_a_ladder_of_diamonds_is_climbed_once(ledger: Ledger, name: str) -> None:
    """There are 2 ** 30 ways to the top, and 120 rows of lineage."""
    dag = ladder(30)
    commit_all(ledger, dag)
    first, last = ends(ledger, dag)
    start = last if name == "up" else first
    with ledger.begin() as conn:
        run_sql(conn, "SET LOCAL statement_timeout = '20s'")
        found = WALKS[name](conn, start, None, None)
    assert len(found) == 61
    assert sorted(one.depth for one in found) == [0, *sorted([*range(1, 31)] * 2)]
    assert all(len(one.via) == min(2, one.depth) for one in found)
    # The walk and the telling of what led to what, each with a few look-ups for an edge.
    assert rows_of(ledger, lambda conn: WALKS[name](conn, start, None, None)) < 20 * 120
    assert rows_of(ledger, lambda conn: WALKS[name](conn, start, 16, None)) < 20 * 120
    near = 20 * 10 if name != "impact" else 20 * 120
    assert rows_of(ledger, lambda conn: WALKS[name](conn, start, 2, None)) < near


def wide(layers: int, base: int) -> Dag:
    """Layers of ten, of which each reads from the two before: there are ways of many lengths."""
    return {
        base + 10 * layer + column: tuple(
            base + 10 * (layer - back) + (column + shift) % 10
            for back, shift in ((2, 0), (1, 0), (1, 1))
            if layer >= back
        )
        for layer in range(layers)
        for column in range(10)
    }


@pytest.mark.parametrize("is_analyzed", [False, True])
@pytest.mark.parametrize("name", WALKS)
def test_ten_times_the_history_costs_ten_times_the_rows(
    ledger: Ledger, name: str, is_analyzed: bool
) -> None:
    a_row = []
    for layers, base in ((50, 1_000), (500, 2_000)):
        dag = wide(layers, base)
        commit_all(ledger, dag)
        first, last = ends(ledger, dag)
        with ledger.begin() as conn:
            if is_analyzed:
                run_sql(conn, "ANALYZE")
            start = last if name == "up" else first
            found = len(WALKS[name](conn, start, None, None))
        assert found > 9 * layers
        rows = rows_of(ledger, lambda conn, o=start: WALKS[name](conn, o, None, None))  # type: ignore[misc]
        a_row.append(rows / found)
    assert a_row[1] < 1.5 * a_row[0], a_row


def test_the_indexes_serve_what_refers_to_outputs_and_steps(ledger: Ledger) -> None:
    """Whoever deletes a step or an output has PostgreSQL look for lineage that refers to it."""
    found = query(
        ledger,
        "SELECT indexdef FROM pg_indexes WHERE schemaname = 'flowstone' AND tablename = 'lineage'",
    )
    columns = sorted(row.indexdef.partition("(")[2].rstrip(")") for row in found)
    assert columns == ["step_id, upstream_step_id", "upstream_output_id", "upstream_step_id"]
