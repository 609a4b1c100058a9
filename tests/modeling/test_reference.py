"""Logits, losses and every gradient equal a float64 model written from the report's equations.

This covers what transformers' own model lacks (no groups, one expert a group, no shared expert, softmax scores, the
MTP and balance losses), next to what it has.
"""

from typing import Any

import pytest
import torch

from tests.modeling.nano import PAD, build_ours, draw_tokens, gradients, relative_error
from tests.modeling.reference_model import ReferenceModel

TOLERANCE = 1e-10
# Three sequences, the shortest too short for anything at MTP depth 2.
LENGTHS = (8, 2, 5)

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no groups": {"n_group": None, "topk_group": None},
    "one expert a group": {"n_group": 8, "topk_group": 5},
    "all groups kept": {"n_group": 4, "topk_group": None},
    "no shared expert": {"n_shared_experts": 0},
    "shared experts null": {"n_shared_experts": None},
    "two shared experts": {"n_shared_experts": 2},
    "softmax scores": {"scoring_func": "softmax"},
    "softmax scores, not normalised": {"scoring_func": "softmax", "norm_topk_prob": False},
    "every expert chosen": {"n_group": 1, "topk_group": 1, "num_experts_per_tok": 8},
    "queries projected directly": {"q_lora_rank": None},
    "rope in halves": {"rope_interleave": False},
    "attention bias": {"attention_bias": True},
    "tied embeddings": {"tie_word_embeddings": True},
    "no dense layer": {"first_k_dense_replace": 0},
    "dense layers only": {"first_k_dense_replace": 9},
    "one MTP module": {"num_nextn_predict_layers": 1},
    "two MTP modules": {"num_nextn_predict_layers": 2},
    "two MTP modules, tied, no groups, softmax": {
        "num_nextn_predict_layers": 2,
        "tie_word_embeddings": True,
        "n_group": None,
        "scoring_func": "softmax",
    },
    # Layer 3 is the MTP module; the main layers, 0 to 2, are dense.
    "MTP module the only mixture of experts": {"num_nextn_predict_layers": 1, "first_k_dense_replace": 3},
}


def draw_sequences() -> list[tuple[list[int], list[int]]]:
    """Return (tokens, labels) of each sequence; a label in the middle is left out, and every first one.

    A first token is nobody's next token. Packed, or padded on the left, something else stands before it.
    """
    tokens = [row.tolist() for row in draw_tokens(1, sum(LENGTHS))[0].split(LENGTHS)]
    sequences = [(row, [-100, *row[1:]]) for row in tokens]
    sequences[0][1][3] = -100
    return sequences


def lay_out(sequences: list[tuple[list[int], list[int]]], layout: str) -> dict[str, torch.Tensor]:
    """Return the batch of these sequences: "padded left", "padded right" or "packed"."""
    if layout == "packed":
        return {
            "input_ids": torch.cat([torch.tensor(tokens) for tokens, _ in sequences])[None],
            "labels": torch.cat([torch.tensor(labels) for _, labels in sequences])[None],
            "position_ids": torch.cat([torch.arange(len(tokens)) for tokens, _ in sequences])[None],
        }
    width = max(len(tokens) for tokens, _ in sequences)
    rows = {"input_ids": [], "labels": [], "attention_mask": []}
    for tokens, labels in sequences:
        missing = width - len(tokens)
        for name, content, fill in (
            ("input_ids", tokens, PAD),
            ("labels", labels, -100),
            ("attention_mask", [1] * len(tokens), 0),
        ):
            rows[name].append([fill] * missing + content if layout == "padded left" else content + [fill] * missing)
    batch = {name: torch.tensor(row) for name, row in rows.items()}
    # Counted from the first real token: rope angles are fp32, so a shifted sequence differs by 1e-8.
    batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    return batch


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_the_equations(variant: str) -> None:
    model = build_ours(**VARIANTS[variant]).double().eval()
    reference = ReferenceModel(model.config, model.state_dict())
    for tokens, _ in draw_sequences():
        actual = model(torch.tensor([tokens])).logits[0]
        assert relative_error(actual, reference.logits(tokens)) <= TOLERANCE


@pytest.mark.parametrize("layout", ["padded left", "padded right", "packed"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_and_every_gradient_equal_the_equations(variant: str, layout: str) -> None:
    weights = {"mtp_loss_weight": 0.3, "balance_loss_weight": 0.7}
    model = build_ours(**weights, **VARIANTS[variant]).double()
    sequences = draw_sequences()
    actual = model(**lay_out(sequences, layout))
    reference = ReferenceModel(model.config, model.state_dict())
    expected = reference.losses(sequences)
    assert relative_error(actual.lm_loss, expected.lm) <= TOLERANCE
    if model.config.num_nextn_predict_layers:
        assert relative_error(actual.mtp_loss, expected.mtp) <= TOLERANCE
    if model.config.first_k_dense_replace < model.config.num_hidden_layers:
        assert relative_error(actual.balance_loss, expected.balance) <= TOLERANCE
    total = expected.lm + 0.3 * expected.mtp + 0.7 * expected.balance
    assert relative_error(actual.loss, total) <= TOLERANCE
    total.backward()
    actual.loss.backward()
    errors = {}
    for name, gradient in gradients(model).items():
        wanted = reference.weights[name].grad
        errors[name] = relative_error(gradient, torch.zeros_like(gradient) if wanted is None else wanted)
    assert {name: error for name, error in errors.items() if not error <= TOLERANCE} == {}
