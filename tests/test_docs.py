"""Links from the documentation to lines of code stay right. `python tests/test_docs.py` brings them up to date."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\[`(\w+)`\]\(\.\./([\w/.]+\.py)#L(\d+)\)")
PAGES = sorted((ROOT / "docs").glob("*.md"))


def line_of(symbol: str, path: Path) -> int | None:
    pattern = re.compile(rf"\s*(def|class) {symbol}\b")
    lines = path.read_text().splitlines()
    return next((number for number, line in enumerate(lines, 1) if pattern.match(line)), None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_code_name_the_right_line(page):
    for symbol, file, line in LINK.findall(page.read_text()):
        assert line_of(symbol, ROOT / file) == int(line), f"{symbol} in {file}; run python tests/test_docs.py"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.name)
def test_links_to_files_exist(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def _update() -> None:
    for page in PAGES:
        text = page.read_text()
        page.write_text(LINK.sub(lambda m: f"[`{m[1]}`](../{m[2]}#L{line_of(m[1], ROOT / m[2])})", text))


if __name__ == "__main__":
    _update()
