"""Generation with a kernelized model, through caches and drafts: the tokens of the reference."""

from typing import Any

import pytest
import torch
from transformers import StaticCache

pytest.importorskip("triton", reason="needs triton, which does not come with every build of torch")

from tests.modeling.kernelized import assert_close, build, kernelized
from tests.modeling.nano import draw_tokens, padding_mask


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generation_with_padding(cache: str) -> None:
    model, tokens, mask = build().eval(), draw_tokens(2, 6), padding_mask((6, 3), 6, "left")

    def run() -> torch.Tensor:
        settings = {"max_new_tokens": 5, "do_sample": False, "cache_implementation": cache, "disable_compile": True}
        return model.generate(tokens, attention_mask=mask, **settings)

    expected = run()
    actual, launched = kernelized(model, run)
    assert launched["mla_decode.split_kernel"] > 0
    assert torch.equal(actual, expected)


def test_generation_with_drafts() -> None:
    """A step checks several tokens at once: decoding of more than one query."""
    model, tokens = build(num_nextn_predict_layers=1).eval(), draw_tokens(2, 6)

    def run(**settings: Any) -> torch.Tensor:
        return model.generate(tokens, max_new_tokens=6, do_sample=False, **settings)

    expected = run()
    actual, launched = kernelized(model, lambda: run(use_mtp=True))
    assert launched["mla_decode.split_kernel"] > 0
    assert torch.equal(actual, expected)


def test_eager_attention_gives_its_weights_beside_the_other_kernels() -> None:
    model, tokens = build(attn_implementation="eager").eval(), draw_tokens(2, 7)

    def run() -> list[torch.Tensor]:
        with torch.no_grad():
            prefill = model(tokens[:, :6], use_cache=True, output_attentions=True)
            decode = model(tokens[:, 6:], past_key_values=prefill.past_key_values, output_attentions=True)
        return [prefill.logits, *prefill.attentions, decode.logits, *decode.attentions]

    expected = run()
    actual, launched = kernelized(model, run)
    assert len(expected) == 2 + 2 * model.config.num_hidden_layers
    assert launched["router.forward_kernel"] > 0 == launched["mla_decode.split_kernel"]
    assert_close(actual, expected)


def test_a_decode_step_over_a_static_cache_is_one_graph() -> None:
    model, tokens, mask = build().eval(), draw_tokens(2, 7), padding_mask((7, 4), 7, "left")

    def run(step: Any) -> torch.Tensor:
        cache = StaticCache(config=model.config, max_cache_len=12)
        with torch.no_grad():
            model(tokens[:, :6], attention_mask=mask[:, :6], past_key_values=cache)
            seen = torch.nn.functional.pad(mask, (0, 5))
            return step(tokens[:, 6:], attention_mask=seen, past_key_values=cache).logits

    expected = run(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    actual, launched = kernelized(model, lambda: run(compiled))
    # The prompt is decoded as well, as it is short beside the cache.
    assert launched["mla_decode.split_kernel"] == 2 * model.config.num_hidden_layers
    assert_close(actual, expected)
