"""What the pages show: fenced blocks with their markers, indented command lines, tables under headings, links."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

_FENCE = re.compile(
    r"(?:^<!-- (?P<kind>\w+): (?P<name>[^ ]+) -->\n)?^(?P<indent> *)```(?P<language>[\w-]*)\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
_INDENTED = re.compile(r"^ {4,}(?P<line>\S.*)$", re.MULTILINE)
_SPAN = re.compile(r"(?<!`)`(?P<text>[^`\n]+(?:\n[^`\n]+)?)`(?!`)")
_LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)(?: \"[^\"]*\")?\)")


@dataclass(frozen=True)
class Block:
    """A fenced block; `kind` and `name` are those of the comment above it (``<!-- file: a.py -->``), else empty."""

    page: str
    language: str
    text: str
    kind: str = ""
    name: str = ""


def pages() -> list[Path]:
    """README.md and every page below docs/."""
    readme = ROOT / "README.md"
    return [*([readme] if readme.is_file() else []), *sorted(DOCS.rglob("*.md"))]


def title(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    """Return the page's fenced blocks, in order."""
    return [
        Block(title(page), found["language"], found["text"], found["kind"] or "", found["name"] or "")
        for found in _FENCE.finditer(page.read_text())
    ]


def file_block(page: Path, name: str) -> str:
    """Return the text of the block that is marked as that file."""
    (text,) = (block.text for block in blocks(page) if (block.kind, block.name) == ("file", name))
    return text


def without_fences(text: str) -> str:
    return _FENCE.sub("", text)


def commands(page: Path) -> list[list[str]]:
    """Return the arguments of every `pacs-ai ...` on a line of its own: in shell blocks and in indented lines."""
    text = page.read_text()
    lines = [
        line
        for block in blocks(page)
        if block.language in {"", "sh", "bash", "shell", "console", "ini"}
        for line in block.text.splitlines()
    ]
    lines += [found["line"] for found in _INDENTED.finditer(without_fences(text))]
    return [arguments for line in lines if (arguments := _arguments(line)) is not None]


def spans(page: Path) -> list[list[str]]:
    """Return the arguments of every `pacs-ai ...` within a sentence."""
    found = (" ".join(span["text"].split()) for span in _SPAN.finditer(without_fences(page.read_text())))
    return [arguments for text in found if (arguments := _arguments(text)) is not None]


def _arguments(line: str) -> list[str] | None:
    """Return what follows `pacs-ai` up to a pipe, a redirection or a comment; None where the line calls no pacs-ai."""
    line = re.sub(r"\s(#|>|>>|\||&&|;).*$", "", line.strip().removeprefix("$ ").removeprefix("ExecStart="))
    match = re.match(r"(?:sudo (?:-u \S+ )?)?(?:\S*/)?pacs-ai(?:\s+(?P<rest>.*))?$", line)
    if match is None:
        return None
    return shlex.split(match["rest"] or "")


def links(page: Path) -> list[str]:
    """Return the targets of links and images that are not on the web."""
    found = [match["target"] for match in _LINK.finditer(without_fences(page.read_text()))]
    return [target for target in found if not re.match(r"(https?|mailto):", target)]


def table(page: Path, heading: str) -> list[list[str]]:
    """Return the cells of every row of the table under a heading, header and ruler left out."""
    start = re.search(rf"^#+ {re.escape(heading)}$", page.read_text(), re.MULTILINE)
    assert start is not None, f"{title(page)} has no heading {heading}"
    section = re.split(r"^#+ ", page.read_text()[start.end() :], maxsplit=1, flags=re.MULTILINE)[0]
    _, ruler, *rows = [_cells(line) for line in section.splitlines() if line.startswith("|")]
    assert all(set(cell) <= {"-", ":"} for cell in ruler), f"{title(page)}: one table under {heading}"
    return rows


def _cells(line: str) -> list[str]:
    inner = line.strip().removeprefix("|").removesuffix("|")
    return [cell.replace(r"\|", "|").strip() for cell in re.split(r"(?<!\\)\|", inner)]
