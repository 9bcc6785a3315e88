"""Expansion by example: which canvases start what is ready."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from flowstone.expand import MAX_CHAIN, MAX_HEADER, Chain, Chord, Node, expand, members
from tests.strategies import Dag


def nodes(dag: Dag, done: Sequence[int] = ()) -> dict[int, Node]:
    """The steps of a graph that have not committed, as the ledger shows them to expansion."""
    readers = {step: [r for r, ups in dag.items() if step in ups] for step in dag}
    return {
        step: Node(
            step,
            readers[step][0] if len(readers[step]) == 1 else None,
            sum(up not in done for up in ups),
        )
        for step, ups in dag.items()
        if step not in done
    }


def canvases(dag: Dag, done: Sequence[int] = (), budget: int = 1000) -> list[Chain | Chord]:
    found = nodes(dag, done)
    ready = [step for step, node in found.items() if node.open_deps == 0][:budget]
    return expand(ready, found, budget)


def test_nothing_ready_gives_nothing() -> None:
    assert canvases({}) == []
    assert canvases({1: (), 2: ()}, budget=0) == []


def test_independent_steps_are_chains_of_their_own() -> None:
    assert canvases({1: (), 2: ()}) == [Chain((1,)), Chain((2,))]


def test_a_stretch_is_one_chain() -> None:
    assert canvases({1: (), 2: (1,), 3: (2,)}) == [Chain((1, 2, 3))]


def test_a_stretch_goes_on_where_a_part_of_it_has_committed() -> None:
    assert canvases({1: (), 2: (1,), 3: (2,)}, done=[1]) == [Chain((2, 3))]


def test_a_long_stretch_is_cut_so_that_messages_stay_small() -> None:
    dag: Dag = {i: (i - 1,) if i > 1 else () for i in range(1, 31)}
    assert canvases(dag) == [Chain(tuple(range(1, 17)))]
    assert canvases(dag, done=range(1, 17)) == [Chain(tuple(range(17, 31)))]


def test_stretches_that_meet_are_a_chord_with_the_tail_in_its_body() -> None:
    # [1 -> 2, 3] -> 4 -> 5
    dag: Dag = {1: (), 2: (1,), 3: (), 4: (2, 3), 5: (4,)}
    assert canvases(dag) == [Chord(((1, 2), (3,)), (4, 5))]
    # Where the result backend cannot count its header, the join waits in the ledger.
    assert expand([1, 3], nodes(dag), 1000, chords=False) == [Chain((1, 2)), Chain((3,))]


def test_a_month_of_days_is_one_chord() -> None:
    dag: Dag = dict.fromkeys(range(1, 32), ()) | {32: tuple(range(1, 32))}
    assert canvases(dag) == [Chord(tuple((i,) for i in range(1, 32)), (32,))]


def test_a_diamond_waits_at_its_fork_and_then_is_a_chord() -> None:
    dag: Dag = {1: (), 2: (1,), 3: (1,), 4: (2, 3)}
    assert canvases(dag) == [Chain((1,))]
    assert canvases(dag, done=[1]) == [Chord(((2,), (3,)), (4,))]


def test_the_n_graph_holds_back_no_step_for_another() -> None:
    # 3 reads 1; 4 reads 1 and 2. No chain may begin at 1, and 4 is carried by nobody.
    dag: Dag = {1: (), 2: (), 3: (1,), 4: (1, 2)}
    assert canvases(dag) == [Chain((1,)), Chain((2,))]
    assert canvases(dag, done=[2]) == [Chain((1,))]
    assert canvases(dag, done=[1, 2]) == [Chain((3,)), Chain((4,))]


def test_a_cross_product_goes_out_layer_by_layer() -> None:
    dag: Dag = {1: (), 2: (), 3: (1, 2), 4: (1, 2)}
    assert canvases(dag) == [Chain((1,)), Chain((2,))]
    assert canvases(dag, done=[1]) == [Chain((2,))]
    assert canvases(dag, done=[1, 2]) == [Chain((3,)), Chain((4,))]


def test_a_ladder_is_carried_as_far_as_its_rungs_allow() -> None:
    # The rails 1 -> 3 -> 5 and 2 -> 4 -> 6 with the rungs 1 -> 4 and 3 -> 6.
    dag: Dag = {1: (), 2: (), 3: (1,), 4: (1, 2), 5: (3,), 6: (3, 4)}
    assert canvases(dag) == [Chain((1,)), Chain((2,))]
    assert canvases(dag, done=[1, 2]) == [Chain((3,)), Chain((4,))]
    assert canvases(dag, done=[1, 2, 3]) == [Chain((4, 6)), Chain((5,))]


def test_a_join_that_waits_for_a_running_step_is_no_chord() -> None:
    dag: Dag = {1: (), 2: (), 3: (1, 2)}
    found = nodes(dag)
    del found[1]  # dispatched earlier
    assert expand([2], found, 10) == [Chain((2,))]


def test_a_join_that_waits_for_a_step_further_up_is_no_chord() -> None:
    dag: Dag = {1: (), 2: (), 3: (), 4: (2, 3), 5: (1, 4)}
    assert canvases(dag) == [Chain((1,)), Chord(((2,), (3,)), (4,))]


def test_a_header_that_does_not_fit_into_the_window_goes_out_as_chains() -> None:
    dag: Dag = {1: (), 2: (), 3: (1, 2)}
    assert canvases(dag, budget=3) == [Chord(((1,), (2,)), (3,))]
    assert canvases(dag, budget=2) == [Chain((1,)), Chain((2,))]
    assert canvases(dag, budget=1) == [Chain((1,))]


def test_stretches_share_the_window() -> None:
    dag: Dag = {}
    for start in (1, 5, 9):
        dag |= {start: ()} | {i: (i - 1,) for i in range(start + 1, start + 4)}
    assert canvases(dag, budget=12) == [Chain((s, s + 1, s + 2, s + 3)) for s in (1, 5, 9)]
    assert canvases(dag, budget=8) == [Chain((s, s + 1)) for s in (1, 5, 9)]
    assert canvases(dag, budget=5) == [Chain((s,)) for s in (1, 5, 9)]


def test_a_chord_takes_the_shares_of_its_header_and_one_for_its_body() -> None:
    # The stretches (1, 2) and (3, 4) join in 5, and 6 goes on; 7 stands beside.
    dag: Dag = {1: (), 2: (1,), 3: (), 4: (3,), 5: (2, 4), 6: (5,), 7: ()}
    chord = Chord(((1, 2), (3, 4)), (5, 6))
    assert canvases(dag, budget=7) == [chord, Chain((7,))]
    assert canvases(dag, budget=5) == [Chain((1,)), Chain((3,)), Chain((7,))]


def test_a_chain_is_cut_to_the_window() -> None:
    assert canvases({1: (), 2: (1,), 3: (2,)}, budget=2) == [Chain((1, 2))]


@pytest.mark.parametrize(("width", "is_chord"), [(MAX_HEADER, True), (MAX_HEADER + 1, False)])
def test_a_header_has_a_limit(width: int, is_chord: bool) -> None:
    dag: Dag = dict.fromkeys(range(1, width + 1), ()) | {width + 1: tuple(range(1, width + 1))}
    found = canvases(dag)
    assert isinstance(found[0], Chord) is is_chord
    assert len(found) == (1 if is_chord else width)


def test_the_body_of_a_chord_is_as_short_as_a_chain() -> None:
    dag: Dag = {1: (), 2: (), 3: (1, 2)} | {i: (i - 1,) for i in range(4, 40)}
    (found,) = canvases(dag)
    assert isinstance(found, Chord)
    assert found.body == tuple(range(3, 3 + MAX_CHAIN))


def test_the_members_of_a_canvas_come_after_what_they_read() -> None:
    assert members(Chain((1, 2))) == (1, 2)
    assert members(Chord(((1, 2), (3,)), (4, 5))) == (1, 2, 3, 4, 5)


def test_the_most_urgent_step_goes_out_first() -> None:
    found = nodes({1: (), 2: (), 3: ()})
    assert expand([3, 1, 2], found, 2) == [Chain((3,)), Chain((1,))]
