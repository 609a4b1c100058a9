"""What a pre-flight finds: which file, which tensor or key, what is wrong with it, and how to mend it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with what is to be published.

    Attributes:
        level: an error keeps everything from being uploaded.
        file: relative to the folder.
        where: the tensor, key or line in it; empty where it is the whole file.
        wrong: what is the matter.
        mend: what to do.
        fixable: whether `--fix` does it.
    """

    level: Level
    file: str
    where: str
    wrong: str
    mend: str
    fixable: bool = False

    def __str__(self) -> str:
        place = f"{self.file}: {self.where}" if self.where else self.file
        return f"{self.level}: {place}: {self.wrong}; {self.mend}{' (--fix does)' if self.fixable else ''}"


def error(file: str, where: str, wrong: str, mend: str, fixable: bool = False) -> Finding:
    """Return a finding that keeps everything from being uploaded."""
    return Finding("error", file, where, wrong, mend, fixable)


def warning(file: str, where: str, wrong: str, mend: str, fixable: bool = False) -> Finding:
    """Return a finding that is only told."""
    return Finding("warning", file, where, wrong, mend, fixable)


def errors_of(findings: Iterable[Finding]) -> list[Finding]:
    """Return those that keep everything from being uploaded."""
    return [finding for finding in findings if finding.level == "error"]
