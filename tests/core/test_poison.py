"""What a step says whose process has died too often."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from flowstone.poison import SHOWN, Death, poisoned
from flowstone.summary import MAX_LINE, one_line
from flowstone.texts import MAX_MESSAGE

BEGAN = datetime(2026, 1, 31, 12, 30, tzinfo=UTC)

deaths = st.builds(
    Death,
    attempt=st.integers(1, 10_000),
    worker=st.text("abc@", min_size=1, max_size=40),
    began=st.just(BEGAN),
    seconds=st.floats(0, 1e6),
    end=st.sampled_from(["signal 9 (SIGKILL)", "exitcode 1", "signal 11 (SIGSEGV)", "x" * 50]),
)


def test_the_first_line_is_enough_and_each_death_is_told() -> None:
    told = poisoned(
        "crawl[2026-01-31]",
        [
            Death(1, "w1@a", BEGAN, 12.25, "signal 11 (SIGSEGV)"),
            Death(2, "w2@b", BEGAN, 3.5, "signal 9 (SIGKILL)"),
            Death(4, "w1@a", BEGAN, 0.04, "signal 9 (SIGKILL)"),
        ],
    )
    first, *each = told.splitlines()
    assert first == (
        "the process that ran crawl[2026-01-31] has died 3 times (2 times signal 9 (SIGKILL), "
        "signal 11 (SIGSEGV); the last one after 0.0 s on w1@a); look for what kills it, such as "
        "the memory that it takes"
    )
    assert each == [
        "attempt 1 began 2026-01-31 12:30:00 UTC on w1@a, and ran 12.2 s: signal 11 (SIGSEGV)",
        "attempt 2 began 2026-01-31 12:30:00 UTC on w2@b, and ran 3.5 s: signal 9 (SIGKILL)",
        "attempt 4 began 2026-01-31 12:30:00 UTC on w1@a, and ran 0.0 s: signal 9 (SIGKILL)",
    ]


@given(st.lists(deaths, min_size=1, max_size=40))
def test_it_is_bounded_and_ends_with_the_last_deaths(died: list[Death]) -> None:
    told = poisoned("a", died)
    first, *each = told.splitlines()
    assert len(each) == min(len(died), SHOWN)
    assert [int(line.split()[1]) for line in each] == [d.attempt for d in died[-SHOWN:]]
    assert len(told) <= MAX_MESSAGE
    line = one_line("poison", told)
    assert line == f"poison: {first}"[: len(line)] or len(line) == MAX_LINE
    assert "look for what kills it" in line or len(line) == MAX_LINE
