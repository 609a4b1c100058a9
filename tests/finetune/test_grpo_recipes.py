"""Every recipe of reinforcement learning for two steps on a nano model of its own architecture."""

import json
import math
from pathlib import Path

import pytest

from seeklet.finetune import grpo
from seeklet.finetune.recipe import GrpoRecipe, load_recipe
from tests.finetune.nano_checkpoints import ROOT, build_checkpoint

RECIPES = sorted((ROOT / "recipes").glob("grpo_*.yaml"))
# What a machine without a GPU, a network and vLLM cannot do as the recipe says; and small batches.
HERE = (
    "trainer.use_cpu=true",
    "trainer.bf16=false",
    "trainer.use_vllm=false",
    "trainer.max_steps=2",
    "trainer.per_device_train_batch_size=4",
    "trainer.gradient_accumulation_steps=1",
    "trainer.num_generations=2",
    "trainer.max_completion_length=6",
    "trainer.warmup_steps=0",
    # A change of 1e-6 would be lost in the check.
    "trainer.learning_rate=1e-3",
    "model.dtype=float32",
    "prompts.validation=0.0",
)


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_two_steps(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    asked = load_recipe(file, (), GrpoRecipe)
    model = build_checkpoint(asked.model.path, tmp_path / "model")
    problems = tmp_path / "problems.jsonl"
    problems.write_text("".join(json.dumps({"problem": f"{i}+1?", "answer": str(i + 1)}) + "\n" for i in range(8)))
    data = ["prompts.size=8"] if asked.prompts.gym else [f"prompts.train={problems}"]
    out = tmp_path / "out"
    recipe = load_recipe(file, [f"model.path={model}", f"output.dir={out}", *data, *HERE], GrpoRecipe)
    result = grpo.train(recipe)
    assert result.steps == 2 and result.trained.is_dir()
    entries = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [entry for entry in entries if "reward" in entry]
    assert [entry["step"] for entry in steps] == [1, 2]
    assert all(math.isfinite(entry["loss"]) and math.isfinite(entry["reward"]) for entry in steps)
    kinds = {f"rewards/{reward.name or reward.kind}/mean" for reward in recipe.rewards}
    assert kinds <= steps[0].keys()
