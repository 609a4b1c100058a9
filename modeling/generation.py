"""transformers' generation with the latent cache, and with multi-token prediction where it is asked for."""

from typing import Any

from transformers.cache_utils import DynamicCache
from transformers.generation import GenerationMixin

from .cache import LatentCache
from .mtp_generation import check_mtp_request, generate_with_mtp


class SeekletGenerationMixin(GenerationMixin):
    """`generate` as in transformers, `use_mtp=True` included."""

    config: Any

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
