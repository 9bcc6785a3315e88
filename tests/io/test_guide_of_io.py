"""What docs/values.md says of where values are kept is so."""

from __future__ import annotations

import json
import re
import sys
from decimal import Decimal
from pathlib import Path

import pandas as pd
import pytest

import flowstone
from flowstone import materialize_sync
from flowstone.errors import OutputError
from flowstone.io.rows import MAX_BYTES
from flowstone.registry import load_registry
from flowstone.settings import load_settings
from tests.conftest import RuntimeFactory
from tests.pages import block

PYTHON, TOML = (block(language, "Where values are kept") for language in ("python", "toml"))


def test_file_and_environment_say_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flowstone.toml").write_text(TOML)
    from_file = load_settings().io
    assert from_file == {
        "lake": "s3://bucket/values",
        "rows": "postgresql:",
        "scratch": "/scratch",
    }
    (tmp_path / "flowstone.toml").unlink()
    (variable,) = re.findall(r"FLOWSTONE_IO='(.*)'", TOML)
    monkeypatch.setenv("FLOWSTONE_IO", variable)
    assert load_settings().io == {k: v for k, v in from_file.items() if k in json.loads(variable)}


def test_the_example_does_what_it_says(
    make_runtime: RuntimeFactory, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "guide_of_io.py").write_text(PYTHON)
    monkeypatch.syspath_prepend(tmp_path)
    here = make_runtime(
        load_registry(["guide_of_io"]),
        io={"lake": f"{bucket}/values", "rows": "postgresql:"},
    )
    assert materialize_sync("total", upstream=True).result() == Decimal("1.10")
    price = sys.modules["guide_of_io"].Price
    assert flowstone.get("prices") == [price(day="2013-01-01", amount="1.10")]
    assert {
        name: flowstone.versions(name)[0].output.io for name in ("prices", "table", "total")
    } == {
        "prices": "rows",
        "table": "lake",
        "total": "default",
    }
    table = flowstone.versions("table")[0].output
    assert type(here.read("table", table, pd.DataFrame)) is pd.DataFrame
    materialize_sync("pattern")
    assert flowstone.get("pattern") == re.compile("a+")
    with pytest.raises(OutputError, match="it is a pickle"):
        here.outputs.load(flowstone.versions("pattern")[0].output)
    assert f"{MAX_BYTES // 2**20} MB" in TOML
