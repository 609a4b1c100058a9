"""A recipe of each stage: everything one run is told, as frozen dataclasses."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..adapter_settings import AdapterSettings
from ..data.settings import DataSettings
from ..distill.settings import CacheSettings, OfflineSettings, OnPolicySettings
from ..evaluation.reasoning_settings import ReasoningEvaluationSettings
from ..prompts.settings import PromptSettings
from ..rewards.settings import RewardSettings
from ..rollout.settings import RejectionSamplingSettings
from .sections import EvaluationSettings, FolderSettings, ModelSettings, MoeSettings, OutputSettings, RolloutSettings


@dataclass(frozen=True, kw_only=True)
class StageRecipe:
    """What recipes of all stages have."""

    stage: str
    model: ModelSettings
    output: FolderSettings


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe(StageRecipe):
    """What recipes of all training stages have. `trainer` holds fields of TRL's config class, checked by type."""

    adapter: AdapterSettings | None = None
    """What is trained beside the frozen model; null trains every weight."""
    moe: MoeSettings = field(default_factory=MoeSettings)
    trainer: Mapping[str, Any] = field(default_factory=dict)
    output: OutputSettings


@dataclass(frozen=True, kw_only=True)
class Recipe(TrainingRecipe):
    """Supervised fine-tuning on conversations."""

    stage: Literal["sft"]
    data: DataSettings
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)


@dataclass(frozen=True, kw_only=True)
class GrpoRecipe(TrainingRecipe):
    """Reinforcement learning from rewards by group relative policy optimisation."""

    stage: Literal["grpo"]
    prompts: PromptSettings
    rewards: tuple[RewardSettings, ...]
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    evaluation: ReasoningEvaluationSettings = field(default_factory=ReasoningEvaluationSettings)
    """Of `seeklet evaluate`, before and after training, on `prompts.validation`."""


@dataclass(frozen=True, kw_only=True)
class DistillRecipe(TrainingRecipe):
    """On-policy distillation: the student answers prompts, and the teacher scores what it says."""

    stage: Literal["distill"]
    teacher: ModelSettings
    prompts: PromptSettings
    distillation: OnPolicySettings = field(default_factory=OnPolicySettings)


@dataclass(frozen=True, kw_only=True)
class TopKRecipe(TrainingRecipe):
    """Distillation on texts, from a teacher's most likely tokens, kept on disk: it need not be there in training."""

    stage: Literal["distill-topk"]
    teacher: ModelSettings | None = None
    """Who reads the texts where the cache lacks some; null where all are in it."""
    data: DataSettings
    cache: CacheSettings = field(default_factory=CacheSettings)
    distillation: OfflineSettings = field(default_factory=OfflineSettings)


@dataclass(frozen=True, kw_only=True)
class RolloutRecipe(StageRecipe):
    """Rejection sampling: a model's attempts at prompts, of which the right ones become a data set."""

    stage: Literal["rollout"]
    prompts: PromptSettings
    rewards: tuple[RewardSettings, ...]
    sampling: RejectionSamplingSettings = field(default_factory=RejectionSamplingSettings)


@dataclass(frozen=True, kw_only=True)
class ReasoningRecipe(StageRecipe):
    """An evaluation of reasoning: pass@1, pass@k and maj@k of a model on problems."""

    stage: Literal["reasoning"]
    prompts: PromptSettings
    rewards: tuple[RewardSettings, ...]
    evaluation: ReasoningEvaluationSettings = field(default_factory=ReasoningEvaluationSettings)


STAGES: Mapping[str, type[StageRecipe]] = {
    "sft": Recipe,
    "grpo": GrpoRecipe,
    "distill": DistillRecipe,
    "distill-topk": TopKRecipe,
    "rollout": RolloutRecipe,
    "reasoning": ReasoningRecipe,
}
