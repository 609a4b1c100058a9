"""Which of MLA's formulations a kernelized model takes: keys and values of a plain projection are not kept."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

pytest.importorskip("triton", reason="needs triton, which does not come with every build of torch")

import seeklet
from tests.kernels.interpreter import interpreted
from tests.kernels.memory import tensors_kept
from tests.modeling.nano import build_ours, draw_tokens


def step(model: Any, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> list[torch.Tensor]:
    """Return the loss and every gradient of a training step."""
    model.train().zero_grad()
    loss = model(input_ids=tokens, labels=tokens, attention_mask=mask).loss
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]


def keeps_expanded(model: Any, tokens: torch.Tensor) -> bool:
    """Return whether a training step keeps what kv_b_proj makes of the latent."""
    config = model.config
    width = config.num_attention_heads * (config.qk_nope_head_dim + config.v_head_dim)
    kept = tensors_kept(lambda: model(input_ids=tokens, labels=tokens).loss)
    return any(tensor.untyped_storage().nbytes() == tokens.numel() * width * 4 for tensor in kept.values())


@pytest.mark.parametrize("padded", [False, True], ids=["causal", "padded"])
def test_a_plain_projection_goes_into_the_operator(padded: bool) -> None:
    model, tokens = build_ours(), draw_tokens(2, 9)
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0
    given = mask if padded else None
    expected = [tensor.clone() for tensor in step(model, tokens, given)]
    assert keeps_expanded(model, tokens)
    with interpreted() as launched:
        seeklet.kernelize(model, quiet=True)
        actual = step(model, tokens, given)
        layers = model.config.num_hidden_layers
        assert launched["mla_attention.forward_kernel"] == launched["mla_attention.backward_key_kernel"] == layers
        assert not keeps_expanded(model, tokens)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_a_projection_with_an_adapter_expands_and_then_takes_the_kernel() -> None:
    model = get_peft_model(build_ours(), LoraConfig(target_modules=["kv_b_proj"], init_lora_weights=False))
    tokens = draw_tokens(1, 9)
    expected = [tensor.clone() for tensor in step(model, tokens)]
    with interpreted() as launched:
        seeklet.kernelize(model, quiet=True)
        actual = step(model, tokens)
        assert launched["mla_attention.forward_kernel"] == model.config.num_hidden_layers
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_dropout_and_other_implementations_keep_their_own() -> None:
    tokens = draw_tokens(1, 9)
    for model in (build_ours(attention_dropout=0.1), build_ours()):
        if model.config.attention_dropout == 0:
            model.set_attn_implementation("eager")
        with interpreted() as launched:
            seeklet.kernelize(model, quiet=True)
            step(model, tokens)
        assert "mla_attention.forward_kernel" not in launched
