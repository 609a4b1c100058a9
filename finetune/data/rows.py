"""What a row of training data is once read: a conversation, and where it stands."""

from typing import Any, NamedTuple

from .wording import printable

# In the order messages name them; "tool" answers the tool_calls of the assistant turn before it.
ROLES = ("system", "user", "assistant", "tool")
# What a chat template may read of a message; converters keep nothing else.
MESSAGE_KEYS = ("role", "content", "reasoning_content", "tool_calls", "tool_call_id", "name")

Message = dict[str, Any]


class Source(NamedTuple):
    """Where a row stands: the file (or Hub id) as the user named it, and the line.

    `line` counts from 1: lines of the file for JSONL, JSON and CSV (the first line of a row that spans several), rows
    for Parquet and Hub data sets. It is 0 for the file as a whole. `item` is the row's number, from 1, in a JSON array,
    which may stand on one line; elsewhere 0.
    """

    file: str
    line: int = 0
    item: int = 0

    def __str__(self) -> str:
        file = printable(self.file)
        place = f"{file}:{self.line}" if self.line else file
        return f"{place} (row {self.item})" if self.item else place


class Row(NamedTuple):
    """One valid conversation.

    `messages` hold `MESSAGE_KEYS` only: "role" (one of `ROLES`) and "content" (a string, empty only beside tool_calls)
    always; "reasoning_content", "tool_calls", "tool_call_id" and "name" where the row has them. `tools` are the JSON
    schemas a chat template lists, or None. `system_added` says that the first message is not the row's own.
    """

    messages: list[Message]
    tools: list[Any] | None
    source: Source
    system_added: bool = False
