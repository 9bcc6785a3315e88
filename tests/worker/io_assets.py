"""Assets whose values are kept in three places, and read across."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from decimal import Decimal

import pandas as pd
import polars as pl
from pydantic import BaseModel

from flowstone import Context, DailyPartitions, MonthlyPartitions, asset


class Price(BaseModel):
    day: date
    amount: Decimal


@asset(partitions=DailyPartitions("2013-01-01", "2013-01-03"), io="rows")
def price(context: Context) -> Price:
    return Price(day=context.partition, amount=Decimal(f"{context.partition.day}.10"))


@asset(partitions=MonthlyPartitions("2013-01", "2013-01"), io="lake")
def prices(price: Mapping[date, Price]) -> pl.DataFrame:
    assert all(one.day == day for day, one in price.items())
    return pl.DataFrame({"day": list(price), "amount": [one.amount for one in price.values()]})


@asset(partitions=MonthlyPartitions("2013-01", "2013-01"))
def report(prices: pd.DataFrame) -> dict[str, Decimal]:
    return {"total": sum(prices["amount"], Decimal(0))}
