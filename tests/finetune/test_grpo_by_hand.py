"""GRPO's loss against its formulas written out in Python, token by token."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.finetune.test_grpo_trainer import NUM_COMPLETION, SIZES, batch, make_ours
from tests.modeling.nano import build_ours

ADVANTAGES = [1.0, -0.5, 0.7, -1.2]
LOW, HIGH = 0.2, 0.28


def new_log_probs(model: Any, given: dict[str, Any]) -> list[list[float]]:
    """Return the log-probability of each real token of each completion, from plain passes over one row at a time."""
    found = []
    for row in range(len(ADVANTAGES)):
        prompt = given["prompt_ids"][row][given["prompt_mask"][row].bool()]
        completion = given["completion_ids"][row][given["completion_mask"][row].bool()]
        with torch.no_grad():
            logits = model(torch.cat((prompt, completion))[None], return_logits=True).logits[0].double()
        logs = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        found.append([float(logs[place, token]) for place, token in enumerate(completion.tolist())])
    return found


def clipped(ratio: float, advantage: float) -> float:
    """Return the surrogate of one token: equation 1 of DeepSeekMath (arXiv 2402.03300) with DAPO's two bounds."""
    return min(ratio * advantage, min(max(ratio, 1 - LOW), 1 + HIGH) * advantage)


def by_hand(kind: str, new: list[list[float]], old: list[list[float]]) -> float:
    rows = []
    for advantage, ours, theirs in zip(ADVANTAGES, new, old, strict=True):
        changes = [a - b for a, b in zip(ours, theirs, strict=True)]
        if kind == "gspo":
            # One ratio a sequence: the geometric mean of its tokens' (arXiv 2507.18071, equation 7).
            changes = [sum(changes) / len(changes)] * len(changes)
        rows.append([clipped(math.exp(change), advantage) for change in changes])
    if kind == "dapo":
        # The mean over all tokens (arXiv 2503.14476, equation 8).
        return -sum(map(sum, rows)) / sum(map(len, rows))
    if kind == "dr_grpo":
        # A constant in place of the length (arXiv 2503.20783, section 3.2).
        return -sum(map(sum, rows)) / (len(rows) * NUM_COMPLETION)
    return -sum(sum(row) / len(row) for row in rows) / len(rows)


OBJECTIVES: dict[str, dict[str, Any]] = {
    "grpo": {"loss_type": "grpo"},
    "dapo": {"loss_type": "dapo"},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence"},
}


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_loss_is_the_formulas(tmp_path: Path, kind: str) -> None:
    model = build_ours(**SIZES, balance_loss_weight=0.0)
    config = {"epsilon": LOW, "epsilon_high": HIGH, "beta": 0.0, **OBJECTIVES[kind]}
    trainer: Any = make_ours(model, tmp_path, config)
    trainer.current_gradient_accumulation_steps = 1
    given = batch(ADVANTAGES)
    new = new_log_probs(model.eval(), given)
    # Old ones so near that some tokens are clipped and some are not, on either side.
    noise = torch.randn(given["completion_ids"].shape, generator=torch.Generator().manual_seed(5)) * 0.3
    old = [[value + float(noise[row, place]) for place, value in enumerate(values)] for row, values in enumerate(new)]
    for row, values in enumerate(old):
        given["old_per_token_logps"][row, : len(values)] = torch.tensor(values)
    loss = trainer._compute_loss(model.train(), given).item()
    assert loss == pytest.approx(by_hand(kind, new, old), abs=2e-5)
    others = [by_hand(other, new, old) for other in OBJECTIVES if other != kind]
    assert all(abs(loss - other) > 1e-3 for other in others)
