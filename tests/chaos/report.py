"""What the chaos suite has seen: `build/chaos.json`, and the table of `docs/guarantees.md`."""

from __future__ import annotations

import json
import platform
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from tests.chaos.world import KINDS

ROOT: Final = Path(__file__).parents[2]
JSON: Final = ROOT / "build" / "chaos.json"
PAGE: Final = ROOT / "docs" / "guarantees.md"
BEGIN: Final = "<!-- made by the chaos suite: begin -->\n"
END: Final = "<!-- made by the chaos suite: end -->\n"
FULL: Final = 200
"""As many scenarios make a full run, of which the page tells."""


@dataclass(frozen=True)
class Seen:
    """One scenario that has come to its right end."""

    seed: int
    faults: Sequence[str]
    runs: int
    steps: int
    attempts: int
    lost: int
    """Attempts that were lost with their process."""
    recovered: float
    """Seconds from the end of the last fault until all runs had ended."""


def keep_logs(home: Path) -> None:
    """Keep what the processes of a cluster have said, for whoever finds out what went wrong."""
    kept = JSON.parent / "chaos-logs"
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    for log in [*home.glob("*.log"), *home.glob("logs/*.log")]:
        shutil.copy(log, kept)


def write(seen: Sequence[Seen], failed: Sequence[int]) -> None:
    """Write what was seen; a full run without a failure also goes into the page."""
    JSON.parent.mkdir(exist_ok=True)
    found = {"python": platform.python_version(), "failed_seeds": list(failed), **_sums(seen)}
    JSON.write_text(json.dumps({**found, "scenarios": [asdict(one) for one in seen]}, indent=1))
    if len(seen) >= FULL and not failed:
        missed = set(KINDS) - {kind for one in seen for kind in one.faults}
        assert not missed, f"no scenario has met these faults: {missed}"
        text = PAGE.read_text()
        before, rest = text.split(BEGIN)
        PAGE.write_text(before + BEGIN + table(seen) + END + rest.split(END)[1])


def _sums(seen: Sequence[Seen]) -> dict[str, Any]:
    took = [one.recovered for one in seen] or [0.0]
    return {
        "passed": len(seen),
        "runs": sum(one.runs for one in seen),
        "steps": sum(one.steps for one in seen),
        "attempts": sum(one.attempts for one in seen),
        "lost_attempts": sum(one.lost for one in seen),
        "faults": dict(Counter(kind for one in seen for kind in one.faults)),
        "recovery_seconds": {"median": round(median(took), 2), "worst": round(max(took), 2)},
    }


def table(seen: Sequence[Seen]) -> str:
    """Return the table of faults by kind, and the sums, as Markdown."""
    sums = _sums(seen)
    intro = (
        f"{sums['passed']} scenarios, {sums['runs']} runs, {sums['steps']:,} steps, "
        f"{sums['attempts']:,} attempts, of which {sums['lost_attempts']:,} were lost with their "
        f"process; {sum(sums['faults'].values())} faults. Nothing was lost, nothing was committed "
        "twice."
    )
    lines = [
        intro,
        "",
        "| fault | injected | seconds to recover: median | worst |",
        "|---|---:|---:|---:|",
    ]
    for kind in KINDS:
        took = [one.recovered for one in seen if kind in one.faults]
        if took:
            count = sums["faults"][kind]
            lines.append(f"| {kind} | {count} | {median(took):.1f} | {max(took):.1f} |")
    took = [one.recovered for one in seen]
    lines.append(f"| all | {len(took)} scenarios | {median(took):.1f} | {max(took):.1f} |")
    return "\n".join(lines) + "\n"
