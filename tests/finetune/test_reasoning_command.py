"""`seeklet evaluate` of stages `reasoning` and `grpo`: one model, two beside each other, before and after training."""

import json
from pathlib import Path
from typing import Any

import pytest

from seeklet.finetune.evaluation.reasoning_results import read_reasoning_report
from seeklet.finetune.recipe import GrpoRecipe, load_recipe
from seeklet.finetune.run_folder import check_run_folder
from tests.finetune.conftest import RunHere
from tests.finetune.sampling_runs import write_adapter, write_model, write_prompts, write_recipe

FILES = ("reasoning.json", "reasoning.md", "reasoning.png")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model, an adapter of it, another model, and a recipe of either stage."""
    folder = tmp_path_factory.mktemp("reasoning")
    held_out = write_prompts(folder / "held_out.jsonl", start=20, number=6)
    write_recipe(folder, "reasoning")
    write_recipe(folder, "grpo", prompts={"validation": [str(held_out)]}, trainer={"max_steps": 1, "use_cpu": True})
    write_adapter(folder / "adapter")
    write_model(folder / "other", seed=1)
    return folder


def values(report: Any) -> dict[str, float]:
    return {name: estimate.value for name, estimate in report.figures.items()}


def test_one_model(root: Path, run_here: RunHere) -> None:
    code, output, errors = run_here("evaluate", root / "reasoning.yaml")
    assert code == 0, errors
    assert "24 problems, 4 attempts at each" in output and f"Report: {root / 'run' / 'reasoning.md'}" in output
    assert sorted(file.name for file in (root / "run").iterdir()) == sorted(FILES)
    report = read_reasoning_report(root / "run" / "reasoning.json")
    assert (report.name, report.num_problems, report.num_samples) == ("model", 24, 4)
    figures = values(report)
    # Some attempts are right and some are not, or the figures would say nothing.
    assert 0 < figures["pass@1"] < figures["pass@4"] < 100
    right = sum(result.num_right for result in report.results)
    assert figures["pass@1"] == pytest.approx(100 * right / 96)
    assert {label: number for label, (number, _) in report.by_difficulty.items()} == {"0": 8, "1": 8, "2": 8}
    assert str(root) not in (root / "run" / "reasoning.json").read_text()
    # The same seed gives the same figures, whatever is reported of them.
    code, _, errors = run_here("evaluate", root / "reasoning.yaml", "evaluation.pass_at=[2]", "--out", root / "again")
    assert code == 0, errors
    again = read_reasoning_report(root / "again" / "reasoning.json")
    assert values(again)["pass@1"] == figures["pass@1"]
    assert [result.num_right for result in again.results] == [result.num_right for result in report.results]


def test_what_validation_holds_out_is_measured_where_there_is_any(root: Path, run_here: RunHere) -> None:
    held_out = f"prompts.validation=[{root / 'held_out.jsonl'}]"
    code, output, errors = run_here("evaluate", root / "reasoning.yaml", held_out, "--out", root / "held_out")
    assert code == 0 and "6 problems, 4 attempts at each" in output, errors
    report = read_reasoning_report(root / "held_out" / "reasoning.json")
    assert [result.source for result in report.results] == [f"held_out.jsonl:{i + 1}" for i in range(6)]


@pytest.mark.parametrize("after", ["adapter", "other"])
def test_two_beside_each_other(after: str, root: Path, run_here: RunHere) -> None:
    out = root / f"to_{after}"
    arguments = ("--after", root / after, "--out", out)
    code, output, errors = run_here("evaluate", root / "reasoning.yaml", *arguments)
    assert code == 0, errors
    assert sorted(entry.name for entry in out.iterdir()) == [
        "after",
        "before",
        "stages.json",
        "stages.md",
        "stages.png",
    ]
    reports = [read_reasoning_report(out / moment / "reasoning.json") for moment in ("before", "after")]
    assert [report.name for report in reports] == ["before (model)", f"after ({after})"]
    assert values(reports[0]) != values(reports[1])
    stages = json.loads((out / "stages.json").read_text())
    difference = values(reports[1])["pass@1"] - values(reports[0])["pass@1"]
    assert stages[1]["change of pass@1"]["value"] == pytest.approx(difference)
    assert "before (model)" in output and f"Report: {out / 'stages.md'}" in output
    # Measured alone it is the same.
    code, _, errors = run_here(
        "evaluate",
        root / "reasoning.yaml",
        f"model.path={root / after}",
        f"model.tokenizer={root / 'model'}",
        "--out",
        root / f"{after}_alone",
    )
    assert code == 0, errors
    assert values(read_reasoning_report(root / f"{after}_alone" / "reasoning.json")) == values(reports[1])


def test_reinforcement_learning_before_and_after(root: Path, run_here: RunHere) -> None:
    recipe, out = root / "grpo.yaml", root / "trained"
    code, _, errors = run_here("evaluate", recipe, f"output.dir={out}")
    assert code == 2
    assert errors.startswith(f"output.dir: {out} holds nothing trained (no adapter, model, merged); run seeklet train")
    code, output, errors = run_here("evaluate", recipe, f"output.dir={out}", "--before-only")
    assert code == 0 and "6 problems" in output, errors
    # Training may still begin there.
    check_run_folder(load_recipe(recipe, [f"output.dir={out}"], GrpoRecipe), resume=False)
    before = read_reasoning_report(out / "reasoning.json")
    write_adapter(out / "adapter")
    code, output, errors = run_here("evaluate", recipe, f"output.dir={out}")
    assert code == 0, errors
    reports = [read_reasoning_report(out / moment / "reasoning.json") for moment in ("before", "after")]
    assert values(reports[0]) == values(before) != values(reports[1])
    assert [report.num_problems for report in reports] == [6, 6]


MISTAKES = {
    "nothing held out to measure training on": (
        "grpo",
        ("prompts.validation=0", "--before-only"),
        "prompts.validation: nothing is held out, so there is nothing to evaluate on; allowed: files, or a share",
    ),
    "no reward says what is right": (
        "reasoning",
        ("evaluation.threshold=null",),
        "evaluation.threshold: none is given, and no reward verifies answers (overlong don't); ",
    ),
    "more of than there are": (
        "reasoning",
        ("evaluation.pass_at=[5]",),
        "override 'evaluation.pass_at=[5]': pass_at has 5; allowed: up to num_samples, 4",
    ),
    "nothing to measure beside it": (
        "reasoning",
        ("--after", "{root}"),
        "{root} holds neither adapter_config.json nor config.json: not an adapter, and no model",
    ),
    "a prompt too long": (
        "reasoning",
        ("prompts.max_tokens=6",),
        "{root}/sums.jsonl:11: the prompt has 7 tokens, and 14 are longer than prompts.max_tokens, 6; ",
    ),
    "a file that is not there": (
        "grpo",
        ("prompts.validation=[gone.jsonl]",),
        "override 'prompts.validation=[gone.jsonl]': prompts.validation: gone.jsonl: No such file or directory",
    ),
    "no such template": ("reasoning", ("prompts.chat_template=qwen",), 'prompts.chat_template: "qwen" is neither a '),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_a_line(name: str, root: Path, tmp_path: Path, run_here: RunHere) -> None:
    stage, given, said = MISTAKES[name]
    arguments = [argument.format(root=root) if argument == "{root}" else argument for argument in given]
    code, output, errors = run_here("evaluate", root / f"{stage}.yaml", f"output.dir={tmp_path / 'out'}", *arguments)
    assert (code, output) == (2, "")
    assert errors.startswith(said.replace("{root}", str(root))) and errors.count("\n") == 1, errors
    assert not (tmp_path / "out").exists()


def test_other_stages_and_several_processes(
    root: Path, tmp_path: Path, run_here: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout = write_recipe(tmp_path, "rollout", model={"path": str(root / "model")})
    assert run_here("evaluate", rollout) == (
        2,
        "",
        f"{rollout}: stage: rollout has nothing to evaluate by; allowed: sft, grpo, or a recipe of stage reasoning for "
        "its model\n",
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, errors = run_here("evaluate", root / "reasoning.yaml")
    assert code == 2 and errors.startswith(
        "evaluation runs in one process, on all GPUs there are, and was started in 2"
    )
