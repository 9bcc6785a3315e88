"""The token bucket: never more than the rate, no token wasted, and whoever waits has its turn."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstone.bucket import (
    CLOSE,
    HORIZON,
    MOST,
    PATIENCE,
    Bucket,
    Leaves,
    Starts,
    Waits,
    may_be_dispatched,
    turn,
)
from tests.rate_law import assert_kept

RATES = st.tuples(st.floats(0.001, 400), st.integers(1, 6))
BUCKETS = st.builds(
    lambda rate, next_at, ahead: Bucket(rate[0], rate[1], next_at, next_at + ahead),
    RATES,
    st.floats(-1000, 1000),
    st.floats(0, 1000),
)
PROMISES = st.none() | st.floats(-1000, 1000)


class Play:
    """Attempts that want to start, each of which comes again when it was told to, or later."""

    def __init__(self, seconds: float, burst: int, late: Callable[[], float] = lambda: 0.0) -> None:
        self.bucket = Bucket(seconds, burst)
        self.starts: list[float] = []
        self.tries = 0
        self._late = late
        self._coming: list[tuple[float, int, float | None]] = []
        self._now = 0.0

    def arrive(self, *times: float) -> None:
        for at in times:
            heapq.heappush(self._coming, (at, len(self._coming), None))

    def pause(self, seconds: float) -> None:
        self.bucket = self.bucket.paused(seconds)

    def run(self, until: float = math.inf) -> Sequence[float]:
        """Play until that time, and return when the attempts have started."""
        while self._coming and self._coming[0][0] <= until:
            at, number, promised = heapq.heappop(self._coming)
            self._look(at)
            self.tries += 1
            match turn(self.bucket, None if promised is None else promised - at):
                case Starts(bucket):
                    self.bucket = bucket
                    self.starts.append(at)
                case Waits(bucket, start, wait):
                    self.bucket = bucket
                    assert wait > 0
                    # By as much more as numbers of this size may be wrong.
                    again = at + wait + self._late() + 1e-9
                    heapq.heappush(self._coming, (again, number, at + start))
                case other:
                    raise AssertionError(other)
        if until < math.inf:
            self._look(until)
        return self.starts

    def _look(self, at: float) -> None:
        self.bucket = self.bucket.later(at - self._now)
        self._now = at


@given(
    RATES,
    st.lists(st.floats(0, 100), min_size=1, max_size=30),
    st.data(),
)
def test_never_more_than_the_rate_however_late_whoever_comes(
    rate: tuple[float, int], arrivals: list[float], data: st.DataObject
) -> None:
    seconds, burst = rate
    play = Play(seconds, burst, lambda: data.draw(st.floats(0, 3 * seconds)))
    play.arrive(*arrivals)
    starts = play.run()
    assert len(starts) == len(arrivals)
    assert_kept(starts, seconds, burst)


@given(RATES, st.integers(1, 40))
def test_of_many_at_once_each_is_promised_the_next_token(
    rate: tuple[float, int], many: int
) -> None:
    seconds, burst = rate
    play = Play(seconds, burst)
    play.arrive(*[0.0] * many)
    ideal = [max(0, number - burst + 1) * seconds for number in range(many)]
    assert play.run() == pytest.approx(ideal, abs=1e-6)


@given(RATES, st.lists(st.floats(0, 100), min_size=1, max_size=30))
def test_no_token_is_wasted_where_whoever_waits_is_on_time(
    rate: tuple[float, int], arrivals: list[float]
) -> None:
    seconds, burst = rate
    play = Play(seconds, burst)
    play.arrive(*arrivals)
    next_at = -math.inf
    ideal = []
    for arrival in sorted(arrivals):
        start = max(arrival, next_at)
        next_at = max(next_at, start - (burst - 1) * seconds) + seconds
        ideal.append(start)
    assert play.run() == pytest.approx(ideal, abs=1e-6)


@pytest.mark.parametrize("late", [0.003, 0.04, 0.2])
@pytest.mark.parametrize("burst", [1, 2, 3])
def test_who_is_late_costs_no_more_than_that_and_with_a_burst_next_to_nothing(
    late: float, burst: int
) -> None:
    seconds, many = 0.2, 400
    tries = itertools.count()
    # Every third comes late.
    play = Play(seconds, burst, lambda: late if next(tries) % 3 == 0 else 0.0)
    play.arrive(*[0.0] * many)
    starts = play.run()
    assert_kept(starts, seconds, burst)
    lost = many / 2 * late if burst == 1 else late
    assert starts[-1] <= many * seconds + lost
    assert play.tries < 3.5 * many


def test_after_a_standstill_of_all_workers_starts_are_spaced_again() -> None:
    play = Play(0.1, 1)
    play.arrive(*[0.0] * 50)
    play.run(until=1.0)
    # For three seconds nobody takes a message; then all that were due come at once.
    play._coming = [(max(at, 4.0), n, promised) for at, n, promised in play._coming]
    heapq.heapify(play._coming)
    starts = play.run()
    assert len(starts) == 50
    assert_kept(starts, 0.1)
    assert starts[-1] == pytest.approx(4.0 + 39 * 0.1, abs=0.2)
    assert play.tries < 4 * 50


@given(RATES, st.floats(0, 100), st.lists(st.floats(0, 50), min_size=1, max_size=20))
def test_a_pause_holds_for_those_who_were_promised_a_start_as_well(
    rate: tuple[float, int], seconds: float, arrivals: list[float]
) -> None:
    play = Play(*rate)
    play.arrive(*[0.0] * 10, *arrivals)
    before = len(play.run(until=5))
    play.pause(seconds)
    starts = play.run()
    assert len(starts) == 10 + len(arrivals)
    assert all(start >= 5 + seconds - 1e-6 for start in starts[before:])
    assert_kept(starts, *rate)


@given(BUCKETS, PROMISES, st.floats(0, 1000))
def test_whoever_starts_later_has_no_more_than_before(
    bucket: Bucket, promised: float | None, delay: float
) -> None:
    """A bucket that is seen later lets one start that it let start before."""
    if isinstance(turn(bucket, promised), Starts):
        later = turn(bucket.later(delay), None if promised is None else promised - delay)
        assert isinstance(later, Starts)


@given(BUCKETS, PROMISES)
def test_a_start_takes_one_token_and_a_promise_takes_none(
    bucket: Bucket, promised: float | None
) -> None:
    floor = max(bucket.next_at, bucket.full_at)
    decided = turn(bucket, promised)
    if isinstance(decided, Starts):
        assert floor <= 0
        assert decided.bucket.next_at == floor + bucket.seconds
    else:
        assert isinstance(decided, Waits)
        assert decided.bucket.next_at == floor
        assert decided.wait >= floor
    assert decided.bucket.free_at >= decided.bucket.next_at


@given(BUCKETS, PROMISES, st.floats(0, 100))
def test_a_start_beyond_the_patience_is_not_promised(
    bucket: Bucket, promised: float | None, patience: float
) -> None:
    patient, decided = turn(bucket, promised), turn(bucket, promised, patience)
    if isinstance(patient, Waits) and patient.wait > patience:
        assert decided == Leaves(patient.wait)
    else:
        assert decided == patient


@given(BUCKETS)
def test_what_may_be_dispatched_can_start_within_the_horizon(bucket: Bucket) -> None:
    many = may_be_dispatched(bucket)
    assert 0 <= many <= MOST
    for _ in range(many):
        match turn(bucket):
            case Starts(after):
                bucket = after
            case Waits(after, _, wait):
                assert wait <= HORIZON + 1e-6
                bucket = after
    if many < MOST:
        match turn(bucket):
            case Waits(_, _, wait):
                # One more would have to wait for longer; but for rounding.
                assert wait > HORIZON - 1e-6
            case other:
                raise AssertionError(other)


def test_of_a_slow_rate_one_is_dispatched_shortly_before_its_start() -> None:
    every_six_minutes = Bucket(360, 1, next_at=360, free_at=360)
    assert may_be_dispatched(every_six_minutes) == 0
    assert may_be_dispatched(every_six_minutes.later(347)) == 0
    assert may_be_dispatched(every_six_minutes.later(348)) == 1
    assert may_be_dispatched(every_six_minutes.later(10_000)) == 1
    assert may_be_dispatched(Bucket(360, 5)) == 5


def test_of_a_quick_rate_no_more_are_dispatched_than_a_worker_can_keep() -> None:
    assert may_be_dispatched(Bucket(0.25, 1)) == 49
    assert may_be_dispatched(Bucket(1e-300, 1)) == MOST
    assert may_be_dispatched(Bucket(1e-300, 10**6)) == MOST


@pytest.mark.parametrize("rate", [1, 10, 11, 50, 80])
def test_enough_is_dispatched_until_the_next_pass_of_the_reconciler(rate: int) -> None:
    assert may_be_dispatched(Bucket(1 / rate, 1)) >= 10 * rate


def test_nothing_that_is_dispatched_in_time_is_sent_back() -> None:
    assert CLOSE < HORIZON < PATIENCE
