"""Every recipe of rejection sampling and of an evaluation of reasoning, on a nano model of its architecture."""

import json
from pathlib import Path

import pytest

from seeklet.finetune.recipe import ReasoningRecipe, RolloutRecipe, load_recipe
from tests.finetune.conftest import RunHere
from tests.finetune.nano_checkpoints import ROOT, build_checkpoint

ROLLOUTS = sorted((ROOT / "recipes").glob("rollout_*.yaml"))
EVALUATIONS = sorted((ROOT / "recipes").glob("reasoning_*.yaml"))
NUM_PROBLEMS = 3


def prepare(model: str, folder: Path) -> list[str]:
    """Write a model and problems; return what of a recipe a machine without a GPU and a network needs otherwise."""
    problems = folder / "problems.jsonl"
    rows = ({"problem": f"{i}+1?", "answer": str(i + 1), "level": i % 2} for i in range(NUM_PROBLEMS))
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    checkpoint = build_checkpoint(model, folder / "model")
    given = (f"model.path={checkpoint}", f"prompts.train={problems}", "prompts.validation=0.0", "model.dtype=float32")
    return [*given, f"output.dir={folder / 'out'}"]


@pytest.mark.parametrize("file", ROLLOUTS, ids=lambda file: file.stem)
def test_rollout(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_here: RunHere) -> None:
    monkeypatch.chdir(ROOT)
    recipe = load_recipe(file, (), RolloutRecipe)
    assert recipe.sampling.evaluation_sets and recipe.prompts.validation
    here = ("sampling.evaluation_sets=[]", "sampling.max_new_tokens=6")
    given = prepare(recipe.model.path, tmp_path)
    code, _, errors = run_here("rollout", file, *given, *here)
    assert code == 0, errors
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["num_attempts"] == NUM_PROBLEMS * recipe.sampling.num_samples
    assert (tmp_path / "out" / "dataset.jsonl").is_file()
    header = json.loads((tmp_path / "out" / "attempts-0.jsonl").read_text().partition("\n")[0])
    assert [reward["name"] for reward in header["rewards"]] == [each.name or each.kind for each in recipe.rewards]


@pytest.mark.parametrize("file", EVALUATIONS, ids=lambda file: file.stem)
def test_evaluation(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_here: RunHere) -> None:
    monkeypatch.chdir(ROOT)
    recipe = load_recipe(file, (), ReasoningRecipe)
    settings = recipe.evaluation
    assert (settings.temperature, settings.top_p, settings.max_new_tokens) == (0.6, 0.95, 32768), "R1's paper"
    code, _, errors = run_here("evaluate", file, *prepare(recipe.model.path, tmp_path), "evaluation.max_new_tokens=6")
    assert code == 0, errors
    report = json.loads((tmp_path / "out" / "reasoning.json").read_text())
    assert report["problems"] == NUM_PROBLEMS and report["samples"] == settings.num_samples
    assert {"pass@1", *(f"pass@{k}" for k in settings.pass_at)} <= report["figures"].keys()
    assert set(report["by_difficulty"]) == {"0", "1"}
