"""Selections: what texts mean, what is wrong with them, and the algebra of sets behind them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstone import selection
from flowstone.asset import Asset, asset
from flowstone.errors import BadSelection, DefinitionError, FlowStoneError, UnknownAsset
from flowstone.graph import AssetGraph
from flowstone.selection import Selected, resolve
from flowstone.selection_grammar import And, Expression, Not, Or, Plus, Word, parse
from tests.strategies import Dag, dags


def make(name: str, reads: Sequence[str] = (), **given: object) -> Asset:
    def function() -> None: ...

    return asset(name=name, deps=reads, **given)(function)  # type: ignore[call-overload, no-any-return]


GRAPH = AssetGraph.build(
    [
        make("raw_flights", tags={"source": "api", "daily": ""}, group="raw", owners=["ann@x.org"]),
        make("raw_weather", tags=["source=ftp"], group="raw", kind="table"),
        make("flights", ["raw_flights"], tags=["daily"], group="clean", kind="table"),
        make("delays", ["flights", "raw_weather"], group="clean", owners=["team/data"]),
        make("report", ["delays"], kind="report", owners=["ann@x.org", "bob"]),
        make("or"),
    ]
)


def chosen(*texts: str) -> list[str]:
    found = resolve(GRAPH, texts)
    return [name for name in GRAPH.order if name in found.assets]


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("flights", "flights"),
        ("raw_*", "raw_flights raw_weather"),
        ("raw_[fg]*", "raw_flights"),
        ("*", "or raw_flights flights raw_weather delays report"),
        ("+flights", "raw_flights flights"),
        ("flights+", "flights delays report"),
        ("+flights+", "raw_flights flights delays report"),
        ("1+delays", "flights raw_weather delays"),
        ("2+delays", "raw_flights flights raw_weather delays"),
        ("raw_flights+1", "raw_flights flights"),
        ("1+flights+1", "raw_flights flights delays"),
        ("0+flights+0", "flights"),
        ("tag:daily", "raw_flights flights"),
        ("tag:source", "raw_flights raw_weather"),
        ("tag:source=ftp", "raw_weather"),
        ("tag:s*=?p?", "raw_flights"),
        ("+tag:daily", "raw_flights flights"),
        ("group:raw", "raw_flights raw_weather"),
        ("kind:table", "flights raw_weather"),
        ("kind:*", "flights raw_weather report"),
        ("owner:ann@x.org", "raw_flights report"),
        ("owner:team/*", "delays"),
        ("raw_flights,report", "raw_flights report"),
        ("raw_flights or report", "raw_flights report"),
        ("group:raw and tag:daily", "raw_flights"),
        ("group:raw and not tag:daily", "raw_weather"),
        ("not group:raw and not name:or", "flights delays report"),
        # `and` binds tighter than `or`, and `not` tighter than that.
        ("report or group:raw and tag:daily", "raw_flights report"),
        ("(report or group:raw) and not tag:daily", "raw_weather report"),
        ("1+(flights or report)", "raw_flights flights delays report"),
        ("+(raw_* and not raw_weather)+", "raw_flights flights delays report"),
        ("or", "or"),
    ],
)
def test_what_a_text_selects(text: str, means: str) -> None:
    assert sorted(chosen(text)) == sorted(means.split())


def test_several_texts_are_any_of_them() -> None:
    assert chosen("raw_weather", "flights") == chosen("raw_weather or flights")


@pytest.mark.parametrize(
    ("text", "anchors", "above", "below", "starts"),
    [
        ("+delays", ["delays"], ["flights", "raw_flights", "raw_weather"], [], []),
        ("flights+1", ["flights"], [], ["delays"], ["flights"]),
        # What is named, and read by another one that is, is both.
        (
            "1+(delays or flights)",
            ["flights", "delays"],
            ["raw_flights", "flights", "raw_weather"],
            [],
            [],
        ),
        ("+delays and not raw_weather", ["delays"], ["flights", "raw_flights"], [], []),
        # The anchor itself is not in both, so the caller chooses the partitions of all.
        ("+delays and group:raw", ["raw_flights", "raw_weather"], [], [], []),
        (
            "+(flights+1)",
            ["flights"],
            ["raw_flights", "flights", "raw_weather"],
            ["delays"],
            ["flights"],
        ),
        # Only what reads the one with the + behind follows from it.
        ("flights+1, raw_weather", ["flights", "raw_weather"], [], ["delays"], ["flights"]),
        (
            "(raw_flights+ or raw_weather) and not report",
            ["raw_flights", "raw_weather"],
            [],
            ["flights", "delays"],
            ["raw_flights"],
        ),
        ("(raw_weather or flights+1) and flights", ["flights"], [], [], ["flights"]),
        ("(flights+0)", ["flights"], [], [], []),
        (
            "(flights, raw_weather)+1",
            ["flights", "raw_weather"],
            [],
            ["delays"],
            ["flights", "raw_weather"],
        ),
    ],
)
def test_whose_partitions_follow_from_those_of_which(
    text: str, anchors: list[str], above: list[str], below: list[str], starts: list[str]
) -> None:
    found = resolve(GRAPH, [text])
    assert found == Selected(
        tuple(name for name in GRAPH.order if name in anchors),
        frozenset(above),
        frozenset(below),
        frozenset(starts),
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "in '': expected an asset, or tag:, group:, kind: or owner:, and there it ends"),
        ("+(a or", r"in '\+\(a or': expected an asset, or tag:, .*, and there it ends"),
        ("(a", r"in '\(a': expected 'and', 'or', a comma, or '\)', and there it ends"),
        ("a)", "character 2: expected 'and', 'or', a comma, or nothing more, and not '\\)'"),
        ("a b", "character 3: expected 'and', 'or', a comma, or nothing more, and not 'b'"),
        ("a and or b", "character 7: expected an asset, .* and not 'or'"),
        ("2 a", "character 3: expected '\\+' after 2, and not 'a'"),
        ("++a", "character 2: expected an asset"),
        ("a+b", "character 3: expected 'and', 'or', a comma, or nothing more, and not 'b'"),
        ("tags:x", "'tags' is none of name:, tag:, .*; did you mean 'tag'"),
        ("tag:", "expected the name of a tag after 'tag:'"),
        ("tag:=x", "expected the name of a tag after 'tag:=x'"),
        ("tag:x=", "expected the value of a tag after 'tag:x='"),
        ("a$b", r"'a\$b' cannot be the name of an asset"),
        ("group:a=b", "'a=b' cannot be a group"),
        ("not " * 60 + "a", "more than 50 parentheses"),
        ("(" * 60 + "a" + ")" * 60, "more than 50 parentheses"),
        ("a," * 6000, "at most 10000 characters"),
    ],
)
def test_what_makes_no_sense_is_told_with_its_place(text: str, says: str) -> None:
    with pytest.raises(BadSelection, match=says):
        selection.check(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "tag:dialy",
            "selects no asset: there is no asset with the tag 'dialy'; did you mean 'daily'",
        ),
        ("tag:source=apy", "no asset with the tag 'source=apy'; did you mean 'api'"),
        ("+(kind:repotr)", "no asset with the kind 'repotr'; did you mean 'report'"),
        ("raw_x*", "'raw_x\\*' selects no asset: there is no asset like 'raw_x\\*'$"),
        ("flights and report", "'flights and report' selects no asset$"),
        ("not *", "'not \\*' selects no asset$"),
    ],
)
def test_a_selection_of_nothing_is_refused(text: str, says: str) -> None:
    selection.check(text)
    with pytest.raises(BadSelection, match=says):
        resolve(GRAPH, ["*", text])
    with pytest.raises(BadSelection, match="nothing is selected"):
        resolve(GRAPH, [])


def test_a_name_that_there_is_not_is_told_even_beside_others() -> None:
    with pytest.raises(UnknownAsset, match="'reprot' is not defined; did you mean 'report'"):
        resolve(GRAPH, ["flights or not reprot"])


def test_attributes_are_checked_and_do_not_count_as_code() -> None:
    made = make("a", tags=["daily", "team=data"], group="g", kind="k", owners=["bob", "bob"])
    assert (made.tags, made.owners) == ({"daily": "", "team": "data"}, ("bob",))
    assert made.code_hash == make("a").code_hash
    refused: list[tuple[dict[str, Any], str]] = [
        ({"tags": "daily"}, "tags= takes a mapping or a list, not a string"),
        ({"tags": ["a b"]}, "the tag 'a b' is not one word"),
        ({"tags": {"a": "x=y"}}, "the value 'x=y' of the tag 'a' is not one word"),
        ({"tags": {"a": 1}}, "the value 1 of the tag 'a' is not one word"),
        ({"tags": [1]}, "the tag 1 is not one word"),
        ({"tags": ["a=1", "a=2"]}, "the tag 'a' has two values"),
        ({"group": ""}, "group='' is not one word"),
        ({"kind": "a,b"}, "kind='a,b' is not one word"),
        ({"owners": "bob"}, r"owners= takes a list, not a string; write \['bob'\]"),
        ({"owners": ["a+b"]}, r"the owner 'a\+b' is not one word"),
    ]
    for said, says in refused:
        with pytest.raises(DefinitionError, match=says) as error:
            make("a", **said)
        assert __file__ in error.value.message


NAMES = st.sampled_from([f"a.{i}" for i in range(1, 7)])
ATTRIBUTES = st.sampled_from(["x", "y", "x.y"])
PATTERNS = st.sampled_from(["*", "x*", "?", "[xy]", "[!x]", "*.1", "nothing_*"])
WORDS = (
    st.builds(Word, st.just("name"), NAMES | PATTERNS)
    | st.builds(Word, st.sampled_from(["group", "kind", "owner"]), ATTRIBUTES | PATTERNS)
    | st.builds(Word, st.just("tag"), ATTRIBUTES | PATTERNS, st.none() | ATTRIBUTES | PATTERNS)
)
STEPS = st.none() | st.integers(0, 3)


def _larger(inner: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
    some = st.lists(inner, min_size=2, max_size=3).map(tuple)
    steps = st.tuples(STEPS, STEPS).filter(lambda given: given != (0, 0))
    return (
        st.builds(lambda of, around: Plus(of, *around), inner, steps)
        | inner.map(Not)
        | some.map(And)
        | some.map(Or)
    )


EXPRESSIONS: st.SearchStrategy[Expression] = st.recursive(WORDS, _larger, max_leaves=6)


@st.composite
def graphs(draw: st.DrawFn) -> AssetGraph:
    dag = draw(dags(max_steps=6))
    words = st.none() | ATTRIBUTES
    return AssetGraph.build(
        make(
            f"a.{step}",
            [f"a.{up}" for up in dag.get(step, ())],
            group=draw(words),
            kind=draw(words),
            owners=draw(st.lists(ATTRIBUTES, max_size=2)),
            tags=draw(st.dictionaries(ATTRIBUTES, st.just("") | ATTRIBUTES, max_size=2)),
        )
        for step in range(1, 7)
    )


def found(graph: AssetGraph, text: str) -> frozenset[str]:
    try:
        return resolve(graph, [text]).assets
    except BadSelection as error:
        if "selects no asset" not in error.message:
            raise
        return frozenset()


@given(EXPRESSIONS)
def test_what_is_printed_is_read_as_the_same(expression: Expression) -> None:
    assert parse(str(expression)) == expression


@given(graphs(), EXPRESSIONS, EXPRESSIONS)
def test_the_algebra_of_sets(graph: AssetGraph, one: Expression, other: Expression) -> None:
    a, b, every = found(graph, f"({one})"), found(graph, f"({other})"), frozenset(graph.order)
    assert found(graph, f"({one}) or ({other})") == found(graph, f"({one}),({other})") == a | b
    assert found(graph, f"({one}) and ({other})") == a & b
    assert found(graph, f"not ({one})") == every - a
    assert found(graph, f"not not ({one})") == a
    assert found(graph, f"({one}) and ({one})") == a == found(graph, f"({one}) or ({one})")
    assert found(graph, f"not (({one}) and ({other}))") == found(
        graph, f"not ({one}) or not ({other})"
    )
    assert found(graph, f"not (({one}) or ({other}))") == found(
        graph, f"not ({one}) and not ({other})"
    )


@given(dags(max_steps=7), st.sets(st.integers(1, 7), min_size=1), STEPS, STEPS)
def test_a_plus_is_the_closure(
    dag: Dag, start: set[int], above: int | None, below: int | None
) -> None:
    graph = AssetGraph.build(
        make(f"a.{step}", [f"a.{up}" for up in dag.get(step, ())]) for step in range(1, 8)
    )
    reads = {step: set(dag.get(step, ())) for step in range(1, 8)}
    readers = {step: {r for r, ups in reads.items() if step in ups} for step in reads}

    def naive(onward: Mapping[int, set[int]], steps: int | None) -> frozenset[str]:
        # Step by step, and never more steps than there are assets.
        reached, level = set[int](), set(start)
        for _ in range(len(reads) if steps is None else steps):
            level = set[int]().union(*(onward[one] for one in level))
            reached |= level
        return frozenset(f"a.{one}" for one in reached)

    inner = Or(tuple(Word("name", f"a.{one}") for one in sorted(start)))
    selected = resolve(graph, [str(Plus(inner, above, below))])
    assert set(selected.anchors) == {f"a.{one}" for one in start}
    assert selected.above == naive(reads, above)
    assert selected.below == naive(readers, below)
    assert selected.starts == (set(selected.anchors) if below != 0 else set())


@given(graphs(), EXPRESSIONS)
def test_anchors_are_in_the_order_of_the_graph(graph: AssetGraph, expression: Expression) -> None:
    if not found(graph, str(expression)):
        return
    selected = resolve(graph, [str(expression)])
    assert selected.anchors
    assert [name for name in graph.order if name in selected.anchors] == list(selected.anchors)
    assert selected.starts <= set(selected.anchors)
    # What is below begins somewhere.
    assert selected.starts or not selected.below


PIECES = st.sampled_from(
    [
        "a.1",
        "a.9",
        "+",
        "2",
        "(",
        ")",
        ",",
        " ",
        "and",
        "or",
        "not",
        "tag:",
        "x",
        "=",
        "*",
        "[",
        "²",
        "\n",
    ]
)


@given(graphs(), st.lists(PIECES, max_size=12).map("".join) | st.text(max_size=30))
def test_no_text_raises_anything_else(graph: AssetGraph, text: str) -> None:
    refused = refusal(lambda: selection.check(text))
    told = refusal(lambda: resolve(graph, [text]))
    if refused is not None:
        assert str(told) == str(refused)
    elif told is not None:
        assert "selects no asset" in told.message or isinstance(told, UnknownAsset)


def refusal(look: Callable[[], object]) -> FlowStoneError | None:
    try:
        look()
    except (BadSelection, UnknownAsset) as error:
        return error
    return None
