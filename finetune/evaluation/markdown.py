"""Text of others inside Markdown: shown as it is, never read as HTML or as marks."""

import html
import re
from collections.abc import Iterable, Sequence

# "<" and "&" are HTML's; the others begin or end emphasis, code, links, headings, lists, quotes and table cells.
_MARKS = re.compile(r"([\\`*_{}\[\]()#+\-!|>~$])")


def literal(text: str) -> str:
    """Return Markdown that shows the text as it is, line by line; a `<think>` in it does not vanish."""
    return _MARKS.sub(r"\\\1", html.escape(text.strip(), quote=False).replace("&gt;", ">"))


def cell(text: str) -> str:
    """Return the text for a cell of a table, line breaks kept."""
    return "<br>".join(literal(text).splitlines())


def quote(text: str) -> str:
    """Return the text as a block quote, line breaks kept."""
    return "\n".join(f"> {line}  " if line else ">" for line in literal(text).splitlines())


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of cells that are Markdown already; all columns but the first are set right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
