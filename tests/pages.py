"""The README and the guides in docs/: a test asks for a section by its title, on any page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
PAGES: Final = {
    path: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
TEXT: Final = "\n".join(PAGES.values())


def sections(page: str) -> Iterator[tuple[str, str]]:
    """Yield each heading of a page, and what stands under it until the next one, of any level."""
    title, lines, fenced = "", list[str](), False
    for line in page.splitlines(keepends=True):
        fenced ^= line.startswith("```")
        if not fenced and (heading := re.match(r"#+ (.+)", line)):
            yield title, "".join(lines)
            title, lines = heading[1].strip(), []
        else:
            lines.append(line)
    yield title, "".join(lines)


def section(title: str) -> str:
    """Return the one section of this title; fail if there is none, or more than one."""
    found = [text for page in PAGES.values() for named, text in sections(page) if named == title]
    assert len(found) == 1, f"{len(found)} sections of the title {title!r}"
    return found[0]


def blocks(language: str, text: str = TEXT) -> list[str]:
    """Return what stands in blocks of this language, in this text or on all pages."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def block(language: str, title: str) -> str:
    """Return the one block of this language in the section of this title."""
    (found,) = blocks(language, section(title))
    return found
