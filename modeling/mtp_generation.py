"""The hook of `generate(use_mtp=True)` in transformers' generation: what may be asked for, and the hand-over."""

from typing import Any, cast

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.generation import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.logits_process import (
    SynthIDTextWatermarkLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)
from transformers.utils.generic import is_flash_attention_requested

from .cache import GrowingLayer
from .errors import GenerationError
from .kernels.mla_decode.reference import decode_is_cheaper
from .mtp_decoding import MTPDecoding, SeekletMTPOutput
from .prefix_rules import RowEnds

# `model` is a SeekletForCausalLM throughout: Any, because transformers types the methods of its generation for a
# protocol that no model meets.

# Arguments of `generate` -> what they may be with use_mtp=True.
ALLOWED_ARGUMENTS = {
    "use_cache": (None, True),
    "cache_implementation": (None, "dynamic"),
    "output_attentions": (None, False),
    "output_hidden_states": (None, False),
    "prefill_chunk_size": (None,),
    "prompt_lookup_num_tokens": (None,),
    "assistant_early_exit": (None,),
    "assistant_ensemble_weight": (None,),
}
# Forward arguments that decoding gives itself, and what `generate` hands to every decoding method.
KNOWN_ARGUMENTS = {"attention_mask", "position_ids", "inputs_embeds", "past_key_values", "use_cache", "logits_to_keep"}
KNOWN_ARGUMENTS |= {"tokenizer", "assistant_tokenizer"}
# These keep a state from one token to the next, which a rejected draft would spoil.
STATEFUL_PROCESSORS = {
    UnbatchedClassifierFreeGuidanceLogitsProcessor: "guidance_scale",
    SynthIDTextWatermarkLogitsProcessor: "watermarking_config",
}


def check_mtp_request(
    model: Any, mode: GenerationMode, generation_config: GenerationConfig, mode_kwargs: dict[str, Any]
) -> None:
    """Raise GenerationError for the first argument of `generate(use_mtp=True)` that cannot be served as asked."""
    depth = model.config.num_nextn_predict_layers
    if depth < 1:
        raise _error("use_mtp", True, f"False: this model has num_nextn_predict_layers={depth}, so nothing drafts")
    if generation_config.num_beams not in (None, 1):
        raise _error("num_beams", generation_config.num_beams, "1")
    if mode != GenerationMode.ASSISTED_GENERATION:
        raise _error("generation mode", mode.value, "greedy search and sampling")
    if mode_kwargs.get("assistant_model") is not None:
        raise _error("assistant_model", type(mode_kwargs["assistant_model"]).__name__, "None")
    for name, allowed in ALLOWED_ARGUMENTS.items():
        value = getattr(generation_config, name, None)
        if value not in allowed:
            raise _error(name, value, " or ".join(map(repr, allowed)))
    if is_flash_attention_requested(model.config) and not _absorbs(model.config, 2 * depth):
        raise _error("attn_implementation", model.config._attn_implementation, "'sdpa' or 'eager' at these sizes")


def generate_with_mtp(
    model: Any,
    input_ids: torch.Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    synced_gpus: bool = False,
    streamer: Any = None,
    **kwargs: Any,
) -> SeekletMTPOutput | torch.Tensor:
    """Return what plain `generate` returns, with tokens decoded with the drafts of the MTP modules.

    They are those of plain greedy decoding, or distributed as those of plain sampling. Arguments as transformers'
    `GenerationMixin` hands them to its decoding methods.

    Raises:
        GenerationError: an argument cannot be served as asked; `check_mtp_request` has refused others before.
    """
    if streamer is not None and len(input_ids) > 1:
        raise _error("streamer", type(streamer).__name__, f"None for a batch of {len(input_ids)}")
    if input_ids.device != model.device:
        raise _error("input_ids on device", str(input_ids.device), f"the model's device, {model.device}")
    for processor in logits_processor:
        if type(processor) in STATEFUL_PROCESSORS:
            raise _error(STATEFUL_PROCESSORS[type(processor)], type(processor).__name__, "None")
    num_rows, prompt_length = input_ids.shape
    assert generation_config.max_length is not None, "generate() has set it"
    ends = RowEnds(stopping_criteria, num_rows, prompt_length, generation_config.max_length)
    decoding = MTPDecoding(model, input_ids, ends, generation_config, synced_gpus, streamer)
    output = decoding.run(_prompt_inputs(model, input_ids, generation_config, kwargs), logits_processor)
    return output if generation_config.return_dict_in_generate else output.sequences


def _error(argument: str, value: Any, allowed: str) -> GenerationError:
    return GenerationError(f"use_mtp=True and {argument} is {value!r}; allowed: {allowed}")


def _absorbs(config: Any, num_queries: int) -> bool:
    """Return whether attention over the latent cache is chosen for up to `num_queries` behind any prompt.

    Only that form takes the masks of rows at different places under flash attention.
    """
    sizes = (config.kv_lora_rank, config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim)
    return all(decode_is_cheaper(num_queries, num_keys, *sizes) for num_keys in (num_queries + 1, 10**9))


def _rewritable(cache: Any) -> DynamicCache:
    """Return `cache`, whose last slots can be written again.

    Raises:
        GenerationError: they cannot.
    """
    layers = (DynamicLayer, GrowingLayer)
    if not isinstance(cache, DynamicCache) or cache.offloading or any(type(x) not in layers for x in cache.layers):
        raise _error("past_key_values", type(cache).__name__, "a DynamicCache that is not offloaded or quantised")
    return cache


def _prompt_inputs(
    model: Any, input_ids: torch.Tensor, generation_config: GenerationConfig, kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Return what the main model takes for the prompt, or for what of it a given cache does not hold yet."""
    for name in (name for name, value in kwargs.items() if name not in KNOWN_ARGUMENTS and value is not None):
        raise _error(name, kwargs[name], "None")
    cache = _rewritable(kwargs.get("past_key_values"))
    mask, embeds = kwargs.get("attention_mask"), kwargs.get("inputs_embeds")
    past_length, wanted = cache.get_seq_length(), None
    if embeds is not None:
        wanted = embeds.shape[1] - past_length
    else:
        # As in transformers' `_prefill`: with a cache, either the whole text is given or only what is new in it.
        mask_length = mask.shape[1] if mask is not None else getattr(generation_config, "_mask_length", -1)
        if mask_length == input_ids.shape[1]:
            wanted = input_ids.shape[1] - past_length
    return model.prepare_inputs_for_generation(
        cast(torch.LongTensor, input_ids),
        next_sequence_length=wanted,
        is_first_iteration=True,
        past_key_values=cache,
        attention_mask=mask,
        position_ids=kwargs.get("position_ids"),
        inputs_embeds=embeds,
    )
