"""What the test Hub says no with: status, words and the code by which huggingface_hub knows the reason."""

from dataclasses import dataclass, field


@dataclass
class Refusal(Exception):
    """An answer that is an error."""

    status: int
    message: str
    code: str = ""
    headers: dict[str, str] = field(default_factory=dict)


class Dropped(Exception):
    """The connection is to be closed without an answer."""
