"""Students of the DeepSeek-V3 architecture in recipes of distillation, and runs that diverge."""

from pathlib import Path
from typing import Any

import pytest

from seeklet.finetune.errors import TrainingError
from tests.finetune.distill.stage_runs import logged, train_in_this_process, write_recipe
from tests.finetune.distill.test_stages import weights

MIXTURE = "moonshotai/Moonlight-16B-A3B"


@pytest.mark.parametrize("stage", ["distill", "distill-topk"])
def test_its_own_losses_and_balancing_are_there(stage: str, tmp_path: Path) -> None:
    """Drafts of its own, a loss of multi-token prediction, a load of each expert, and biases that move as told."""
    # An odd number: at this size a bias moves every choice, and the next step moves it back.
    sections: dict[str, Any] = {"moe": {"bias_update_speed": 0.01}, "trainer": {"max_steps": 3}}
    if stage == "distill":
        sections["distillation"] = {"use_mtp": True}
    path = write_recipe(tmp_path, stage, kind=MIXTURE, student=MIXTURE, **sections)
    before = weights(tmp_path / "model")
    result = train_in_this_process(path)
    entries = [entry for entry in logged(tmp_path / "run") if "loss" in entry]
    assert all(entry["mtp_loss"] > 0 and entry["divergence"] > 0 for entry in entries)
    assert any(key.startswith("expert_load") for key in entries[0])
    assert {"divergence", "mtp_loss", "expert_load"} <= result.plots.keys()
    assert all(plot.is_file() for plot in result.plots.values())
    after = weights(result.trained)
    names = [name for name in after if "e_score_correction_bias" in name or ".layers.2." in name]
    changed = [name for name in names if not after[name].equal(before[name])]
    assert any("bias" in name for name in changed) and any(".layers.2." in name for name in changed)


@pytest.mark.parametrize("stage", ["distill", "distill-topk"])
def test_a_run_that_diverges_ends_with_a_line(stage: str, tmp_path: Path) -> None:
    path = write_recipe(tmp_path, stage, trainer={"learning_rate": 1e30, "save_steps": 1, "eval_strategy": "no"})
    with pytest.raises(TrainingError, match=r"step \d: .*last good checkpoint is .*checkpoint-1"):
        train_in_this_process(path)
