"""Flower, as it looks in a browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, Dev

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium")


def page(url: str, profile: Path) -> str:
    """Return what a page holds after its scripts have run."""
    assert CHROMIUM is not None
    options = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--virtual-time-budget=5000", f"--user-data-dir={profile}", "--dump-dom",
    ]  # fmt: skip
    done = subprocess.run(
        [CHROMIUM, *options, url], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium; `make browser` installs it")
def test_flower_shows_tasks_by_asset_and_partition(
    cli: Cli, start_dev: Callable[..., Dev], tmp_path: Path
) -> None:
    dev = start_dev(cli, "tests.cli.small_assets")
    dev.wait_until_ready()
    assert cli("run", "daily", "--partition", "2026-01-05").code == 0
    assert cli("run", "fails").code == 1
    (url,) = re.findall(r"Flower is at (\S+)\.", dev.output())
    shown = page(f"{url}/tasks", tmp_path / "profile")
    assert "daily[2026-01-05]" in shown
    assert "flowstone.coordinate" in shown
    assert "flowstone.step" not in shown
    row = shown[shown.index(">fails<") :].partition("</tr>")[0]
    assert "FAILURE" in row
