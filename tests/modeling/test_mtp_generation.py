"""What `generate(use_mtp=True)` cannot serve is refused in one line that names the argument."""

from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache
from transformers.generation.streamers import BaseStreamer

from seeklet.modeling import GenerationError
from tests.modeling.drafting import build_drafter, draw_walks


@pytest.mark.parametrize(
    ("argument", "settings"),
    [
        ("num_beams is 2; allowed: 1", {"num_beams": 2}),
        ("use_cache is False", {"use_cache": False}),
        ("cache_implementation is 'static'; allowed: None or 'dynamic'", {"cache_implementation": "static"}),
        ("output_attentions is True", {"output_attentions": True, "return_dict_in_generate": True}),
        ("output_hidden_states is True", {"output_hidden_states": True, "return_dict_in_generate": True}),
        ("prefill_chunk_size is 4", {"prefill_chunk_size": 4}),
        ("prompt_lookup_num_tokens is 3", {"prompt_lookup_num_tokens": 3}),
        ("guidance_scale is 'Unbatched", {"guidance_scale": 1.5}),
        ("output_router_logits is True", {"output_router_logits": True}),
        ("streamer is 'Silent'; allowed: None for a batch of 2", {"streamer": True}),
        ("past_key_values is 'StaticCache'; allowed: a DynamicCache", {"past_key_values": StaticCache}),
        (
            "past_key_values is 'DynamicCache'; allowed: a DynamicCache that is not off",
            {"past_key_values": DynamicCache},
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_refused(argument: str, settings: dict[str, Any]) -> None:
    class Silent(BaseStreamer):
        def put(self, value: Any) -> None: ...

        def end(self) -> None: ...

    model = build_drafter(1)
    given = {"do_sample": False, "max_new_tokens": 4} | settings
    if "streamer" in given:
        given["streamer"] = Silent()
    if given.get("past_key_values") is StaticCache:
        given["past_key_values"] = StaticCache(config=model.config, max_cache_len=20)
    elif given.get("past_key_values") is DynamicCache:
        given["past_key_values"] = DynamicCache(config=model.config, offloading=True)
    with pytest.raises(GenerationError) as caught:
        model.generate(draw_walks(2, 5), use_mtp=True, **given)
    assert str(caught.value).startswith(f"use_mtp=True and {argument}")
    assert "\n" not in str(caught.value)


def test_a_model_without_modules_is_refused() -> None:
    model = build_drafter(0)
    with pytest.raises(GenerationError, match="num_nextn_predict_layers=0"):
        model.generate(draw_walks(1, 5), use_mtp=True, max_new_tokens=4)


def test_an_assistant_model_is_refused() -> None:
    model = build_drafter(1)
    with pytest.raises(GenerationError, match="assistant_model is 'SeekletForCausalLM'"):
        model.generate(draw_walks(1, 5), use_mtp=True, assistant_model=model, max_new_tokens=4)


def test_a_failing_criterion_leaves_a_given_cache_usable() -> None:
    model, cache, prompt = build_drafter(2), DynamicCache(), draw_walks(1, 9)
    model(prompt[:, :4], past_key_values=cache, use_cache=True)

    def fail(input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        if input_ids.shape[1] > 12:
            raise RuntimeError("mine")
        return torch.zeros(1, dtype=torch.bool)

    settings = {"do_sample": False, "max_new_tokens": 20, "past_key_values": cache}
    with pytest.raises(RuntimeError, match="mine"):
        model.generate(prompt, use_mtp=True, stopping_criteria=[fail], **settings)
    # The prompt and the tokens before the last are cached: a further call can go on from there.
    assert cache.get_seq_length() >= 12
    layers: list[Any] = cache.layers
    assert {layer.values.shape[-2] for layer in layers} == {cache.get_seq_length()}


def test_other_assisted_decoding_is_still_transformers_own() -> None:
    model, prompt = build_drafter(1), draw_walks(1, 9)
    settings: dict[str, Any] = {"do_sample": False, "max_new_tokens": 12}
    expected = model.generate(prompt, **settings)
    assert torch.equal(model.generate(prompt, prompt_lookup_num_tokens=2, **settings), expected)
    assert torch.equal(model.generate(prompt, assistant_model=model, **settings), expected)
