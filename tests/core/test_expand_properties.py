"""Expansion on random graphs, with every order of events that Celery may produce."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.run_simulator import Run, play
from tests.strategies import Dag, dags

windows = st.just(200) | st.integers(1, 12)


seeds = st.integers(0, 2**32)


def assert_ended(run: Run) -> None:
    left = {
        step.id: step.state for step in run.in_state("pending", "queued", "retrying", "running")
    }
    assert not left
    assert run.closed, "nobody was woken to close the run"


def assert_right(run: Run) -> None:
    for step in run.steps.values():
        bad = [
            up
            for up in step.upstream
            if run.steps[up].state != "succeeded" and (up, step.id) not in run.optional
        ]
        assert (step.state == "upstream_failed") == bool(bad)
        assert run.commits[step.id] == (1 if step.state == "succeeded" else 0)


@settings(deadline=None, max_examples=300)
@given(dags(), windows, seeds)
def test_without_faults_each_step_runs_once_and_the_messages_stay_few(
    dag: Dag, window: int, seed: int
) -> None:
    run = Run(dag, window)
    play(run, Random(seed).randrange, ["succeed"])
    assert_ended(run)
    assert all(step.state == "succeeded" for step in run.steps.values())
    assert len(run.canvases) <= len(dag)
    assert run.published <= 2 * len(dag) + 2
    place = {step: i for i, step in enumerate(run.order)}
    assert all(place[up] < place[step] for step, ups in dag.items() for up in ups)


@settings(deadline=None, max_examples=600)
@given(dags(), windows, seeds, st.booleans())
def test_failures_retries_and_duplicates_strand_nothing_without_a_reconciler(
    dag: Dag, window: int, seed: int, chords: bool
) -> None:
    run = Run(dag, window, chords=chords)
    play(run, Random(seed).randrange, ["succeed", "succeed", "fail", "retry", "park", "twice"])
    assert_ended(run)
    assert_right(run)


@settings(deadline=None, max_examples=400)
@given(dags(), windows, seeds, st.data())
def test_a_step_runs_without_what_is_optional_and_fails(
    dag: Dag, window: int, seed: int, data: st.DataObject
) -> None:
    edges = [(up, step) for step, ups in dag.items() for up in ups]
    optional = data.draw(st.sets(st.sampled_from(edges))) if edges else set()
    run = Run(dag, window, optional)
    play(run, Random(seed).randrange, ["succeed", "succeed", "fail", "retry", "twice"])
    assert_ended(run)
    assert_right(run)


@settings(deadline=None, max_examples=300)
@given(dags(max_steps=9), windows, seeds)
def test_dead_workers_and_lost_messages_cost_only_a_pass_of_the_reconciler(
    dag: Dag, window: int, seed: int
) -> None:
    run = Run(dag, window)
    outcomes = ["succeed", "fail", "retry", "park", "die", "twice", "lose"]
    for _ in range(4):
        play(run, Random(seed).randrange, outcomes)
        run.reconcile()
    play(run, Random(seed).randrange, ["succeed"])
    run.reconcile()
    play(run, Random(seed).randrange, ["succeed"])
    assert_ended(run)
    assert_right(run)


@settings(deadline=None, max_examples=400)
@given(dags(), windows, seeds, st.integers(0, 20))
def test_a_cancelled_run_starts_nothing_more_and_ends_by_itself(
    dag: Dag, window: int, seed: int, events: int
) -> None:
    run, random = Run(dag, window), Random(seed)
    outcomes = ["succeed", "fail", "retry", "park", "twice"]
    play(run, random.randrange, outcomes, events)
    was_closed = run.closed
    run.cancel()
    started = len(run.running)
    play(run, random.randrange, outcomes)
    assert_ended(run)
    assert run.cancelled != was_closed
    assert all(
        step.state in ("cancelled", "upstream_failed")
        for step in run.steps.values()
        if any(run.steps[up].state == "cancelled" for up in step.upstream)
    )
    assert started <= window


@settings(deadline=None, max_examples=200)
@given(dags(max_steps=9), windows, seeds, st.integers(0, 20))
def test_a_cancelled_run_ends_at_the_latest_when_its_grace_is_over(
    dag: Dag, window: int, seed: int, events: int
) -> None:
    run, random = Run(dag, window), Random(seed)
    outcomes = ["succeed", "fail", "retry", "park", "die", "twice", "lose"]
    play(run, random.randrange, outcomes, events)
    run.cancel()
    play(run, random.randrange, outcomes, events)
    run.force()
    assert_ended(run)
    # Whatever still comes finds nothing to do.
    states = {step.id: step.state for step in run.steps.values()}
    run.running.clear()
    play(run, random.randrange, ["succeed"])
    assert states == {step.id: step.state for step in run.steps.values()}
