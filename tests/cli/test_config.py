"""`--config`, and the config that `flowstone plan` shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flowstone.embedded import ValkeyServer
from flowstone.store.ledger import Ledger
from tests.cli.conftest import Cli
from tests.store.runs_by_hand import count, query

ASSETS = """
from pydantic import BaseModel, SecretStr
from flowstone import asset

class Model(BaseModel):
    limit: int = 5
    mode: str = "fast"
    key: SecretStr = SecretStr("in-the-definitions")

@asset(config=Model)
def source(context):
    return context.config.limit

@asset
def report(source):
    return source
"""


@pytest.fixture
def user(cli: Cli, tmp_path: Path) -> Cli:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "my_assets.py").write_text(ASSETS)
    return cli.inside(folder)


@pytest.mark.slow
def test_plans_show_the_config_and_runs_take_it(
    user: Cli, database: str, valkey: ValkeyServer, ledger: Ledger
) -> None:
    urls = {"database_url": database, "broker_url": valkey.url, "result_url": valkey.url}
    settings = {"assets": "my_assets", **urls}
    shown = user("plan", "report", "-u", "--config", "source.limit=7", "--json", **settings)
    config = {"source": {"limit": 7, "mode": "fast", "key": "***"}}
    assert json.loads(shown.out)["config"] == config
    text = user("plan", "report", "-u", **settings).out
    assert 'config of source: key="***", limit=5, mode="fast"' in text

    given = ["--config", "source.limit=7", "--config", "source.mode=slow"]
    saved = json.loads(user("plan", "report", "-u", *given, "--save", "--json", **settings).out)
    config["source"]["mode"] = "slow"
    assert saved["config"] == config
    # Who asks for a stored plan needs no definitions.
    again = user("plan", "--run", saved["run"], "--json", **urls)
    assert json.loads(again.out)["config"] == config
    text = user("plan", "--run", saved["run"], **urls).out
    assert 'config of source: key="***", limit=7, mode="slow"' in text

    ran = user("run", "report", "-u", *given, "--detach", **settings)
    assert ran.code == 0
    kept = query(ledger, "SELECT config FROM flowstone.runs ORDER BY created_at")
    assert [row.config for row in kept] == [{"source": {"limit": 7, "mode": "slow"}}] * 2

    before = count(ledger, "runs")
    refused = user("run", "report", "-u", "--config", "source.limit=x", **settings).refused(2)
    assert "config of asset 'source': limit: Input should be a valid integer" in refused
    secret = ["--config", "source.key=hunter2-and-more"]
    refused = user("plan", "report", "-u", *secret, "--save", **settings).refused(2)
    assert "config of asset 'source': key is a secret, and runs are stored" in refused
    assert "hunter2" not in refused
    assert count(ledger, "runs") == before
