"""What became of every row while data was prepared."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from .problems import ProblemList
from .stats import TokenStats
from .template import ChatTemplate


@dataclass
class PrepareReport:
    """What became of the rows. `train` and `validation` count what is left of them after all else."""

    template: ChatTemplate
    problems: ProblemList = field(default_factory=ProblemList)
    train: TokenStats = field(default_factory=TokenStats)
    validation: TokenStats = field(default_factory=TokenStats)
    # Rows left out, by kind of problem; the side file holds each with its reason.
    skipped: Counter[str] = field(default_factory=Counter)
    side_file: Path | None = None
    # Rows cut off at data.max_tokens.
    truncated: int = 0
    # Secrets and personal data replaced, by kind.
    redacted: Counter[str] = field(default_factory=Counter)
    packed_rows: int | None = None
    packing_efficiency: float | None = None

    def errors(self) -> str:
        """Return all errors that were kept, by kind, as one message."""
        problems = self.problems
        number = problems.count("error")
        said = [f"{number:,} error{'s' * (number != 1)} in the data, so none of it was trained on:"]
        for severity, kind, number, kept in problems.kinds():
            if severity == "error":
                said += [f"  {problem}" for problem in kept]
                if number > len(kept):
                    said.append(f"  … and {number - len(kept):,} more of the kind {kind}")
        said.append("data.on_bad_row, on_long, on_duplicate and on_secret say what is to become of such rows")
        return "\n".join(said)

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        stats = {"train": self.train, "validation": self.validation}
        said = [
            f"{name}: {one.num_rows:,} conversations, {one.tokens.total:,} tokens "
            f"({one.trained_share:.1%} trained on; longest {one.tokens.maximum:,})"
            for name, one in stats.items()
        ]
        said.append(f"chat template: {self.template.name}")
        if self.packing_efficiency is not None:
            said.append(f"packed into {self.packed_rows:,} rows, {self.packing_efficiency:.1%} real tokens")
        where = f", in {self.side_file}" if self.side_file else ""
        warnings = {kind: number for severity, kind, number, _ in self.problems.kinds() if severity == "warning"}
        for what, numbers in (
            (f"left out{where}", self.skipped),
            ("replaced", self.redacted),
            ("cut off at data.max_tokens", {"conversations": self.truncated}),
            ("warnings", warnings),
        ):
            if parts := [f"{kind} {number:,}" for kind, number in numbers.items() if number]:
                said.append(f"{what}: {', '.join(parts)}")
        return said
