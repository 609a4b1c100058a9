"""What a run of the demo finds out, as plain data between the stages and the report."""

from dataclasses import dataclass
from pathlib import Path

from .drafts import DraftComparison
from .evaluate import Accuracy
from .stock_reload import StockReload
from .train import History, TrainSettings


@dataclass(frozen=True)
class DemoSettings:
    """What the command line can set."""

    seed: int = 0
    steps: int = 1000
    # On two cores that other programs used too, a training step took 0.17 to 0.20 s with one thread and, with two, 1.0
    # to 1.6 s: threads that wait for each other at each of thousands of tiny matrices.
    threads: int = 1
    test_problems: int = 512
    validation_problems: int = 192
    draft_prompts: int = 8
    draft_repeats: int = 5


@dataclass(frozen=True)
class StageTime:
    """How long a stage took; `cpu_s` counts all threads and child processes."""

    name: str
    wall_s: float
    cpu_s: float


@dataclass(frozen=True)
class Example:
    """One held-out problem and what the model made of it, untrained and trained."""

    prompt: str
    answer: str
    before: str
    after: str
    solved_after: bool


@dataclass(frozen=True)
class Findings:
    """Everything a run found out."""

    settings: DemoSettings
    training: TrainSettings
    machine: dict[str, str | int]
    versions: dict[str, str]
    parameters: dict[str, int]
    before: Accuracy
    after: Accuracy
    history: History
    layer_names: list[str]
    """A name per MoE layer, in the order of the recorded expert loads."""
    drafts: DraftComparison
    reload: StockReload
    examples: list[Example]
    plots: dict[str, Path]
    stages: list[StageTime]

    def failed_checks(self) -> list[str]:
        """Return what must hold and did not, a line each; empty when all is well."""
        before, after = self.before, self.after
        checks = {
            "MTP drafts changed the generated tokens": self.drafts.identical_tokens,
            "stock transformers computes other logits from the saved checkpoint": self.reload.passed,
            f"training did not clearly raise accuracy: {before.correct} of {before.total} test problems before, "
            f"{after.correct} of {after.total} after": not self._trained_in_full or self._accuracy_rose,
        }
        return [failure for failure, held in checks.items() if not held]

    @property
    def _trained_in_full(self) -> bool:
        """Whether training reached its target or had its default number of steps; a quick look need not learn."""
        reached = any(record.accuracy.value >= self.training.stop_accuracy for record in self.history.validations)
        return reached or len(self.history.steps) >= DemoSettings.steps

    @property
    def _accuracy_rose(self) -> bool:
        """Whether the 95 % intervals are apart, the one after training above."""
        return self.after.interval[0] > self.before.interval[1]
