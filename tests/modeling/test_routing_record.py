"""Experts recorded while a model generates are those that a pass over the whole text is sent to again."""

from typing import Any

import pytest
import torch

from seeklet.modeling.routing_record import RoutingRecord, padded_positions, record_routing
from tests.modeling.nano import PAD, build_ours

PROMPTS = torch.tensor([[PAD, PAD, 5, 6, 7], [11, 12, 13, 14, 15], [PAD, 21, 22, 23, 24]])
NEW_TOKENS = 9


def sharp(**overrides: Any) -> Any:
    """Return a model in evaluation mode whose routers choose differently for most tokens."""
    return build_ours(**overrides).eval()


def choices_of(model: Any, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return what the routers choose in one pass over all of `tokens`: (L, B, S, K), sorted."""
    with torch.no_grad():
        outputs = model.model(tokens, attention_mask=mask, output_router_indices=True)
    num_main = model.config.num_hidden_layers - model.config.first_k_dense_replace
    return torch.stack(outputs.router_indices[:num_main]).view(num_main, *tokens.shape, -1).sort(-1).values


@pytest.mark.parametrize("use_mtp", [False, True])
def test_recorded_in_generation_as_in_one_pass(use_mtp: bool) -> None:
    model, mask = sharp(num_nextn_predict_layers=1), (PROMPTS != PAD).long()
    with record_routing(model, 3, 5 + NEW_TOKENS) as record:
        tokens = model.generate(
            PROMPTS,
            attention_mask=mask,
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=False,
            **({"use_mtp": True} if use_mtp else {}),
        )
    mask = torch.cat((mask, torch.ones(3, NEW_TOKENS, dtype=torch.long)), 1)
    found = record.read(torch.arange(3), mask).sort(-1).values
    expected = choices_of(model, tokens, mask)
    # The last token was never fed, and padding goes nowhere.
    fed = mask.bool().clone()
    fed[:, -1] = False
    assert (found[:, ~mask.bool()] == -1).all()
    agreement = (found[:, fed] == expected[:, fed]).float().mean()
    assert agreement == 1
    assert expected[:, fed].flatten(0, 1).unique(dim=0).shape[0] > 10, "the routers choose the same for all tokens"


def test_a_dropped_row_stays_where_it_was() -> None:
    record = RoutingRecord(1, num_rows=3, num_positions=2, top_k=1)
    record.write(0, torch.tensor([[0]]), torch.tensor([[1], [2], [3]]))
    record.rows = torch.tensor([0, 2])
    record.write(0, torch.tensor([[1], [-1]]), torch.tensor([[4], [5]]))
    assert record.choices[0, :, :, 0].tolist() == [[1, 4], [2, -1], [3, -1]]
    # Rows 2 and 0, each padded at its own side, and one position that lies behind the record.
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0]])
    assert record.read(torch.tensor([2, 0]), mask)[0, :, :, 0].tolist() == [[-1, 3, -1, -1], [1, 4, -1, -1]]


def test_positions_count_what_is_no_padding() -> None:
    assert padded_positions(torch.tensor([[0, 1, 1], [1, 1, 0]])).tolist() == [[-1, 0, 1], [0, 1, -1]]


def test_hooks_are_gone_after_the_block() -> None:
    model = sharp()
    with pytest.raises(RuntimeError, match="stop"), record_routing(model, 1, 4):
        raise RuntimeError("stop")
    with record_routing(model, 1, 4) as record:
        pass
    model(torch.tensor([[5, 6]]))
    assert (record.choices == -1).all()


def test_tokens_go_to_the_experts_they_are_sent_to() -> None:
    """The same choice gives the same logits; another one gives others, with weights from the router's own scores."""
    model = sharp()
    tokens = torch.tensor([[5, 6, 7, 8]])
    own = choices_of(model, tokens, torch.ones_like(tokens))
    plain = model(tokens).logits
    torch.testing.assert_close(model(tokens, expert_choice=own).logits, plain)
    assert torch.equal(model(tokens, expert_choice=torch.full_like(own, -1)).logits, plain)
    others = (own + 1) % model.config.n_routed_experts
    others[:, :, :2] = -1
    changed = model(tokens, expert_choice=others).logits
    torch.testing.assert_close(changed[:, :2], plain[:, :2])
    assert not torch.allclose(changed[:, 2:], plain[:, 2:], atol=1e-2)


def test_the_router_is_trained_through_the_weights_of_a_replayed_choice() -> None:
    model = build_ours(gradient_checkpointing=False)
    choice = torch.tensor([0, 1, 2]).expand(2, 1, 4, 3)
    model(torch.tensor([[5, 6, 7, 8]]), expert_choice=choice).logits.square().sum().backward()
    gradient = model.model.layers[1].mlp.gate.weight.grad
    # Of the normalised weights of experts 0, 1 and 2 only.
    assert (gradient[:3].abs().sum(-1) > 0).all() and (gradient[3:] == 0).all()
