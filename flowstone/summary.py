"""What a failed run says of itself: which assets failed and why, and what did not run for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from flowstone.states import StepState

MAX_ASSETS: Final = 20
"""The most assets that a summary describes, those that failed before those that did not run."""

MAX_NAMED: Final = 3
"""The most assets of each kind that its line names."""

MAX_LINE: Final = 300
"""Characters of one error."""

Counts = Mapping[StepState, int]


@dataclass(frozen=True)
class FirstError:
    """The first step of an asset, in the order of the plan, that failed or could not run."""

    step: str
    error: str
    """One line; see `one_line`."""


def one_line(type: str, message: str) -> str:
    """Return an error as "ValueError: the first line of its message", cut at MAX_LINE."""
    first = next((line.strip() for line in message.splitlines() if line.strip()), "")
    return cut(f"{type}: {first}" if first else type)


def cut(text: str) -> str:
    """Return a text of at most MAX_LINE characters."""
    return text if len(text) <= MAX_LINE else text[: MAX_LINE - 3] + "..."


def summarize(steps: Mapping[str, Counts], first: Mapping[str, FirstError]) -> dict[str, Any]:
    """Return the error of a failed run, as JSON.

    `steps` counts the steps of each asset by state, the assets in the order of the plan;
    `first` holds an error of each asset of which a step failed or could not run. The
    result has `type`, a `message` of one line, and `assets`: for each asset that is not
    done, its `steps` by state and its `first` error. It is bounded, whatever the plan:
    `more` is how many assets it leaves out.
    """
    failed = [asset for asset, counts in steps.items() if counts.get(StepState.FAILED)]
    blocked = [
        asset
        for asset, counts in steps.items()
        if counts.get(StepState.UPSTREAM_FAILED) and asset not in failed
    ]
    told = [asset for asset in (*failed, *blocked) if asset in first]
    return {
        "type": "steps_failed",
        "message": _message(steps, failed, blocked, first),
        "assets": {
            asset: {"steps": dict(steps[asset]), "first": asdict(first[asset])}
            for asset in told[:MAX_ASSETS]
        },
        "more": max(0, len(told) - MAX_ASSETS),
    }


def _message(
    steps: Mapping[str, Counts],
    failed: Sequence[str],
    blocked: Sequence[str],
    first: Mapping[str, FirstError],
) -> str:
    reasons = _some([_failure(asset, steps[asset], first[asset]) for asset in failed])
    names = _some([_part(asset, steps[asset]) for asset in blocked])
    if not failed:
        return f"{len(blocked)} of {len(steps)} assets were not run: {names}"
    # A run of one asset need not count it.
    said = f"{len(failed)} of {len(steps)} assets failed: {reasons}" if len(steps) > 1 else reasons
    if not blocked:
        return said
    were = "was" if len(blocked) == 1 else "were"
    them = "it" if len(failed) == 1 else "them"
    return f"{said}; {len(blocked)} more {were} not run because of {them}: {names}"


def _failure(asset: str, counts: Counts, first: FirstError) -> str:
    said = f"{first.step}: {first.error}"
    total = sum(counts.values())
    if total == 1:
        return said
    return f"{asset} ({counts[StepState.FAILED]} of {total} steps; first: {said})"


def _part(asset: str, counts: Counts) -> str:
    blocked, total = counts[StepState.UPSTREAM_FAILED], sum(counts.values())
    return asset if blocked == total else f"{asset} ({blocked} of {total} steps)"


def _some(texts: Sequence[str]) -> str:
    more = len(texts) - MAX_NAMED
    return ", ".join(texts[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
