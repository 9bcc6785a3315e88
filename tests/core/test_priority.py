"""Which message goes first: what keeps runs going, what is urgent, and the first of each run."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.transport import virtual

from flowstone.expand import Canvas, Chain, Chord, members, places
from flowstone.priority import CONTROL, FIRST, LEVELS, MAX_BOOST, Priority, message_level, urgency
from flowstone.queues import MAX_MESSAGE_PRIORITY, message_priority

PRIORITIES = st.sampled_from([priority.level for priority in Priority])
BOOSTS = st.integers(0, MAX_BOOST)
SMALL = st.integers(1, FIRST)
LARGE = st.integers(FIRST + 1, 500)


@st.composite
def steps(draw: st.DrawFn, sizes: st.SearchStrategy[int] = SMALL | LARGE) -> dict[str, int]:
    """The place of a step, and how many of its run are in flight."""
    in_flight = draw(sizes)
    return {"place": draw(st.integers(0, in_flight - 1)), "in_flight": in_flight}


@given(PRIORITIES, BOOSTS, steps())
def test_every_message_of_a_step_comes_after_those_of_control(
    priority: int, boost: int, step: dict[str, int]
) -> None:
    assert CONTROL < message_level(priority, boost, **step) < LEVELS


@given(PRIORITIES, PRIORITIES, steps(), steps())
def test_a_more_urgent_run_goes_first_whatever_it_has_in_flight(
    one: int, other: int, step: dict[str, int], other_step: dict[str, int]
) -> None:
    if one < other:
        assert message_level(one, 0, **step) < message_level(other, 0, **other_step)


@given(PRIORITIES, steps(SMALL), steps(LARGE))
def test_a_small_run_goes_before_all_of_a_large_one_that_is_as_urgent(
    priority: int, small: dict[str, int], large: dict[str, int]
) -> None:
    assert message_level(priority, 0, **small) < message_level(priority, 0, **large)


@given(PRIORITIES, LARGE, LARGE)
def test_the_first_of_a_large_run_go_before_the_bulk_of_another(
    priority: int, one: int, other: int
) -> None:
    first = message_level(priority, 0, place=FIRST - 1, in_flight=one)
    assert first < message_level(priority, 0, place=FIRST, in_flight=other)


@given(PRIORITIES, st.integers(1, MAX_BOOST), steps())
def test_a_run_that_starves_moves_up_with_its_first_steps_alone(
    priority: int, boost: int, step: dict[str, int]
) -> None:
    moved = message_level(priority, boost, **step)
    if step["place"] < FIRST:
        # As if it were small, and as urgent as it has become.
        assert moved == message_level(urgency(priority, boost), 0, place=0, in_flight=1)
    else:
        assert moved == message_level(priority, 0, **step)


@given(PRIORITIES, steps(SMALL))
def test_a_run_that_starves_for_long_enough_is_as_urgent_as_any(
    priority: int, step: dict[str, int]
) -> None:
    assert message_level(priority, MAX_BOOST, **step) == CONTROL + 1


def test_redis_has_a_list_for_each_level() -> None:
    assert virtual.Channel.max_priority + 1 >= LEVELS


@pytest.mark.parametrize("broker", ["redis://h:1/0", "rediss://h/0", "unix://s", "valkey://h"])
def test_redis_gives_out_the_lowest_number_first(broker: str) -> None:
    assert [message_priority(level, broker) for level in range(LEVELS)] == list(range(LEVELS))


@pytest.mark.parametrize("broker", ["amqp://u:p@h//", "pyamqp://h", "amqps://h"])
def test_rabbitmq_gives_out_the_highest_number_first(broker: str) -> None:
    given = [message_priority(level, broker) for level in range(LEVELS)]
    assert all(one > other for one, other in pairwise(given))
    assert given[0] == MAX_MESSAGE_PRIORITY
    assert given[-1] == 0


@st.composite
def canvases(draw: st.DrawFn) -> list[Canvas]:
    """Canvases whose steps are numbered through."""
    made: list[Canvas] = []
    last = 0

    def stretch() -> tuple[int, ...]:
        nonlocal last
        first, last = last + 1, last + draw(st.integers(1, 4))
        return tuple(range(first, last + 1))

    for _ in range(draw(st.integers(0, 6))):
        if draw(st.booleans()):
            made.append(Chain(stretch()))
        else:
            header = tuple(stretch() for _ in range(draw(st.integers(2, 12))))
            made.append(Chord(header, stretch()))
    return made


@given(canvases(), st.integers(0, 300))
def test_no_more_than_the_first_startable_steps_of_a_run_have_a_place_among_the_first(
    made: list[Canvas], ahead: int
) -> None:
    found = places(made, ahead)
    assert set(found) == {step for canvas in made for step in members(canvas)}
    starts = [
        stretch[0]
        for canvas in made
        for stretch in ([canvas.steps] if isinstance(canvas, Chain) else canvas.header)
    ]
    # Each step that could start now has a place of its own, after those that are in flight.
    assert [found[step] for step in starts] == list(range(ahead, ahead + len(starts)))
    assert sum(found[step] < FIRST for step in starts) <= max(0, FIRST - ahead)


@given(canvases())
def test_what_follows_takes_the_place_of_what_it_follows(made: list[Canvas]) -> None:
    found = places(made, 0)
    for canvas in made:
        stretches = [canvas.steps] if isinstance(canvas, Chain) else [*canvas.header, canvas.body]
        assert all(len({found[step] for step in stretch}) == 1 for stretch in stretches)
        if isinstance(canvas, Chord):
            assert found[canvas.body[0]] == found[canvas.header[0][0]]
