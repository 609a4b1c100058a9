"""The causal language model: logits or log-probabilities, with MTP and balance losses."""

# B batch, S positions, H hidden, T = B*S tokens, E experts

from typing import Any, ClassVar, Literal, NamedTuple

import torch
from transformers.cache_utils import Cache
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils.generic import can_return_tuple

from .balance import count_experts, sequence_balance_loss, sequence_ids
from .batches import real_tokens, share_of_batch
from .configuration import SeekletConfig
from .generation import SeekletGenerationMixin
from .head_loss import head_log_probs, summed_head_loss
from .linear import SeekletLinear
from .model import SeekletModel, SeekletPreTrainedModel
from .mtp import IGNORE_INDEX, mtp_labels, shift_left
from .outputs import SeekletCausalLMOutput


class Objective(NamedTuple):
    """What the losses of a pass are made of, each as in `SeekletForCausalLM.forward`."""

    labels: torch.Tensor | None
    shift_labels: torch.Tensor | None
    num_items_in_batch: torch.Tensor | int | None
    mtp_loss: Literal["off", "detached", "full"]
    temperature: float | None

    @property
    def has_labels(self) -> bool:
        """Whether there is anything to predict."""
        return self.labels is not None or self.shift_labels is not None

    def both_labels(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return labels (B, S) and shifted labels (B, S), one made of the other where it is not given."""
        labels, shifted = self.labels, self.shift_labels
        if shifted is None:
            assert labels is not None
            shifted = shift_left(labels, 1, IGNORE_INDEX)
        elif labels is None:
            # What the deeper modules predict stands in the same labels, one place further to the right.
            labels = torch.cat((torch.full_like(shifted[:, :1], IGNORE_INDEX), shifted[:, :-1]), dim=1)
        return labels, shifted


class SeekletForCausalLM(SeekletPreTrainedModel, SeekletGenerationMixin):
    """DeepSeek-V3-architecture causal language model."""

    _tied_weights_keys: ClassVar[Any] = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan: ClassVar[Any] = {"lm_head": "colwise_gather_output"}
    _pp_plan: ClassVar[Any] = {"lm_head": (["hidden_states"], ["logits"])}
    _fsdp_plan: ClassVar[Any] = {"lm_head": "keep_full_weight"}

    def __init__(self, config: SeekletConfig):
        super().__init__(config)
        self.model = SeekletModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = SeekletLinear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        return_logits: bool | None = None,
        output_expert_load: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
        mtp_loss: Literal["off", "detached", "full"] = "full",
        temperature: float | None = None,
        **kwargs: Any,
    ) -> SeekletCausalLMOutput:
        """Return logits and, with `labels` (B, S), losses.

        Args:
            labels: token ids, -100 where nothing is to be predicted; shifted here. `shift_labels` (B, S) may be given
                instead of or beside it, already shifted.
            return_logits: the logits (B, S, vocab) are only materialised where wanted; by default not in training
                with labels, where the loss is computed in chunks from the hidden states.
            output_expert_load: also return how many tokens, padding left out, each expert of each MoE layer got.
            num_items_in_batch: labels in the whole batch of an optimiser step (transformers' Trainer gives it); the
                losses are then sums divided by it, so that they add up over gradient accumulation.
            mtp_loss: how the MTP modules are trained in a training pass: by a loss whose gradient goes on into the
                main model, the embedding and the head ("full"), by one that ends in the modules ("detached"), or not.
            temperature: instead of the next-token loss return the log-probability of each label and the entropy of its
                distribution, of logits divided by this, at the position in front of the label; 0 where the label is
                -100. Reinforcement learning makes its loss of them.
        """
        objective = Objective(labels, kwargs.pop("shift_labels", None), num_items_in_batch, mtp_loss, temperature)
        # The main layers' own: MTP modules choose their experts themselves.
        expert_choice = kwargs.pop("expert_choice", None)
        asked_router_logits = kwargs.pop("output_router_logits", self.config.output_router_logits)
        trained = self.training and objective.has_labels
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        outputs = self.model(
            **inputs,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_router_logits=asked_router_logits or (trained and self._has_balance_loss()),
            output_router_indices=output_expert_load,
            expert_choice=expert_choice,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        losses = {}
        if objective.has_labels:
            losses = self._losses(hidden, outputs.router_logits, objective, inputs, kwargs)
        if return_logits is None:
            return_logits = not trained
        # Made in one go: a field set afterwards is no item of the output, where Trainer looks for the loss.
        return SeekletCausalLMOutput(
            **losses,
            logits=self.lm_head(slice_logits_to_keep(hidden, logits_to_keep)) if return_logits else None,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.router_logits if asked_router_logits else None,
            expert_load=self._expert_load(outputs.router_indices, inputs) if output_expert_load else None,
        )

    def _expert_load(
        self, router_indices: tuple[torch.Tensor, ...], inputs: dict[str, Any]
    ) -> tuple[torch.Tensor, ...]:
        """Return for each MoE layer how many real tokens went to each expert: int64 (E,)."""
        valid, num_experts = _real_tokens(inputs), self.config.n_routed_experts
        return tuple(
            count_experts(indices, num_experts, None if valid is None else valid.to(indices.device))
            for indices in router_indices
        )

    def _has_balance_loss(self) -> bool:
        has_experts = self.config.first_k_dense_replace < self.config.num_hidden_layers
        return has_experts and self.config.balance_loss_weight > 0

    def _losses(
        self,
        hidden: torch.Tensor,
        router_logits: tuple[torch.Tensor, ...] | None,
        objective: Objective,
        inputs: dict[str, Any],
        kwargs: dict[str, Any],
    ) -> dict[str, Any]:
        """Return the losses of the output by their names; MTP and balance in training only."""
        labels, shift_labels = objective.both_labels()
        items = objective.num_items_in_batch
        losses = {}
        if objective.temperature is None:
            losses["lm_loss"] = loss = self.head_loss(hidden, shift_labels, items)
        else:
            values = head_log_probs(self.lm_head, hidden.flatten(0, 1), shift_labels.flatten(), objective.temperature)
            losses["log_probs"], losses["entropy"] = (value.view(shift_labels.shape) for value in values)
            loss = losses["log_probs"].new_zeros(())
        if self.training and self.config.num_nextn_predict_layers and objective.mtp_loss != "off":
            losses["mtp_loss"] = self._mtp_loss(hidden, labels, objective, inputs, kwargs)
            loss = loss + self.config.mtp_loss_weight * losses["mtp_loss"].to(loss.device)
        if self.training and self._has_balance_loss():
            assert router_logits is not None
            frozen = hidden.requires_grad and not any(logits.requires_grad for logits in router_logits)
            # Otherwise it is so because nothing in front of a router is trained, as with adapters of the last experts.
            if frozen and self.is_gradient_checkpointing:
                raise ValueError(
                    "the balance loss would have no gradient under reentrant checkpointing; pass "
                    "gradient_checkpointing_kwargs={'use_reentrant': False} or set balance_loss_weight to 0"
                )
            losses["balance_loss"] = self.balance_loss(router_logits, inputs, kwargs)
            share = share_of_batch(labels, items)
            loss = loss + (self.config.balance_loss_weight * share * losses["balance_loss"]).to(loss.device)
        return {"loss": loss, **losses}

    def _mtp_loss(
        self,
        hidden: torch.Tensor,
        labels: torch.Tensor,
        objective: Objective,
        inputs: dict[str, Any],
        kwargs: dict[str, Any],
    ) -> torch.Tensor:
        mode = objective.mtp_loss
        if mode not in ("detached", "full"):
            raise ValueError(f"mtp_loss is {mode!r}; allowed: off, detached, full")
        positions, seen = self._mtp_positions(inputs, kwargs), inputs
        if mode == "detached":
            embeds = self.model._embed(inputs["input_ids"], inputs["inputs_embeds"]).detach()
            hidden, seen = hidden.detach(), inputs | {"input_ids": None, "inputs_embeds": embeds}
        states = self.model.mtp_hidden_states(hidden, **seen, **kwargs)
        return self.mtp_loss(states, labels, positions, objective.num_items_in_batch, mode == "detached")

    def head_loss(
        self,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None = None,
        head_is_constant: bool = False,
    ) -> torch.Tensor:
        """Return the mean cross entropy (nats) of the head at `targets` (B, S), without materialising logits.

        `hidden` is (B, S, H), normed. The mean is over targets that are not -100, or the sum is divided by
        `num_items_in_batch`. NaN where nothing is labelled, as in PyTorch. With `head_is_constant` the gradient reaches
        `hidden` only.
        """
        total = summed_head_loss(self.lm_head, hidden.flatten(0, 1), targets.flatten(), head_is_constant)
        items = (targets != IGNORE_INDEX).sum() if num_items_in_batch is None else num_items_in_batch
        return total / (items.to(total.device) if isinstance(items, torch.Tensor) else items)

    def mtp_loss(
        self,
        states: list[torch.Tensor],
        labels: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        head_is_constant: bool = False,
    ) -> torch.Tensor:
        """Return the mean over the D modules of their cross entropy: equation 25 without lambda.

        Args:
            states: h^1 ... h^D from `model.mtp_hidden_states`.
            labels: (B, S), not shifted.
            position_ids: (B or 1, S), where sequences are packed or padded: each starts at 0, padding is 0.
            num_items_in_batch: as in `forward`.
            head_is_constant: the gradient reaches `states` but not the head.
        """
        losses = []
        for depth, hidden in enumerate(states, start=1):
            targets = mtp_labels(labels, depth, position_ids)
            # A batch of sequences too short for this depth has nothing to predict: it counts 0, not NaN.
            items = num_items_in_batch
            if items is None:
                items = (targets != IGNORE_INDEX).sum().clamp(min=1)
            losses.append(self.head_loss(hidden, targets, items, head_is_constant))
        return torch.stack(losses).mean()

    def balance_loss(
        self, router_logits: tuple[torch.Tensor, ...], inputs: dict[str, Any], kwargs: dict[str, Any] | None = None
    ) -> torch.Tensor:
        """Return the sum over layers of the sequence-wise balance loss, without its coefficient.

        Args:
            router_logits: one (T, E) per MoE layer, as `output_router_logits=True` returns them.
            inputs: the `input_ids` or `inputs_embeds`, `attention_mask` and `position_ids` of the pass.
        """
        tokens = inputs["input_ids"] if inputs["input_ids"] is not None else inputs["inputs_embeds"]
        batch, length = tokens.shape[:2]
        rows = torch.arange(batch, device=tokens.device)[:, None]
        positions = self._packing(inputs, kwargs or {})
        if positions is None:
            ids, num_sequences = rows.expand(batch, length), batch
        else:
            # Sequence ids of a row stay below its length, so ids of different rows do not meet.
            ids, num_sequences = sequence_ids(positions) + rows * length, batch * length
        valid = _real_tokens(inputs)
        losses = [
            sequence_balance_loss(
                logits,
                ids.flatten().to(logits.device),
                num_sequences,
                self.config.num_experts_per_tok,
                self.config.scoring_func,
                None if valid is None else valid.to(logits.device),
            )
            for logits in router_logits
        ]
        return torch.stack([loss.to(losses[0].device) for loss in losses]).sum()

    def _packing(self, inputs: dict[str, Any], kwargs: dict[str, Any]) -> torch.Tensor | None:
        """Return position ids where they may tell packed sequences apart, else None."""
        # With a padding mask transformers takes a row for one sequence, whatever its positions are.
        if inputs["attention_mask"] is not None and inputs["attention_mask"].dim() == 2:
            return None
        if inputs["position_ids"] is None and kwargs.get("cu_seqlens") is not None:
            tokens = inputs["input_ids"] if inputs["input_ids"] is not None else inputs["inputs_embeds"]
            return self.model._positions(tokens, None, kwargs["cu_seqlens"])
        return inputs["position_ids"]

    def _mtp_positions(self, inputs: dict[str, Any], kwargs: dict[str, Any]) -> torch.Tensor | None:
        """Return position ids that tell packed sequences, and padding from both its sides, apart; else None."""
        mask = inputs["attention_mask"]
        if mask is None or mask.dim() != 2:
            return self._packing(inputs, kwargs)
        # Left of a row a module at depth k would predict the first k + 1 tokens from padding.
        return (mask.cumsum(1) - 1).masked_fill(mask == 0, 0)


def _real_tokens(inputs: dict[str, Any]) -> torch.Tensor | None:
    tokens = inputs["input_ids"] if inputs["input_ids"] is not None else inputs["inputs_embeds"]
    real = real_tokens(tokens.shape, inputs["attention_mask"], inputs["position_ids"])
    return None if real is None else real.flatten()
