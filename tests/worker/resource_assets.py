"""Assets with resources, for workers: each life of a resource leaves notes in a folder."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr

from flowstone import Context, Retry, StaticPartitions, asset, resource

MEETING_SECONDS = 60


class Journal(BaseModel):
    folder: str
    name: str = "default"
    password: SecretStr | None = None


@resource(config=Journal)
def journal(config: Journal) -> Iterator[Journal]:
    life = f"{os.getpid()}-{config.name}"
    # Mode x: the second one of a process would not start.
    (Path(config.folder) / f"open-{life}").open("x").close()
    yield config
    (Path(config.folder) / f"close-{life}").open("x").close()


@resource(config=Journal)
def leaky(config: Journal) -> None:
    assert config.password is not None
    raise ConnectionError("refused") from ValueError(config.password.get_secret_value())


@resource
def away() -> None:
    raise ValueError("no such host")


def _meet(journal: Journal, who: str, number: int) -> list[Any]:
    """Wait until `number` steps wait, so that each is in a process of its own."""
    meeting = Path(journal.folder) / "meeting"
    meeting.mkdir(exist_ok=True)
    (meeting / who).touch()
    end = time.monotonic() + MEETING_SECONDS
    while len(list(meeting.iterdir())) < number:
        if time.monotonic() > end:
            raise RuntimeError("the others have not come")
        time.sleep(0.01)
    return [os.getppid(), os.getpid(), journal.name]


@asset(partitions=StaticPartitions(["a", "b"]), requires=["journal"])
def pair(journal: Journal, context: Context) -> list[Any]:
    return _meet(journal, str(context.partition), 2)


@asset
def both(pair: dict[Any, list[Any]]) -> list[Any]:
    return list(pair.values())


@asset(partitions=StaticPartitions(["a", "b", "c", "d"]), requires=["journal"])
def quartet(journal: Journal, context: Context) -> list[Any]:
    return _meet(journal, str(context.partition), 4)


@asset
def all_four(quartet: dict[Any, list[Any]]) -> list[Any]:
    return list(quartet.values())


@asset(requires=["journal"], retry=Retry(max_attempts=2, base=0.1, factor=1))
def retried(journal: Journal, context: Context) -> str:
    if context.attempt < 2:
        raise ConnectionError(f"not yet, {journal.name}")
    return journal.name


@asset(requires=["journal"])
def mended(retried: str, journal: Journal) -> list[str]:
    if not (Path(journal.folder) / "mended").exists():
        raise ValueError("broken")
    return [retried, journal.name]


@asset(requires=["journal"])
def single(journal: Journal) -> str:
    return journal.name


@asset(requires=["leaky"], retry=Retry(max_attempts=2, base=0.1, factor=1))
def starts(leaky: None) -> None: ...


@asset(requires=["journal"])
def says(journal: Journal) -> None:
    assert journal.password is not None
    raise KeyError(journal.password.get_secret_value())


@asset(requires=["away"], retry=Retry(max_attempts=2, base=0.1, factor=1))
def needs_away(away: None) -> None: ...


@asset
def after_away(needs_away: None) -> None: ...


@asset
def beside_away() -> int:
    return 1
