"""Freshness: a step is planned to run exactly where what it is made of has changed."""

from __future__ import annotations

import functools
import importlib.util
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowstone.asset import Asset, Dep, asset
from flowstone.errors import DefinitionError, MissingInput
from flowstone.freshness import Fingerprint, Input, digest, fingerprint
from flowstone.graph import AssetGraph
from flowstone.mapping import AllKeys, SameKey
from flowstone.partition import UNPARTITIONED, DailyPartitions, StaticPartitions
from flowstone.partition_key import encode_key
from flowstone.plan import FRESH, Made, Node, Plan, build_plan
from flowstone.request import Request
from flowstone.source import code_hash
from tests.strategies import NOW, Dag, dags


def function() -> None: ...


def make(name: str, deps: Sequence[str | Dep] = (), **options: Any) -> Asset:
    return asset(name=name, deps=deps, **{"version": "1", **options})(function)


def graph_of(dag: Dag, **versions: str) -> AssetGraph:
    return AssetGraph.build(
        make(f"a{s}", [f"a{up}" for up in ups], version=versions.get(f"a{s}", "1"))
        for s, ups in dag.items()
    )


class Record:
    """What a ledger would know of runs that have gone well."""

    def __init__(self) -> None:
        self.made: dict[Node, Made] = {}

    def latest(self, nodes: Iterable[Node]) -> dict[Node, Made]:
        return {node: self.made[node] for node in nodes if node in self.made}

    def run(
        self,
        graph: AssetGraph,
        plan: Plan,
        values: Mapping[str, str] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """Run what the plan says, cutting off as a claim does; return what was computed."""
        computed = []
        for step in plan.steps:
            if step.skipped:
                continue
            inputs = [
                (*up, self.made[up].sha256 if up in self.made else None) for up in step.upstream
            ]
            of = fingerprint(graph[step.asset].code_hash, (config or {}).get(step.asset), inputs)
            before = self.made.get(step.node)
            if before is not None and before.fingerprint == of and step.reason != "forced":
                continue
            value = (values or {}).get(step.asset, digest([step.asset, *inputs, str(of)]))
            self.made[step.node] = Made(len(self.made), value, of)
            computed.append(step.asset)
        return computed


def plan_of(
    graph: AssetGraph,
    record: Record,
    *names: str,
    upstream: bool = True,
    force: bool = False,
    config: Mapping[str, Any] | None = None,
    key: Any = UNPARTITIONED,
) -> Plan:
    request = Request(tuple(names) or graph.order, encode_key(key), upstream, force)
    return build_plan(request, graph, record.latest, NOW, (config or {}).get)


def below(dag: Dag, changed: int) -> set[str]:
    reached = {changed}
    for step, ups in dag.items():
        if reached & set(ups):
            reached.add(step)
    return {f"a{s}" for s in reached}


def reasons(plan: Plan) -> dict[str, str]:
    return {s.asset: s.reason for s in plan.steps}


@settings(deadline=None)
@given(dags(), st.data())
def test_after_a_run_all_is_fresh_until_something_changes_and_then_what_is_below_it(
    dag: Dag, data: st.DataObject
) -> None:
    record, graph = Record(), graph_of(dag)
    first = plan_of(graph, record)
    assert set(reasons(first).values()) == {"missing"}
    assert len(record.run(graph, first)) == len(dag)

    again = plan_of(graph, record)
    assert set(reasons(again).values()) == {FRESH}
    assert {s.reuses for s in again.steps} == {m.step_id for m in record.made.values()}

    changed = data.draw(st.sampled_from(sorted(dag)))
    later = graph_of(dag, **{f"a{changed}": "2"})
    third = plan_of(later, record)
    running = {s.asset for s in third.steps if not s.skipped}
    assert running == below(dag, changed)
    assert reasons(third)[f"a{changed}"] == "code changed"
    assert all(
        reasons(third)[name].startswith("upstream runs: ") for name in running - {f"a{changed}"}
    )
    # No step waits for one that is skipped, and no skipped one reads one that runs.
    for step in third.steps:
        assert not step.skipped or not ({up[0] for up in step.upstream} & running)


@settings(deadline=None)
@given(dags(), st.data())
def test_a_value_that_comes_out_the_same_cuts_off_what_is_below(
    dag: Dag, data: st.DataObject
) -> None:
    record, graph = Record(), graph_of(dag)
    record.run(graph, plan_of(graph, record))
    changed = f"a{data.draw(st.sampled_from(sorted(dag)))}"
    same = {changed: record.made[changed, "-"].sha256}
    later = graph_of(dag, **{changed: "2"})
    assert record.run(later, plan_of(later, record), values=same) == [changed]
    assert set(reasons(plan_of(later, record)).values()) == {FRESH}


@settings(deadline=None)
@given(dags(), st.booleans())
def test_force_runs_everything(dag: Dag, before: bool) -> None:
    record, graph = Record(), graph_of(dag)
    if before:
        record.run(graph, plan_of(graph, record))
    forced = plan_of(graph, record, force=True)
    assert set(reasons(forced).values()) == {"forced"}
    assert not any(s.skipped or s.reuses for s in forced.steps)


def test_each_reason_is_told() -> None:
    record = Record()
    graph = AssetGraph.build([make("a"), make("b", ["a"]), make("c", ["b"])])
    record.run(graph, plan_of(graph, record))

    assert reasons(plan_of(graph, record, config={"b": {"rate": 2}})) == {
        "a": FRESH,
        "b": "config changed",
        "c": "upstream runs: b",
    }
    # Another run has made `a` anew, with another value.
    record.made["a", "-"] = Made(9, "another", record.made["a", "-"].fingerprint)
    assert reasons(plan_of(graph, record)) == {
        "a": FRESH,
        "b": "input changed",
        "c": "upstream runs: b",
    }
    record.made["c", "-"] = Made(8, "old", None)
    assert reasons(plan_of(graph, record, "c", upstream=False)) == {
        "c": "not known what it was made of"
    }
    more = AssetGraph.build([*graph.assets.values(), make("d", ["a", "b", "c"])])
    assert reasons(plan_of(more, Record()))["d"] == "missing"


def test_another_mapping_counts_as_other_code_even_where_it_gives_the_same_keys() -> None:
    one = StaticPartitions(["eu"])
    up = make("up", partitions=one)
    record = Record()
    before = AssetGraph.build([up, make("down", [Dep("up", SameKey())], partitions=one)])
    record.run(before, plan_of(before, record, "down", key="eu"))
    after = AssetGraph.build([up, make("down", [Dep("up", AllKeys())], partitions=one)])
    assert reasons(plan_of(after, record, "down", key="eu")) == {
        "up": FRESH,
        "down": "code changed",
    }


def test_several_upstream_steps_that_run_are_counted() -> None:
    record = Record()
    days = DailyPartitions("2024-01-01", "2024-01-31")
    graph = AssetGraph.build([make("day", partitions=days), make("all", ["day"])])
    record.run(graph, plan_of(graph, record, "all"))
    later = AssetGraph.build([make("day", partitions=days, version="2"), make("all", ["day"])])
    found = {s.asset: s.reason for s in plan_of(later, record, "all").steps}
    assert found["all"] == "upstream runs: day[2024-01-01] and 30 more"


def test_a_volatile_asset_always_runs_and_what_reads_it_only_if_its_value_changes() -> None:
    record = Record()
    graph = AssetGraph.build([make("feed", volatile=True), make("reader", ["feed"])])
    record.run(graph, plan_of(graph, record), values={"feed": "one"})
    plan = plan_of(graph, record)
    assert reasons(plan) == {"feed": "volatile", "reader": "upstream runs: feed"}


# Optional inputs.


def test_a_missing_optional_input_is_a_step_that_is_skipped() -> None:
    graph = AssetGraph.build([make("a"), make("b"), make("c", ["a", Dep("b", optional=True)])])
    record = Record()
    record.run(graph, plan_of(graph, record, "a"))
    plan = plan_of(graph, record, "c", upstream=False)
    b, c = plan.steps
    assert (b.asset, b.skipped, b.reuses) == ("b", True, None)
    assert b.reason == "never materialized, and optional"
    assert c.upstream == (("a", "-"), ("b", "-"))
    assert c.optional == {("b", "-")}
    assert set(plan.pinned) == {("a", "-")}
    record.run(graph, plan)
    assert reasons(plan_of(graph, record, "c", upstream=False))["c"] == FRESH
    record.run(graph, plan_of(graph, record, "b"))
    assert reasons(plan_of(graph, record, "c", upstream=False))["c"] == "input changed"


def test_an_input_that_is_optional_to_one_and_needed_by_another_must_be_there() -> None:
    graph = AssetGraph.build([make("a"), make("b", [Dep("a", optional=True)]), make("c", ["a"])])
    with pytest.raises(MissingInput, match="a, read by c, has never been materialized"):
        plan_of(graph, Record(), "b", "c", upstream=False)


def test_a_partition_that_an_optional_upstream_asset_does_not_have_is_missing() -> None:
    graph = AssetGraph.build(
        [
            make("old", partitions=StaticPartitions(["eu"])),
            make(
                "now",
                [Dep("old", SameKey(), optional=True)],
                partitions=StaticPartitions(["eu", "us"]),
            ),
        ]
    )
    assert [s.asset for s in plan_of(graph, Record(), "now", key="us").steps] == ["now"]
    assert [s.asset for s in plan_of(graph, Record(), "now", key="eu").steps] == ["old", "now"]


# Fingerprints.


@given(st.text(), st.text(), st.text())
def test_a_fingerprint_survives_its_text(code: str, config: str, inputs: str) -> None:
    of = Fingerprint(digest(code), digest(config), digest(inputs))
    assert Fingerprint.parse(str(of)) == of


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(), v, max_size=3),
    max_leaves=5,
)


@given(JSON, JSON)
def test_other_values_have_another_hash(one: Any, other: Any) -> None:
    same = repr(_ordered(one)) == repr(_ordered(other))
    assert (digest(one) == digest(other)) == same


def _ordered(value: Any) -> Any:
    if isinstance(value, dict):
        return "dict", sorted((k, _ordered(v)) for k, v in value.items())
    return [_ordered(v) for v in value] if isinstance(value, list) else value


def test_inputs_count_with_their_order_names_and_absence() -> None:
    a, b = ("a", "-", "1"), ("b", "-", "2")
    several: list[list[Input]] = [
        [a, b],
        [b, a],
        [a],
        [a, ("b", "-", None)],
        [("a", "s:x", "1"), b],
    ]
    assert len({fingerprint("c", None, inputs).inputs for inputs in several}) == len(several)
    assert fingerprint("c", None, []).config != fingerprint("c", {}, []).config


# The code of an asset.

SOURCE = """
from flowstone import asset, Retry

{decorator}
def made({parameters}):
    {body}
"""


def code_of(folder: Path, **parts: str) -> str:
    text = SOURCE.format(**{"decorator": "@asset", "parameters": "", "body": "return 1"} | parts)
    path = folder / f"m{len(list(folder.iterdir()))}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: str = module.made.code_hash
    return found


def test_the_code_counts_from_def_on(tmp_path: Path) -> None:
    plain = code_of(tmp_path)
    assert code_of(tmp_path) == plain
    assert code_of(tmp_path, decorator="@asset(retry=Retry(max_attempts=9))") == plain
    assert code_of(tmp_path, body="return 2") != plain
    assert code_of(tmp_path, parameters="other") != plain


def test_a_version_stands_for_the_code(tmp_path: Path) -> None:
    one = code_of(tmp_path, decorator='@asset(version="1")')
    assert code_of(tmp_path, decorator='@asset(version="1")', body="return 2") == one
    assert code_of(tmp_path, decorator='@asset(version="2")') != one
    assert code_of(tmp_path) != one


def test_assets_that_a_loop_makes_differ_by_what_they_close_over() -> None:
    def made(rate: object) -> Asset:
        def function() -> object:
            return rate

        return asset(function)

    for one, other in [(1, 2), ("a", "b"), (("a", 1), ("a", 2))]:
        assert made(one).code_hash == made(one).code_hash
        assert made(one).code_hash != made(other).code_hash
    # The text of an object may hold its address, which is another one in each process.
    assert made(object()).code_hash == made(object()).code_hash


def test_the_code_of_any_callable_is_found() -> None:
    def scaled(factor: int, other: int) -> int:
        return factor * other

    class Maker:
        def __call__(self) -> int:
            return 1

        def made(self) -> int:
            return 2

    def wrapped() -> int:
        return 3

    @functools.wraps(wrapped)
    def wrapper() -> int:
        return wrapped()

    two, three = functools.partial(scaled, 2), functools.partial(scaled, factor=3)
    found = [code_hash(f, None) for f in (two, three, Maker(), Maker().made, wrapped)]
    assert len(set(found)) == len(found)
    assert code_hash(functools.partial(scaled, 2), None) == found[0]
    assert code_hash(Maker(), None) == found[2]
    assert code_hash(wrapper, None) == found[4]


def test_a_callable_without_code_needs_a_version() -> None:
    with pytest.raises(DefinitionError, match=r"say @asset\(version=...\)"):
        code_hash(len, None)
    assert code_hash(len, "1") == code_hash(max, "1")


def test_a_function_may_refer_to_itself_before_it_has_a_name() -> None:
    def outer() -> Any:
        def inner() -> Any:
            return later

        found = code_hash(inner, None)
        later = 1
        return found, later

    assert len(outer()[0]) == 32


def test_code_without_a_source_is_known_by_its_instructions() -> None:
    script = (
        "from flowstone import asset\n"
        "def made(x): return [lambda: y in {{'a', 'b'}} for y in x], {n}\n"
        "print(asset(made).code_hash)"
    )

    def run(n: int) -> str:
        return subprocess.run(
            [sys.executable, "-c", script.format(n=n)], capture_output=True, text=True, check=True
        ).stdout

    assert run(1) == run(1)
    assert run(1) != run(2)
