"""Training a kernelized model on packed and padded rows, checkpointed, compiled: the numbers of the reference."""

from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="needs triton, which does not come with every build of torch")

from seeklet.finetune.adapter_settings import AdapterSettings
from seeklet.finetune.lora.attach import attach
from seeklet.modeling import model as model_file
from tests.kernels.precision import FLOOR, relative_error
from tests.modeling.kernelized import assert_close, build, kernelized
from tests.modeling.nano import draw_tokens, gradients, padding_mask

# Three sequences in one row.
POSITIONS = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 0, 1]])
CU_SEQLENS = torch.tensor([0, 4, 9, 11], dtype=torch.int32)
PACKINGS = {
    "positions": {"position_ids": POSITIONS},
    "cu_seqlens": {"cu_seqlens": CU_SEQLENS},
    "rows": {"position_ids": torch.cat((POSITIONS, torch.arange(11)[None]))},
}


def train(model: Any, tokens: torch.Tensor, **inputs: Any) -> dict[str, torch.Tensor]:
    """Return the loss and the gradient of every parameter of a training step."""
    model.train().zero_grad()
    loss = model(tokens, **{"labels": tokens, **inputs}).loss
    loss.backward()
    return {"loss": loss.detach(), **{name: grad.clone() for name, grad in gradients(model).items()}}


def refuse_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise AssertionError("a mask is made")

    monkeypatch.setattr(model_file, "create_causal_mask", refuse)


@pytest.mark.parametrize("packing", PACKINGS)
def test_packed_rows_reach_the_kernel_without_a_mask(packing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """MTP modules too: their passes are packed in the same way."""
    model, inputs = build(num_nextn_predict_layers=1), PACKINGS[packing]
    tokens = draw_tokens(len(inputs.get("position_ids", POSITIONS)), 11)
    expected = train(model, tokens, **inputs)
    refuse_masks(monkeypatch)
    actual, launched = kernelized(model, lambda: train(model, tokens, **inputs))
    assert launched["mla_attention.forward_kernel"] == len(model.model.layers)
    assert_close(actual, expected)


def test_packed_rows_are_several_sequences() -> None:
    """Not just equal to the reference: each sequence is what it is alone."""
    model, tokens = build().eval(), draw_tokens(1, 11)
    with torch.no_grad():
        alone = torch.cat([model(part).logits for part in tokens.split([4, 5, 2], dim=1)], dim=1)
        packed, _ = kernelized(model, lambda: model(tokens, position_ids=POSITIONS, use_cache=False).logits)
    assert_close(packed, alone)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows(side: str) -> None:
    model, tokens, mask = build(num_nextn_predict_layers=1), draw_tokens(2, 9), padding_mask((9, 5), 9, side)
    inputs = {"attention_mask": mask, "labels": tokens.masked_fill(mask == 0, -100)}
    expected = train(model, tokens, **inputs)
    actual, launched = kernelized(model, lambda: train(model, tokens, **inputs))
    assert launched["mla_attention.forward_kernel"] == len(model.model.layers)
    assert_close(actual, expected)


def test_dropout_of_attention_is_that_of_the_library() -> None:
    """Packed as well: its mask is made as ever."""
    model, tokens = build(attention_dropout=0.2), draw_tokens(1, 11)

    def run() -> dict[str, torch.Tensor]:
        torch.manual_seed(3)
        return train(model, tokens, position_ids=POSITIONS)

    expected = run()
    actual, launched = kernelized(model, run)
    assert launched["rms_norm.forward_kernel"] > 0 == launched["mla_attention.forward_kernel"]
    assert_close(actual, expected)


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "LoRA"])
def test_under_autocast_errs_no_more_than_the_reference(adapted: bool) -> None:
    """Weights in fp32, products in bf16, gradients in fp32; all experts are chosen, so that rounding chooses none."""
    model = build(n_routed_experts=4, num_experts_per_tok=4, n_group=1, topk_group=1)
    if adapted:
        model = attach(model, AdapterSettings(targets=("attention", "dense_mlp", "routed_experts"), rank=4))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    tokens = draw_tokens(1, 11)

    def run(enabled: bool = True) -> dict[str, torch.Tensor]:
        model.train().zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = model(input_ids=tokens, labels=tokens, use_cache=False, position_ids=POSITIONS).loss
        loss.backward()
        return {"loss": loss.detach(), **{name: grad.clone() for name, grad in gradients(model).items()}}

    exact, expected = run(enabled=False), run()
    actual, launched = kernelized(model, run)
    assert launched["mla_attention.backward_key_kernel"] > 0 and launched["grouped_experts.rows_kernel"] > 0
    assert actual.keys() == exact.keys()
    for name, truth in exact.items():
        assert actual[name].dtype == truth.dtype
        error, allowed = (relative_error(each[name], truth) for each in (actual, expected))
        assert error <= 2 * allowed + FLOOR[torch.bfloat16], name


@pytest.mark.parametrize("inputs", [{}, {"position_ids": POSITIONS}], ids=["plain", "packed"])
def test_gradient_checkpointing_gives_equal_gradients(inputs: dict[str, torch.Tensor]) -> None:
    model, tokens = build(num_nextn_predict_layers=1), draw_tokens(1, 11)

    def run() -> dict[str, torch.Tensor]:
        model.gradient_checkpointing_disable()
        kept = train(model, tokens, **inputs)
        model.gradient_checkpointing_enable({"use_reentrant": False})
        again = train(model, tokens, **inputs)
        assert all(torch.equal(again[name], kept[name]) for name in kept)
        return again

    expected = run()
    actual, _ = kernelized(model, run)
    assert_close(actual, expected)


@pytest.mark.parametrize("inputs", [{}, {"position_ids": POSITIONS}], ids=["plain", "packed"])
def test_training_is_one_graph(inputs: dict[str, torch.Tensor]) -> None:
    """The decoder, forward and backward, with the operators opaque in it."""
    model, tokens = build(), draw_tokens(1, 11)

    def run(decoder: Any) -> dict[str, torch.Tensor]:
        model.train().zero_grad()
        hidden = decoder(tokens, use_cache=False, **inputs).last_hidden_state
        hidden.square().mean().backward()
        return {"hidden": hidden.detach(), **{name: grad.clone() for name, grad in gradients(model).items()}}

    expected = run(model.model)
    compiled = torch.compile(model.model, backend="aot_eager", fullgraph=True)
    actual, launched = kernelized(model, lambda: run(compiled))
    assert launched["mla_attention.backward_key_kernel"] == launched["mla_attention.forward_kernel"] > 0
    assert_close(actual, expected)
