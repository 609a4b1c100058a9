"""Which samples could not be scored, and when there are too many of them to go on."""

import json
import logging
from collections import Counter, deque
from pathlib import Path
from typing import Any

from ..errors import TrainingError

logger = logging.getLogger(__name__)
# Reasons of a reward that are told one by one; after that, only the file has them.
MAX_TOLD = 5
# A share of fewer samples than these says little.
LEAST_SAMPLES = 32
# Of a completion, as much as shows which one it was.
SHOWN_CHARACTERS = 500


class Failures:
    """Counts, for each reward, the samples of the last `window` that it could not score.

    Each is told once with its reason, up to a number, and written to `file` as a line of JSON where that is given.
    """

    def __init__(self, max_share: float = 0.5, window: int = 256, file: Path | None = None):
        """Allow up to `max_share` of the last `window` samples to fail; 32 at least are waited for."""
        self.max_share, self.window, self.file = max_share, window, file
        self.num_failed: Counter[str] = Counter()
        self._recent: dict[str, deque[bool]] = {}

    def note(self, name: str, reasons: list[str | None], completions: list[str], step: int | None = None) -> None:
        """Count a batch of a reward's samples, of which those with a reason failed.

        Raises:
            TrainingError: too large a share of the last ones did; says the commonest reason.
            OSError: the file cannot be written.
        """
        recent = self._recent.setdefault(name, deque(maxlen=self.window))
        recent.extend(reason is not None for reason in reasons)
        failed = [(reason, text) for reason, text in zip(reasons, completions, strict=True) if reason is not None]
        for reason, text in failed:
            self._tell(name, reason, text, step)
        share = sum(recent) / len(recent) if recent else 0.0
        if len(recent) >= min(LEAST_SAMPLES, self.window) and share > self.max_share:
            [(reason, count)] = Counter(reason for reason, _ in failed).most_common(1) or [("earlier ones", 0)]
            at = "" if step is None else f" at step {step}"
            raise TrainingError(
                f"reward {name}{at}: {share:.0%} of the last {len(recent)} samples could not be scored; allowed: "
                f"{self.max_share:.0%}. The commonest reason now ({count}): {reason}"
            )

    def share(self, name: str) -> float:
        """Return the share of a reward's last samples that failed."""
        recent = self._recent.get(name)
        return sum(recent) / len(recent) if recent else 0.0

    def _tell(self, name: str, reason: str, text: str, step: int | None) -> None:
        self.num_failed[name] += 1
        if self.num_failed[name] <= MAX_TOLD:
            rest = "; further ones are not told" if self.num_failed[name] == MAX_TOLD else ""
            logger.warning("reward %s: a sample could not be scored: %s%s", name, reason, rest)
        if self.file is None:
            return
        entry: dict[str, Any] = {"step": step, "reward": name, "reason": reason, "completion": text[:SHOWN_CHARACTERS]}
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
