"""Who gets free slots: nothing is given twice, nothing is left lying, nobody waits for ever."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from flowstone.admission import Group, Slots, share_out

START = datetime(2026, 1, 1, tzinfo=UTC)
KEYS = "abc"


def group(
    run: int, waiting: int, takes: dict[str, int], level: int = 1, since: int | None = None
) -> Group:
    age = run if since is None else since
    return Group(UUID(int=run), takes, waiting, level, START + timedelta(seconds=age))


def share(
    groups: list[Group],
    free: dict[str, int],
    total: dict[str, int] | None = None,
    held: dict[tuple[int, str], int] | None = None,
    room: int = 1000,
) -> list[int]:
    slots = {key: Slots((total or free)[key], count) for key, count in free.items()}
    holds = {(UUID(int=run), key): count for (run, key), count in (held or {}).items()}
    return share_out(groups, slots, holds, {one.run_id: room for one in groups})


def test_what_is_free_is_shared_evenly() -> None:
    groups = [group(1, 100, {"a": 1}), group(2, 100, {"a": 1}), group(3, 1, {"a": 1})]
    assert share(groups, {"a": 9}) == [4, 4, 1]


def test_who_holds_most_comes_last() -> None:
    groups = [group(1, 100, {"a": 1}), group(2, 100, {"a": 1})]
    assert share(groups, {"a": 4}, {"a": 10}, held={(1, "a"): 6}) == [0, 4]


def test_among_equals_the_older_run_comes_first() -> None:
    groups = [group(1, 5, {"a": 1}, since=9), group(2, 5, {"a": 1}, since=3)]
    assert share(groups, {"a": 1}) == [0, 1]


def test_an_urgent_run_takes_all_that_it_can_use() -> None:
    groups = [group(1, 100, {"a": 1}, level=2), group(2, 3, {"a": 1}, level=0)]
    assert share(groups, {"a": 4}) == [1, 3]


def test_slots_are_kept_for_a_heavy_step_whose_turn_it_is() -> None:
    groups = [group(1, 1, {"a": 4}), group(2, 100, {"a": 1})]
    assert share(groups, {"a": 3}, {"a": 5}) == [0, 0]
    assert share(groups, {"a": 4}, {"a": 5}) == [1, 0]


def test_what_is_heavier_than_its_pool_keeps_nobody_waiting() -> None:
    groups = [group(1, 1, {"a": 4}), group(2, 100, {"a": 1})]
    assert share(groups, {"a": 3}) == [0, 3]


def test_a_step_that_lacks_one_of_its_slots_leaves_the_others_alone() -> None:
    groups = [group(1, 5, {"a": 1, "b": 1}), group(2, 5, {"b": 1})]
    assert share(groups, {"a": 0, "b": 3}, {"a": 1, "b": 3}) == [0, 3]


def test_what_waits_for_a_limit_of_its_own_keeps_no_slots_of_a_pool() -> None:
    groups = [group(1, 5, {"a": 3, "asset:heavy": 1}, level=0), group(2, 5, {"a": 1})]
    free = {"a": 1, "asset:heavy": 0}
    assert share(groups, free, {"a": 4, "asset:heavy": 1}) == [0, 1]


def test_a_run_gets_no_more_than_its_window_has_room_for() -> None:
    assert share([group(1, 100, {"a": 1}), group(1, 100, {"b": 1})], {"a": 9, "b": 9}, room=5) in (
        [3, 2],
        [2, 3],
    )


def test_what_nobody_has_declared_has_no_slots() -> None:
    assert share([group(1, 1, {"x": 1})], {"a": 1}) == [0]


groups_of_runs = st.lists(
    st.builds(
        group,
        st.integers(1, 5),
        st.integers(0, 6),
        st.dictionaries(st.sampled_from(KEYS), st.integers(1, 4), min_size=1),
        st.integers(0, 2),
    ),
    max_size=8,
)
limits = st.fixed_dictionaries({key: st.integers(0, 8) for key in KEYS})
rooms = st.integers(0, 6)


@given(groups_of_runs, limits, rooms)
def test_it_gives_no_more_than_there_is(
    groups: list[Group], free: dict[str, int], room: int
) -> None:
    given_out = share(groups, free, room=room)
    taken: Counter[str] = Counter()
    of_run: Counter[UUID] = Counter()
    for one, count in zip(groups, given_out, strict=True):
        assert 0 <= count <= one.waiting
        of_run[one.run_id] += count
        for key, slots in one.takes.items():
            taken[key] += count * slots
    assert all(taken[key] <= free[key] for key in KEYS)
    assert all(count <= room for count in of_run.values())


@given(groups_of_runs, limits)
def test_where_all_are_light_nothing_is_left_that_somebody_could_use(
    groups: list[Group], free: dict[str, int]
) -> None:
    light = [Group(g.run_id, {min(g.takes): 1}, g.waiting, g.level, g.since) for g in groups]
    given_out = share(light, free)
    taken: Counter[str] = Counter()
    for one, count in zip(light, given_out, strict=True):
        taken[min(one.takes)] += count
    for one, count in zip(light, given_out, strict=True):
        assert count == one.waiting or taken[min(one.takes)] == free[min(one.takes)]


@given(groups_of_runs, limits, limits)
def test_all_get_their_turn_in_the_end(
    groups: list[Group], total: dict[str, int], extra: dict[str, int]
) -> None:
    """Each round what was given comes back; whatever fits at all has run after some rounds."""
    slots = {key: total[key] + extra[key] for key in KEYS}
    left = list(groups)
    for _ in range(sum(one.waiting for one in groups)):
        given_out = share(left, slots)
        left = [
            Group(g.run_id, g.takes, g.waiting - count, g.level, g.since)
            for g, count in zip(left, given_out, strict=True)
        ]
    for one in left:
        assert not one.waiting or any(one.takes[key] > slots[key] for key in one.takes)
