"""The page of guarantees names tests that there are, and has a line for each guarantee."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.chaos import report
from tests.chaos.report import Seen
from tests.chaos.world import KINDS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "guarantees.md").read_text()


def test_each_guarantee_has_its_line_and_its_tests() -> None:
    rows = re.findall(r"^\| (G\d+) \|(.+)\|$", PAGE, re.MULTILINE)
    assert [number for number, _ in rows] == [f"G{number}" for number in range(1, 13)]
    assert all("`tests/" in row or "not yet" in row for _, row in rows)


@pytest.mark.parametrize("named", sorted(set(re.findall(r"`(tests/[^`]+)`", PAGE))))
def test_each_test_that_is_named_is_there(named: str) -> None:
    path, _, name = named.partition("::")
    assert f"def {name}(" in (ROOT / path).read_text() if name else (ROOT / path).exists()


def test_a_full_run_goes_into_the_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = tmp_path / "guarantees.md"
    page.write_text(PAGE)
    monkeypatch.setattr(report, "PAGE", page)
    monkeypatch.setattr(report, "JSON", tmp_path / "build" / "chaos.json")
    seen = [Seen(n, [KINDS[n % len(KINDS)]], 2, 10, 12, 1, n / 10) for n in range(200)]
    report.write(seen, [17])
    assert page.read_text() == PAGE
    report.write(seen, [])
    text = page.read_text()
    assert "200 scenarios, 400 runs, 2,000 steps, 2,400 attempts" in text
    assert "| kill a process | 10 | 9.0 | 18.0 |" in text
    assert text.count("| all |") == 1
    report.write(seen, [])
    assert page.read_text() == text
