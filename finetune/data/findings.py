"""What a scan returns: where a secret or a piece of personal data stands in a text."""

from typing import NamedTuple


class Finding(NamedTuple):
    """One secret or piece of personal data: `text[start:end]`, and what it is as a short stable name."""

    kind: str
    start: int
    end: int

    def __str__(self) -> str:
        # The place only: a report with the secret in it would be one more place to keep it from.
        return f"holds what looks like {self.kind} (characters {self.start + 1} to {self.end})"

    @property
    def placeholder(self) -> str:
        """What stands in its place after redaction: `[EMAIL]` for an e-mail address."""
        return f"[{self.kind.upper().replace('-', '_')}]"
