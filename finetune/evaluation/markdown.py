"""Text of others inside Markdown: shown as it is, never read as HTML or as marks."""

import html
import re
from collections.abc import Iterable, Sequence

# Emphasis, code, links, table cells, strikethrough and mathematics, wherever they stand.
_MARKS = re.compile(r"([\\`*_\[\]|~$])")
# Headings, lists and quotes, where a line begins with them.
_LINE_MARKS = re.compile(r"^(\s*)([#+>-]|\d+(?=[.)]))", re.MULTILINE)


def literal(text: str) -> str:
    """Return Markdown that shows the text as it is, line by line; a `<think>` in it does not vanish."""
    shown = _MARKS.sub(r"\\\1", html.escape(text.strip(), quote=False).replace("&gt;", ">"))
    # "1." is a list item too, and a digit cannot be escaped: its dot is.
    return _LINE_MARKS.sub(
        lambda mark: f"{mark[1]}{mark[2]}\\" if mark[2].isdigit() else f"{mark[1]}\\{mark[2]}", shown
    )


def cell(text: str) -> str:
    """Return the text for a cell of a table, line breaks kept."""
    return "<br>".join(literal(text).splitlines())


def quote(text: str) -> str:
    """Return the text as a block quote, line breaks kept."""
    return "\n".join(f"> {line}  " if line else ">" for line in literal(text).splitlines())


def table(header: Sequence[str], rows: Iterable[Sequence[str]], align: str = "right") -> str:
    """Return a table of cells that are Markdown already; all columns but the first are set to the `align` side."""
    rule = "---:" if align == "right" else "---"
    lines = [header, ["---", *[rule] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
