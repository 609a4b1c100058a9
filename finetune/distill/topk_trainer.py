"""Distillation from a cache of a teacher's most likely tokens: the teacher is not in memory."""

# B rows, S positions, N labelled positions, K tokens kept

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import SFTConfig
from trl.models.utils import _ForwardRedirection

from seeklet.modeling.mtp import IGNORE_INDEX, shift_left

from ..errors import DataError
from ..limits import MAX_SHARD_GB
from ..sft_trainer import SeekletSFTTrainer
from ..training_model import MtpLoss
from .head_divergence import head_bucket_divergence
from .settings import OfflineSettings
from .student_pass import bare_model, run_student
from .topk_reader import TopKCache, TopKCollator

PARTS = ("divergence", "mtp_loss", "balance_loss")


@dataclass(frozen=True)
class StudentLoss:
    """The loss of a batch and its parts. A dataclass, since DDP looks for what has a gradient in no plain object."""

    loss: torch.Tensor
    divergence: torch.Tensor
    mtp_loss: torch.Tensor | None = None
    balance_loss: torch.Tensor | None = None


class SeekletTopKTrainer(SeekletSFTTrainer):
    """SeekletSFTTrainer whose next-token loss is the divergence from a teacher, of which a cache is there.

    The divergence is that of K + 1 buckets: the teacher's most likely tokens, and all others together. Held-out rows
    are measured by cross entropy, as in fine-tuning on texts.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        config: SFTConfig,
        tokenizer: PreTrainedTokenizerBase,
        train: Dataset,
        validation: Dataset | None,
        *,
        cache: TopKCache,
        settings: OfflineSettings,
        mtp_loss: MtpLoss = "full",
        callbacks: Sequence[TrainerCallback] = (),
        max_shard_gb: float = MAX_SHARD_GB,
    ):
        """Make a trainer of a model that `training_model.build_training_model` has made.

        Args:
            model: the student.
            config: as of SeekletSFTTrainer.
            tokenizer: the student's, which is the teacher's too.
            train: the rows that the teacher has read, in their order.
            validation: other rows, or None.
            cache: of the rows.
            settings: which divergence.
            mtp_loss: how the multi-token prediction modules of a seeklet model are trained: on the rows' own tokens.
            callbacks: beside those of Trainer.
            max_shard_gb: the largest file of a saved model.

        Raises:
            DataError: the rows are not those of the cache.
            RecipeError: the student's tokens are not those of the cache.
        """
        head: Any = bare_model(model).get_output_embeddings()
        cache.check_student(tokenizer, head.weight.shape[0])
        attached = cache.attach(train)
        options: Any = {"mtp_loss": mtp_loss, "callbacks": callbacks, "max_shard_gb": max_shard_gb}
        super().__init__(model, config, tokenizer, attached, validation, **options)
        self._cache, self._settings = cache, settings
        self._student_mtp_loss: MtpLoss = mtp_loss
        self._forward_redirection = _ForwardRedirection()
        self.data_collator = TopKCollator(self.data_collator, cache)
        self._begin_counting(PARTS)

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the share of a batch in the mean divergence per token of a step; of held-out rows, cross entropy."""
        if "teacher_tokens" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        bare: Any = self.accelerator.unwrap_model(model)
        num_items = (
            (inputs["labels"][:, 1:] != IGNORE_INDEX).sum() if num_items_in_batch is None else num_items_in_batch
        )
        num_items = num_items.clamp(min=1)
        # Through what wraps the model for several processes, as TRL does it.
        outputs = self._forward_redirection(model, bare, self._divergence, bare, inputs, num_items)
        if model.training:
            self._count({**inputs, "num_items_in_batch": num_items}, outputs)
        loss = outputs.loss
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # DDP takes the mean over processes of what is a share already.
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())
        return (loss, outputs) if return_outputs else loss

    def _divergence(
        self, student: nn.Module, inputs: dict[str, torch.Tensor], num_items: torch.Tensor
    ) -> "StudentLoss":
        """Return the loss and its parts."""
        labels, mask = inputs["labels"], inputs.get("attention_mask")
        given = (inputs["input_ids"], mask, labels, num_items, self._student_mtp_loss, inputs.get("position_ids"))
        passed = run_student(student, *given)
        kept = shift_left(labels, 1, IGNORE_INDEX) != IGNORE_INDEX
        if (number := int(kept.sum())) != len(inputs["teacher_tokens"]):
            raise DataError(
                f"{self._cache.folder} has {len(inputs['teacher_tokens']):,} positions of a batch with {number:,} to "
                "learn; allowed: rows as the teacher has read them, neither cut nor packed since"
            )
        found = head_bucket_divergence(
            bare_model(student).get_output_embeddings(),
            passed.hidden[kept],
            inputs["teacher_tokens"],
            inputs["teacher_log_probs"],
            beta=self._settings.beta,
            temperature=self._cache.manifest.temperature,
            num_shared=self._cache.manifest.vocabulary,
        )
        divergence = found.divergence.sum() / num_items
        loss = divergence if passed.extra_loss is None else divergence + passed.extra_loss
        return StudentLoss(loss, divergence.detach(), **passed.parts)
