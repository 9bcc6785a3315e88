"""Whole runs on a real worker: what the ledger holds when they have ended."""

from __future__ import annotations

import re

from pytest_celery import CeleryTestSetup

import flowstone
from flowstone import UNPARTITIONED, RunHandle, RunState
from flowstone.partition import Key
from flowstone.runtime import Runtime
from tests.worker import worker_assets
from tests.worker.ledger_view import LedgerView

LINKS = [worker_assets.link(number) for number in range(1, 31)]
DAYS = [f"day[2013-01-{number:02}]" for number in range(1, 32)]


def run_to_the_end(
    view: LedgerView, asset: str, value: object, partition: Key = UNPARTITIONED
) -> RunHandle:
    """Run an asset and all above it, and check all that holds for every run that succeeds."""
    handle = flowstone.materialize_all(asset, partition=partition)
    assert handle.result(timeout=60) == value
    assert_each_step_succeeded_once(view, handle)
    assert_every_step_began_after_those_it_reads(view, handle)
    assert_lineage_is_the_plan(view, handle)
    return handle


def assert_each_step_succeeded_once(view: LedgerView, handle: RunHandle) -> None:
    found = view.rows(
        """
        SELECT s.state,
            ARRAY(SELECT outcome FROM flowstone.attempts a WHERE a.step_id = s.id) AS outcomes,
            (SELECT count(*) FROM flowstone.outputs o WHERE o.step_id = s.id) AS outputs
        FROM flowstone.steps s WHERE s.run_id = :r
        """,
        r=handle.id,
    )
    assert {(row.state, *row.outcomes, row.outputs) for row in found} == {
        ("succeeded", "succeeded", 1)
    }
    # One row for each step, and one for each move of the run: it was closed once.
    assert view.actions(handle.id) == {
        "run.requested": 1,
        "run.planned": 1,
        "run.started": 1,
        "step.succeeded": len(found),
        "run.succeeded": 1,
    }


def assert_every_step_began_after_those_it_reads(view: LedgerView, handle: RunHandle) -> None:
    early = view.rows(
        """
        SELECT up.asset AS upstream, down.asset AS downstream
        FROM flowstone.edges e
        JOIN flowstone.steps up ON up.id = e.upstream
        JOIN flowstone.steps down ON down.id = e.downstream
        WHERE down.run_id = :r AND up.finished_at > down.started_at
        """,
        r=handle.id,
    )
    assert not early


def assert_lineage_is_the_plan(view: LedgerView, handle: RunHandle) -> None:
    planned = view.rows(
        """
        SELECT e.downstream, e.upstream, o.id, o.sha256
        FROM flowstone.edges e
        JOIN flowstone.steps s ON s.id = e.downstream
        JOIN flowstone.outputs o ON o.step_id = e.upstream
        WHERE s.run_id = :r ORDER BY 1, 2
        """,
        r=handle.id,
    )
    recorded = view.rows(
        """
        SELECT l.step_id, l.upstream_step_id, l.upstream_output_id, l.upstream_sha256
        FROM flowstone.lineage l JOIN flowstone.steps s ON s.id = l.step_id
        WHERE s.run_id = :r ORDER BY 1, 2
        """,
        r=handle.id,
    )
    assert [tuple(row) for row in recorded] == [tuple(row) for row in planned]
    assert len(planned) == view.edges(handle.id)


def wake_ups(celery_setup: CeleryTestSetup) -> int:
    return len(
        re.findall(r"Task flowstone\.coordinate\[\S+\] received", celery_setup.worker.logs())
    )


def test_the_two_sides_of_a_diamond_go_out_together_once_its_top_has_committed(
    celery_setup: CeleryTestSetup, here: Runtime, view: LedgerView
) -> None:
    handle = run_to_the_end(view, "bottom", [2, 3])
    # Two steps read the top, so that it is in no chain; its sides are the header of a chord.
    sides = [["left", "right", "bottom"]]
    if not here.settings.counts_chords:
        sides = [["left"], ["right"], ["bottom"]]
    assert view.canvases(handle.id) == [["top"], *sides]


def test_a_chain_of_thirty_passes_its_value_along_in_two_celery_chains(
    celery_setup: CeleryTestSetup, view: LedgerView
) -> None:
    handle = run_to_the_end(view, LINKS[-1], 30)
    assert view.canvases(handle.id) == [LINKS[:16], LINKS[16:]]
    # Celery went from step to step; at each end the worker went on by itself, so that the only
    # message to a coordinator was that of the request.
    assert wake_ups(celery_setup) == 1


def test_a_month_waits_for_all_its_days_in_one_chord(
    celery_setup: CeleryTestSetup, here: Runtime, view: LedgerView
) -> None:
    handle = run_to_the_end(view, "month", list(range(1, 32)), "2013-01")
    one = [*DAYS, "month[2013-01]"]
    # Else it waits for them in the ledger.
    assert view.canvases(handle.id) == (
        [one] if here.settings.counts_chords else [[s] for s in one]
    )


def test_a_chord_of_stretches_goes_on_with_the_chain_behind_its_join(
    celery_setup: CeleryTestSetup, here: Runtime, view: LedgerView
) -> None:
    handle = run_to_the_end(view, "tail", "(a1 a2, b1) tail")
    chord = [["a1", "b1", "a2", "join", "tail"]]
    chains = [["a1", "a2"], ["b1"], ["join", "tail"]]
    assert view.canvases(handle.id) == (chord if here.settings.counts_chords else chains)


def test_a_run_with_a_narrow_window_never_has_more_steps_under_way(
    celery_setup: CeleryTestSetup, view: LedgerView
) -> None:
    handle = flowstone.materialize_all("month", partition="2013-01", max_in_flight=3)
    assert handle.result(timeout=60) == list(range(1, 32))
    under_way = view.rows(
        """
        SELECT max(n) AS most FROM (
            SELECT (SELECT count(*) FROM flowstone.steps o WHERE o.run_id = s.run_id
                    AND o.queued_at <= s.queued_at AND o.finished_at > s.queued_at) AS n
            FROM flowstone.steps s WHERE s.run_id = :r) AS counted
        """,
        r=handle.id,
    )
    assert under_way[0].most == 3


def test_graphs_that_no_nesting_of_chains_and_groups_can_hold_run_in_their_order(
    celery_setup: CeleryTestSetup, view: LedgerView
) -> None:
    shapes = worker_assets.SHAPES
    sinks = sorted(shapes.keys() - {up for reads in shapes.values() for up in reads})
    assert len(sinks) == 8
    handle = flowstone.materialize_all(sinks)
    assert handle.wait(60) == RunState.SUCCEEDED
    assert_each_step_succeeded_once(view, handle)
    assert_every_step_began_after_those_it_reads(view, handle)
    assert_lineage_is_the_plan(view, handle)
    paths: dict[str, int] = {}
    for name, reads in shapes.items():
        paths[name] = sum(paths[up] for up in reads) or 1
    assert {name: handle.result(name) for name in shapes} == paths
    assert paths["ladder_left_5"] == 32


def test_a_run_of_one_step_succeeds(celery_setup: CeleryTestSetup, view: LedgerView) -> None:
    handle = run_to_the_end(view, "alone", 1)
    assert view.canvases(handle.id) == [["alone"]]
