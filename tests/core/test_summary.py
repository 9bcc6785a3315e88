"""What a failed run says of itself: readable, complete where it is short, and bounded."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstone.states import StepState
from flowstone.summary import MAX_ASSETS, MAX_LINE, FirstError, one_line, summarize

DONE, FAILED, BLOCKED = StepState.SUCCEEDED, StepState.FAILED, StepState.UPSTREAM_FAILED
BAD = FirstError("raw", "ValueError: bad")
BAD_DAY = FirstError("daily[2013-01-04]", "KeyError: 'x'")
FOR_RAW = FirstError("report", "raw failed")


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ({"raw": {FAILED: 1}}, "raw: ValueError: bad"),
        ({"raw": {FAILED: 1}, "a": {DONE: 1}}, "1 of 2 assets failed: raw: ValueError: bad"),
        (
            {"daily": {DONE: 28, FAILED: 3}},
            "daily (3 of 31 steps; first: daily[2013-01-04]: KeyError: 'x')",
        ),
        (
            {"raw": {FAILED: 1}, "report": {BLOCKED: 1}},
            "1 of 2 assets failed: raw: ValueError: bad; 1 more was not run because of it: report",
        ),
        (
            {
                "raw": {FAILED: 1},
                "daily": {DONE: 28, FAILED: 3},
                "other": {DONE: 31},
                "monthly": {DONE: 1, BLOCKED: 2},
                "report": {BLOCKED: 1},
            },
            (
                "2 of 5 assets failed: raw: ValueError: bad, daily (3 of 31 steps; first: "
                "daily[2013-01-04]: KeyError: 'x'); 2 more were not run because of them: "
                "monthly (2 of 3 steps), report"
            ),
        ),
        ({"a": {DONE: 1}, "report": {BLOCKED: 1}}, "1 of 2 assets were not run: report"),
    ],
)
def test_the_line_names_the_assets_that_failed_and_those_that_did_not_run(
    steps: dict[str, dict[StepState, int]], message: str
) -> None:
    first = {"raw": BAD, "daily": BAD_DAY, "monthly": FOR_RAW, "report": FOR_RAW}
    made = summarize(steps, first)
    assert (made["type"], made["message"]) == ("steps_failed", message)


def test_each_asset_has_its_counts_and_its_first_error() -> None:
    made = summarize(
        {"raw": {FAILED: 1}, "fine": {DONE: 2}, "report": {BLOCKED: 1, DONE: 4}},
        {"raw": BAD, "report": FOR_RAW},
    )
    assert json.loads(json.dumps(made["assets"])) == {
        "raw": {"steps": {"failed": 1}, "first": {"step": "raw", "error": "ValueError: bad"}},
        "report": {
            "steps": {"succeeded": 4, "upstream_failed": 1},
            "first": {"step": "report", "error": "raw failed"},
        },
    }
    assert made["more"] == 0


def test_what_failed_comes_before_what_did_not_run() -> None:
    steps = {f"b{n}": {BLOCKED: 1} for n in range(30)} | {"raw": {FAILED: 1}}
    made = summarize(steps, dict.fromkeys(steps, FOR_RAW) | {"raw": BAD})
    assert "raw" in made["assets"]
    assert made["more"] == 31 - MAX_ASSETS
    assert made["message"].endswith("30 more were not run because of it: b0, b1, b2 and 27 more")


@given(
    st.integers(1, 200), st.integers(1, 100_000), st.sampled_from([FAILED, BLOCKED]),
    st.text(max_size=20_000), st.text(max_size=20_000),
)  # fmt: skip
def test_it_is_bounded_whatever_has_failed(
    assets: int, steps: int, state: StepState, type: str, message: str
) -> None:
    name = "n" * 200
    counts: Any = {f"{name}{n}": {state: steps, DONE: 1} for n in range(assets)}
    error = one_line(type, message)
    assert len(error) <= MAX_LINE
    made = summarize(counts, dict.fromkeys(counts, FirstError(name, error)))
    assert len(json.dumps(made, ensure_ascii=False).encode()) < 100_000
    assert len(made["message"]) < 3000
    assert len(made["assets"]) == min(assets, MAX_ASSETS)


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("bad", "ValueError: bad"),
        ("\n  bad\nworse", "ValueError: bad"),
        ("", "ValueError"),
        (" \n ", "ValueError"),
    ],
)
def test_an_error_is_told_by_its_first_line(message: str, line: str) -> None:
    assert one_line("ValueError", message) == line
