"""On-policy distillation on TRL's DistillationTrainer: the student samples, and the teacher scores every token."""

# B rows, P prompt and C completion tokens, S both, H hidden

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from trl import DistillationConfig, DistillationTrainer
from trl.models import prepare_deepspeed

from seeklet.modeling.mtp import IGNORE_INDEX

from ..balance import RouterBiasCallback, moe_layer_indices
from ..errors import RecipeError, TrainingError
from ..limits import MAX_SHARD_GB
from ..losses import check_head
from ..sampling_trainer import SamplingTrainer
from ..throughput import memory_gib
from ..training_model import MtpLoss, find_seeklet
from .head_divergence import Distances, head_divergence
from .student_pass import StudentPass, bare_model, run_student, run_teacher
from .vocabulary import shared_vocabulary

# What TRL's trainer can do and this one cannot, by field of its config.
UNSUPPORTED = {
    "generation_kwargs": "temperature, top_p, top_k and min_p of the trainer itself",
    "cache_implementation": "null: samples have a cache of their own",
}


class SeekletDistillationTrainer(SamplingTrainer, DistillationTrainer):
    """TRL's DistillationTrainer with other samples and losses; settings and batches are TRL's.

    Samples read each prompt once and let ended rows leave the batch. Logits of teacher and student are there for a few
    tokens at a time, over the vocabulary that they share. A seeklet student keeps its multi-token prediction and
    balance losses, which TRL would lose; its router biases stay unless `bias_update_speed` is given.
    """

    def __init__(
        self,
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
        drafts: bool = False,
        callbacks: Sequence[TrainerCallback] = (),
        max_shard_gb: float = MAX_SHARD_GB,
    ):
        """Make a trainer.

        Args:
            model: the student.
            teacher: is frozen, and put into evaluation mode.
            config: TRL's. `temperature` is that of the samples and of both distributions.
            tokenizer: the student's; is saved with it.
            teacher_tokenizer: the teacher's.
            train: rows with `prompt`: messages, or text.
            validation: the same, or None.
            mtp_loss: how multi-token prediction modules of the student are trained on its samples.
            bias_update_speed: how far a router bias of the student moves per optimiser step; 0 freezes it.
            drafts: whether multi-token prediction modules draft the samples.
            callbacks: beside those of Trainer.
            max_shard_gb: the largest file of a saved model.

        Raises:
            RecipeError: student and teacher cannot be compared, or the config asks for what is not there.
        """
        check_config(config)
        bare: Any = bare_model(model)
        self._seeklet = find_seeklet(bare)
        uses_cache = getattr(bare.config, "use_cache", True)
        if self._seeklet is None:
            check_head(bare)
        if find_seeklet(teacher) is None:
            check_head(teacher, "teacher.path")
        super().__init__(
            model=model,
            args=config,
            train_dataset=train,
            eval_dataset=validation,
            processing_class=tokenizer,
            callbacks=list(callbacks),
            max_shard_gb=max_shard_gb,
        )
        bare.config.use_cache = uses_cache
        self.send_published_names(self._seeklet)
        self._mtp_loss: MtpLoss = mtp_loss
        self._drafts = drafts and self._seeklet is not None
        self._teacher_tokenizer = teacher_tokenizer
        self._check_vocabularies(teacher)
        teacher = teacher.eval().requires_grad_(False)
        # Not given to TRL's own __init__, which wants equal numbers of logits.
        self.teacher_model: Any = (
            prepare_deepspeed(teacher, self.accelerator)
            if self.is_deepspeed_enabled
            else self.accelerator.prepare_model(teacher, evaluation_mode=True)
        )
        # Of the micro-batch, to be logged outside of what wraps the model.
        self._passed: StudentPass | None = None
        self._divergence: torch.Tensor | None = None
        # Summed divergence, and of how many tokens, since the last entry of the log.
        self._divergences = {mode: torch.zeros(2, device=self.args.device) for mode in ("train", "eval")}
        self.remove_callback(PrinterCallback)
        if self._seeklet is not None and moe_layer_indices(self._seeklet):
            self.callback_handler.callbacks.insert(0, RouterBiasCallback(bias_update_speed))

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the share of a batch in the mean divergence per token of a whole step, and in the other losses."""
        output = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        mode = "train" if model.training else "eval"
        assert self._passed is not None and self._divergence is not None
        for name, part in self._passed.parts.items():
            mean: Any = self.accelerator.reduce(part, reduction="mean")
            # Shares in the step's mean, which the log takes the mean of; the balance loss is a mean of each batch.
            shares = self.args.gradient_accumulation_steps if name == "mtp_loss" else 1
            self._metrics[mode][name].append(mean.item() * shares)
        self._divergences[mode] += self._divergence
        self._passed = self._divergence = None
        return output

    def _check_vocabularies(self, teacher: PreTrainedModel) -> None:
        student: Any = self.model
        heads: list[Any] = [bare_model(student).get_output_embeddings(), teacher.get_output_embeddings()]
        tokenizers: Any = (self.processing_class, self._teacher_tokenizer)
        self._num_shared = shared_vocabulary(*tokenizers, *(head.weight.shape[0] for head in heads))

    def _compute_loss(
        self, unwrapped_student: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | float | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return loss, summed entropy and number of tokens, as TRL's does; called inside what wraps the student."""
        tokens, mask = (
            torch.cat((inputs[f"prompt_{kind}"], inputs[f"completion_{kind}"]), 1) for kind in ("ids", "mask")
        )
        num_completion = inputs["completion_ids"].shape[1]
        labels = tokens.masked_fill(mask == 0, IGNORE_INDEX)
        labels[:, :-num_completion] = IGNORE_INDEX
        num_valid = self._num_compared(inputs)
        num_items = num_valid.clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        self._passed = run_student(unwrapped_student, tokens, mask, labels, num_items, self._mtp_loss)
        # What predicts a token stands one place in front of it.
        hidden = self._passed.hidden[:, -num_completion - 1 : -1]
        distances = self._distances(unwrapped_student, hidden, tokens, mask, inputs)
        total = distances.divergence.sum()
        self._divergence = torch.stack((total.detach(), num_valid.to(total))).float()
        loss = total / num_items
        if self._passed.extra_loss is not None:
            loss = loss + self._passed.extra_loss
        return loss, distances.entropy.sum(), num_valid

    def _num_compared(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Return how many completion tokens the divergence is of."""
        return inputs["completion_mask"].sum()

    def _distances(
        self,
        student: nn.Module,
        hidden: torch.Tensor,
        tokens: torch.Tensor,
        mask: torch.Tensor,
        inputs: dict[str, Any],
    ) -> Distances:
        """Return how far the teacher is from the student at each completion token, `hidden` (B, C, H) in front."""
        kept = inputs["completion_mask"].bool()
        teacher = self._teacher_hidden(tokens, mask)[:, -hidden.shape[1] - 1 : -1][kept]
        return head_divergence(
            bare_model(student).get_output_embeddings(),
            hidden[kept],
            self._bare_teacher().get_output_embeddings(),
            teacher,
            beta=self.beta,
            temperature=self.temperature,
            num_shared=self._num_shared,
        )

    def _bare_teacher(self) -> Any:
        return self.accelerator.unwrap_model(self.teacher_model)

    def _teacher_hidden(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the teacher's hidden states (B, S, H).

        Raises:
            TrainingError: they are no numbers.
        """
        bare = self._bare_teacher()
        with torch.no_grad():
            hidden = self._forward_redirection(self.teacher_model, bare, run_teacher, bare, tokens, mask)
        if not torch.isfinite(hidden[mask.bool()]).all():
            raise TrainingError(
                f"step {self.state.global_step + 1}: the teacher's hidden states are not finite, and nothing can be "
                f"learned from them; {self.last_good()}. Load the teacher in bfloat16 or float32 (teacher.dtype)"
            )
        return hidden

    def _generate_single_turn(
        self, prompt_ids: Any, images: Any, multimodal_fields: Any, has_tool_images: bool = False
    ) -> list[list[int]]:
        if self.use_vllm or images is not None:
            return super()._generate_single_turn(prompt_ids, images, multimodal_fields, has_tool_images)
        return self.draw_samples(prompt_ids, 1, self._drafts).tokens

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log what TRL has measured and the mean divergence per token; to an entry of training add the memory."""
        student: Any = self.model
        for mode, prefix in (("train", ""), ("eval", "eval_")):
            if (mode == "train") == student.training:
                reduced: Any = self.accelerator.reduce(self._divergences[mode], reduction="sum")
                total, number = reduced.tolist()
                if number:
                    logs[f"{prefix}divergence"] = total / number
                self._divergences[mode] = torch.zeros_like(reduced)
        if "loss" in logs:
            logs["memory_gib"] = memory_gib(self.args.device)
        super().log(logs, start_time)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the card is written when the run is done."""

    def _send_telemetry(self) -> None:
        """Send nothing: what a company trains is its own affair."""


def check_config(config: DistillationConfig) -> None:
    """Check that a config asks for nothing that is not there.

    Raises:
        RecipeError: it does.
    """
    for name, allowed in UNSUPPORTED.items():
        if getattr(config, name) is not None and not config.use_vllm:
            raise RecipeError(f"trainer.{name} is {getattr(config, name)!r}; allowed: {allowed}")
    if config.repetition_penalty != 1 and not config.use_vllm:
        raise RecipeError(
            f"trainer.repetition_penalty is {config.repetition_penalty:g}; allowed: 1, since samples have to be the "
            "student's own"
        )
    if not config.temperature > 0:
        raise RecipeError(
            f"trainer.temperature is {config.temperature:g}; allowed: above 0, which both logits can be divided by"
        )
    if not config.max_completion_length or config.max_completion_length < 1:
        raise RecipeError(f"trainer.max_completion_length is {config.max_completion_length}; allowed: at least 1")
