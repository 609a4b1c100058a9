"""GRPO on TRL's GRPOTrainer, with the rollouts, losses and routers of DeepSeek-V3-architecture models."""

# B rows of a micro-batch, P prompt and C completion tokens, L layers that route, K experts chosen per token

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from seeklet.modeling.mtp import IGNORE_INDEX
from seeklet.modeling.routing_record import RoutingRecord, padded_positions

from .balance import RouterBiasCallback, moe_layer_indices
from .limits import MAX_SHARD_GB
from .read_once import reference_like_policy
from .router_record import share_of_changed_routes, write_router_logits
from .sampling_trainer import SamplingTrainer
from .throughput import memory_gib
from .training_model import MtpLoss, find_seeklet

# TRL loss types whose mean is over rows, or over the tokens, of the micro-batch; the others divide by what the whole
# step holds, whatever the micro-batch is.
MEANS_OVER_ROWS = ("grpo", "sapo", "dr_grpo", "luspo")
MEANS_OVER_TOKENS = ("bnpo",)


class SeekletGRPOTrainer(SamplingTrainer, GRPOTrainer):
    """TRL's GRPOTrainer with other rollouts and log-probabilities; objective, advantages and settings are TRL's.

    Rollouts read each prompt once and let ended rows leave the batch, with multi-token prediction drafts where asked
    for. A seeklet model computes log-probabilities itself and keeps its multi-token prediction and balance losses,
    which TRL would lose; its router biases stay as they are unless `bias_update_speed` is given; and training can send
    each token to the experts that the rollout sent it to (routing replay, arXiv 2510.11370). Rows whose advantage is 0
    have no gradient, and are left out of the passes where nothing else would need them.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        rewards: Sequence[Callable[..., list[float | None]]],
        config: GRPOConfig,
        tokenizer: PreTrainedTokenizerBase,
        train: Dataset,
        validation: Dataset | None = None,
        *,
        mtp_loss: MtpLoss = "detached",
        bias_update_speed: float = 0.0,
        drafts: bool = False,
        replays_routing: bool = False,
        router_folder: Path | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        max_shard_gb: float = MAX_SHARD_GB,
    ):
        """Make a trainer.

        Args:
            model: the policy.
            rewards: as TRL takes them: called with `prompts`, `completions` and every other column of the data.
            config: TRL's.
            tokenizer: is saved with the model, and decodes completions.
            train: rows with `prompt` and whatever the rewards need.
            validation: the same, or None.
            mtp_loss: how multi-token prediction modules are trained on the samples; "detached" keeps drafts good
                without a gradient into the policy.
            bias_update_speed: how far a router bias moves per optimiser step; 0 freezes it, as is usual in RL.
            drafts: whether multi-token prediction modules draft the rollouts.
            replays_routing: whether training uses the experts that the rollout used.
            router_folder: where router logits of some rows of each logged step are written; the share of experts that
                training would choose otherwise than the rollout is logged then, too.
            callbacks: beside those of Trainer.
            max_shard_gb: the largest file of a saved model.
        """
        bare: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        self._seeklet = find_seeklet(bare)
        uses_cache = getattr(bare.config, "use_cache", True)
        with reference_like_policy():
            super().__init__(
                model=model,
                reward_funcs=list(rewards),
                args=config,
                train_dataset=train,
                eval_dataset=validation,
                processing_class=tokenizer,
                callbacks=list(callbacks),
                max_shard_gb=max_shard_gb,
            )
        bare.config.use_cache = uses_cache
        self.send_published_names(self._seeklet)
        self._mtp_loss, self._replays = mtp_loss, replays_routing and self._seeklet is not None
        self._drafts = drafts and self._seeklet is not None
        self._router_folder = None if self._seeklet is None else router_folder
        # Of the micro-batch: what its loss has beside the policy's, and where its tokens were sent.
        self._extra_loss: torch.Tensor | None = None
        self._expert_choice: torch.Tensor | None = None
        self._record: RoutingRecord | None = None
        self.remove_callback(PrinterCallback)
        if self._seeklet is not None:
            # TRL's forward of its own would lose what the model's adds up.
            vars(bare).pop("forward", None)
            if moe_layer_indices(self._seeklet):
                self.callback_handler.callbacks.insert(0, RouterBiasCallback(bias_update_speed))

    def _generate_single_turn(
        self, prompt_ids: Any, images: Any, multimodal_fields: Any, num_generations: int, **kwargs: Any
    ) -> tuple[list[list[int]], Any]:
        if self.use_vllm or self.use_transformers_continuous_batching or images is not None:
            return super()._generate_single_turn(prompt_ids, images, multimodal_fields, num_generations, **kwargs)
        # One row per sample comes in; those of a prompt stand together.
        size = num_generations if _are_groups(prompt_ids, num_generations) else 1
        samples = self.draw_samples(
            prompt_ids[::size], size, self._drafts, self._replays or self._router_folder is not None
        )
        self._record = samples.routing
        return samples.tokens, None

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        if self._record is not None:
            # In the batch, so that TRL shuffles and splits it with the rows it belongs to.
            mask = torch.cat((batch["prompt_mask"], batch["completion_mask"]), dim=1)
            batch["expert_choice"] = self._recorded_choice(mask)
            self._record = None
        return batch

    def _recorded_choice(self, mask: torch.Tensor) -> torch.Tensor:
        """Return the experts of the rollout's rows, padded as `mask` (B, P+C) says: int16 (B, P+C, L, K)."""
        assert self._record is not None
        rows = torch.arange(len(mask), device=mask.device)
        return self._record.read(rows, mask).movedim(0, 2).to(torch.int16)

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        inputs, share = self._with_advantage(inputs)
        inputs = _without_padding(inputs)
        self._expert_choice = inputs.pop("expert_choice", None)
        self._extra_loss = None
        loss = super()._compute_loss(model, inputs) * share
        if self._extra_loss is not None:
            loss = loss + self._extra_loss / self.current_gradient_accumulation_steps
        self._expert_choice = None
        return loss

    def _with_advantage(self, inputs: dict[str, Any]) -> tuple[dict[str, Any], float | torch.Tensor]:
        """Return the rows that have a gradient, and what their mean is to be multiplied by to be that of all rows."""
        advantages = inputs["advantages"]
        needs_all = self.beta != 0 or self._entropy_bonus_enabled or self.aux_loss_enabled
        if needs_all or advantages.dim() != 1 or not torch.is_grad_enabled():
            return inputs, 1.0
        kept = advantages != 0
        # As many as the process with most: values of each row are gathered; and one at least, so that there is a graph.
        most: Any = self.accelerator.gather(kept.sum().clamp(min=1)[None])
        missing = int(most.max()) - int(kept.sum())
        kept[(~kept).nonzero().squeeze(1)[:missing]] = True
        if kept.all():
            return inputs, 1.0
        mask = inputs["completion_mask"]
        if "tool_mask" in inputs:
            mask = mask * inputs["tool_mask"]
        share: float | torch.Tensor = 1.0
        if self.loss_type in MEANS_OVER_ROWS:
            share = kept.float().mean()
        elif self.loss_type in MEANS_OVER_TOKENS:
            share = mask[kept].sum() / mask.sum().clamp(min=1)
        num_rows = len(kept)
        rows = {
            name: value[kept] if isinstance(value, torch.Tensor) and value.dim() and len(value) == num_rows else value
            for name, value in inputs.items()
        }
        return rows, share

    def _get_per_token_logps_and_entropies(
        self,
        model: nn.Module,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        if find_seeklet(model) is None:
            given = (input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy)
            return super()._get_per_token_logps_and_entropies(model, *given, **kwargs)
        log_probs, entropies = [], []
        size = batch_size or len(input_ids)
        # Right behind a rollout its record is there, later what TRL's batch has of it.
        choice = self._expert_choice if self._record is None else self._recorded_choice(attention_mask)
        for start in range(0, len(input_ids), size):
            part = slice(start, start + size)
            outputs = self._forward(
                model, input_ids[part], attention_mask[part], logits_to_keep, None if choice is None else choice[part]
            )
            # A label's values stand one place in front of it.
            log_probs.append(outputs.log_probs[:, -logits_to_keep - 1 : -1])
            entropies.append(outputs.entropy[:, -logits_to_keep - 1 : -1])
        return torch.cat(log_probs), torch.cat(entropies) if compute_entropy else None, None

    def _forward(
        self,
        model: nn.Module,
        tokens: torch.Tensor,
        mask: torch.Tensor,
        num_completion: int,
        choice: torch.Tensor | None,
    ) -> Any:
        trains = model.training and torch.is_grad_enabled()
        labels = tokens.masked_fill(mask == 0, IGNORE_INDEX)
        labels[:, :-num_completion] = IGNORE_INDEX
        replayed = {"expert_choice": choice.movedim(2, 0).long()} if choice is not None and self._replays else {}
        records = trains and self._router_folder is not None
        with self.accelerator.autocast():
            outputs = model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=padded_positions(mask).clamp(min=0),
                labels=labels,
                temperature=self.temperature,
                mtp_loss=self._mtp_loss if trains else "off",
                return_logits=False,
                use_cache=False,
                output_router_logits=records,
                **replayed,
            )
        if records and choice is not None:
            self._record_router(outputs.router_logits, tokens, mask, choice)
        if trains:
            self._extra_loss = outputs.loss if outputs.loss.requires_grad else None
            for name in ("mtp_loss", "balance_loss"):
                if (part := getattr(outputs, name)) is not None:
                    mean: Any = self.accelerator.reduce(part.detach(), reduction="mean")
                    self._metrics["train"][name].append(mean.item())
        return outputs

    def _record_router(
        self, logits: Sequence[torch.Tensor], tokens: torch.Tensor, mask: torch.Tensor, choice: torch.Tensor
    ) -> None:
        assert self._seeklet is not None and self._router_folder is not None
        share = share_of_changed_routes(self._seeklet, logits, choice)
        mean: Any = self.accelerator.reduce(share, reduction="mean")
        self._metrics["train"]["routes_changed"].append(mean.item())
        # The step that is going on; of several micro-batches the last one stays.
        step = self.state.global_step + 1
        if self.accelerator.is_main_process and step % max(1, int(self.state.logging_steps)) == 0:
            write_router_logits(self._router_folder / f"step-{step}.safetensors", tokens, mask, logits, choice)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log what TRL has measured; to an entry of training add the memory."""
        if "loss" in logs:
            logs["memory_gib"] = memory_gib(self.args.device)
        super().log(logs, start_time)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the card is written when the run is done."""

    def _send_telemetry(self) -> None:
        """Send nothing: what a company trains is its own affair."""


def _are_groups(prompts: Sequence[Sequence[int]], size: int) -> bool:
    """Return whether rows come in groups of `size` with the same prompt."""
    groups = [prompts[start : start + size] for start in range(0, len(prompts), size)]
    return all(len(group) == size and all(prompt == group[0] for prompt in group) for group in groups)


def _without_padding(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the rows without columns in which all of them are padding: on the left of prompts, behind completions."""
    num_prompt = int(inputs["prompt_mask"].sum(1).max())
    num_completion = max(1, int(inputs["completion_mask"].sum(1).max()))
    old_prompt, old_completion = inputs["prompt_ids"].shape[1], inputs["completion_ids"].shape[1]
    cut = {}
    for name, value in inputs.items():
        if name in ("prompt_ids", "prompt_mask"):
            cut[name] = value[:, old_prompt - num_prompt :]
        elif name == "expert_choice":
            cut[name] = value[:, old_prompt - num_prompt : old_prompt + num_completion]
        elif isinstance(value, torch.Tensor) and value.dim() == 2 and value.shape[1] == old_completion:
            cut[name] = value[:, :num_completion]
        else:
            cut[name] = value
    return cut
