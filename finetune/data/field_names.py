"""How a file spells the fields of rows that have been converted."""

import re
from collections.abc import Sequence

from .formats import Columns
from .layouts import Layout
from .rows import Row

# Which columns of plain question-and-answer shapes a role's text is from.
_SPOKEN_IN = {
    "system": ("system",),
    "user": ("context", "instruction", "input", "question"),
    "assistant": ("output", "answer"),
}


class FieldNames:
    """Learns the layouts of files as they are read, and then names the fields of their rows."""

    def __init__(self) -> None:
        self._files: dict[str, tuple[str, dict[str, str]]] = {}

    def seen(self, file: str, layout: Layout) -> None:
        """Take note of a layout of a file; all of one file are of one shape."""
        self._files.setdefault(file, (layout.shape, {}))[1].update(layout.columns)

    def of(self, row: Row, field: str) -> str:
        """Return how the row's file spells `field`, or "data.system" for what the recipe put before the row."""
        shape, columns = self._files[row.source.file]
        roles = [message["role"] for message in row.messages]
        if row.system_added:
            if field.startswith("messages[0]"):
                return "data.system"
            roles = roles[1:]
            field = re.sub(r"^messages\[(\d+)\]", lambda match: f"messages[{int(match[1]) - 1}]", field)
        return in_file(shape, columns, roles, field)


def in_file(shape: str, columns: Columns, roles: Sequence[str], field: str) -> str:
    """Return how the file spells `field`, such as `messages[1].content`, of a converted row with these roles.

    >>> in_file("question_answer", {"question": "Q", "answer": "A"}, ("user", "assistant"), "messages[1].content")
    'A'
    """
    match = re.fullmatch(r"messages\[(\d+)\](.*)", field)
    if not match:
        return columns.get(field, field)
    index, rest = int(match[1]), match[2]
    if shape == "messages":
        return f"{columns['messages']}[{index}]{rest}"
    if shape == "sharegpt":
        if "system" in columns and roles[0] == "system":
            index -= 1
        rest = rest.replace(".content", ".value")
        return f"{columns['conversations']}[{index}]{rest}" if index >= 0 else columns["system"]
    if shape == "prompt_completion":
        # Lists of messages: which of them came from which column is not known here.
        names = (columns["prompt"], columns["completion"])
        return names[index] if len(roles) == 2 else f"{' and '.join(names)}, turn {index + 1}"
    return " and ".join(columns[name] for name in _SPOKEN_IN[roles[index]] if name in columns)
