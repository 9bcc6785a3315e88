"""`make bench`: each case against its peer, alternately, as medians and ratios.

Absolute times say little about another machine; the ratios do. Writes
`build/bench.json`, a list of {case, ours, other, ratio, goal, met}.
"""

from __future__ import annotations

import argparse
import json
import operator
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import backfills, cases
from benchmarks.makespan import makespan
from benchmarks.stage import Stage, stage

OUTPUT = Path("build/bench.json")


@dataclass(frozen=True)
class Result:
    """One line of the table. `ours` and `other` are in `unit`."""

    case: str
    unit: str
    ours: float
    other: float | None
    ratio: float
    goal: str
    met: bool | None
    """None where there is no goal: the line is there for comparison."""


@dataclass(frozen=True)
class Case:
    """A case: its measurements, and the goal that its ratio has to meet, if it has one."""

    name: str
    unit: str
    measure: Callable[[Stage], cases.Pair]
    sign: str = ""
    goal: float | None = None

    def met(self, ratio: float) -> bool | None:
        """Return whether a ratio meets the goal, or None without one."""
        if self.goal is None:
            return None
        compare = {">=": operator.ge, "<=": operator.le, "<": operator.lt}[self.sign]
        return bool(compare(ratio, self.goal))


CASES = [
    Case("1,000 independent assets / plain tasks", "steps/s", cases.independent,
         ">=", 0.65),
    Case("layered 20 x 20 / chain of groups", "steps/s", cases.layered,
         ">=", 8),
    Case("layered 20 x 20 / chain of groups without results", "steps/s", cases.layered_without),
    Case("chain of 300 / Celery chain", "steps/s", cases.chained,
         ">=", 1.2),
    Case("chain of 300 / Celery chain without results", "steps/s", cases.chained_without),
    Case("layered 4,000 / layered 400", "ms/step", cases.grow_4000,
         "<=", 1.25),
    Case("layered 40,000 / layered 400", "ms/step", cases.grow_40000,
         "<=", 1.25),
    Case("makespan of random graphs / list schedule", "s", makespan,
         "<=", 1.1),
    Case("plan 100,000 steps / COPY of their rows", "s", cases.plan_100000,
         "<=", 5),
    Case("plan 100,000 steps / COPY without indexes", "s", cases.plan_bare),
    Case("peak memory of planning 100,000 steps", "MB", cases.plan_memory,
         "<", 400),
    Case("backfill of 50,000 partitions, the call", "ms", backfills.call,
         "<", 1000),
    # Of a large plan, what its nodes read is found out twice.
    Case("backfill, plan 50,000 partitions / 5,000", "ms/step", backfills.growth,
         "<=", 1.5),
    Case("backfill, peak memory of planning 50,000 partitions / 5,000", "MB", backfills.memory),
    Case("backfill, one look at 150,000 steps", "ms", backfills.counts,
         "<", 1000),
    Case("backfill, how 50,000 partitions stand", "ms", backfills.states,
         "<", 1000),
    Case("largest message at 40,000 steps", "KB", cases.largest_message,
         "<", 32),
    Case("broker memory at 40,000 steps", "MB", cases.broker_memory,
         "<", 64),
]  # fmt: skip


def main() -> int:
    """Run the cases whose names hold a given word, and show the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("word", nargs="?", default="", help="run only cases that hold this word")
    wanted = parser.parse_args().word
    console, results = Console(), []
    with stage() as made:
        for case in CASES:
            if wanted in case.name:
                results.append(result(case, case.measure(made)))
                console.print(table(results[-1:]), highlight=False)
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps([asdict(r) for r in results], indent=2) + "\n")
    console.print(table(results), f"written to {OUTPUT}", highlight=False)
    return 1 if any(r.met is False for r in results) else 0


def result(case: Case, pair: cases.Pair) -> Result:
    """Return the line of a case: medians, and the ratio of the medians."""
    ours = statistics.median(pair.ours)
    other = statistics.median(pair.other) if pair.other else None
    ratio = ours if other is None else ours / other
    goal = "" if case.goal is None else f"{case.sign} {case.goal:g}"
    return Result(case.name, case.unit, ours, other, ratio, goal, case.met(ratio))


def table(results: list[Result]) -> Table:
    """Return the results as a table."""
    made = Table("case", "unit")
    for column in ("ours", "other", "ratio", "goal"):
        made.add_column(column, justify="right")
    made.add_column("met")
    for r in results:
        other = "" if r.other is None else f"{r.other:,.2f}"
        met = {None: "", True: "[green]yes", False: "[red]no"}[r.met]
        made.add_row(r.case, r.unit, f"{r.ours:,.2f}", other, f"{r.ratio:.2f}", r.goal, met)
    return made


if __name__ == "__main__":
    sys.exit(main())
