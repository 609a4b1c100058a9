"""What every reward reads: the text of a completion, its answer, and the columns of its row."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

from ..errors import RewardError
from ..reasoning import END_THINK, THINK, opens_reasoning, parse

Row = Mapping[str, Any]
# Columns that `RewardSet` adds to those of the data.
PROMPT, TOKEN_IDS, OPENED = "prompt", "completion_ids", "reasoning_opened"


class Reward(Protocol):
    """A pure function of a completion's text and its row; None where it has nothing to say about that row.

    The settings are the fields of a frozen dataclass, so a reward can be compared, printed and sent to a process.
    """

    # The range of scores, and whether the highest says that the task was done: what the guards go by.
    lowest: ClassVar[float]
    highest: ClassVar[float]
    verifies: ClassVar[bool]

    def __call__(self, completion: str, row: Row) -> float | None:
        """Return the score.

        Raises:
            RewardError: this sample cannot be scored.
        """
        ...


def answer_of(completion: str, row: Row) -> str:
    """Return what stands after the reasoning; "" where the reasoning has no end."""
    return parse(completion, opened=bool(row.get(OPENED))).answer


def read_column(row: Row, column: str) -> Any:
    """Return the value of a column.

    Raises:
        RewardError: it is missing or empty (null); names those there are.
    """
    if row.get(column) is None:
        there = ", ".join(sorted(key for key, value in row.items() if value is not None)) or "none"
        raise RewardError(f'the row has no "{column}"; columns with a value: {there}')
    return row[column]


def read_text(row: Row, column: str) -> str:
    """Return the value of a column as a text; numbers are written out.

    Raises:
        RewardError: it is missing, blank, or neither text nor number.
    """
    value = read_column(row, column)
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        raise RewardError(f'"{column}" is {_short(value)}; allowed: a text that is not blank, or a number')
    return str(value)


def text_of(completion: Any) -> str:
    """Return the text of a completion as a trainer has it: a text, or messages, of which the assistant's last counts.

    Reasoning that stands in a field of its own is put back between its tags.

    Raises:
        RewardError: it is neither.
    """
    if isinstance(completion, str):
        return completion
    if isinstance(completion, Sequence) and all(isinstance(message, Mapping) for message in completion):
        own = [message for message in completion if message.get("role", "assistant") == "assistant"]
        if not own:
            return ""
        content, reasoning = _content(own[-1].get("content")), own[-1].get("reasoning_content")
        return f"{THINK}{reasoning}{END_THINK}{content}" if reasoning else content
    raise RewardError(f"a completion is {_short(completion)}; allowed: a text, or a list of messages")


def begins_in_reasoning(prompt: Any) -> bool:
    """Return whether a prompt, as text, ends in the tag that opens reasoning; messages do not show it."""
    return isinstance(prompt, str) and opens_reasoning(prompt)


def _content(content: Any) -> str:
    if isinstance(content, str) or content is None:
        return content or ""
    # Parts, as models of several kinds of input have them.
    parts = [part.get("text") for part in content if isinstance(part, Mapping)] if isinstance(content, list) else []
    return "".join(part for part in parts if isinstance(part, str))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
