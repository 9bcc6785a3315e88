"""Keys that are added and removed at run time, and the runs that are planned with them."""

from __future__ import annotations

import threading
from datetime import date, datetime
from typing import Any

import pytest

import flowstone
from flowstone import (
    UNPARTITIONED,
    Context,
    DailyPartitions,
    Dep,
    DynamicPartitions,
    HourlyPartitions,
    KeyMap,
    ProductPartitions,
    StaticPartitions,
    add_partitions,
    asset,
    dynamic_partitions,
    materialize_sync,
    remove_partitions,
)
from flowstone.errors import BadPartition, DefinitionError, RunFailed
from flowstone.registry import build_registry
from flowstone.store.ledger import Ledger
from tests.cli.in_process import InProcess
from tests.conftest import RuntimeFactory
from tests.store.local_worker import LocalWorker
from tests.store.runs_by_hand import query

AUDIT = "SELECT action, actor, reason, details FROM flowstone.audit ORDER BY id"


@pytest.fixture
def local(make_runtime: RuntimeFactory) -> LocalWorker:
    return LocalWorker(make_runtime(build_registry([])))


def test_keys_are_added_and_removed_once_with_one_row_of_audit(
    local: LocalWorker, ledger: Ledger
) -> None:
    keys: list[Any] = ["globex", "acme", date(2013, 1, 15), {"tier": 1}, ("a", 1), "globex"]
    assert add_partitions("customers", keys, by="ann", reason="signed up") == 5
    assert add_partitions("customers", ["acme", "initech"], by="bob") == 1
    assert add_partitions("customers", ["acme"], by="bob") == 0
    assert add_partitions("others", ["acme"]) == 1
    assert dynamic_partitions("customers") == [*keys[:3], KeyMap({"tier": 1}), ("a", 1), "initech"]
    # A text stands for the key that is written so.
    assert remove_partitions("customers", ["2013-01-15", "globex", "nobody"], by="eve") == 2
    assert remove_partitions("customers", ["globex"], by="eve") == 0
    assert dynamic_partitions("customers") == ["acme", KeyMap({"tier": 1}), ("a", 1), "initech"]
    # What comes back stands at the end.
    assert add_partitions("customers", ["globex"], by="ann") == 1
    assert dynamic_partitions("customers")[-1] == "globex"
    assert dynamic_partitions("others") == ["acme"]
    assert dynamic_partitions("nothing") == []
    rows = [row for row in query(ledger, AUDIT) if row[3]["name"] == "customers"]
    assert rows == [
        (
            "partitions.added",
            "ann",
            "signed up",
            {
                "name": "customers",
                "keys": ["s:globex", "s:acme", "d:2013-01-15", "{tier=i:1}", "(s:a,i:1)"],
            },
        ),
        ("partitions.added", "bob", None, {"name": "customers", "keys": ["s:initech"]}),
        (
            "partitions.removed",
            "eve",
            None,
            {"name": "customers", "keys": ["s:globex", "d:2013-01-15"]},
        ),
        ("partitions.added", "ann", None, {"name": "customers", "keys": ["s:globex"]}),
    ]


@pytest.mark.parametrize(
    ("name", "keys", "error", "said"),
    [
        ("a b", ["x"], DefinitionError, "'a b' is no name for dynamic partitions"),
        ("customers", "acme", BadPartition, "give a list of keys, as in ['acme']"),
        ("customers", ["x", 1.5], BadPartition, "a partition key cannot be a float"),
        ("customers", ["x" * 600], BadPartition, "the limit is 512"),
        (
            "customers",
            ["x", 1, True],
            BadPartition,
            "b:true and i:1 of 'customers' would be one key",
        ),
        (
            "customers",
            ["x", False],
            BadPartition,
            "b:false and i:0 of 'customers' would be one key",
        ),
        ("customers", ["x", ""], BadPartition, "'' cannot be one of several partitions"),
        ("customers", [UNPARTITIONED], BadPartition, "UNPARTITIONED cannot be one of several"),
        ("customers", None, BadPartition, "give a list of keys, as in [None]"),
    ],
)
def test_what_is_no_key_is_refused_and_none_is_added(
    local: LocalWorker, name: str, keys: Any, error: type[Exception], said: str
) -> None:
    add_partitions("customers", [0])
    with pytest.raises(error) as caught:
        add_partitions(name, keys)
    assert said in str(caught.value)
    assert dynamic_partitions("customers") == [0]


def test_those_who_add_the_same_keys_in_another_order_do_not_wait_for_each_other(
    local: LocalWorker,
) -> None:
    many = [f"customer-{n:05}" for n in range(10_000)]
    added: list[int] = []
    orders = [many, many[::-1]]
    threads = [
        threading.Thread(target=lambda keys=keys: added.append(add_partitions("customers", keys)))
        for keys in orders
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(added) == [0, 10_000]
    assert dynamic_partitions("customers") in orders
    assert remove_partitions("customers", many) == 10_000


def test_a_run_is_planned_with_the_keys_that_there_are_then(make_runtime: RuntimeFactory) -> None:
    customers = DynamicPartitions("customers")

    @asset(partitions=customers)
    def orders(context: Context) -> str:
        return f"orders of {context.partition}"

    @asset(deps=[Dep("orders")])
    def all_orders(orders: dict[str, str]) -> list[str]:
        return list(orders.values())

    make_runtime(build_registry([orders, all_orders]))
    with pytest.raises(RunFailed, match="'customers' have no keys; `flowstone keys add customers"):
        materialize_sync(orders, partition="acme")
    add_partitions("customers", ["globex", "acme"])
    assert materialize_sync(orders, partition="acme").result() == "orders of acme"
    made = flowstone.materialize_sync(all_orders, upstream=True).result()
    assert made == ["orders of globex", "orders of acme"]
    with pytest.raises(RunFailed) as caught:
        materialize_sync(orders, partition="acmee")
    assert "is not one of globex, acme; did you mean 'acme'" in str(caught.value)
    # What was made for a key can be read when the key is gone.
    remove_partitions("customers", ["acme"])
    assert flowstone.get("orders", "acme") == "orders of acme"
    with pytest.raises(RunFailed, match="is not one of globex"):
        materialize_sync(orders, partition="acme")


def test_steps_of_each_kind_of_set_run_and_are_read_by_what_people_write(
    make_runtime: RuntimeFactory,
) -> None:
    hours = HourlyPartitions("2013-10-27", "2013-10-27", tz="Europe/Berlin")
    days = DailyPartitions("2013-01-01", "2013-12-31", tz="Europe/Berlin")

    @asset(partitions=hours)
    def clicks(context: Context) -> float:
        assert context.window is not None
        assert context.window.start == context.partition
        return (context.window.end - context.window.start).total_seconds()

    @asset(partitions=ProductPartitions(day=days, customer=DynamicPartitions("customers")))
    def sales(context: Context) -> list[str]:
        assert context.window == days.window(context.dimensions["day"])
        return [str(key) for key in context.dimensions.values()]

    @asset(partitions=StaticPartitions([{"env": "prod", "region": "eu"}]))
    def config(context: Context) -> str:
        return f"{context.partition['env']} of {context.partition['region']}"

    local = LocalWorker(make_runtime(build_registry([clicks, sales, config])))
    add_partitions("customers", ["acme"])
    with pytest.raises(RunFailed, match="show this time twice; write 2013-10-27T02:00:00\\+02:00"):
        materialize_sync(clicks, partition="2013-10-27T02")
    for hour in ("2013-10-27T02:00:00+02:00", "2013-10-27T02:00:00+01:00", "2013-10-27T07"):
        assert materialize_sync(clicks, partition=hour).result() == 3600.0
    assert flowstone.get("clicks", "2013-10-27T07") == 3600.0
    assert flowstone.get("clicks", datetime.fromisoformat("2013-10-27T02:00:00+01:00")) == 3600.0
    with pytest.raises(BadPartition, match="stands for several partitions of asset 'clicks'"):
        flowstone.get("clicks", "2013-10-27T02")

    for given_ in ("2013-01-15|acme", {"customer": "acme", "day": "2013-01-15"}):
        assert local.submit(sales, partition=given_).result() == ["2013-01-15", "acme"]
    assert flowstone.get("sales", "2013-01-15|acme") == ["2013-01-15", "acme"]
    assert flowstone.get("sales", (date(2013, 1, 15), "acme")) == ["2013-01-15", "acme"]

    env = {"region": "eu", "env": "prod"}
    assert local.submit(config, partition=env).result() == "prod of eu"
    assert flowstone.get("config", env) == flowstone.get("config", "env=prod,region=eu")
    assert flowstone.exists("config", {"env": "test"}) is False


def test_keys_are_managed_on_the_command_line(local: LocalWorker) -> None:
    flowstone_ = InProcess()
    assert flowstone_("keys", "add", "customers", "acme", "globex").stdout == (
        "2 keys added to customers\n"
    )
    said = flowstone_("keys", "add", "customers", "acme", "initech", "--by", "ann").stdout
    assert said == "1 key added to customers; 1 was there already\n"
    assert flowstone_("keys", "list", "customers").stdout == "acme\nglobex\ninitech\n"
    said = flowstone_("keys", "remove", "customers", "acme", "x", "y", "--reason", "left").stdout
    assert said == "1 key removed from customers; 2 were not there\n"
    assert flowstone_("keys", "list", "customers").stdout == "globex\ninitech\n"
    assert "no name for dynamic partitions" in flowstone_.refused("keys", "add", "a b", "c")
    log = " ".join(flowstone_("audit", "log").stdout.split())
    assert "partitions." in log
    assert "left" in log


def test_who_says_no_partition_is_told_what_one_looks_like(make_runtime: RuntimeFactory) -> None:
    days = DailyPartitions("2013-01-01", "2013-01-02")

    @asset(partitions=ProductPartitions(day=days, customer=DynamicPartitions("customers")))
    def sales() -> int:
        return 1

    make_runtime(build_registry([sales]))
    with pytest.raises(RunFailed, match="give a partition; there is none as yet"):
        materialize_sync(sales)
    add_partitions("customers", ["acme"])
    with pytest.raises(RunFailed, match=r"such as 2013-01-01\|acme, 2013-01-02\|acme"):
        materialize_sync(sales)
