"""SeekletModel, the decoder, and its PreTrainedModel base: masks, positions, caches and initial weights."""

# B batch, S positions, H hidden

from itertools import islice
from typing import Any, ClassVar

import torch
from kernels import Mode, use_kernel_mapping
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import MoeModelOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .attention import SeekletAttention
from .balance import sum_over_ranks, updated_bias
from .batches import real_tokens
from .cache import LatentCache
from .checkpoint import CheckpointMixin
from .configuration import SeekletConfig
from .kernelize import kernel_mapping, kernelize, unkernelize
from .layer import SeekletDecoderLayer
from .masks import packed_first_keys
from .moe import SeekletExperts, SeekletMoE, SeekletRouter
from .mtp import SeekletMTPLayer, shift_left
from .norm import SeekletRMSNorm
from .rope import SeekletRotaryEmbedding


class SeekletPreTrainedModel(CheckpointMixin, PreTrainedModel):
    """Base of all seeklet models: what transformers may do with them, initial weights, checkpoints."""

    config: SeekletConfig
    config_class = SeekletConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[Any] = ["SeekletDecoderLayer", "SeekletMTPLayer"]
    _skip_keys_device_placement: ClassVar[Any] = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _keep_in_fp32_modules_strict: ClassVar[Any] = ["e_score_correction_bias"]
    _can_set_attn_implementation_cached_value = True
    _can_set_experts_implementation_cached_value = True
    _can_record_outputs: ClassVar[Any] = {
        "hidden_states": SeekletDecoderLayer,
        "attentions": SeekletAttention,
        "router_logits": OutputRecorder(SeekletRouter, index=0),
        "router_indices": OutputRecorder(SeekletRouter, index=2),
    }

    def __init__(self, config: SeekletConfig, *args: Any, **kwargs: Any):
        config.validate_fields()
        super().__init__(config, *args, **kwargs)

    def get_correct_experts_implementation(self, requested_experts: str | None) -> str:
        """Return the experts implementation to use; ours ("eager" to transformers) unless another is asked for."""
        return super().get_correct_experts_implementation(requested_experts or "eager")

    def set_use_kernels(self, use_kernels: bool, kernel_config: Any = None, mode: Mode | None = None) -> None:
        """Take seeklet's kernels, and with a `kernel_config` also those it names; without `use_kernels`, none.

        transformers calls this for `from_pretrained(..., use_kernels=True)`, and then at each `train()` and `eval()`.
        """
        if not use_kernels:
            unkernelize(self)
        if not use_kernels or kernel_config is not None:
            with use_kernel_mapping(kernel_mapping()):
                super().set_use_kernels(use_kernels, kernel_config, mode)
            return
        training = self.training if mode is None else Mode.TRAINING in mode
        kernelize(self, "training" if training else "inference", quiet=True)
        self._use_kernels = True

    def update_router_bias(
        self, group: torch.distributed.ProcessGroup | None = None, speed: float | None = None
    ) -> list[torch.Tensor]:
        """Return the expert load of each MoE layer since the last call, after moving every router's bias by it.

        Call once per optimiser step, on every rank: counts add up over gradient accumulation and are summed over the
        ranks of `group` (default: all). Each bias moves by `speed` (default: `config.bias_update_speed`) towards
        balance, in place; a speed of 0 freezes it, and the load is still returned. Layers are in order, MTP modules
        last; each load is int64 (n_routed_experts,). Source: DeepSeek-V3 report, section 2.1.2.
        """
        layers = [module for module in self.modules() if isinstance(module, SeekletMoE)]
        if not layers:
            return []
        device = layers[0].router.e_score_correction_bias.device
        empty = torch.zeros(self.config.n_routed_experts, dtype=torch.int64, device=device)
        load = [empty if layer.expert_counts is None else layer.expert_counts.to(device) for layer in layers]
        total = sum_over_ranks(torch.stack(load), group)
        speed = self.config.bias_update_speed if speed is None else speed
        for layer, counts in zip(layers, total, strict=True):
            bias = layer.router.e_score_correction_bias
            bias.copy_(updated_bias(bias, counts.to(bias.device), speed))
            layer.expert_counts = None
        return list(total)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, SeekletRouter):
            init.normal_(module.weight, mean=0.0, std=std)
            init.zeros_(module.e_score_correction_bias)
        elif isinstance(module, SeekletExperts):
            for weight in module.parameters(recurse=False):
                init.normal_(weight, mean=0.0, std=std)


class SeekletModel(SeekletPreTrainedModel):
    """The decoder without a head. `layers` holds the main layers and behind them the MTP modules."""

    def __init__(self, config: SeekletConfig):
        super().__init__(config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        last = config.num_hidden_layers + config.num_nextn_predict_layers
        self.layers = nn.ModuleList(
            (SeekletDecoderLayer if i < config.num_hidden_layers else SeekletMTPLayer)(config, i) for i in range(last)
        )
        self.norm = SeekletRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = SeekletRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        expert_choice: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> MoeModelOutputWithPast:
        """Return the normed hidden states (B, S, H) of the main layers, and the cache where one is used.

        Packed sequences in one row are told apart by `position_ids` (B, S) starting again at 0, or by `cu_seqlens`
        (N + 1,), the offsets of N sequences packed in a single row. `expert_choice` (L, B, S, K) are the experts that
        each token goes to in each of the L main layers that route, negative where the router is to choose
        (`routing_record`).

        Raises:
            ValueError: neither or both of `input_ids` and `inputs_embeds` are given; `cu_seqlens` does not fit.
        """
        inputs_embeds = self._embed(input_ids, inputs_embeds)
        if position_ids is None:
            position_ids = self._positions(inputs_embeds, past_key_values, kwargs.pop("cu_seqlens", None))
        shared = self._shared_inputs(inputs_embeds, attention_mask, position_ids, past_key_values)
        # Only now: given a cache, even an empty one, transformers' mask takes packed sequences for one.
        if use_cache and past_key_values is None:
            past_key_values = LatentCache(self.config.num_hidden_layers)
        hidden_states = inputs_embeds
        for index, layer in enumerate(islice(self.layers, self.config.num_hidden_layers)):
            if expert_choice is not None and layer.is_moe:
                kwargs["expert_choice"] = expert_choice[index - self.config.first_k_dense_replace]
            hidden_states = layer(hidden_states, past_key_values=past_key_values, **shared, **kwargs)
        return MoeModelOutputWithPast(last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values)

    def mtp_hidden_states(
        self,
        last_hidden_state: torch.Tensor,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> list[torch.Tensor]:
        """Return h^1 ... h^D, each (B, S, H) and ready for the head, over whole sequences (training; no cache).

        `last_hidden_state` is what `forward` returned for the same inputs. At position i, h^k is fit to predict token
        i + k + 1 (`mtp.mtp_labels`). The last k positions of a sequence see a zero embedding or another sequence's;
        nothing before them attends to them.
        """
        inputs_embeds = self._embed(input_ids, inputs_embeds)
        if position_ids is None:
            position_ids = self._positions(inputs_embeds, None, kwargs.pop("cu_seqlens", None))
        shared = self._shared_inputs(inputs_embeds, attention_mask, position_ids, None)
        states = []
        for depth, layer in enumerate(islice(self.layers, self.config.num_hidden_layers, None), start=1):
            last_hidden_state = layer(last_hidden_state, shift_left(inputs_embeds, depth), **shared, **kwargs)
            states.append(last_hidden_state)
        return states

    def _embed(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None) -> torch.Tensor:
        if inputs_embeds is not None and input_ids is None:
            return inputs_embeds
        if input_ids is None or inputs_embeds is not None:
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        return self.embed_tokens(input_ids)

    def _positions(
        self, inputs_embeds: torch.Tensor, past_key_values: Cache | None, cu_seqlens: torch.Tensor | None
    ) -> torch.Tensor:
        length, device = inputs_embeds.shape[1], inputs_embeds.device
        positions = torch.arange(length, device=device)
        if cu_seqlens is not None:
            offsets = cu_seqlens.to(device=device, dtype=torch.int64)
            if inputs_embeds.shape[0] != 1 or offsets[0] != 0 or offsets[-1] != length or (offsets.diff() < 0).any():
                raise ValueError(
                    f"cu_seqlens is {cu_seqlens.tolist()} for inputs of shape {tuple(inputs_embeds.shape[:2])}; "
                    f"allowed: a single row, offsets rising from 0 to its length ({length})"
                )
            positions = positions - offsets[torch.searchsorted(offsets, positions, right=True) - 1]
        elif past_key_values is not None:
            positions = positions + past_key_values.get_seq_length()
        return positions.unsqueeze(0)

    def _shared_inputs(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor,
        past_key_values: Cache | None,
    ) -> dict[str, Any]:
        """Return what every layer of one pass is given: what it sees, rope, positions, and which tokens are padding."""
        mask = first_keys = None
        layers: Any = self.layers
        plain = attention_mask is None and past_key_values is None
        if plain and all(layer.self_attn.attends_by_kernel() for layer in layers):
            first_keys = packed_first_keys(position_ids)
        else:
            mask = create_causal_mask(
                config=self.config,
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                position_ids=position_ids,
            )
        return {
            "attention_mask": mask,
            "first_keys": first_keys,
            "position_embeddings": self.rotary_emb(inputs_embeds, position_ids),
            "position_ids": position_ids,
            "token_mask": real_tokens(inputs_embeds.shape, attention_mask, position_ids) if self.training else None,
            # Passes without gradients (a reference model's, generation while training) are no training load.
            "count_load": self.training and torch.is_grad_enabled(),
        }
