"""What a run of the demo found, held against what it is meant to show."""

from collections.abc import Mapping
from dataclasses import dataclass

from ..evaluation.measures import Estimate
from ..evaluation.reasoning_report import CHANGE, show
from ..evaluation.reasoning_results import ReasoningReport, change
from .drafts import DraftSpeed
from .settings import DemoSettings
from .stock_reload import StockReload

COLD_START, GRPO = "cold_start", "grpo"
ON_ANSWERS, ON_TRACES, ON_POLICY = "student_on_answers", "student_on_traces", "on_policy"
PASS_AT_1 = "pass@1"


@dataclass(frozen=True)
class StageFigures:
    """One stage of the pipeline; of those that train, the figures of what they left."""

    name: str
    kind: str
    seconds: float
    """Of its work, evaluations left out; of its last part, where it was interrupted."""
    greedy: ReasoningReport | None
    """One attempt at each problem, the most likely tokens."""
    sampled: ReasoningReport | None
    """Several attempts, at the temperature of the pipeline's evaluation."""


@dataclass(frozen=True)
class Target:
    """A figure that the demo is to reach; `reached` is None where it was not measured."""

    what: str
    asked: str
    got: str
    value: float
    """In points, as a share, as a ratio or in seconds."""
    reached: bool | None


@dataclass(frozen=True)
class Example:
    """A held-out problem, and what each model made of it greedily, by the stage's name: text, and whether right."""

    prompt: str
    answer: str
    said: Mapping[str, tuple[str, bool]]


@dataclass(frozen=True)
class Findings:
    """Everything a run found."""

    settings: DemoSettings
    stages: list[StageFigures]
    parameters: Mapping[str, int]
    """Of the teacher and of the student."""
    drafts: list[DraftSpeed]
    reload: StockReload
    examples: list[Example]
    seconds: float
    """From the start of the process, imports included."""
    resumed: bool
    """Whether this is the last part of a demo that was interrupted."""
    machine: Mapping[str, str | int]
    versions: Mapping[str, str]

    def stage(self, name: str) -> StageFigures:
        """Return the stage of a name."""
        return next(stage for stage in self.stages if stage.name == name)

    @property
    def trained(self) -> list[StageFigures]:
        """The stages that left a model."""
        return [stage for stage in self.stages if stage.greedy is not None]

    @property
    def student_share(self) -> float:
        """The student's parameters over the teacher's."""
        return self.parameters["student"] / self.parameters["teacher"]

    def gain(self, before: str, after: str, *, greedy: bool) -> Estimate:
        """Return by how many points pass@1 of one stage is above that of another, on the same problems."""
        sides = [self.stage(name).greedy if greedy else self.stage(name).sampled for name in (before, after)]
        reports = [side for side in sides if side is not None]
        difference = change(reports, 1)
        assert difference is not None, "all stages are evaluated on the same problems"
        return difference

    def targets(self) -> list[Target]:
        """Return the figures that the demo is to reach."""
        gains = [
            ("GRPO over cold start, greedy", COLD_START, GRPO, True, 30.0),
            ("GRPO over cold start, temperature 1", COLD_START, GRPO, False, 25.0),
            ("student on traces over student on answers, greedy", ON_ANSWERS, ON_TRACES, True, 25.0),
            ("student after on-policy distillation over its teacher, greedy", GRPO, ON_POLICY, True, 0.0),
        ]
        found = []
        for what, before, after, greedy, least in gains:
            gain = self.gain(before, after, greedy=greedy)
            asked, got = f"at least {least:+.0f} points", show(gain, CHANGE)
            found.append(Target(what, asked, got, gain.value, gain.value >= least))
        share = self.student_share
        what = "student's parameters over the teacher's"
        found.append(Target(what, "at most 55 %", f"{share:.1%}", share, share <= 0.55))
        for speed in self.drafts:
            what, ratio = f"rollouts with MTP drafts over without, rows at a time: {speed.rows}", speed.speedup
            found.append(Target(what, "at least 1.3x tokens/s", f"{ratio:.2f}x", ratio, ratio >= 1.3))
        return [*found, self._time_target()]

    def _time_target(self) -> Target:
        what, asked, got = "time of all", "at most 8 min", f"{self.seconds / 60:.1f} min"
        if self.resumed:
            return Target(what, asked, f"{got}, the part after an interruption", self.seconds, None)
        return Target(what, asked, got, self.seconds, self.seconds <= 480)

    def failed_checks(self) -> list[str]:
        """Return what must hold and did not, a line each; empty when all is well."""
        failures = []
        if not self.reload.passed:
            failures.append("stock transformers computes other logits from the reinforced teacher's checkpoint")
        before, after = (self.stage(name).greedy for name in (COLD_START, GRPO))
        assert before is not None and after is not None
        low, high = after.figures[PASS_AT_1].low, before.figures[PASS_AT_1].high
        if not self.settings.quick and low <= high:
            failures.append(
                f"GRPO did not clearly raise greedy accuracy: the 95 % interval before ends at {high:.1f} %, and the "
                f"one after begins at {low:.1f} %"
            )
        return failures
