from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from flowstone.collectable import Origin, without_readers


@pytest.mark.parametrize(
    ("location", "origin"),
    [
        ("a/2013-01-01/17-2-0123abcd.parquet", Origin(17, 2, "0123abcd")),
        ("17-2-0123abcd", Origin(17, 2, "0123abcd")),
        ("a/17-2-0123abcd.json.part", Origin(17, 2, "0123abcd")),
        ("a/17-2-0123ABCD.json", None),
        ("a/17-2-0123abcde.json", None),
        ("a/report-2-0123abcd.json", None),
        ("a/17-2-0123abcd.json/notes.txt", None),
        ("notes.txt", None),
    ],
)
def test_the_name_of_a_location_tells_whose_it_is(location: str, origin: Origin | None) -> None:
    assert Origin.of(location) == origin


def test_what_a_kept_version_was_made_of_stays_through_any_number_of_others() -> None:
    # 1 -> 2 -> 3 -> 4, of which 4 is kept; 5 -> 6 go together; 7 has no reader.
    readers = {1: [2], 2: [3], 3: [4], 5: [6]}
    assert without_readers([1, 2, 3, 5, 6, 7], readers) == {5, 6, 7}


versions = st.integers(0, 12)
readings = st.sets(st.tuples(versions, versions).filter(lambda pair: pair[0] < pair[1]))


@given(st.sets(versions), readings)
def test_it_is_the_largest_set_without_a_reader_outside(
    candidates: set[int], pairs: set[tuple[int, int]]
) -> None:
    readers = {c: [reader for made_of, reader in pairs if made_of == c] for c in candidates}
    going = without_readers(candidates, readers)

    def is_needed(version: int) -> bool:
        return version not in candidates or any(map(is_needed, readers[version]))

    assert going == {c for c in candidates if not is_needed(c)}
