"""A chain that was tampered with is found, and the place is named; one that was not is whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import assume, given
from hypothesis import strategies as st

from flowstone.chain import GENESIS, Check, Finding, Link, extend

LINES = st.lists(st.text(min_size=1), min_size=1, max_size=8)


def chained(lines: Sequence[str]) -> list[Link]:
    """A chain over lines; the ids of its rows are ten times its positions."""
    links, head = [], GENESIS
    for position, line in enumerate(lines, start=1):
        head = extend(head, line)
        links.append(Link(position, 10 * position, head, line))
    return links


def found(links: Sequence[Link]) -> list[Finding]:
    check = Check()
    findings = [finding for link in links for finding in check.follow(link)]
    return [*findings, *check.end()]


@given(lines=LINES)
def test_a_chain_that_nobody_has_touched_is_whole(lines: list[str]) -> None:
    check, links = Check(), chained(lines)
    assert check.head == GENESIS
    assert [finding for link in links for finding in (*check.follow(link), *check.end())] == []
    assert (check.rows, check.head) == (len(lines), links[-1].hash)


@given(lines=LINES, other=st.text(), data=st.data())
def test_a_changed_row_is_named(lines: list[str], other: str, data: st.DataObject) -> None:
    links = chained(lines)
    at = data.draw(st.integers(0, len(links) - 1))
    assume(other != lines[at])
    links[at] = replace(links[at], line=other)
    (finding,) = found(links)
    assert finding.row == links[at].row
    is_last = at == len(links) - 1
    # The last link has none after it that would tell its row from its seal.
    assert ("the chain breaks" if is_last else "was changed after") in finding.message


@given(lines=LINES, hash=st.binary(min_size=32, max_size=32), data=st.data())
def test_a_changed_seal_is_named(lines: list[str], hash: bytes, data: st.DataObject) -> None:
    links = chained(lines)
    at = data.draw(st.integers(0, len(links) - 1))
    assume(hash != links[at].hash)
    links[at] = replace(links[at], hash=hash)
    (finding,) = found(links)
    assert finding.row == links[at].row
    is_last = at == len(links) - 1
    named = "the chain breaks at seal" if is_last else "seal"
    assert finding.message.startswith(f"{named} {at + 1}")


@given(lines=LINES, data=st.data())
def test_a_deleted_row_is_named(lines: list[str], data: st.DataObject) -> None:
    links = chained(lines)
    at = data.draw(st.integers(0, len(links) - 1))
    links[at] = replace(links[at], line=None)
    (finding,) = found(links)
    assert finding == Finding(
        f"row {links[at].row} was deleted; seal {at + 1} is left of it", links[at].row
    )


@given(lines=LINES, data=st.data())
def test_missing_seals_are_named(lines: list[str], data: st.DataObject) -> None:
    links = chained(lines)
    first = data.draw(st.integers(0, len(links) - 1))
    last = data.draw(st.integers(first, len(links) - 1))
    findings = [str(f) for f in found(links[:first] + links[last + 1 :])]
    if last == len(links) - 1:
        # A chain does not know how long it was; the head that was kept elsewhere does.
        assert findings == []
    elif first == last:
        assert findings == [f"seal {first + 1} is missing"]
    else:
        assert findings == [f"seals {first + 1} to {last + 1} are missing"]


@given(lines=st.lists(st.text(min_size=1), min_size=2, max_size=8, unique=True), data=st.data())
def test_rows_that_have_changed_places_are_found(lines: list[str], data: st.DataObject) -> None:
    links = chained(lines)
    at = data.draw(st.integers(0, len(links) - 2))
    one, two = links[at : at + 2]
    links[at : at + 2] = [
        replace(two, position=one.position), replace(one, position=two.position),
    ]  # fmt: skip
    findings = found(links)
    assert [f.row for f in findings[:2]] == [two.row, one.row]
    assert all("the chain breaks at seal" in f.message for f in findings)


def test_two_changed_rows_are_two_findings() -> None:
    links = chained(list("abcdefgh"))
    for at in (1, 4):
        links[at] = replace(links[at], line="x")
    assert [f.row for f in found(links)] == [20, 50]


def test_a_seal_that_was_put_before_the_first_is_out_of_place() -> None:
    links = chained(list("abc"))
    assert [str(f) for f in found([Link(0, 7, GENESIS, "z"), *links])] == [
        "seal 0 of row 7 is out of place"
    ]
