"""`--resource`: values for resources on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flowstone.cli.options import config_of, overrides_of
from flowstone.embedded import ValkeyServer
from flowstone.errors import BadConfig, DefinitionError
from flowstone.store.ledger import Ledger
from tests.cli.conftest import Cli
from tests.store.runs_by_hand import query


@pytest.mark.parametrize(
    ("given", "overrides"),
    [
        (None, {}),
        (["db.url=postgresql://h/d?a=b"], {"db": {"url": "postgresql://h/d?a=b"}}),
        (["db.port=5432", "db.on=true"], {"db": {"port": 5432, "on": True}}),
        (['db.port="5432"', "db.none=null"], {"db": {"port": "5432", "none": None}}),
        (["db.pool.size=3", "db.pool.wait=1"], {"db": {"pool": {"size": 3, "wait": 1}}}),
        (['db.pool={"size": 3}', "s3.name=x"], {"db": {"pool": {"size": 3}}, "s3": {"name": "x"}}),
        (["db.password=env:DB_PASSWORD"], {"db": {"password": {"env": "DB_PASSWORD"}}}),
        (['db.text="env:X"', "db.empty="], {"db": {"text": "env:X", "empty": ""}}),
    ],
)
def test_values_are_json_or_text_or_references(given: Any, overrides: Any) -> None:
    assert overrides_of(given) == overrides


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["db"], "takes NAME.FIELD=VALUE"),
        (["db=1"], "takes NAME.FIELD=VALUE"),
        (["db.=hunter2"], "takes NAME.FIELD=VALUE"),
        ([".url=1"], "takes NAME.FIELD=VALUE"),
        (["db.url=1", "db.url=2"], "gives 'db.url' twice"),
        (["db.pool=3", "db.pool.size=3"], "'db.pool.size', and a value for a part of that"),
        (["db.pool.size=3", "db.pool=3"], "'db.pool' twice"),
    ],
)
def test_what_makes_no_sense_is_refused(given: list[str], message: str) -> None:
    with pytest.raises(BadConfig, match=message) as caught:
        overrides_of(given)
    assert "hunter2" not in caught.value.message


@pytest.mark.parametrize(
    ("given", "config"),
    [
        (None, {}),
        (
            ["report.limit=10", "report.day=2026-01-02"],
            {"report": {"limit": 10, "day": "2026-01-02"}},
        ),
        (
            ["report.inner.depth=3", "other.x=[1]"],
            {"report": {"inner": {"depth": 3}}, "other": {"x": [1]}},
        ),
        (
            ['"raw.flights".limit=3', '"raw.flights".a.b=x=y'],
            {"raw.flights": {"limit": 3, "a": {"b": "x=y"}}},
        ),
        # No reference: what holds secrets is a resource.
        (["report.text=env:X"], {"report": {"text": "env:X"}}),
    ],
)
def test_the_config_of_assets_is_given_as_that_of_resources(given: Any, config: Any) -> None:
    assert config_of(given) == config


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["limit=hunter2"], "--config takes ASSET.FIELD=VALUE, such as report.limit=10"),
        (["report.limit"], "--config takes ASSET.FIELD=VALUE"),
        (['"report"=1'], "--config takes ASSET.FIELD=VALUE"),
        (['"raw.flights.limit=1'], "--config takes ASSET.FIELD=VALUE"),
        (["a.b=1", "a.b=1"], "--config gives 'a.b' twice"),
        (["a.b=1", "a.b.c=1"], "--config gives 'a.b.c', and a value for a part of that, too"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(given: list[str], message: str) -> None:
    with pytest.raises(BadConfig, match=message) as caught:
        config_of(given)
    assert "hunter2" not in caught.value.message


def test_a_reference_without_a_name_is_refused() -> None:
    with pytest.raises(DefinitionError):
        overrides_of(["db.password=env:"])


ASSETS = """
from pydantic import BaseModel, SecretStr
from flowstone import asset, resource

class Db(BaseModel):
    url: str = "sqlite://"
    password: SecretStr | None = None

@resource(config=Db)
def db(config):
    return config

@asset(requires=["db"])
def users(db):
    return db.url
"""


@pytest.fixture
def user(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("DB_PASSWORD", "hunter2-and-more")
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "my_assets.py").write_text(ASSETS)
    (folder / "flowstone.toml").write_text('[resources.db]\npassword = "toml-secret"\n')
    return cli.inside(folder)


@pytest.mark.slow
def test_runs_and_plans_take_overrides_and_tell_no_secret(
    user: Cli, database: str, valkey: ValkeyServer, ledger: Ledger
) -> None:
    urls = {"database_url": database, "broker_url": valkey.url, "result_url": valkey.url}
    settings = {"assets": "my_assets", **urls}
    override = ["--resource", "db.url=there", "--resource", "db.password=env:DB_PASSWORD"]
    stored = {"db": {"url": "there", "password": {"env": "DB_PASSWORD"}}}

    shown = user("plan", "users", *override, "--json", **settings)
    assert [s["reason"] for s in json.loads(shown.out)["steps"]] == ["forced"]
    saved = user("plan", "users", *override, "--save", "--json", **settings)
    ran = user("run", "users", *override, "--detach", **settings)
    assert (shown.code, saved.code, ran.code) == (0, 0, 0)
    for said in (shown, saved, ran):
        assert "hunter2" not in said.out + said.err
        assert "toml-secret" not in said.out + said.err
    requests = query(ledger, "SELECT request->'resources' FROM flowstone.runs")
    assert requests == [(stored,), (stored,)]

    refused = user("run", "users", "--resource", "db.password=hunter2", **settings).refused(2)
    assert "password is a secret" in refused
    assert "hunter2" not in refused
    refused = user("plan", "users", "--resource", "db.ulr=x", **settings).refused(2)
    assert "no field 'ulr'; did you mean 'url'" in refused
    refused = user("plan", "users", resources="hunter2", **settings).refused(2)
    assert refused.startswith("error: FLOWSTONE_RESOURCES is not JSON")
    assert "hunter2" not in refused
    refused = user("plan", "users", resources='{"db": 7}', **settings).refused(2)
    assert refused.startswith("error: FLOWSTONE_RESOURCES, key 'db': ")
    refused = user("plan", "users", resources='{"db": {"url": 7}}', **settings).refused(2)
    assert "'db', in the settings (flowstone.toml or FLOWSTONE_RESOURCES): url: " in refused
