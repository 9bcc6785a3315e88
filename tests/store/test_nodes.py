"""Which partition a caller means: found in the ledger, without the assets' code."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowstone.errors import BadPartition, UnknownAsset
from flowstone.partition_key import UNPARTITIONED, Key, Month, encode_key, label
from flowstone.plan import Node
from flowstone.store import nodes
from flowstone.store.ledger import Ledger
from tests.store.runs_by_hand import HandRun, query, run_sql
from tests.store.test_linear import rows_read
from tests.strategies import keys

HERE = ZoneInfo("America/New_York")


def materialized(ledger: Ledger, asset: str, of: Iterable[Key]) -> None:
    """Have an asset with these partitions; which output they point at does not matter here."""
    if not query(ledger, "SELECT 1 FROM flowstone.outputs LIMIT 1"):
        HandRun(ledger, {1: ()}).do(1)
    with ledger.begin() as conn:
        run_sql(
            conn,
            "INSERT INTO flowstone.latest (asset, partition, output_id) SELECT :asset, key, o.id "
            "FROM unnest(CAST(:keys AS text[])) AS key, "
            "(SELECT min(id) AS id FROM flowstone.outputs) o",
            asset=asset,
            keys=[encode_key(key) for key in of],
        )


def find(ledger: Ledger, asset: str, key: Key = UNPARTITIONED) -> Node:
    with ledger.begin() as conn:
        return nodes.find(conn, asset, key)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("eu", "eu"),
        ("100%|x", "100%|x"),
        (-5, "-5"),
        (True, "True"),
        (None, "None"),
        (date(2013, 1, 15), "2013-01-15"),
        (Month(2013, 1), "2013-01"),
        (datetime(2013, 1, 15, 7, tzinfo=UTC), "2013-01-15T07:00:00+00:00"),
        (datetime(2013, 1, 15, 7, tzinfo=HERE), "2013-01-15T07:00:00-05:00"),
        ((date(2013, 1, 15), "eu"), "2013-01-15|eu"),
        ((date(2013, 1, 15), ("eu", 3)), "2013-01-15|eu|3"),
        (("only",), "only"),
        ("a\nb", "a%0Ab"),
    ],
)
def test_a_key_and_its_text_mean_the_same(ledger: Ledger, key: Key, text: str) -> None:
    materialized(ledger, "sales", [key, "something else"])
    assert find(ledger, "sales", key) == find(ledger, "sales", text) == ("sales", encode_key(key))


def test_the_key_that_is_given_comes_before_one_that_is_written_the_same(ledger: Ledger) -> None:
    materialized(ledger, "sales", ["2013-01-15", date(2013, 1, 15)])
    assert find(ledger, "sales", "2013-01-15") == ("sales", "s:2013-01-15")
    assert find(ledger, "sales", date(2013, 1, 15)) == ("sales", "d:2013-01-15")


def test_a_text_that_several_keys_are_written_as_is_refused(ledger: Ledger) -> None:
    materialized(ledger, "sales", [(date(2013, 1, 15), "eu"), ("2013-01-15", "eu")])
    with pytest.raises(BadPartition) as caught:
        find(ledger, "sales", "2013-01-15|eu")
    assert caught.value.message == (
        "'2013-01-15|eu' stands for several partitions of asset 'sales': "
        "(d:2013-01-15,s:eu), (s:2013-01-15,s:eu); give the key itself, such as a date"
    )


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_each_key_is_found_by_itself_and_its_text_never_means_another(
    ledger: Ledger, data: st.DataObject
) -> None:
    known = data.draw(st.lists(keys(), min_size=1, max_size=6, unique_by=encode_key))
    with ledger.begin() as conn:
        run_sql(conn, "DELETE FROM flowstone.latest WHERE asset = 'sales'")
    materialized(ledger, "sales", known)
    for key in known:
        assert find(ledger, "sales", key) == ("sales", encode_key(key))
        text = label(encode_key(key))
        alike = {encode_key(k) for k in known if label(encode_key(k)) == text}
        try:
            _, found = find(ledger, "sales", text)
        except BadPartition as error:
            assert len(alike) > 1, error  # noqa: PT017 - it may be raised, for this reason only
        else:
            assert found in alike or found == encode_key(text)


def test_an_unknown_asset_is_named_with_the_nearest_one(ledger: Ledger) -> None:
    with pytest.raises(UnknownAsset, match="'sale' was never materialized, nor was any other"):
        find(ledger, "sale")
    materialized(ledger, "sales", ["eu", "us"])
    for name in ("sale", "sale\0", "sale\udc80"):
        with pytest.raises(UnknownAsset) as caught:
            find(ledger, name)
        assert caught.value.message == (
            f"asset {name!r} was never materialized; did you mean 'sales'?"
        )
    with ledger.begin() as conn:
        assert nodes.assets(conn) == ["a1", "sales"]


def test_an_unknown_partition_is_named_with_some_that_there_are(ledger: Ledger) -> None:
    materialized(ledger, "sales", [date(2013, 1, day) for day in range(1, 32)])
    there_are = "2013-01-27, 2013-01-28, 2013-01-29, 2013-01-30, 2013-01-31"
    for key in ("2013-02-01", date(2013, 2, 1)):
        with pytest.raises(BadPartition) as caught:
            find(ledger, "sales", key)
        assert caught.value.message == (
            "there was never an output of asset 'sales' for partition '2013-02-01'; "
            f"there is one for {there_are}"
        )
    with pytest.raises(BadPartition, match=f"has partitions; say which, such as {there_are}"):
        find(ledger, "sales")
    with pytest.raises(BadPartition, match="'a1' has no partitions; leave partition 'eu' out"):
        find(ledger, "a1", "eu")


@pytest.mark.parametrize("key", ["x" * 600, "|" * 400, "\0", "\udc80", ("\0",), 1.5])
def test_what_no_key_can_be_is_a_bad_partition(ledger: Ledger, key: Key) -> None:
    materialized(ledger, "sales", ["eu"])
    with pytest.raises(BadPartition):
        find(ledger, "sales", key)


@pytest.mark.parametrize("key", [date(1900, 1, 1), "1900-01-01", "1900-01-01|eu", "never"])
def test_an_asset_of_many_partitions_is_not_read_as_a_whole(ledger: Ledger, key: Key) -> None:
    days = [date.fromordinal(date(1900, 1, 1).toordinal() + n) for n in range(5_000)]
    materialized(ledger, "sales", [*days, (days[0], "eu")])
    materialized(ledger, "other", days)
    with ledger.begin() as conn:
        run_sql(conn, "ANALYZE flowstone.latest")
    before = rows_read(ledger)
    if key == "never":
        with pytest.raises(UnknownAsset):
            find(ledger, "sale", "x")
    else:
        find(ledger, "sales", key)
    assert rows_read(ledger) - before < 20
