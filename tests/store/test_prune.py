"""Pruning takes what is old and needed by nothing, and not a row more, from random histories."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from random import Random
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest

from flowstone import audit
from flowstone.cli.prune import prune as prune_command
from flowstone.errors import BadConfig, CannotResume, LedgerRefused, UnknownVersion
from flowstone.prune import prune
from flowstone.registry import build_registry
from flowstone.runtime import Runtime
from flowstone.settings import Retention, load_settings
from flowstone.states import FINAL_STEP_STATES
from flowstone.store import backfills, pruning, resumption, runs, steps, versions
from flowstone.store.ledger import Ledger
from tests.store.runs_by_hand import HandRun, count, query, run_sql
from tests.store.test_linear import rows_read
from tests.strategies import Dag

DAYS = 30
TABLES = (
    "runs", "steps", "edges", "attempts", "outputs", "lineage", "latest", "rollbacks",
    "quarantine", "check_results",
)  # fmt: skip
Rows = Mapping[str, list[dict[str, Any]]]


def snapshot(ledger: Ledger) -> Rows:
    return {
        table: [
            dict(row._mapping)
            for row in query(ledger, f"SELECT * FROM flowstone.{table} t ORDER BY t::text")
        ]
        for table in TABLES
    }


class History:
    """Runs that go all ways: joined, resumed, failed, with what is reused and what is pinned."""

    def __init__(self, ledger: Ledger, seed: int) -> None:
        self.ledger = ledger
        self.random = Random(seed)
        self.dag: Dag = {}
        for n in range(1, 8):
            above = range(max(1, n - 3), n)
            self.dag[n] = tuple(
                sorted(self.random.sample(above, min(len(above), self.random.randint(0, 2))))
            )

    def go_on(self, rounds: int) -> None:
        for _ in range(rounds):
            self._play([self._new() for _ in range(self.random.choice([1, 1, 2, 3]))])
            for undone in query(
                self.ledger,
                "SELECT id FROM flowstone.runs r WHERE state IN ('failed', 'cancelled') AND NOT "
                "EXISTS (SELECT FROM flowstone.runs o WHERE o.resumed_from = r.id)",
            ):
                if self.random.random() < 0.5:
                    self._play([self._resumed(undone.id)])

        leader, follower = HandRun(self.ledger, {1: ()}), HandRun(self.ledger, {1: ()})
        leader.dispatch()
        follower.dispatch()
        leader.commit(leader.claim(1))
        leader.settle()
        self._play([leader, follower])
        self._play([self._resumed(failed(self.ledger).id)])

    def _latest(self) -> dict[int, int]:
        sql = (
            "SELECT l.asset, o.step_id FROM flowstone.latest l "
            "JOIN flowstone.outputs o ON o.id = l.output_id WHERE o.deleted_at IS NULL"
        )
        return {int(row.asset[1:]): row.step_id for row in query(self.ledger, sql)}

    def _new(self) -> HandRun:
        latest = self._latest()
        wanted = {n for n in self.dag if self.random.random() < 0.4} or {1}
        # Downwards, so that what there is no value of to read is computed.
        for n in sorted(self.dag, reverse=True):
            if n in wanted:
                wanted |= {up for up in self.dag[n] if up not in latest}
        pinned = {(f"a{n}", "-"): step for n, step in latest.items() if n not in wanted}
        dag = {n: self.dag[n] for n in sorted(wanted)}
        ups = {(f"a{up}", "-") for n in dag for up in dag[n] if up not in dag}
        return HandRun(self.ledger, dag, pinned={k: v for k, v in pinned.items() if k in ups})

    def _resumed(self, run_id: UUID) -> HandRun:
        made = HandRun.__new__(HandRun)
        made.ledger, made.canvas, made.expects = self.ledger, {}, "c.f.i"
        with self.ledger.begin() as conn:
            made.id = resumption.create(conn, uuid4(), run_id, actor="test")
        found = "SELECT asset, id FROM flowstone.steps WHERE run_id = :r"
        made.ids = {int(row.asset[1:]): row.id for row in query(self.ledger, found, r=made.id)}
        return made

    def _play(self, open_: list[HandRun]) -> None:
        """Bring runs to their ends, a step of one of them at a time."""
        while open_:
            for run in open_:
                run.dispatch()
            run = self.random.choice(open_)
            ready = [
                n for n, row in run.rows().items()
                if row["state"] in ("queued", "retrying") and row["open_deps"] == 0
            ]  # fmt: skip
            if ready:
                self._end(run, self.random.choice(ready))
                run.settle()
            if all(state in FINAL_STEP_STATES for state in run.states().values()):
                with self.ledger.begin() as conn:
                    runs.close_if_done(conn, run.id, actor="test")
                open_.remove(run)

    def _end(self, run: HandRun, number: int) -> None:
        claim = run.claim(number)
        chance, latest = self.random.random(), self._latest()
        if chance < 0.12:
            run.fail(claim)
        elif chance < 0.2:
            run.retry(claim)
        elif chance < 0.45 and number in latest:
            with self.ledger.begin() as conn:
                steps.skip(conn, claim, latest[number])
        else:
            run.commit(claim)

    def give_up(self) -> None:
        """Roll back, check, refuse and collect values at random."""
        for row in query(self.ledger, "SELECT * FROM flowstone.steps WHERE state = 'failed'"):
            self._sql(
                "INSERT INTO flowstone.quarantine (step_id, attempt, io, location, format, size, "
                "sha256, deleted_at) VALUES (:s, 1, 'default', :l, 'json', 1, repeat('a', 64), "
                "CASE WHEN :gone THEN now() END)",
                s=row.id, l=uuid4().hex, gone=self.random.random() < 0.7,
            )  # fmt: skip
        for n in self.dag:
            if self.random.random() < 0.2:
                with suppress(UnknownVersion), self.ledger.begin() as conn:
                    versions.roll_back(conn, (f"a{n}", "-"), None, actor="me", reason=None)
        for output in query(self.ledger, "SELECT id FROM flowstone.outputs"):
            if self.random.random() < 0.3:
                self._check("output_id", output.id)
            if self.random.random() < 0.8:
                self._sql(
                    "UPDATE flowstone.outputs o SET deleted_at = now() WHERE id = :o AND NOT "
                    "EXISTS (SELECT FROM flowstone.latest l WHERE l.output_id = o.id)",
                    o=output.id,
                )
        for refused in query(self.ledger, "SELECT id FROM flowstone.quarantine"):
            self._check("quarantine_id", refused.id)

    def _check(self, column: str, id: int) -> None:
        self._sql(
            f"INSERT INTO flowstone.check_results ({column}, name, passed, blocking, severity, "
            "message, metadata, actor, checked_at) VALUES (:i, 'c', true, true, 'error', '', "
            "'{}', 'me', now() - make_interval(days => CAST(:d AS int)))",
            i=id, d=self.random.choice([0, 100, 100, 100]),
        )  # fmt: skip

    def grow_old(self) -> None:
        for row in query(self.ledger, "SELECT id FROM flowstone.runs"):
            days = self.random.choice([0, 40, 50, 60, 70, 80])
            for table, where in {"runs": "id = :r", "attempts": (
                "step_id IN (SELECT id FROM flowstone.steps WHERE run_id = :r)"
            )}.items():  # fmt: skip
                self._sql(
                    f"UPDATE flowstone.{table} SET finished_at = finished_at - "
                    f"make_interval(days => CAST(:d AS int)) WHERE {where}",
                    r=row.id, d=days,
                )  # fmt: skip

    def _sql(self, sql: str, **values: Any) -> None:
        with self.ledger.begin() as conn:
            run_sql(conn, sql, **values)


def needed(before: Rows, young: set[UUID]) -> set[int]:
    """The steps that must stay, by their definition: an oracle that knows no SQL."""
    of_step = {row["id"]: row["step_id"] for row in before["outputs"]}
    refused = {row["id"]: row for row in before["quarantine"]}
    deleted = {row["id"] for row in before["outputs"] if row["deleted_at"]}
    keep = {row["id"] for row in before["steps"] if row["run_id"] in young}
    keep |= {row["step_id"] for row in before["outputs"] if not row["deleted_at"]}
    keep |= {row["step_id"] for row in before["quarantine"] if not row["deleted_at"]}
    keep |= {of_step[row["output_id"]] for row in before["latest"]}
    for row in before["rollbacks"]:
        keep |= {of_step[row["output_id"]], of_step[row["replaced_id"]]}
    for row in before["check_results"]:
        if row["output_id"] and (is_young(row) or row["output_id"] not in deleted):
            keep.add(of_step[row["output_id"]])
        if row["quarantine_id"] and is_young(row):
            keep.add(refused[row["quarantine_id"]]["step_id"])
    refers = [(row["downstream"], row["upstream"]) for row in before["edges"]]
    refers += [(row["id"], row["reuses"]) for row in before["steps"] if row["reuses"]]
    refers += [(row["id"], row["joined_to"]) for row in before["steps"] if row["joined_to"]]
    while more := {to for by, to in refers if by in keep} - keep:
        keep |= more
    return keep


def is_young(check: Mapping[str, Any]) -> bool:
    from datetime import UTC, datetime, timedelta  # noqa: PLC0415

    at = check["checked_at"]
    return bool(datetime.now(UTC) - at < timedelta(days=DAYS))


def runtime_of(make_runtime: Any, **days: int) -> Runtime:
    made: Runtime = make_runtime(build_registry([]), retention=Retention(**days))
    return made


def sizes(rows: Rows) -> Counter[str]:
    return Counter({table: len(found) for table, found in rows.items()})


@pytest.mark.parametrize("seed", range(int(os.environ.get("PRUNE_SEEDS", "5"))))
def test_what_is_kept_can_be_traced_to_its_origin_and_nothing_else_stays(
    make_runtime: Any, ledger: Ledger, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowstone.store.pruning.BATCH", 3)
    here = runtime_of(make_runtime, checks=DAYS, runs=DAYS)
    history = History(ledger, seed)
    history.go_on(rounds=7)
    history.give_up()
    history.grow_old()
    before = snapshot(ledger)
    old = set(query(ledger, "SELECT id FROM flowstone.runs WHERE finished_at < now() - "
                            "interval '30 days'"))  # fmt: skip
    keep = needed(before, {row["id"] for row in before["runs"]} - {id for (id,) in old})
    assert any(row["joined_to"] for row in before["steps"])
    assert any(row["reuses"] for row in before["steps"])
    assert any(row["pinned"] for row in before["edges"])
    assert any(row["resumed_from"] for row in before["runs"])
    head, logged = audit.verify().head, [row["id"] for row in audit.export()]

    tried = prune(here, actor="me", dry_run=True)
    assert snapshot(ledger) == before
    done = prune(here, actor="me")
    after = snapshot(ledger)

    assert done == tried
    assert done.is_complete
    # Not a step more, not one less; and so with all that belongs to them.
    assert {row["id"] for row in after["steps"]} == keep
    for table, of in {
        "edges": "downstream", "attempts": "step_id", "lineage": "step_id", "outputs": "step_id",
        "quarantine": "step_id",
    }.items():  # fmt: skip
        assert after[table] == [row for row in before[table] if row[of] in keep], table
    assert [after["latest"], after["rollbacks"]] == [before["latest"], before["rollbacks"]]
    kept_runs = {row["run_id"] for row in after["steps"]}
    resumed = {row["resumed_from"] for row in after["runs"]}
    for run in after["runs"]:
        assert run["id"] in kept_runs | resumed or (run["id"],) not in old
    assert sizes(before) - sizes(after) == Counter(done.rows)
    # The log has grown by what was pruned, and only so.
    assert audit.verify(head).count == 0
    rows = list(audit.export())
    assert [row["id"] for row in rows][: len(logged)] == logged
    told = Counter[str]()
    for row in rows[len(logged) :]:
        assert (row["actor"], row["action"]) in {
            ("me", "run.pruned"), ("me", "check_results.pruned"),
        }  # fmt: skip
        told.update({t: n for t, n in row["details"].items() if t != "days"})
    assert told == Counter(done.rows)

    assert prune(here, actor="me").rows == {}
    assert count(ledger, "audit") == len(rows)


def aged(ledger: Ledger, days: int = 100) -> None:
    with ledger.begin() as conn:
        for table in ("runs", "attempts"):
            run_sql(
                conn,
                f"UPDATE flowstone.{table} SET finished_at = finished_at - "
                "make_interval(days => CAST(:d AS int))",
                d=days,
            )


def closed(ledger: Ledger, dag: Dag, **options: Any) -> HandRun:
    run = HandRun(ledger, dag, **options)
    run.do(*dag)
    with ledger.begin() as conn:
        runs.close_if_done(conn, run.id, actor="test")
    return run


def failed(ledger: Ledger, **options: Any) -> HandRun:
    run = HandRun(ledger, {1: (), 2: (1,)}, **options)
    run.dispatch()
    run.fail(run.claim(1))
    with ledger.begin() as conn:
        runs.close_if_done(conn, run.id, actor="test")
    return run


def test_everything_is_kept_unless_the_settings_let_it_go(
    make_runtime: Any, ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    failed(ledger)
    aged(ledger, 10_000)
    before = snapshot(ledger)
    here = runtime_of(make_runtime)
    assert prune(here, actor="me").rows == {}
    prune_command()
    assert "everything is kept; set FLOWSTONE_RETENTION" in capsys.readouterr().out
    assert snapshot(ledger) == before


def test_tracebacks_go_and_the_attempts_stay(make_runtime: Any, ledger: Ledger) -> None:
    failed(ledger, name="b")
    aged(ledger)
    failed(ledger, name="c")
    here = runtime_of(make_runtime, tracebacks=DAYS)
    assert prune(here, actor="me", dry_run=True).rows == {"messages of attempts": 1}
    assert prune(here, actor="me").rows == {"messages of attempts": 1}
    found = "SELECT error_type, error_message, traceback FROM flowstone.attempts ORDER BY step_id"
    assert query(ledger, found) == [
        ("ValueError", None, None), ("ValueError", "bad value", "the trace"),
    ]  # fmt: skip
    assert prune(here, actor="me").rows == {}
    (row,) = (row for row in audit.export() if row["action"] == "attempts.emptied")
    assert row["details"] == {"attempts": 1, "days": DAYS}


def test_a_failed_run_goes_as_a_whole_and_says_so(make_runtime: Any, ledger: Ledger) -> None:
    run = failed(ledger)
    aged(ledger)
    done = prune(runtime_of(make_runtime, runs=DAYS), actor="me")
    assert done.rows == {"runs": 1, "steps": 2, "edges": 1, "attempts": 1}
    row = next(audit.export(run=str(run.id)[:8]))
    assert row["action"] == "run.requested"
    (told,) = (row for row in audit.export(run=str(run.id)) if row["action"] == "run.pruned")
    assert (told["before"], told["after"]) == ({"state": "failed"}, {"state": None})
    # What the log says of its steps is still found by their asset.
    assert {row["action"] for row in audit.export(asset="a2")} == {"step.upstream_failed"}


def test_a_run_of_which_steps_are_gone_cannot_be_resumed(make_runtime: Any, ledger: Ledger) -> None:
    run = HandRun(ledger, {1: (), 2: ()})
    run.do(1)
    run.dispatch()
    run.fail(run.claim(2))
    with ledger.begin() as conn:
        runs.close_if_done(conn, run.id, actor="test")
    aged(ledger)
    assert prune(runtime_of(make_runtime, runs=DAYS), actor="me").rows["steps"] == 1
    assert query(ledger, "SELECT asset FROM flowstone.steps") == [("a1",)]
    with pytest.raises(CannotResume, match="have been pruned; submit"), ledger.begin() as conn:
        resumption.create(conn, uuid4(), run.id, actor="me")


def test_a_backfill_goes_with_the_last_of_its_runs(make_runtime: Any, ledger: Ledger) -> None:
    def backfill_of(run: UUID) -> None:
        with ledger.begin() as conn:
            backfills.create(conn, run, max_parallel=2, stop_ratio=None, hours=None, actor="me")

    here = runtime_of(make_runtime, runs=DAYS)
    run, other = failed(ledger, name="b"), failed(ledger, name="c")
    backfill_of(run.id)
    backfill_of(other.id)
    aged(ledger)
    again = uuid4()
    with ledger.begin() as conn:
        resumption.create(conn, again, other.id, actor="me")
    assert prune(here, actor="me").rows["backfills"] == 1
    (left,) = query(ledger, "SELECT id FROM flowstone.backfills")
    assert query(ledger, "SELECT DISTINCT backfill FROM flowstone.runs") == [(left.id,)]
    (told,) = (row for row in audit.export(run=str(run.id)) if row["action"] == "run.pruned")
    assert told["details"]["backfills"] == 1

    with ledger.begin() as conn:
        run_sql(conn, "UPDATE flowstone.steps SET state = 'cancelled', finished_at = now()")
        runs.close_if_done(conn, again, actor="test")
    aged(ledger)
    assert prune(here, actor="me").rows["backfills"] == 1
    assert query(ledger, "SELECT FROM flowstone.backfills") == []


def test_what_somebody_has_just_begun_to_need_stays(
    make_runtime: Any, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = runtime_of(make_runtime, runs=DAYS)
    run = failed(ledger, name="b")
    failed(ledger, name="c")
    aged(ledger)
    free_steps, resumed = pruning.free_steps, list[UUID]()

    def resumed_meanwhile(conn: Any, run_id: UUID) -> list[int]:
        found = free_steps(conn, run_id)
        if run_id == run.id and not resumed:
            resumed.append(run_id)
            with ledger.begin() as elsewhere:
                resumption.create(elsewhere, uuid4(), run_id, actor="me")
                run_sql(
                    elsewhere,
                    "INSERT INTO flowstone.edges SELECT max(id), :up, 9, true FROM flowstone.steps",
                    up=run.ids[1],
                )
        return found

    monkeypatch.setattr(pruning, "free_steps", resumed_meanwhile)
    assert prune(here, actor="me").rows["runs"] == 1
    left = "SELECT id FROM flowstone.steps WHERE run_id = :r"
    assert query(ledger, left, r=run.id) == [(run.ids[1],)]
    assert count(ledger, "runs") == 2
    with pytest.raises(LedgerRefused, match="fk_edges_upstream"), ledger.begin() as conn:
        pruning.delete_steps(conn, run.id, [run.ids[1]], actor="me")


def test_time_is_up_between_two_batches(
    make_runtime: Any, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowstone.store.pruning.BATCH", 2)
    here = runtime_of(make_runtime, runs=DAYS)
    closed(ledger, dict.fromkeys(range(6), ()))
    aged(ledger)
    with ledger.begin() as conn:
        run_sql(conn, "DELETE FROM flowstone.latest")
        run_sql(conn, "UPDATE flowstone.outputs SET deleted_at = now()")
    # Time is up as soon as something is gone.
    clock = SimpleNamespace(monotonic=lambda: 100.0 if count(ledger, "steps") < 6 else 0.0)
    monkeypatch.setattr("flowstone.prune.time", clock)
    first = prune(here, actor="me", seconds=50)
    assert not first.is_complete
    assert first.rows["steps"] == 2
    monkeypatch.setattr("flowstone.prune.time", SimpleNamespace(monotonic=lambda: 0.0))
    second = prune(here, actor="me", seconds=50)
    assert second.is_complete
    assert first.rows["steps"] + second.rows["steps"] == 6
    assert second.rows["runs"] == 1


def test_to_prune_does_not_cost_more_among_more_rows(make_runtime: Any, ledger: Ledger) -> None:
    def cost(n: int) -> float:
        chain: Dag = {k: (k - 1,) if k else () for k in range(n)}
        run = HandRun(ledger, chain, max_in_flight=n, name=f"x{n}y")
        run.dispatch()
        run.fail(run.claim(0))
        with ledger.begin() as conn:
            runs.close_if_done(conn, run.id, actor="test")
            run_sql(conn, "UPDATE flowstone.runs SET finished_at = now() - interval '99 days' "
                          "WHERE id = :r", r=run.id)  # fmt: skip
        before = rows_read(ledger)
        with ledger.begin() as conn:
            (id,) = pruning.ended_runs(conn, DAYS)
            free = pruning.free_steps(conn, id)
            assert len(free) == n
            assert pruning.delete_steps(conn, id, free, actor="me")["steps"] == n
        return (rows_read(ledger) - before) / n

    small = cost(50)
    dag: Dag = {n: (n - 1,) if n else () for n in range(300)}
    closed(ledger, dag)
    large = cost(500)
    # PostgreSQL may analyze the tables in between, and plan otherwise.
    assert 0 < large < 2 * small, (small, large)


def test_the_settings_of_retention_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().retention.keeps_all
    for value, said in {
        "{": 'FLOWSTONE_RETENTION: Value error, it is no JSON; write days, such as {"runs": 90}',
        '{"runs": -1}': "FLOWSTONE_RETENTION, key 'runs': ",
        '{"run": 90}': "FLOWSTONE_RETENTION, key 'run': ",
        "90": "FLOWSTONE_RETENTION: ",
    }.items():  # fmt: skip
        monkeypatch.setenv("FLOWSTONE_RETENTION", value)
        with pytest.raises(BadConfig) as caught:
            load_settings()
        assert caught.value.message.startswith(said)
    monkeypatch.setenv("FLOWSTONE_RETENTION", '{"runs": 90, "tracebacks": 0}')
    assert load_settings().retention == Retention(runs=90, tracebacks=0)


def test_retention_may_stand_in_the_file(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flowstone.toml").write_text("[retention]\nchecks = 7\n")
    assert load_settings().retention == Retention(checks=7)
    (tmp_path / "flowstone.toml").write_text("[retention]\nchecks = 'x'\n")
    with pytest.raises(BadConfig, match=r"flowstone.toml, key 'retention.checks'"):
        load_settings()
