"""An alarm interrupts its block, and nothing else, and leaves the timers of others as they were."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from flowstone.alarm import Alarm

PATIENCE = 20.0


class Late(Exception):
    """What the alarms of these tests raise."""


def wait_for_ever() -> None:
    time.sleep(PATIENCE)
    pytest.fail("nothing came")


def no_timer_is_left() -> bool:
    return signal.getitimer(signal.ITIMER_REAL) == (0, 0)


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    before = signal.getsignal(signal.SIGALRM)
    yield
    assert no_timer_is_left()
    assert signal.getsignal(signal.SIGALRM) is before


def test_it_interrupts_its_block_once_and_tells_that_the_time_is_over() -> None:
    with Alarm() as alarm:
        assert not alarm.is_over
        with alarm.ringing(0.05, Late):
            assert not alarm.is_over
            with pytest.raises(Late):
                wait_for_ever()
            # Whoever catches it has all the time that it takes to clean up.
            time.sleep(0.1)
            assert alarm.is_over


def test_a_block_that_ends_in_time_is_not_interrupted_afterwards() -> None:
    with Alarm() as alarm:
        with alarm.ringing(0.05, Late):
            pass
        time.sleep(0.1)
    time.sleep(0.1)


def test_whenever_it_rings_it_comes_out_of_its_block_and_leaves_nothing_behind() -> None:
    """Blocks of about the time that is given: the alarm comes before, at, or after their end."""
    rung = 0
    for number in range(400):
        seconds = 0.0005 + number % 20 * 5e-5
        end = time.monotonic() + 0.001
        caught = False
        with Alarm() as alarm:
            try:
                with alarm.ringing(seconds, Late):
                    while time.monotonic() < end:
                        pass
            except Late:
                caught = True
            recorded = sum(range(2000))
        rung += caught
        assert recorded == 1999000
        assert no_timer_is_left()
    assert 0 < rung < 400


def test_the_handler_and_the_timer_of_somebody_else_are_called_and_put_back() -> None:
    calls: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: calls.append(number))
    try:
        mine = signal.getsignal(signal.SIGALRM)
        signal.setitimer(signal.ITIMER_REAL, 0.05, PATIENCE)
        with Alarm() as alarm, alarm.ringing(0.15, Late), pytest.raises(Late):
            wait_for_ever()
        assert calls == [signal.SIGALRM]
        left, interval = signal.getitimer(signal.ITIMER_REAL)
        assert PATIENCE - 5 < left <= PATIENCE
        assert interval == PATIENCE
        assert signal.getsignal(signal.SIGALRM) is mine
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_one_that_rings_while_an_inner_one_is_set_waits_for_the_end_of_that() -> None:
    recorded: list[str] = []

    def inner() -> None:
        with Alarm() as alarm:
            with pytest.raises(Late, match="inner"), alarm.ringing(0.1, lambda: Late("inner")):
                wait_for_ever()
            time.sleep(0.1)
            recorded.append("inner")

    def outer() -> None:
        inner()
        wait_for_ever()

    with Alarm() as alarm:
        with pytest.raises(Late, match="outer"), alarm.ringing(0.05, lambda: Late("outer")):
            outer()
        recorded.append("outer")
    assert recorded == ["inner", "outer"]


def test_a_thread_is_told_and_not_interrupted() -> None:
    def wait() -> bool:
        with Alarm() as alarm, alarm.ringing(0.05, Late):
            end = time.monotonic() + PATIENCE
            while not alarm.is_over and time.monotonic() < end:
                time.sleep(0.01)
            return alarm.is_over and threading.current_thread() is not threading.main_thread()

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(wait).result(PATIENCE)
