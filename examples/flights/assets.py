"""Delays of the flights from New York City in 2013: daily partitions, rolled up by month."""

from __future__ import annotations

from datetime import date

import polars as pl

from examples.flights import source
from flowstone import (
    Approval,
    CheckResult,
    Context,
    DailyPartitions,
    MonthlyPartitions,
    asset,
    check,
)

ZONE = "America/New_York"
days = DailyPartitions("2013-01-01", "2013-12-31", tz=ZONE)
months = MonthlyPartitions("2013-01", "2013-12", tz=ZONE)

MUCH_DELAY = 9.0
"""Minutes; the report of a month in which flights were later on average has to be approved."""

LATE_MINUTES = 15
"""A flight counts as late from here on, as the US Department of Transportation counts."""


DAY_MINUTES = 24 * 60
QUIET_DAY = 100


@asset
def airlines() -> pl.DataFrame:
    """Carrier codes and names."""
    return source.table("airlines")


@asset
def airports() -> pl.DataFrame:
    """Airports by their FAA codes."""
    return source.table("airports")


@asset
def planes() -> pl.DataFrame:
    """Planes by tail number, with their seats."""
    return source.table("planes")


@asset(partitions=days)
def raw_flights(context: Context) -> pl.DataFrame:
    """The flights that were scheduled on a day."""
    day: date = context.partition
    flights = source.day_of("flights", day.month, day.day)
    context.logger.debug("read", flights=flights.height)
    return flights


@asset(partitions=days)
def weather(context: Context) -> pl.DataFrame:
    """The hourly weather at the three airports of New York City."""
    day: date = context.partition
    return source.day_of("weather", day.month, day.day).select(
        "origin", "hour", "temp", "wind_speed", "precip", "visib"
    )


@asset(partitions=days)
def clean_flights(raw_flights: pl.DataFrame) -> pl.DataFrame:
    """The flights that took off, with the columns that matter here."""
    return raw_flights.filter(pl.col("dep_delay").is_not_null()).select(
        "carrier", "flight", "tailnum", "origin", "dest", "hour", "dep_delay", "arr_delay"
    )


@check(asset=clean_flights, blocking=True)
def delays_are_known(flights: pl.DataFrame) -> CheckResult:
    """A flight that took off has a departure delay, and no more than a day of it."""
    bad = flights.filter(pl.col("dep_delay").is_null() | (pl.col("dep_delay").abs() > DAY_MINUTES))
    return CheckResult(bad.is_empty(), f"{bad.height} of {flights.height} flights", {})


@check(asset=clean_flights, severity="warn")
def not_a_quiet_day(flights: pl.DataFrame) -> bool:
    """On most days, hundreds of flights leave New York City."""
    return flights.height >= QUIET_DAY


@asset(partitions=days)
def flights_with_weather(clean_flights: pl.DataFrame, weather: pl.DataFrame) -> pl.DataFrame:
    """Each flight with the weather at its airport in the hour of its departure."""
    bad = (pl.col("precip") > 0) | (pl.col("visib") < 3)  # noqa: PLR2004 - miles
    return clean_flights.join(weather, on=["origin", "hour"], how="left").with_columns(
        bad_weather=bad.fill_null(value=False)
    )


@asset(partitions=days)
def carrier_delays(flights_with_weather: pl.DataFrame, planes: pl.DataFrame) -> pl.DataFrame:
    """Flights, minutes of delay and seats of each carrier on a day."""
    seats = planes.select("tailnum", "seats")
    return (
        flights_with_weather.join(seats, on="tailnum", how="left")
        .group_by("carrier")
        .agg(
            flights=pl.len(),
            delay_minutes=pl.col("dep_delay").sum(),
            late=(pl.col("dep_delay") >= LATE_MINUTES).sum(),
            late_in_bad_weather=(
                (pl.col("dep_delay") >= LATE_MINUTES) & pl.col("bad_weather")
            ).sum(),
            seats=pl.col("seats").sum(),
        )
        .sort("carrier")
    )


@asset(partitions=days)
def route_delays(flights_with_weather: pl.DataFrame, airports: pl.DataFrame) -> pl.DataFrame:
    """Flights and minutes of delay of each carrier on each route on a day."""
    names = airports.select(pl.col("faa").alias("dest"), pl.col("name").alias("airport"))
    return (
        flights_with_weather.group_by("carrier", "origin", "dest")
        .agg(flights=pl.len(), delay_minutes=pl.col("dep_delay").sum())
        .join(names, on="dest", how="left")
        .sort("carrier", "origin", "dest")
    )


def mean_delay(report: pl.DataFrame) -> float:
    """Return the minutes by which the flights of a report were late, on average."""
    minutes = pl.col("mean_delay") * pl.col("flights")
    return float(report.select(minutes.sum() / pl.col("flights").sum()).item())


@asset(
    partitions=months,
    approval=Approval(
        when=lambda report: mean_delay(report) > MUCH_DELAY,
        message=lambda report: f"Flights were {mean_delay(report):.1f} minutes late on average.",
        context=lambda report: {"flights": report["flights"].sum(), "threshold": MUCH_DELAY},
    ),
)
def monthly_report(
    carrier_delays: dict[date, pl.DataFrame],
    route_delays: dict[date, pl.DataFrame],
    airlines: pl.DataFrame,
) -> pl.DataFrame:
    """One row for each carrier of a month: how late it was, and on which route most."""
    carriers = (
        pl.concat(carrier_delays.values())
        .group_by("carrier")
        .agg(pl.col("flights", "delay_minutes", "late", "late_in_bad_weather", "seats").sum())
    )
    return (
        carriers.join(airlines, on="carrier")
        .join(_worst_routes(pl.concat(route_delays.values())), on="carrier", how="left")
        .select(
            "carrier",
            "name",
            "flights",
            "seats",
            mean_delay=pl.col("delay_minutes") / pl.col("flights"),
            late_share=pl.col("late") / pl.col("flights"),
            late_in_bad_weather="late_in_bad_weather",
            worst_route="worst_route",
        )
        .sort("flights", "carrier", descending=[True, False])
    )


def _worst_routes(routes: pl.DataFrame) -> pl.DataFrame:
    """Return the route of each carrier with the most minutes of delay a flight."""
    mean = pl.col("delay_minutes") / pl.col("flights")
    return (
        routes.group_by("carrier", "origin", "dest")
        .agg(pl.col("flights", "delay_minutes").sum())
        .sort("carrier", mean, "origin", "dest", descending=[False, True, False, False])
        .group_by("carrier", maintain_order=True)
        .agg(worst_route=pl.format("{} - {}", "origin", "dest").first())
    )
