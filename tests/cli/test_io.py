"""`--io`: where a run keeps its assets, said on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flowstone.cli.options import managers_of
from flowstone.errors import BadConfig
from flowstone.store.ledger import Ledger
from tests.cli.conftest import Cli
from tests.store.runs_by_hand import query

ASSETS = """
from flowstone import asset

@asset
def raw():
    return 1

@asset(io="rows")
def total(raw):
    return raw
"""


@pytest.mark.parametrize(
    ("given", "managers"),
    [(None, {}), ([], {}), (["raw=lake", "total=rows"], {"raw": "lake", "total": "rows"})],
)
def test_each_option_names_an_asset_and_a_manager(given: Any, managers: Any) -> None:
    assert managers_of(given) == managers


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["raw"], "takes ASSET=NAME, such as raw_flights=lake; not 'raw'"),
        (["=lake"], "takes ASSET=NAME"),
        (["raw="], "takes ASSET=NAME"),
        (["raw=lake", "raw=rows"], "names two IO managers for 'raw'"),
    ],
)
def test_what_makes_no_sense_is_refused(given: list[str], said: str) -> None:
    with pytest.raises(BadConfig, match=said):
        managers_of(given)


def test_a_plan_is_saved_with_the_choice_and_refused_for_an_unknown_one(
    cli: Cli, ledger: Ledger, database: str, tmp_path: Path
) -> None:
    (tmp_path / "my_assets.py").write_text(ASSETS)
    settings = {
        "assets": "my_assets",
        "database_url": database,
        "io": json.dumps({"lake": str(tmp_path / "lake"), "rows": "postgresql:"}),
    }
    run = cli.inside(tmp_path)
    wanted = ("plan", "total", "--upstream")
    assert run(*wanted, "--save", "--io", "raw=lake", "--io", "total=default", **settings).code == 0
    kept = query(ledger, "SELECT request->'io' AS io FROM flowstone.runs")
    assert [row.io for row in kept] == [{"raw": "lake", "total": "default"}]
    said = run(*wanted, "--io", "raw=lak", **settings).refused(2)
    assert "asset 'raw': there is no IO manager 'lak'; did you mean 'lake'?" in said
    said = run("run", "total", "--io", "raw", **settings).refused(2)
    assert said == "error: --io takes ASSET=NAME, such as raw_flights=lake; not 'raw'"
