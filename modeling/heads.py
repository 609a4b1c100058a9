"""The heads: causal language model with MTP and balance losses, and the two classifiers."""

# B batch, S positions, H hidden, T = B*S tokens, E experts

import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.modeling_layers import GenericForSequenceClassification, GenericForTokenClassification
from transformers.modeling_outputs import MoeCausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils.generic import can_return_tuple

from .balance import count_experts, sequence_balance_loss, sequence_ids
from .cache import LatentCache
from .configuration import SeekletConfig
from .head_loss import summed_head_loss
from .linear import SeekletLinear
from .model import SeekletModel, SeekletPreTrainedModel
from .mtp import IGNORE_INDEX, mtp_labels, shift_left
from .mtp_generation import check_mtp_request, generate_with_mtp


@dataclass
class SeekletCausalLMOutput(MoeCausalLMOutputWithPast):
    """What SeekletForCausalLM returns beside transformers' fields.

    `loss` is `lm_loss` in evaluation; in training it adds `mtp_loss_weight * mtp_loss` and
    `balance_loss_weight * balance_loss`. `expert_load` holds, where asked for, one int64 (E,) per MoE layer.
    """

    lm_loss: torch.Tensor | None = None
    mtp_loss: torch.Tensor | None = None
    balance_loss: torch.Tensor | None = None
    expert_load: tuple[torch.Tensor, ...] | None = None


class SeekletForCausalLM(SeekletPreTrainedModel, GenerationMixin):
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
        """
        shift_labels = kwargs.pop("shift_labels", None)
        asked_router_logits = kwargs.pop("output_router_logits", self.config.output_router_logits)
        has_labels = labels is not None or shift_labels is not None
        with_balance = self.training and has_labels and self._has_balance_loss()
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
            output_router_logits=asked_router_logits or with_balance,
            output_router_indices=output_expert_load,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        if return_logits is None:
            return_logits = not (self.training and has_labels)
        losses = {}
        if has_labels:
            losses = self._losses(
                hidden, outputs.router_logits, labels, shift_labels, inputs, num_items_in_batch, mtp_loss, kwargs
            )
        expert_load = None
        if output_expert_load:
            valid = _real_tokens(inputs)
            expert_load = tuple(
                count_experts(
                    indices, self.config.n_routed_experts, None if valid is None else valid.to(indices.device)
                )
                for indices in outputs.router_indices
            )
        # Made in one go: a field set afterwards is no item of the output, where Trainer looks for the loss.
        return SeekletCausalLMOutput(
            **losses,
            logits=self.lm_head(slice_logits_to_keep(hidden, logits_to_keep)) if return_logits else None,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.router_logits if asked_router_logits else None,
            expert_load=expert_load,
        )

    def _has_balance_loss(self) -> bool:
        has_experts = self.config.first_k_dense_replace < self.config.num_hidden_layers
        return has_experts and self.config.balance_loss_weight > 0

    def _losses(
        self,
        hidden: torch.Tensor,
        router_logits: tuple[torch.Tensor, ...] | None,
        labels: torch.Tensor | None,
        shift_labels: torch.Tensor | None,
        inputs: dict[str, Any],
        num_items_in_batch: torch.Tensor | int | None,
        mtp_loss: str,
        kwargs: dict[str, Any],
    ) -> dict[str, Any]:
        """Return the losses of the output by their names; MTP and balance in training with `labels` only."""
        if shift_labels is None:
            assert labels is not None
            shift_labels = shift_left(labels, 1, IGNORE_INDEX)
        elif labels is None:
            # What the deeper modules predict stands in the same labels, one place further to the right.
            labels = torch.cat((torch.full_like(shift_labels[:, :1], IGNORE_INDEX), shift_labels[:, :-1]), dim=1)
        losses = {"lm_loss": self.head_loss(hidden, shift_labels, num_items_in_batch)}
        loss = losses["lm_loss"]
        if self.training and self.config.num_nextn_predict_layers and mtp_loss != "off":
            losses["mtp_loss"] = self._mtp_loss(hidden, labels, inputs, num_items_in_batch, mtp_loss, kwargs)
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
            share = _share_of_batch(labels, num_items_in_batch)
            loss = loss + (self.config.balance_loss_weight * share * losses["balance_loss"]).to(loss.device)
        return {"loss": loss, **losses}

    def _mtp_loss(
        self,
        hidden: torch.Tensor,
        labels: torch.Tensor,
        inputs: dict[str, Any],
        num_items_in_batch: torch.Tensor | int | None,
        mode: str,
        kwargs: dict[str, Any],
    ) -> torch.Tensor:
        if mode not in ("detached", "full"):
            raise ValueError(f"mtp_loss is {mode!r}; allowed: off, detached, full")
        positions, seen = self._mtp_positions(inputs, kwargs), inputs
        if mode == "detached":
            embeds = self.model._embed(inputs["input_ids"], inputs["inputs_embeds"]).detach()
            hidden, seen = hidden.detach(), inputs | {"input_ids": None, "inputs_embeds": embeds}
        states = self.model.mtp_hidden_states(hidden, **seen, **kwargs)
        return self.mtp_loss(states, labels, positions, num_items_in_batch, head_is_constant=mode == "detached")

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

    # pyright cannot see that this class is what GenerationMixin's methods ask of `self`.
    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
        given = model_kwargs.get("past_key_values")
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)  # pyright: ignore
        cache = model_kwargs.get("past_key_values")
        if given is None and type(cache) is DynamicCache and not cache.offloading:
            model_kwargs["past_key_values"] = LatentCache(self.config.num_hidden_layers)

    def _validate_generation_mode(self, generation_mode, generation_config, generation_mode_kwargs):
        if generation_config.use_mtp:
            check_mtp_request(self, generation_mode, generation_config, generation_mode_kwargs)
        else:
            super()._validate_generation_mode(generation_mode, generation_config, generation_mode_kwargs)  # pyright: ignore

    def _assisted_decoding(self, input_ids, *, generation_config, inputs_tensor=None, **kwargs):
        # generate() looks for `inputs_tensor` in this signature.
        if generation_config.use_mtp:
            return generate_with_mtp(self, input_ids, generation_config=generation_config, **kwargs)
        return super()._assisted_decoding(  # pyright: ignore
            input_ids, generation_config=generation_config, inputs_tensor=inputs_tensor, **kwargs
        )


def _real_tokens(inputs: dict[str, Any]) -> torch.Tensor | None:
    """Return which tokens of the pass are no padding: bool (B*S,), or None where no padding mask is given."""
    tokens = inputs["input_ids"] if inputs["input_ids"] is not None else inputs["inputs_embeds"]
    mask = inputs["attention_mask"]
    return mask.flatten().bool() if mask is not None and mask.shape == tokens.shape[:2] else None


def _share_of_batch(labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None) -> torch.Tensor | float:
    """Return the part of an optimiser step's labels that this micro-batch holds, by which its mean loss counts."""
    if num_items_in_batch is None:
        return 1.0
    items = (labels[:, 1:] != IGNORE_INDEX).sum()
    return items / (
        num_items_in_batch.to(items.device) if isinstance(num_items_in_batch, torch.Tensor) else num_items_in_batch
    )


class _WithoutMTP:
    """A classifier has no next token to predict: its decoder is built without MTP modules."""

    _uses_mtp = False

    def __init__(self, config: SeekletConfig):
        config = copy.deepcopy(config)
        config.num_nextn_predict_layers = 0
        super().__init__(config)  # pyright: ignore[reportCallIssue]


class SeekletForSequenceClassification(_WithoutMTP, GenericForSequenceClassification, SeekletPreTrainedModel):
    """Classifier of whole sequences, from the hidden state of the last token that is not padding."""


class SeekletForTokenClassification(_WithoutMTP, GenericForTokenClassification, SeekletPreTrainedModel):
    """Classifier of every token."""
