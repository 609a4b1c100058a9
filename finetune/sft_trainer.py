"""Supervised fine-tuning on TRL's SFTTrainer, with the losses and the balancing of DeepSeek-V3-architecture models."""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from seeklet.modeling.batches import real_tokens
from seeklet.modeling.mtp import IGNORE_INDEX

from .balance import RouterBiasCallback, moe_layer_indices
from .collation import TokenCollator
from .expert_parallel import SharedExperts
from .expert_parallel_trainer import ExpertParallelTrainer
from .limits import MAX_SHARD_GB
from .throughput import Throughput, memory_gib
from .training_model import MtpLoss, find_seeklet

# Losses of a seeklet model's output that are logged beside their weighted sum, which is what is minimised.
PARTS = ("lm_loss", "mtp_loss", "balance_loss")


class SeekletSFTTrainer(ExpertParallelTrainer, SFTTrainer):
    """TRL's SFTTrainer with losses computed by the model itself, which never holds all logits.

    For a seeklet model that is the sum of next-token, multi-token prediction and balance loss, each logged by itself;
    router biases move once per optimiser step. The metrics that TRL takes from the logits are not there.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        config: SFTConfig,
        tokenizer: PreTrainedTokenizerBase,
        train: Dataset,
        validation: Dataset | None,
        *,
        mtp_loss: MtpLoss = "full",
        callbacks: Sequence[TrainerCallback] = (),
        max_shard_gb: float = MAX_SHARD_GB,
    ):
        """Make a trainer of a model that `training_model.build_training_model` has made.

        Args:
            model: returns its loss, and no logits, when it is given labels.
            config: see `trainer_settings`.
            tokenizer: is saved with the model, and pads.
            train: rows with `input_ids`, `assistant_masks` and, where packed, `seq_lengths`.
            validation: the same, or None.
            mtp_loss: how the multi-token prediction modules of a seeklet model are trained.
            callbacks: beside those of Trainer.
            max_shard_gb: the largest file of a saved model.
        """
        bare: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        seeklet = find_seeklet(bare)
        uses_cache = getattr(bare.config, "use_cache", True)
        num_evaluated = config.world_size * config.per_device_eval_batch_size
        self._loss_options = {} if seeklet is None else {"mtp_loss": mtp_loss, "return_logits": False}
        if seeklet is not None and config.ddp_find_unused_parameters is None:
            # A loss reaches all that is trained; other mixtures of experts leave out the experts without a token.
            config.ddp_find_unused_parameters = False
        num_sharing = getattr(config, "expert_parallel", 1)
        if num_sharing > 1:
            self._experts = SharedExperts(model, num_sharing, config.ddp_timeout)
        super().__init__(
            model=model,
            args=config,
            # Joined rows are one long row, of which attention without a kernel for it takes quadratic time: on CPU that
            # costs five times what the few padding tokens cost.
            data_collator=_make_collator(bare, tokenizer, joins=seeklet is not None and config.device.type != "cpu"),
            train_dataset=train,
            eval_dataset=None if validation is None else filled_up(validation, num_evaluated),
            processing_class=tokenizer,
            callbacks=list(callbacks),
            max_shard_gb=max_shard_gb,
        )
        # TRL puts a forward of its own on the model, and Trainer a setting that generation with what is saved obeys.
        vars(bare).pop("forward", None)
        bare.config.use_cache = uses_cache
        self.remove_callback(PrinterCallback)
        if seeklet is not None and moe_layer_indices(seeklet):
            # The first, so that all others see the load it adds to the log.
            self.callback_handler.callbacks.insert(0, RouterBiasCallback())
        self._begin_counting(PARTS if seeklet is not None else ())

    def _begin_counting(self, parts: Sequence[str]) -> None:
        """Set to zero what is measured between two entries of the log; `parts` of the loss are there."""
        # Metal has no float64.
        wide = torch.float32 if self.args.device.type == "mps" else torch.float64
        zero = torch.zeros((), dtype=wide, device=self.args.device)
        self._sums = {name: zero.clone() for name in parts}
        self._validation_sums = torch.stack((zero, zero))
        self._num_steps = 0
        self._throughput = Throughput(self.args.device)
        self._tokens, self._seconds = 0, 0.0

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the loss of a batch: a mean, or its share in that of a whole optimiser step."""
        if num_items_in_batch is not None:
            inputs = {**inputs, "num_items_in_batch": num_items_in_batch.clamp(min=1)}
        outputs = model(**inputs, use_cache=False, **self._loss_options)
        loss = outputs.loss
        if model.training:
            self._count(inputs, outputs)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # DDP takes the mean over processes of what is a share already.
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[torch.Tensor, None, None]:
        """Return the loss of a batch of held-out rows."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs).detach()
        items = (inputs["labels"][:, 1:] != IGNORE_INDEX).sum()
        # A batch without labels has no mean.
        sums = torch.stack((torch.where(items > 0, loss * items, 0), items))
        self._validation_sums += sums.to(self._validation_sums.dtype)
        return loss, None, None

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """Return what Trainer measures, with the mean over tokens in place of its mean over batches."""
        self.check_finite()
        self._validation_sums.zero_()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        total, items = self._over_processes(self._validation_sums).tolist()
        assert output.metrics is not None
        output.metrics[f"{metric_key_prefix}_loss"] = total / max(items, 1)
        return output

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Return the figures of the held-out rows."""
        with self._throughput.paused():
            return super().evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log what Trainer has measured; to an entry of training add the parts of the loss, speed and memory."""
        if "loss" in logs:
            logs.update(self._parts_of_loss())
            self._count_tokens()
            logs["num_tokens"] = self.state.num_input_tokens_seen
            logs["tokens_per_s"] = self._tokens / max(self._seconds, 1e-9)
            logs["memory_gib"] = memory_gib(self.args.device)
            self._tokens, self._seconds = 0, 0.0
        super().log(logs, start_time)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the card is written when the run is done."""

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        prepared = super()._prepare_for_training(*args, **kwargs)
        # Time counts from here on.
        self._throughput.measure()
        return prepared

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # A run that goes on from here has seen these.
        self._count_tokens()
        with self._throughput.paused():
            super()._save_checkpoint(model, trial)

    def _send_telemetry(self) -> None:
        """Send nothing: what a company trains is its own affair."""

    def _count(self, inputs: Any, outputs: Any) -> None:
        labels = inputs["labels"]
        real = real_tokens(labels.shape, inputs.get("attention_mask"), inputs.get("position_ids"))
        self._throughput.add(labels.numel() if real is None else real.sum())
        self._num_steps += self.accelerator.sync_gradients
        for name in self._sums:
            part = getattr(outputs, name)
            if part is None:
                continue
            if name == "balance_loss":
                # A mean over sequences, where the others are shares of the step already.
                part = part * (labels[:, 1:] != IGNORE_INDEX).sum() / inputs["num_items_in_batch"]
            self._sums[name] += part.detach()

    def _parts_of_loss(self) -> dict[str, float]:
        """Return the mean of each part over the steps since the last entry."""
        if not self._sums:
            return {}
        sums = self._over_processes(torch.stack(list(self._sums.values())))
        shares = 1 if self.args.average_tokens_across_devices else self.accelerator.num_processes
        means = dict(zip(self._sums, (sums / (max(1, self._num_steps) * shares)).tolist(), strict=True))
        for total in self._sums.values():
            total.zero_()
        self._num_steps = 0
        return {name: mean for name, mean in means.items() if name == "lm_loss" or mean}

    def _count_tokens(self) -> None:
        tokens, seconds = self._throughput.measure()
        number = int(self._over_processes(tokens).item())
        self.state.num_input_tokens_seen += number
        self._tokens, self._seconds = self._tokens + number, self._seconds + seconds

    def _over_processes(self, values: torch.Tensor) -> torch.Tensor:
        total: Any = self.accelerator.reduce(values.clone(), reduction="sum")
        return total


def filled_up(rows: Dataset, multiple: int) -> Dataset:
    """Return `rows` and so many rows without anything to predict that their number is a multiple of `multiple`.

    So many are evaluated at a time by all processes; accelerate would repeat rows for the last time, and count them.
    """
    missing = -len(rows) % multiple
    if not missing or multiple == 1:
        return rows
    first = rows[0]["input_ids"][:2]
    values = {"input_ids": first, "assistant_masks": [0] * len(first), "seq_lengths": [len(first)]}
    row = {name: values[name] for name in rows.column_names}
    return concatenate_datasets([rows, Dataset.from_list([row] * missing, features=rows.features)])


def _make_collator(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, joins: bool) -> TokenCollator:
    padding: Any = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    implementation = str(getattr(model.config, "_attn_implementation", ""))
    return TokenCollator(int(padding or 0), joins_packed_rows=joins or implementation.startswith("flash"))
