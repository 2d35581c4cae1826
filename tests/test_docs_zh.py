"""The Chinese pages say what the English ones say: the same headings, commands, tables, figures and links."""

import re
from collections import Counter
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ("overlay", "prepare", "evaluate", "align", "engine", "train", "speed", "report", "gain")
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.DOTALL | re.MULTILINE)


def pages(name: str) -> tuple[str, str]:
    return tuple((folder / f"{name}.md").read_text(encoding="utf-8") for folder in (DOCS, DOCS / "zh"))  # type: ignore[return-value]


def blocks(text: str) -> list[tuple[str, str]]:
    """The fenced blocks, without what stands behind a `#` and other words of explanation."""
    return [
        (kind, re.sub(r"\s*#.*", "", body)) for _, kind, body in FENCE.findall(text) if kind or body.startswith("$ ")
    ]


def prose(text: str) -> str:
    return FENCE.sub("", text)


def levels(text: str) -> list[int]:
    return [len(marks) for marks in re.findall(r"^(#+) ", prose(text), re.MULTILINE)]


def quoted(text: str) -> Counter[str]:
    """Everything in backticks: commands, settings, names of files."""
    return Counter(" ".join(words.split()) for words in re.findall(r"`([^`]+)`", prose(text)))


def figures(text: str) -> Counter[str]:
    """Numbers outside of backticks and links; 1,000 and 1000 are one."""
    plain = re.sub(r"`[^`]+`|\]\([^)]*\)|^\s*\d+\. ", " ", prose(text), flags=re.MULTILINE)
    return Counter(number.replace(",", "") for number in re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?", plain))


def links(text: str) -> Counter[str]:
    """Where links lead; a Chinese page may lead to a Chinese one, and its own folder is one deeper."""
    found = re.findall(r"\]\(([^)]+)\)", prose(text))
    return Counter(Path(re.sub(r"^(\.\./)+", "", re.sub(r"#.*", "", link))).name for link in found)


@pytest.mark.parametrize("name", PAGES)
def test_headings_are_the_same(name: str) -> None:
    english, chinese = pages(name)
    assert levels(chinese) == levels(english)


@pytest.mark.parametrize("name", PAGES)
def test_commands_are_the_same(name: str) -> None:
    english, chinese = pages(name)
    assert blocks(chinese) == blocks(english)
    assert quoted(chinese) == quoted(english)


@pytest.mark.parametrize("name", PAGES)
def test_figures_are_the_same(name: str) -> None:
    english, chinese = pages(name)
    missing, more = figures(english) - figures(chinese), figures(chinese) - figures(english)
    assert (missing, more) == (Counter(), Counter())


@pytest.mark.parametrize("name", PAGES)
def test_tables_and_links_are_the_same(name: str) -> None:
    english, chinese = pages(name)
    rows = [
        [line.count("|") for line in prose(text).splitlines() if line.startswith("|")] for text in (english, chinese)
    ]
    assert rows[0] == rows[1]
    assert links(chinese) == links(english)


@pytest.mark.parametrize("name", PAGES)
def test_links_of_the_chinese_page_lead_somewhere(name: str) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", prose(pages(name)[1])):
        if not link.startswith("http") and (target := link.partition("#")[0]):
            assert (DOCS / "zh" / target).exists(), link
