"""Where values are kept: the settings that say it, and what is said of wrong ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import flowstone
from flowstone import asset, materialize_sync
from flowstone.client import preview
from flowstone.errors import BadConfig, RunFailed
from flowstone.io import Outputs
from flowstone.io.rows import RowOutputs
from flowstone.registry import build_registry
from flowstone.settings import load_settings
from flowstone.store.ledger import Ledger
from tests.conftest import RuntimeFactory
from tests.io.places import place


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def no_ledger() -> Ledger:
    raise AssertionError("the ledger is not needed")


def test_from_the_environment_as_json(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLOWSTONE_IO", '{"lake": "s3://bucket/path", "rows": "postgresql:"}')
    assert load_settings().addresses == {
        "default": str(tmp_path / "home" / "outputs"),
        "lake": "s3://bucket/path",
        "rows": "postgresql:",
    }
    monkeypatch.setenv("FLOWSTONE_OUTPUT_URL", "/shared")
    assert load_settings().addresses["default"] == "/shared"


def test_from_the_file_which_the_environment_overrides(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "flowstone.toml").write_text('[io]\nlake = "s3://a"\nother = "/other"\n')
    assert load_settings().io == {"lake": "s3://a", "other": "/other"}
    monkeypatch.setenv("FLOWSTONE_IO", '{"lake": "s3://b"}')
    assert load_settings().io == {"lake": "s3://b", "other": "/other"}


NO_NAME = "cannot be the name of an IO manager; use letters"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("nonsense", "FLOWSTONE_IO is not JSON; it must be such as {"),
        ('["lake"]', "FLOWSTONE_IO: Input should be a valid dictionary"),
        ('{"lake": 5}', "FLOWSTONE_IO, key 'lake': Input should be a valid string"),
        ('{"lake": ""}', "FLOWSTONE_IO: Value error, 'lake' has no address; give it a folder"),
        ('{"default": "/x"}', f"FLOWSTONE_IO: Value error, 'default' {NO_NAME}"),
        ('{"a b": "/x"}', f"FLOWSTONE_IO: Value error, 'a b' {NO_NAME}"),
        ('{"": "/x"}', f"FLOWSTONE_IO: Value error, '' {NO_NAME}"),
    ],
)
def test_bad_ones_are_refused(monkeypatch: pytest.MonkeyPatch, value: str, said: str) -> None:
    monkeypatch.setenv("FLOWSTONE_IO", value)
    with pytest.raises(BadConfig) as caught:
        load_settings()
    assert caught.value.message.startswith(said)


def test_bad_ones_of_the_file_are_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "flowstone.toml").write_text("[io]\nlake = 5\n")
    with pytest.raises(BadConfig, match=r"flowstone.toml, key 'io.lake': Input should be a valid"):
        load_settings()


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:hunter2@bucket/path",
        "simplecache::s3://key:hunter2@bucket",
        "sftp://me:hunter2@host/path",
        "sftp://me:hunt@er2@host/path",
    ],
)
def test_an_address_holds_no_password(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    for name, value in (("IO", f'{{"lake": "{url}"}}'), ("OUTPUT_URL", url)):
        monkeypatch.setenv(f"FLOWSTONE_{name}", value)
        with pytest.raises(BadConfig, match="an address of outputs holds no password") as caught:
            load_settings()
        assert "hunt" not in caught.value.message
        assert f"FLOWSTONE_{name}" in caught.value.message
        monkeypatch.delenv(f"FLOWSTONE_{name}")


@pytest.mark.parametrize("url", ["sftp://me@host/path", "s3://bucket/a:b@c", "/a:b@c"])
def test_what_is_no_password_is_none(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("FLOWSTONE_IO", f'{{"lake": "{url}"}}')
    assert load_settings().io == {"lake": url}


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("gs://bucket", "IO manager 'odd': outputs cannot be stored at gs://bucket: .*gcsfs"),
        ("az://container", "IO manager 'odd': outputs cannot be stored at az://container: .*adlfs"),
        ("nosuch://x", "IO manager 'odd': .* Protocol not known: nosuch"),
        ("s3://", "IO manager 'odd': .*it names no folder or bucket"),
        ("", "IO manager 'odd': an address of outputs is empty"),
        ("postgresql://host/db", "IO manager 'odd': rows are kept in the ledger's own database; "),
    ],
)
def test_an_address_that_cannot_be_used_is_named(address: str, said: str) -> None:
    with pytest.raises(BadConfig, match=said) as caught:
        Outputs({"odd": address}, no_ledger).manager("odd")
    assert "\n" not in caught.value.message


def test_an_address_is_looked_at_when_it_is_needed(ledger: Ledger, tmp_path: Path) -> None:
    addresses = {"default": str(tmp_path), "far": "gs://bucket", "rows": "postgresql:"}
    outputs = Outputs(addresses, lambda: ledger)
    assert outputs.names == ["default", "far", "rows"]
    assert outputs.load(outputs.store(1, place())) == 1
    assert isinstance(outputs.manager("rows"), RowOutputs)


def test_an_asset_has_the_manager_of_its_definition_in_each_environment(
    make_runtime: RuntimeFactory, tmp_path: Path
) -> None:
    @asset(io="lake")
    def number() -> int:
        return 1

    @asset(io="rows")
    def double(number: int) -> int:
        return 2 * number

    @asset
    def triple(number: int, double: int) -> int:
        return number + double

    for environment in ("test", "production"):
        here = make_runtime(
            build_registry([number, double, triple]),
            io={"lake": str(tmp_path / environment), "rows": "postgresql:"},
            output_url=str(tmp_path / "default"),
        )
        assert materialize_sync(triple, upstream=True, force=True).result() == 3
        assert len(list((tmp_path / environment).rglob("*.json"))) == 1
    with here.ledger.begin() as conn:
        kept = conn.exec_driver_sql(
            "SELECT s.asset, o.io FROM flowstone.outputs o"
            " JOIN flowstone.steps s ON s.id = o.step_id ORDER BY o.id"
        ).all()
        rows = conn.exec_driver_sql("SELECT location FROM flowstone.stored_values").all()
    assert [tuple(row) for row in kept] == 2 * [
        ("number", "lake"),
        ("double", "rows"),
        ("triple", "default"),
    ]
    assert all(row.location.startswith("double/") for row in rows)
    assert len(rows) == 2
    assert flowstone.get("double") == 2


@pytest.fixture
def lakeless(make_runtime: RuntimeFactory) -> Any:
    @asset(io="laek")
    def number() -> int:
        raise AssertionError("the run is not planned")

    return make_runtime(build_registry([number]), io={"lake": "/lake"})


UNKNOWN = (
    "asset 'number': there is no IO manager 'laek'; did you mean 'lake'? (known: default, lake); "
    "FLOWSTONE_IO says which there are"
)


@pytest.mark.parametrize("use", [materialize_sync, preview])
def test_a_manager_that_there_is_not_fails_the_run_when_it_is_planned(
    lakeless: Any, use: Callable[..., Any]
) -> None:
    with pytest.raises((RunFailed, BadConfig)) as caught:
        use("number")
    assert UNKNOWN in caught.value.message
    assert "\n" not in caught.value.message


def test_so_does_one_whose_library_is_missing(make_runtime: RuntimeFactory) -> None:
    @asset(io="lake")
    def number() -> int:
        raise AssertionError("the run is not planned")

    make_runtime(build_registry([number]), io={"lake": "gs://bucket"})
    with pytest.raises(
        RunFailed, match=r"asset 'number': IO manager 'lake': .*Please install gcsfs"
    ):
        materialize_sync(number)


def test_a_process_that_does_not_know_the_manager_of_a_value_says_so(
    make_runtime: RuntimeFactory, tmp_path: Path
) -> None:
    @asset(io="lake")
    def number() -> int:
        return 1

    registry = build_registry([number])
    make_runtime(registry, io={"lake": str(tmp_path / "lake")})
    materialize_sync(number)
    make_runtime(registry)
    with pytest.raises(BadConfig, match=r"there is no IO manager 'lake' \(known: default\)"):
        flowstone.get("number")
    with pytest.raises(BadConfig, match="there is no IO manager 'lake'"):
        flowstone.exists("number")
