"""What is wrong with a pipeline is told before anything runs: all of it, with file and line."""

import json
from pathlib import Path
from typing import Any

import pytest

from seeklet.finetune.errors import RecipeError
from seeklet.finetune.pipeline import load_pipeline
from tests.finetune.conftest import RunHere
from tests.finetune.nano_checkpoints import ROOT
from tests.finetune.pipeline.nano import stages, write_pipeline, write_rows

PIPELINE = "pipeline_r1_qwen2.5-7b_math_8xh200.yaml"


def rollout(**changes: Any) -> dict[str, Any]:
    return {
        "stage": "rollout",
        "model": {"path": "{grpo}"},
        "prompts": {"train": "{0}"},
        "rewards": [{"kind": "exact"}],
        **changes,
    }


def whole(folder: Path) -> Path:
    """Write a pipeline in which a rollout follows, and training on what it left and on a file."""
    data = {"train": ["{rollout}", str(folder / "data.jsonl")], "validation": 0.0, "scan": False}
    return write_pipeline(
        folder,
        stages={
            **stages(folder),
            "rollout": rollout(prompts={"train": str(folder / "problems.jsonl")}),
            "again": {"stage": "sft", "model": {"path": "{cold}"}, "data": data},
        },
    )


def test_references_become_what_the_stages_leave(tmp_path: Path) -> None:
    pipeline = load_pipeline(whole(tmp_path), ["stages.grpo.trainer.max_steps=7", f"output.dir={tmp_path}/other"])
    other = tmp_path / "other"
    paths = {stage.name: stage.recipe.model.path for stage in pipeline.stages}
    assert paths == {
        "cold": str(tmp_path / "model"),
        "grpo": str(other / "cold" / "merged"),
        "rollout": str(other / "grpo" / "model"),
        "again": str(other / "cold" / "merged"),
    }
    recipes: Any = {stage.name: stage.recipe for stage in pipeline.stages}
    assert recipes["again"].data.train == (str(other / "rollout" / "dataset.jsonl"), str(tmp_path / "data.jsonl"))
    assert recipes["again"].output.dir == str(other / "again") and recipes["grpo"].trainer["max_steps"] == 7
    assert pipeline.stage("again").references == {"model.path": "cold", "data.train[0]": "rollout"}
    assert not other.exists()


def test_launch_is_the_pipelines_or_the_stages_own(tmp_path: Path) -> None:
    path = write_pipeline(tmp_path, launch=["python"])
    launch = {stage.name: stage.launch for stage in load_pipeline(path, ["stages.grpo.launch=[]"]).stages}
    assert launch == {"cold": ("python",), "grpo": ()}
    launch = {stage.name: stage.launch for stage in load_pipeline(path, ["stages.grpo.launch=[accelerate, x]"]).stages}
    assert launch == {"cold": ("python",), "grpo": ("accelerate", "x")}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("stages.grpo.model.path='{clod}'", 'model.path: "{clod}": there is no stage of that name; nearest: cold'),
        ("stages.grpo.model.path='{grpo}'", "a stage cannot read what it leaves itself; allowed: cold"),
        ("stages.cold.model.path='{grpo}'", "comes after this one; it is the first, and no stage comes before it"),
        ("stages.grpo.model.path='{rollout}'", "comes after this one; allowed: cold"),
        ("stages.again.model.path='{rollout}'", "that stage (rollout) leaves a data set, and a model is needed here"),
        ("stages.again.data.train='{grpo}'", "that stage (grpo) leaves a model, and a data set is needed here"),
        ("stages.grpo.model.path={cold: null}", 'braces alone are a mapping; write "{cold}" in quotes'),
        ("stages.grpo.output.dir=elsewhere", "stages.grpo: output.dir: is set by the pipeline"),
        ("stages.grpo.trainer.max_stepss=1", "stages.grpo: trainer.max_stepss: unknown key; nearest: max_steps"),
        ("stages.cold.data.train=nowhere.jsonl", "stages.cold: data.train: nowhere.jsonl: No such file"),
        ("stages.grpo.stage=gpro", "stages.grpo: stage: expected one of"),
        ("stages.a/b.stage=sft", "stages.a/b: is the name of a folder too"),
        ("stages.before.stage=sft", "stages.before: is the name of a folder too"),
        ("stages.more=1", "stages.more: expected a section"),
        ("stages={}", "stages: is empty"),
        ("stages=null", "stages: expected a section, got null"),
        ("stage=sft", "stage: belongs to a stage: stages.NAME.stage"),
        ("lanch=[]", "lanch: unknown key; nearest: launch"),
        ("launch=[no-such-program]", "launch: there is no program no-such-program"),
        ("stages.grpo.launch=[no-such-program]", "stages.grpo.launch: there is no program no-such-program"),
        ("output.dir=1", "output.dir: expected a text"),
        ("evaluation={rewards: [{kind: exact}]}", "evaluation.prompts: missing"),
        ("evaluation={prompts: {train: '{cold}'}, rewards: [{kind: exact}]}", "no stage has run when the model"),
        ("evaluation={prompts: {gym: {}}, rewards: []}", "evaluation.prompts"),
    ],
)  # fmt: skip
def test_mistakes(tmp_path: Path, change: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_pipeline(whole(tmp_path), [change])
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1, "one mistake is told once"


def test_an_adapter_is_sampled_from_but_not_trained_on(tmp_path: Path) -> None:
    path = write_pipeline(tmp_path)
    with pytest.raises(RecipeError, match="leaves an adapter, and a whole model is needed here"):
        load_pipeline(path, ["stages.cold.output.merge=false"])
    sampled = rollout(model={"path": "{cold}"}, prompts={"train": str(tmp_path / "problems.jsonl")})
    path = write_pipeline(tmp_path, stages={"cold": stages(tmp_path)["cold"], "rollout": sampled})
    pipeline = load_pipeline(path, ["stages.cold.output.merge=false"])
    assert pipeline.stage("rollout").recipe.model.path == str(tmp_path / "run" / "cold" / "adapter")


def test_all_mistakes_of_all_stages_at_once_each_with_its_line(tmp_path: Path) -> None:
    path = whole(tmp_path)
    given = json.loads(path.read_text())
    given["stages"]["cold"]["data"]["max_tokenss"] = 1
    given["stages"]["grpo"]["prompts"]["train"] = "nowhere.jsonl"
    given["stages"]["again"]["model"]["path"] = "{colt}"
    given["evaluation"] = {"prompts": {"train": "nowhere.jsonl"}, "rewards": [{"kind": "exact"}], "num_sampels": 2}
    path.write_text(json.dumps(given, indent=1))
    with pytest.raises(RecipeError) as caught:
        load_pipeline(path)
    lines = path.read_text().splitlines()
    said = str(caught.value).splitlines()
    for key, part in (
        ('"max_tokenss"', "stages.cold: data.max_tokenss: unknown key; nearest: max_tokens"),
        ('"nowhere.jsonl"', "stages.grpo: prompts.train: nowhere.jsonl: No such file"),
        ('"{colt}"', 'stages.again: model.path: "{colt}": there is no stage of that name; nearest: cold'),
        ('"num_sampels"', "evaluation.num_sampels: unknown key; nearest: num_samples"),
    ):
        number = next(index for index, line in enumerate(lines, 1) if key in line)
        assert any(line.startswith(f"{path}:{number}: {part}") for line in said), (part, said)
    assert len(said) == 4


def test_rows_for_a_pipeline_that_lacks_its_first_model(tmp_path: Path) -> None:
    """The model that the evaluation begins with is told of once, with its stage."""
    path = write_pipeline(
        tmp_path,
        evaluation={
            "prompts": {"train": str(write_rows(tmp_path / "p.jsonl", [{"prompt": "1", "answer": "1"}]))},
            "rewards": [{"kind": "exact"}],
        },
    )
    with pytest.raises(RecipeError) as caught:
        load_pipeline(path, ["stages.cold.model.path=./gone"])
    assert [line.partition(": ")[2] for line in str(caught.value).splitlines()] == [
        "stages.cold: model.path: ./gone: no such folder, and no name on the Hub (owner/name)"
    ]


def test_recipes_and_pipelines_are_each_told_their_command(run_here: RunHere) -> None:
    recipe, pipeline = (ROOT / "recipes" / name for name in ("grpo_qwen2.5-7b_maths-r1_8xh200.yaml", PIPELINE))
    code, _, errors = run_here("run", recipe)
    assert code == 2 and errors.endswith("stage: a recipe of one; its command is: seeklet train RECIPE\n")
    code, _, errors = run_here("train", pipeline)
    assert code == 2 and errors.endswith("stages: is of a pipeline; its command is: seeklet run PIPELINE\n")
    assert len(errors.splitlines()) == 1
