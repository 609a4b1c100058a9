"""Reinforcement learning from a recipe: what a run leaves, that it goes on as if never stopped, and what is refused."""

import io
import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from seeklet.finetune import grpo, grpo_trainer
from seeklet.finetune.dry_run import show_grpo_dry_run
from seeklet.finetune.errors import DataError, RecipeError, TrainingError
from seeklet.finetune.lora.files import load_adapter
from seeklet.finetune.recipe import GrpoRecipe, TrainingRecipe, load_recipe
from tests.finetune.nano_checkpoints import build_checkpoint
from tests.finetune.sft_runs import KillAt, start_process
from tests.modeling.tensors import assert_same

MODEL = "moonshotai/Moonlight-16B-A3B"


def reward_of_letters(completion: str, row: dict[str, Any]) -> float:
    """Return the share of the letter that the row names."""
    return completion.count(row["letter"]) / max(1, len(completion))


def write_recipe(folder: Path, **sections: Any) -> Path:
    """Write a nano mixture of experts with multi-token prediction, prompts and a recipe for 6 steps into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    build_checkpoint(MODEL, folder / "model", num_nextn_predict_layers=1)
    rows = [{"prompt": f"Write letter {i}", "letter": "e", "level": i} for i in range(6)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    trainer = {
        # An epoch is 3 steps: the run that goes on does so in the second.
        "max_steps": 6,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 8,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "logging_steps": 1,
        "save_steps": 2,
        "report_to": "none",
    }
    recipe = {
        "stage": "grpo",
        "model": {"path": str(folder / "model"), "dtype": "float32"},
        "prompts": {"train": str(folder / "prompts.jsonl"), "max_tokens": 64, "chat_template": "moonlight"},
        "rewards": [{"kind": "own", "settings": {"function": f"{__name__}:reward_of_letters"}}],
        "trainer": trainer | sections.pop("trainer", {}),
        "output": {"dir": str(folder / "run")},
    }
    for name, section in sections.items():
        recipe[name] = {**recipe.get(name, {}), **section} if isinstance(section, dict) else section
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe, indent=1), encoding="utf-8")
    return path


def load(path: Path, *overrides: str) -> GrpoRecipe:
    return load_recipe(path, overrides, GrpoRecipe)


def train(path: Path, resume: bool = False, kill_at: int | None = None) -> None:
    """Train in this process, which may kill itself behind a step."""
    if kill_at is not None:
        original = grpo_trainer.SeekletGRPOTrainer

        class Killed(original):
            def __init__(self, *args: Any, callbacks: Any = (), **kwargs: Any):
                super().__init__(*args, callbacks=[*callbacks, KillAt(kill_at)], **kwargs)

        grpo.SeekletGRPOTrainer = Killed  # pyright: ignore[reportPrivateImportUsage]
    grpo.train(load(path), resume=resume)


def logged(folder: Path) -> list[dict[str, Any]]:
    """Return what each step has logged, without what takes time and memory."""
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in entry.items() if key not in ("step_time", "memory_gib", "num_tokens")}
        for entry in entries
        if "reward" in entry
    ]


def weights(folder: Path) -> dict[str, Any]:
    return {f"{file.name}/{name}": v for file in folder.glob("*.safetensors") for name, v in load_file(file).items()}


@pytest.mark.parametrize("adapter", [None, {"targets": ["attention", "routed_experts"], "rank": 2, "alpha": 8}])
def test_a_run_and_one_that_was_killed_and_went_on(tmp_path: Path, adapter: dict[str, Any] | None) -> None:
    sections = {"adapter": adapter, "rollout": {"use_mtp": True, "replay_routing": True}}
    folders = [tmp_path / "whole", tmp_path / "killed"]
    recipes = [write_recipe(folder, **sections) for folder in folders]
    for recipe, kill_at, resume in ((recipes[0], None, False), (recipes[1], 5, False), (recipes[1], None, True)):
        process = start_process(train, recipe, resume, kill_at)
        process.join()
        assert process.exitcode == (0 if kill_at is None else -signal.SIGKILL)
    kind = "model" if adapter is None else "adapter"
    runs = [folder / "run" for folder in folders]
    assert_same(weights(runs[1] / kind), weights(runs[0] / kind))
    assert logged(runs[1]) == logged(runs[0]) and len(logged(runs[0])) == 6
    expected = {"length.png", "reward.png", "exploration.png", "expert_load.png"}
    assert {file.name for file in (runs[0] / "plots").iterdir()} == expected
    entry = logged(runs[0])[-1]
    assert {"rewards/own/mean", "entropy", "completions/mean_length"} <= entry.keys()
    assert ("mtp_loss" in entry) == (adapter is None), "frozen modules have nothing to learn"
    written = load(runs[0] / "recipe.yaml")
    assert written.rewards == load(recipes[0]).rewards and written.trainer["loss_type"] == "dapo"


def test_what_is_left_when_it_is_done(tmp_path: Path) -> None:
    """The adapter is merged where that is asked for, and the card says what was reached and how."""
    adapter = {"targets": ["attention", "routed_experts"], "rank": 2, "alpha": 8}
    path = write_recipe(tmp_path, adapter=adapter, output={"merge": True}, trainer={"max_steps": 2})
    result = grpo.train(load(path))
    assert result.merged is not None and result.merged == tmp_path / "run" / "merged"
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    whole = load_adapter(AutoModelForCausalLM.from_pretrained(tmp_path / "model"), result.trained).eval()
    merged = AutoModelForCausalLM.from_pretrained(result.merged).eval()
    tokens = torch.arange(24).view(2, 12)
    with torch.no_grad():
        logits = [model(tokens).logits for model in (merged, whole, base.eval())]
    torch.testing.assert_close(logits[0], logits[1], atol=1e-5, rtol=0)
    assert (logits[0] - logits[2]).abs().max() > 1e-4, "nothing was trained"
    card = (tmp_path / "run" / "README.md").read_text()
    rewards = [entry["reward"] for entry in logged(tmp_path / "run")]
    for words in (
        "- grpo\n- reinforcement-learning",
        f"| training, first | 1 | {rewards[0]:.4f} |",
        f"| training, last | 2 | {rewards[1]:.4f} |",
        "![Mean reward of the samples](plots/reward.png)",
        "rewards: own (weight 1)",
        "trained on: prompts.jsonl; held out: nothing",
        "path/to/this/adapter",
    ):
        assert words in card
    assert str(tmp_path) not in card


def test_a_policy_that_is_no_number_ends_the_run_with_a_line(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, trainer={"learning_rate": 1e30, "save_steps": 1})
    with pytest.raises(
        TrainingError, match=r"step 1: the logits are not all numbers.* last good checkpoint is .*checkpoint-1"
    ):
        grpo.train(load(path))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("stage=ppo", 'stage: expected grpo, got "ppo"'),
        ("rewards=[]", "rewards: is empty"),
        ("rewards=[{kind: exakt}]", 'there is no reward "exakt"'),
        ("rewards=[{kind: exact, wieght: 2}]", "rewards[0].wieght: unknown key; nearest: weight"),
        ("trainer.num_generations=3", "trainer: "),
        ("trainer.reward_weights=[1]", "trainer.reward_weights: belongs to rewards"),
        ("trainer.packing=true", "trainer.packing"),
        ("trainer.eval_strategy=steps", "nothing is held out to evaluate on; set prompts.validation"),
        ("trainer.metric_for_best_model=loss", "expected one of reward, eval_reward or null"),
        ("prompts.train=nowhere.jsonl", "prompts.train: nowhere.jsonl: No such file"),
        ("prompts.max_tokens=4", "longer than prompts.max_tokens, 4"),
        ("prompts.validatoin=0.1", "prompts.validatoin: unknown key; nearest: validation"),
        ("data={}", "data: unknown key"),
        ("rollout.use_mtpp=true", "rollout.use_mtpp: unknown key; nearest: use_mtp"),
    ],
)
def test_mistakes_are_found_before_anything_is_trained(tmp_path: Path, change: str, said: str) -> None:
    path = write_recipe(tmp_path)
    with pytest.raises((RecipeError, DataError)) as caught:
        grpo.train(load(path, change))
    assert said in str(caught.value)
    assert not (tmp_path / "run" / "recipe.yaml").exists()


@pytest.mark.parametrize(
    ("rollout", "said"),
    [
        ({"use_mtp": True}, "rollout.use_mtp is true, but the model has no multi-token prediction modules"),
        ({"replay_routing": True}, "rollout.replay_routing is true, but the model routes nothing"),
    ],
)
def test_what_the_model_has_not_is_refused(tmp_path: Path, rollout: dict[str, Any], said: str) -> None:
    path = write_recipe(tmp_path, rollout=rollout)
    build_checkpoint("SmolLM2", tmp_path / "model")
    for run in (grpo.train, lambda recipe: show_grpo_dry_run(recipe, Console(quiet=True))):
        with pytest.raises(RecipeError, match=re.escape(said)):
            run(load(path, "prompts.chat_template=smollm2"))


def test_the_policy_with_the_most_reward_is_the_result(tmp_path: Path) -> None:
    trainer = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "learning_rate": 3e-2, "max_steps": 4}
    path = write_recipe(tmp_path, prompts={"validation": 0.6}, trainer=trainer | {"per_device_eval_batch_size": 4})
    result = grpo.train(load(path))
    entries = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rewards = {entry["step"]: entry["eval_reward"] for entry in entries if "eval_reward" in entry}
    best = max(rewards, key=lambda step: rewards[step])
    assert len(set(rewards.values())) == 4
    checkpoint = next((tmp_path / "run" / "checkpoints").glob(f"*-{best}"))
    assert_same(weights(result.trained), weights(checkpoint))


def test_vllm_has_rollouts_of_its_own(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, rollout={"replay_routing": True}, trainer={"use_vllm": True})
    with pytest.raises(RecipeError, match=r"rollout\.replay_routing: is of seeklet's own samples"):
        load(path)


def test_vllm_that_is_not_installed_is_told_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seeklet.finetune.trainer_settings.find_spec", lambda name: None)
    path = write_recipe(tmp_path, trainer={"use_vllm": True})
    with pytest.raises(RecipeError, match=r"trainer\.use_vllm is true, but vllm is not installed"):
        grpo.train(load(path))
    assert not (tmp_path / "run").exists()


def test_a_recipe_of_another_stage_is_told(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    assert isinstance(load_recipe(path, (), TrainingRecipe), GrpoRecipe)
    with pytest.raises(RecipeError, match='stage: expected sft, got "grpo"'):
        load_recipe(path)


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, prompts={"validation": 0.6})
    console = Console(file=io.StringIO(), width=100)
    show_grpo_dry_run(load(path), console)
    said = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    held_out = int(re.search(r"(\d+) prompts to train on, (\d+) held out", said)[2])  # pyright: ignore
    assert 0 < held_out < 6
    assert "rewards: own (weight 1)" in said
    assert "6 optimizer steps of 8 samples, 4 of each of 2 prompts, up to 8 tokens each; processes: 1" in said
    assert "Dry run: nothing was trained" in said and not (tmp_path / "run").exists()
