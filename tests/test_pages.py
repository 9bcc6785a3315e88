"""Relative links lead to files and headings; guides are linked; sections are found, and once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import pages
from tests.pages import PAGES, ROOT, section, sections

OTHERS = [ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md")]


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of the headings of a page."""
    titles = [title.lower() for title, _ in sections(page.read_text()) if title]
    named = [re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles]
    assert len(set(named)) == len(named), f"a title is twice in {page.name}"
    return set(named)


def links(page: Path) -> list[str]:
    text = "".join(text for _, text in sections(page.read_text()))
    prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"\]\(([^)\s]+)\)", prose)
    return [link for link in found if not re.match(r"[a-z]+:", link)]


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda page: str(page.relative_to(ROOT)))
def test_each_relative_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.is_relative_to(ROOT), link
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_readme_leads_to_each_guide() -> None:
    linked = {link.partition("#")[0] for link in links(ROOT / "README.md")}
    assert {f"docs/{page.name}" for page in PAGES if page.parent != ROOT} <= linked


def test_each_guide_begins_with_what_it_is_about() -> None:
    for page, text in PAGES.items():
        if page.parent != ROOT:
            (title, lead, *_) = text.split("\n\n")
            assert re.fullmatch(r"# .+", title), page
            assert re.fullmatch(r"[A-Z].+\.", lead), page


def test_a_section_is_found_by_its_heading_and_only_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = "# Page\n\nlead\n\n## One\n\n```toml\n# no heading\n```\n\nend\n\n### Two\n\ntext\n"
    monkeypatch.setattr(pages, "PAGES", {Path("a.md"): one, Path("b.md"): "## Two\n"})
    assert section("One") == "\n```toml\n# no heading\n```\n\nend\n\n"
    for title in ("Two", "no heading"):
        with pytest.raises(AssertionError, match=r"(2|0) sections of the title"):
            section(title)
