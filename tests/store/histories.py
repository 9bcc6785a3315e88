"""Histories of runs on a real ledger, and beside them what each output was really made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal
from uuid import UUID, uuid4

from flowstone.expand import members
from flowstone.store import steps
from flowstone.store.ledger import Ledger
from tests.store.runs_by_hand import HandRun, query, run_sql
from tests.strategies import Dag

Deed = Literal["make", "skip", "pin"]
"""What a run does about a node: compute it, reuse its latest output, or read an earlier one."""


@dataclass
class Moment:
    """What was so at a time."""

    at: datetime
    latest: dict[int, int]
    """The output of each node."""
    outputs: set[int]
    stale: set[int]


@dataclass
class History:
    """Runs of the nodes of a graph, told twice: in the ledger, and here."""

    ledger: Ledger
    dag: Dag
    name: str = field(default_factory=lambda: f"h{uuid4().hex}_")
    node: dict[int, int] = field(default_factory=dict)
    """The node of each output, and below the step, the hash and what it has read."""
    step: dict[int, int] = field(default_factory=dict)
    sha: dict[int, str] = field(default_factory=dict)
    made_of: dict[int, set[int]] = field(default_factory=dict)
    run_of: dict[int, UUID] = field(default_factory=dict)
    used: dict[tuple[UUID, int], int] = field(default_factory=dict)
    """The output of each node in each run."""
    latest: dict[int, int] = field(default_factory=dict)
    stale: set[int] = field(default_factory=set)
    moments: list[Moment] = field(default_factory=list)

    def asset(self, node: int) -> str:
        return f"{self.name}{node}"

    def versions(self, node: int) -> list[int]:
        return [output for output, its in self.node.items() if its == node]

    def run(self, deeds: dict[int, Deed], shas: dict[int, str], earlier: dict[int, int]) -> UUID:
        """Do a run over all nodes; one that is to be reused or read and is not there is made.

        `shas` are the hashes of what is made, and `earlier` says which of its versions a
        node stands for that is pinned.
        """
        deed = {n: deeds[n] if n in self.latest else "make" for n in self.dag}
        pins = {
            n: self.versions(n)[earlier[n] % len(self.versions(n))]
            for n in self.dag
            if deed[n] == "pin"
        }
        mine = {n: ups for n, ups in self.dag.items() if n not in pins}
        run = HandRun(
            self.ledger,
            mine,
            name=self.name,
            pinned={(self.asset(n), "-"): self.step[output] for n, output in pins.items()},
        )
        used = dict(pins)
        number_of = {step_id: number for number, step_id in run.ids.items()}
        while canvases := run.dispatch():
            for number in [number_of[i] for canvas in canvases for i in members(canvas)]:
                if deed[number] == "skip":
                    self._skip(run, number)
                else:
                    self._make(run, number, shas[number], {used[up] for up in self.dag[number]})
                used[number] = self.latest[number]
                self._look()
        self.used |= {(run.id, number): output for number, output in used.items() if number in mine}
        return run.id

    def _skip(self, run: HandRun, number: int) -> None:
        claim = run.claim(number)
        with self.ledger.begin() as conn:
            assert steps.skip(conn, claim, reuses=self.step[self.latest[number]])

    def _make(self, run: HandRun, number: int, sha: str, made_of: set[int]) -> None:
        assert run.commit(run.claim(number), sha)
        sql = "SELECT id FROM flowstone.outputs WHERE step_id = :s"
        output = query(self.ledger, sql, s=run.ids[number])[0].id
        self.node[output], self.step[output], self.sha[output] = number, run.ids[number], sha
        self.made_of[output], self.run_of[output] = made_of, run.id
        self.latest[number] = output

    def roll_back(self, node: int, place: int) -> None:
        """Point a node at an earlier version, as somebody does by hand."""
        replaced, to = self.latest[node], self.versions(node)[place % len(self.versions(node))]
        with self.ledger.begin() as conn:
            run_sql(
                conn,
                "UPDATE flowstone.latest SET output_id = :o, updated_at = now() WHERE asset = :a",
                o=to,
                a=self.asset(node),
            )
            run_sql(
                conn,
                "INSERT INTO flowstone.rollbacks (asset, partition, output_id, replaced_id, actor)"
                " VALUES (:a, '-', :o, :r, 'test')",
                a=self.asset(node),
                o=to,
                r=replaced,
            )
        self.latest[node] = to
        self._look()

    def declare_stale(self, node: int) -> None:
        with self.ledger.begin() as conn:
            run_sql(
                conn,
                "UPDATE flowstone.outputs SET stale_at = now(), stale_reason = 'test' "
                "WHERE id = :o AND stale_at IS NULL",
                o=self.latest[node],
            )
        self.stale.add(self.latest[node])
        self._look()

    def _look(self) -> None:
        at = query(self.ledger, "SELECT clock_timestamp()")[0][0]
        self.moments.append(Moment(at, dict(self.latest), set(self.node), set(self.stale)))
