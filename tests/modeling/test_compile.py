"""torch.compile: the decode step as one graph over a static cache, and the forward and backward of training."""

from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import StaticCache

from tests.modeling.nano import assert_same_gradients, build_ours, draw_tokens, padding_mask, relative_error

NUM_NEW, WIDTH = 12, 40


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch.compiler.reset()
    counters.clear()


def decode_greedily(model: Any, prompt: torch.Tensor, step: Any, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return NUM_NEW tokens, the prompt by `model` and every token behind it by `step`, over one static cache."""
    cache = StaticCache(config=model.config, max_cache_len=WIDTH)
    batch = prompt.shape[0]
    mask = torch.ones_like(prompt) if mask is None else mask
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = model(prompt, attention_mask=mask, position_ids=positions, past_key_values=cache).logits
        tokens = [logits[:, -1:].argmax(-1)]
        for index in range(1, NUM_NEW):
            # As wide as the cache, so that no step has another shape.
            seen = torch.cat((mask, torch.ones(batch, index, dtype=torch.int64)), dim=1)
            seen = torch.nn.functional.pad(seen, (0, WIDTH - seen.shape[1]))
            position = positions[:, -1:] + index
            logits = step(tokens[-1], attention_mask=seen, position_ids=position, past_key_values=cache).logits
            tokens.append(logits[:, -1:].argmax(-1))
    return torch.cat(tokens, dim=1)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_decode_step_is_one_graph_compiled_once(attention: str, backend: str) -> None:
    model = build_ours(attn_implementation=attention).eval()
    prompt = draw_tokens(2, 7)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    tokens = decode_greedily(model, prompt, compiled)
    assert torch.equal(tokens, decode_greedily(model, prompt, model))
    assert counters["stats"]["unique_graphs"] == 1


def test_decode_step_over_left_padding() -> None:
    model = build_ours().eval()
    prompt, mask = draw_tokens(2, 7), padding_mask((7, 3), 7, "left")
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert torch.equal(decode_greedily(model, prompt, compiled, mask), decode_greedily(model, prompt, model, mask))


@pytest.mark.slow
def test_decode_step_by_inductor() -> None:
    model = build_ours(num_hidden_layers=2).eval()
    prompt = draw_tokens(1, 7)
    compiled = torch.compile(model, fullgraph=True)
    assert torch.equal(decode_greedily(model, prompt, compiled), decode_greedily(model, prompt, model))


@pytest.mark.slow
def test_training_step_compiled_equals_eager() -> None:
    """Loss, every gradient, and the counts of the load-balance update."""
    model, compiled = (build_ours(num_hidden_layers=2, num_nextn_predict_layers=1) for _ in range(2))
    tokens = draw_tokens(2, 9)
    run = torch.compile(compiled, backend="aot_eager")
    expected, loss = model(tokens, labels=tokens).loss, run(tokens, labels=tokens).loss
    assert relative_error(loss, expected) <= 1e-5
    expected.backward()
    loss.backward()
    assert_same_gradients(compiled, model, 1e-5)
    loads = [[load.tolist() for load in m.update_router_bias()] for m in (model, compiled)]
    assert loads[0] == loads[1] and sum(map(sum, loads[0])) == 54 * 2


def test_compiled_evaluation_equals_eager() -> None:
    model = build_ours().eval()
    tokens, mask = draw_tokens(2, 9), padding_mask((9, 4), 9, "left")
    compiled = torch.compile(model, backend="aot_eager")
    with torch.no_grad():
        expected = model(tokens, attention_mask=mask).logits[mask.bool()]
        assert relative_error(compiled(tokens, attention_mask=mask).logits[mask.bool()], expected) <= 1e-5
