"""Makes the trainer of on-policy distillation that a recipe asks for."""

from collections.abc import Sequence

from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import DistillationConfig

from ..limits import MAX_SHARD_GB
from ..training_model import MtpLoss
from .on_policy_trainer import SeekletDistillationTrainer
from .settings import OnPolicySettings
from .text_trainer import SeekletTextDistillationTrainer


def make_on_policy_trainer(
    settings: OnPolicySettings,
    model: PreTrainedModel | PeftModel,
    teacher: PreTrainedModel,
    config: DistillationConfig,
    tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase,
    train: Dataset,
    validation: Dataset | None = None,
    *,
    mtp_loss: MtpLoss = "detached",
    bias_update_speed: float = 0.0,
    callbacks: Sequence[TrainerCallback] = (),
    max_shard_gb: float = MAX_SHARD_GB,
) -> SeekletDistillationTrainer:
    """Return the trainer that `settings` ask for; arguments are those of SeekletDistillationTrainer.

    Raises:
        RecipeError: student and teacher cannot be compared so, or the config asks for what is not there.
    """
    given = (model, teacher, config, tokenizer, teacher_tokenizer, train, validation)
    if settings.alignment == "tokens":
        return SeekletDistillationTrainer(
            *given,
            mtp_loss=mtp_loss,
            bias_update_speed=bias_update_speed,
            drafts=settings.use_mtp,
            callbacks=callbacks,
            max_shard_gb=max_shard_gb,
        )
    return SeekletTextDistillationTrainer(
        *given,
        text_loss=settings.text_loss,
        mtp_loss=mtp_loss,
        bias_update_speed=bias_update_speed,
        drafts=settings.use_mtp,
        callbacks=callbacks,
        max_shard_gb=max_shard_gb,
    )
