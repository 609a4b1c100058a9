"""Training a kernelized model on packed and padded rows, checkpointed, compiled: the numbers of the reference."""

from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="needs triton, which does not come with every build of torch")

from seeklet.modeling import model as model_file
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
