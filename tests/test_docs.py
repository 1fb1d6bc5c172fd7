"""The documentation is that of the code. `python tests/test_docs.py` mends links and writes docs/configuration.md."""

import re
from pathlib import Path

import pytest
from configuration_page import written

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\[`(\w+)`\]\(\.\./([\w/.]+\.py)#L(\w+)\)")
TO_CODE = re.compile(r"\]\([^)\s]*\.py[^)\s]*\)")
PAGES = sorted((ROOT / "docs").glob("*.md"))
SETTINGS = ROOT / "docs" / "configuration.md"
SURGERY = "../gnnrl_lightning/pruning/surgery.py"


def line_of(symbol: str, path: Path) -> int | None:
    pattern = re.compile(rf"\s*(def|class) {symbol}\b")
    lines = path.read_text().splitlines()
    return next((number for number, line in enumerate(lines, 1) if pattern.match(line)), None)


def broken(text: str) -> list[str]:
    """Links to code that have another form, name a symbol that is not there, or another line."""
    found = [link for link in LINK.finditer(text) if str(line_of(link[1], ROOT / link[2])) == link[3]]
    right = [link[0] for link in found if link[3].isdigit()]
    return [link[0] for link in TO_CODE.finditer(text) if not any(whole.endswith(link[0]) for whole in right)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_code_name_the_right_line(page: Path) -> None:
    assert broken(page.read_text()) == [], "run python tests/test_docs.py, or mend the symbol"


@pytest.mark.parametrize(
    "link", [f"[`prune`]({SURGERY}#L1)", f"[`gone`]({SURGERY}#LNone)", f"[`prune`]({SURGERY})", f"[x]({SURGERY}#L9)"]
)
def test_a_dead_link_is_noticed(link: str) -> None:
    right = f"[`prune`]({SURGERY}#L{line_of('prune', ROOT / 'docs' / SURGERY)})"
    assert broken(f"{right} and {right}") == []
    assert len(broken(f"{right} and {link}")) == 1


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.name)
def test_links_to_files_exist(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_page_of_settings_is_that_of_the_code() -> None:
    assert SETTINGS.read_text() == written(), "run python tests/test_docs.py"


def _mended(link: re.Match[str]) -> str:
    line = line_of(link[1], ROOT / link[2])
    if line is None:
        raise SystemExit(f"{link[2]} has no {link[1]}; mend the link {link[0]}")
    return f"[`{link[1]}`](../{link[2]}#L{line})"


def _update() -> None:
    SETTINGS.write_text(written())
    mended = {page: LINK.sub(_mended, page.read_text()) for page in PAGES}
    for page, text in mended.items():
        page.write_text(text)


if __name__ == "__main__":
    _update()
