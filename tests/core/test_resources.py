"""The lives of resources in a process: made once, lent, forked, closed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr

from flowstone.errors import BadConfig, ResourceUnavailable, UnknownResource
from flowstone.resource import Env, Resource, resource
from flowstone.resources import MAX_OVERRIDDEN, LiveResources
from tests.worker.nodes import ROOT

Live = Callable[..., LiveResources]


class Config(BaseModel):
    url: str = "default"
    password: SecretStr | None = None


class Client:
    def __init__(self, url: str) -> None:
        self.url = url


@pytest.fixture
def events() -> list[str]:
    return []


@pytest.fixture
def db(events: list[str]) -> Resource:
    @resource(config=Config)
    def db(config: Config) -> Iterator[Client]:
        events.append(f"open {config.url}")
        yield Client(config.url)
        events.append(f"close {config.url}")

    return db


@pytest.fixture
def live() -> Iterator[Live]:
    made: list[LiveResources] = []

    def make(*declared: Resource, **settings: Mapping[str, Any]) -> LiveResources:
        by_name = {one.name: one for one in declared}
        made.append(LiveResources(lambda: by_name, settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


def get(live: LiveResources, override: Mapping[str, Any] | None = None, name: str = "db") -> Any:
    with live.lent([name], {name: override or {}}) as resources:
        return resources[name]


def test_only_what_is_declared_is_there_and_made_when_first_used(
    live: Live, db: Resource, events: list[str]
) -> None:
    @resource
    def other() -> str:
        return "other"

    with live(db, other).lent(["db"], {}) as resources:
        assert (list(resources), len(resources), events) == (["db"], 1, [])
        assert resources["db"] is resources["db"]
        assert events == ["open default"]
        with pytest.raises(UnknownResource, match="'other' is not declared by this asset"):
            resources["other"]


def test_each_config_is_made_once_and_who_says_the_same_shares(
    live: Live, db: Resource, events: list[str]
) -> None:
    pool = live(db, db={"url": "here"})
    default = get(pool)
    assert get(pool, {}) is get(pool, {"url": None}) is get(pool, {"url": "here"}) is default
    there = get(pool, {"url": "there"})
    assert there is get(pool, {"url": "there"}) is not default
    assert get(pool) is default
    assert events == ["open here", "open there"]


def test_threads_make_one(live: Live, events: list[str]) -> None:
    begun, go = threading.Event(), threading.Event()

    @resource
    def slow() -> object:
        events.append("open")
        begun.set()
        assert go.wait(30)
        return object()

    pool, found = live(slow), []
    threads = [
        threading.Thread(target=lambda: found.append(get(pool, name="slow"))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    assert begun.wait(30)
    go.set()
    for thread in threads:
        thread.join(30)
    assert events == ["open"]
    assert (len(found), len({id(one) for one in found})) == (8, 1)


def test_one_that_is_slow_holds_up_no_other(live: Live, db: Resource) -> None:
    go, begun = threading.Event(), threading.Event()

    @resource
    def slow() -> None:
        begun.set()
        assert go.wait(30)

    pool = live(db, slow)
    thread = threading.Thread(target=lambda: get(pool, name="slow"))
    thread.start()
    assert begun.wait(30)
    assert get(pool).url == "default"
    assert thread.is_alive()
    go.set()
    thread.join(30)


def test_a_start_that_fails_is_retryable_and_tried_anew(live: Live, events: list[str]) -> None:
    @resource
    def moody() -> str:
        events.append("open")
        if len(events) < 2:
            raise ConnectionError("refused")
        return "client"

    pool = live(moody)
    with pytest.raises(ResourceUnavailable, match="'moody' could not be started: refused") as e:
        get(pool, name="moody")
    assert e.value.retryable
    assert isinstance(e.value.original, ConnectionError)
    assert get(pool, name="moody") == "client"
    assert events == ["open", "open"]


def test_a_generator_that_yields_nothing_is_none(live: Live) -> None:
    @resource
    def empty() -> Iterator[int]:
        yield from ()

    with pytest.raises(ResourceUnavailable, match="its function has yielded nothing"):
        get(live(empty), name="empty")


def test_a_generator_that_breaks_is_not_kept(live: Live) -> None:
    @resource
    def broken() -> Iterator[int]:
        raise OSError("no route")
        yield 1

    pool = live(broken)
    for _ in range(2):
        with pytest.raises(ResourceUnavailable, match="no route"):
            get(pool, name="broken")


def test_a_missing_variable_and_a_bad_value_are_errors_of_this_resource_only(
    live: Live, db: Resource, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = live(db)
    with pytest.raises(ResourceUnavailable, match="NO_SUCH_SECRET"):
        get(pool, {"password": {"env": "NO_SUCH_SECRET"}})
    with pytest.raises(BadConfig, match="url: Input should be a valid string"):
        get(pool, {"url": 7})
    monkeypatch.setenv("NO_SUCH_SECRET", "s")
    assert get(pool, {"password": {"env": "NO_SUCH_SECRET"}}) is not get(pool)


def test_the_error_of_a_start_holds_no_secret(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    import traceback  # noqa: PLC0415

    @resource(config=Config)
    def leaky(config: Config) -> None:
        assert config.password is not None
        try:
            dict[str, int]()[f"login with {config.password.get_secret_value()}"]
        except KeyError as error:
            raise ConnectionError("refused") from error

    monkeypatch.setenv("DB_PASSWORD", "hunter2")
    pool = live(leaky)
    with pytest.raises(ResourceUnavailable, match="'leaky' could not be started: refused") as e:
        get(pool, {"password": Env("DB_PASSWORD")}, "leaky")
    error = e.value
    shown = "".join(traceback.format_exception(error))
    assert "hunter2" not in shown
    assert "login with ***" in shown
    assert "in leaky" in shown
    while error is not None:
        assert "hunter2" not in repr(error)
        assert error.__context__ in (None, error.__cause__)
        error = error.__cause__  # type: ignore[assignment]


def test_all_are_closed_in_the_reverse_order_and_an_error_hinders_nothing(
    live: Live, db: Resource, events: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    @resource
    def bad() -> Iterator[int]:
        yield 1
        events.append("close bad")
        raise ValueError("cannot close")

    @resource
    def worse() -> Iterator[int]:
        try:
            yield 1
        finally:
            events.append("close worse")
            sys.exit(1)

    @resource
    def twice() -> Iterator[int]:
        yield 1
        yield 2

    @resource
    def plain() -> int:
        return 1

    pool = live(db, bad, worse, twice, plain)
    get(pool)
    for name in ("bad", "worse", "twice", "plain"):
        get(pool, name=name)
    get(pool, {"url": "last"})
    events.clear()
    pool.close()
    pool.close()
    assert events == ["close last", "close worse", "close bad", "close default"]
    assert "resource=bad" in caplog.text
    assert "ValueError: cannot close" in caplog.text
    assert "resource=worse" in caplog.text
    assert "yields more than once" in caplog.text
    # Closed is not the end: who needs one later gets a new one.
    assert get(pool).url == "default"
    assert events[-1] == "open default"


def test_of_many_overrides_a_handful_is_kept_and_none_that_is_in_use_is_closed(
    live: Live, db: Resource, events: list[str]
) -> None:
    pool = live(db)
    get(pool)
    with pool.lent(["db"], {"db": {"url": "0"}}) as resources:
        first = resources["db"]
        for number in range(1, MAX_OVERRIDDEN):
            get(pool, {"url": str(number)})
        get(pool, {"url": "1"})  # so that 2 has been left alone for the longest
        assert not [e for e in events if e.startswith("close")]
        get(pool, {"url": "more"})
        assert [e for e in events if e.startswith("close")] == ["close 2"]
        assert resources["db"] is first
    get(pool, {"url": "2"})
    assert [e for e in events if e.startswith("close")] == ["close 2", "close 3"]
    assert events.count("open default") == 1
    assert "close default" not in events


def test_those_that_are_all_in_use_are_closed_when_they_are_given_back(
    live: Live, db: Resource, events: list[str]
) -> None:
    pool = live(db)
    with ExitStack() as stack:
        for number in range(MAX_OVERRIDDEN + 3):
            stack.enter_context(pool.lent(["db"], {"db": {"url": str(number)}}))["db"]
        assert len(events) == MAX_OVERRIDDEN + 3
    closed = [event for event in events if event.startswith("close")]
    assert len(closed) == 3


def in_child(work: Callable[[], bool]) -> bool:
    """Do work in a forked process, and return what it did."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if work() else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_makes_its_own_and_closes_only_that(
    live: Live, db: Resource, events: list[str]
) -> None:
    pool = live(db)
    with pool.lent(["db"], {}) as resources:
        mine = resources["db"]

        def work() -> bool:
            mine.url = "changed by the child"
            own = resources["db"]
            pool.close()
            return (
                own is not mine
                and own.url == "default"
                and events == ["open default", "open default", "close default"]
            )

        assert in_child(work)
        assert resources["db"] is mine
        assert mine.url == "default"


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_that_is_forked_while_another_thread_makes_one_is_not_stuck(live: Live) -> None:
    begun, go, parent = threading.Event(), threading.Event(), os.getpid()

    @resource
    def slow() -> int:
        if os.getpid() == parent:
            begun.set()
            assert go.wait(30)
        return os.getpid()

    pool = live(slow)
    thread = threading.Thread(target=lambda: get(pool, name="slow"))
    thread.start()
    assert begun.wait(30)

    assert in_child(lambda: get(pool, name="slow") == os.getpid())
    go.set()
    thread.join(30)


SCRIPT = """
import os, sys
from pathlib import Path
from flowstone.resource import resource
from flowstone.resources import LiveResources

def say(text):
    with open("said", "a") as file:
        file.write(f"{text}\\n")

@resource
def client():
    say(f"open {os.getpid()}")
    try:
        yield 1
    finally:
        say(f"close {os.getpid()}")

live = LiveResources(lambda: {"client": client}, {})

def use():
    with live.lent(["client"], {}) as resources:
        resources["client"]

use()
pid = os.fork()
if pid == 0:
    if len(sys.argv) > 1:
        use()
    sys.exit()
os.waitpid(pid, 0)
say(f"child {pid}")
say(f"parent {os.getpid()}")
"""


@pytest.mark.parametrize("uses", [False, True])
def test_each_process_closes_its_own_at_its_exit(tmp_path: Path, uses: bool) -> None:
    subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, *(["uses"] if uses else [])],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        timeout=60,
    )
    said = [line.split() for line in (tmp_path / "said").read_text().splitlines()]
    child, parent = (pid for what, pid in said if what in ("child", "parent"))
    of_child = [["open", child], ["close", child]] if uses else []
    assert said == [
        ["open", parent],
        *of_child,
        ["child", child],
        ["parent", parent],
        ["close", parent],
    ]
