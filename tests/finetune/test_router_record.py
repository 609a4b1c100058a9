"""Router logits and choices of rollout and training, kept side by side."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from seeklet.finetune.router_record import NUM_ROWS, share_of_changed_routes
from tests.finetune.test_grpo_trainer import SIZES, make_ours
from tests.modeling.nano import build_ours


def train(folder: Path, scramble: bool, **options: Any) -> tuple[Any, list[dict[str, float]]]:
    """Return the model after a step and the log; the routers may become other ones when the rollout is over."""
    model = build_ours(**SIZES, num_nextn_predict_layers=1)
    config = {"max_steps": 1, "logging_steps": 1, "learning_rate": 1e-9}
    trainer: Any = make_ours(model, folder, config, router_folder=folder / "router", **options)
    calculate = trainer._calculate_rewards

    def then_scramble(*args: Any) -> Any:
        for layer in model.model.layers[1:] if scramble else ():
            layer.mlp.gate.e_score_correction_bias.copy_(torch.randn(8) * 100)
        return calculate(*args)

    trainer._calculate_rewards = then_scramble
    trainer.train()
    return model, trainer.state.log_history


@pytest.mark.parametrize("replays", [False, True])
def test_changed_routes_are_logged(tmp_path: Path, replays: bool) -> None:
    """Replayed or not, what counts is what the routers themselves would choose."""
    _, same = train(tmp_path / "same", scramble=False, replays_routing=replays)
    _, other = train(tmp_path / "other", scramble=True, replays_routing=replays)
    assert same[0]["routes_changed"] <= 0.02 < 0.2 <= other[0]["routes_changed"] <= 1


def test_share_by_hand() -> None:
    model = build_ours(n_group=1, topk_group=1, num_experts_per_tok=2, num_nextn_predict_layers=1)
    best = torch.tensor([[9.0, 8, 0, 0, 0, 0, 0, 0], [0.0, 0, 0, 0, 0, 0, 8, 9]])
    # Layer 1 sends token 0 to experts 1 and 0, of which both are the router's; of token 1 nothing was recorded. Layer 2
    # sends one of two tokens elsewhere, by one expert of two.
    choice = torch.tensor([[[[1, 0], [0, 1]], [[-1, -1], [7, 3]]]])
    assert share_of_changed_routes(model, [best, best], choice).item() == pytest.approx(1 / 6)


def test_logits_of_logged_steps_are_kept(tmp_path: Path) -> None:
    model, _ = train(tmp_path, scramble=False)
    kept = load_file(tmp_path / "router" / "step-1.safetensors")
    tokens, mask = kept["tokens"], kept["mask"]
    assert len(tokens) == NUM_ROWS and kept["expert_choice"].shape == (*tokens.shape, 2, 3)
    # The step itself changed next to nothing.
    with torch.no_grad():
        logits = model.model(tokens, attention_mask=mask, output_router_logits=True).router_logits
    expected = torch.stack(logits).view(2, *tokens.shape, 8)
    real = mask.bool()
    error = (kept["router_logits"] - expected)[:, real].norm() / expected[:, real].norm()
    assert error < 1e-5
