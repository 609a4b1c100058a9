"""Where a run may begin, where it may go on, and that two never write to one folder."""

import fcntl
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from seeklet.finetune.adapter_settings import AdapterSettings
from seeklet.finetune.checkpoints import STATE_FILE
from seeklet.finetune.data.settings import DataSettings
from seeklet.finetune.errors import RecipeError, TrainingError
from seeklet.finetune.recipe import ModelSettings, OutputSettings, Recipe, as_yaml
from seeklet.finetune.run_folder import RunFolder, changed_keys, check_run_folder, locked
from seeklet.finetune.step_rows import write_rows


def make_recipe(folder: Path, **changes: Any) -> Recipe:
    sections: dict[str, Any] = {
        "stage": "sft",
        "model": ModelSettings(path="some/model"),
        "data": DataSettings(train=("support.jsonl",)),
        "adapter": AdapterSettings(targets=("attention",)),
        "trainer": {"learning_rate": 1e-4, "save_steps": 5},
        "output": OutputSettings(dir=str(folder)),
    }
    return Recipe(**sections | changes)


def begin(folder: Path, *steps: int) -> Recipe:
    """Leave what a run leaves, with a checkpoint at each of the steps."""
    recipe = make_recipe(folder)
    folder.mkdir(exist_ok=True)
    RunFolder(folder).recipe.write_text(as_yaml(recipe))
    for step in steps:
        (folder / "checkpoints" / f"checkpoint-{step}").mkdir(parents=True)
        (folder / "checkpoints" / f"checkpoint-{step}" / STATE_FILE).write_text("{}")
    return recipe


def test_a_run_begins_in_a_folder_that_is_new_empty_or_holds_an_evaluation(tmp_path: Path) -> None:
    assert check_run_folder(make_recipe(tmp_path / "new"), resume=False).path == tmp_path / "new"
    assert not (tmp_path / "new").exists()
    check_run_folder(make_recipe(tmp_path), resume=False)
    for name in ("evaluation.md", "evaluation.json", "evaluation.png", "skipped_rows.jsonl", ".lock"):
        (tmp_path / name).write_text("")
    check_run_folder(make_recipe(tmp_path), resume=False)


def test_a_folder_that_is_taken_is_refused_with_the_choices(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"checkpoint at step 20\. Go on with it: --resume\. Begin another: output"):
        check_run_folder(begin(tmp_path / "run", 10, 20), resume=False)
    with pytest.raises(RecipeError, match=r"a run without a checkpoint yet\. Go on with it: --resume"):
        check_run_folder(begin(tmp_path / "early"), resume=False)
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "thesis.tex").write_text("")
    with pytest.raises(RecipeError, match="others holds files and no run; name a folder that is new or empty"):
        check_run_folder(make_recipe(tmp_path / "others"), resume=False)


def test_a_run_goes_on_where_it_began(tmp_path: Path) -> None:
    recipe = begin(tmp_path, 10)
    assert check_run_folder(recipe, resume=True).path == tmp_path
    later = replace(recipe, trainer=dict(recipe.trainer) | {"save_steps": 50, "report_to": "none"})
    check_run_folder(later, resume=True)
    check_run_folder(replace(recipe, output=replace(recipe.output, plots=False)), resume=True)


def test_there_is_nothing_to_go_on_with(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="does not exist or is empty, so there is nothing to go on with"):
        check_run_folder(make_recipe(tmp_path / "absent"), resume=True)
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(RecipeError, match=r"holds no run \(no recipe.yaml\), so there is nothing to go on with"):
        check_run_folder(make_recipe(tmp_path), resume=True)


def test_another_recipe_does_not_go_on_in_its_place(tmp_path: Path) -> None:
    recipe = begin(tmp_path, 10)
    changed = replace(recipe, trainer={"learning_rate": 1e-3, "save_steps": 5})
    with pytest.raises(RecipeError, match=r"trainer\.learning_rate: is 0\.001, but the run in .* began with 0\.0001;"):
        check_run_folder(changed, resume=True)
    changed = replace(changed, adapter=None, data=replace(recipe.data, seed=4))
    with pytest.raises(RecipeError, match=r"data\.seed: is 4, but .* began with 0, and 2 more keys differ"):
        check_run_folder(changed, resume=True)


def test_steps_of_as_many_rows_may_be_made_up_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes of 2 x 2 rows, then one: of 2 x 4 or 4 x 2, and of nothing else."""
    batches = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    recipe = make_recipe(tmp_path, trainer=batches)
    RunFolder(tmp_path).recipe.write_text(as_yaml(recipe))
    monkeypatch.setenv("WORLD_SIZE", "2")
    write_rows(tmp_path, recipe.trainer)
    monkeypatch.setenv("WORLD_SIZE", "1")
    for micro, accumulation in ((2, 4), (4, 2), (1, 8)):
        other = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": accumulation}
        check_run_folder(replace(recipe, trainer=other), resume=True)
    for other, words in (
        (
            {"gradient_accumulation_steps": 3},
            "1 processes x 2 rows x 3 make 6 rows a step, but the run in .* has 8; go on ",
        ),
        ({"gradient_accumulation_steps": 3}, "go on with trainer.gradient_accumulation_steps=4"),
        ({"per_device_train_batch_size": 3}, "go on with a divisor of 8 processes"),
        ({"gradient_accumulation_steps": 4, "learning_rate": 1.0}, "and 1 more keys differ"),
        # Rows are grouped within a process's own batches there.
        (
            {"gradient_accumulation_steps": 4, "train_sampling_strategy": "group_by_length"},
            "a run goes on with what it",
        ),
    ):
        with pytest.raises(RecipeError, match=words) as found:
            check_run_folder(replace(recipe, trainer=batches | other), resume=True)
        assert "\n" not in str(found.value)


def test_changed_keys() -> None:
    before: dict[str, Any] = {"stage": "sft", "adapter": None, "trainer": {"seed": 1, "save_steps": 2}, "output": 1}
    now: dict[str, Any] = {"stage": "sft", "adapter": {"rank": 2}, "trainer": {"optim": "sgd", "seed": 1}, "output": 2}
    assert changed_keys(before, now) == [("adapter", None, {"rank": 2}), ("trainer.optim", None, "sgd")]
    assert changed_keys(before, before) == []


def test_only_one_at_a_time(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "a")
    taken = pytest.raises(TrainingError, match=r"another process is training in .*runs/a; wait for it")
    with locked(folder), taken, locked(folder):
        pass
    with locked(folder):
        pass
    with (folder.path / ".lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_what_a_killed_save_left_is_removed_when_the_run_goes_on(tmp_path: Path) -> None:
    begin(tmp_path, 10)
    left = tmp_path / "checkpoints" / ".checkpoint-20.saving-host-1-ab"
    left.mkdir()
    with locked(RunFolder(tmp_path)):
        assert not left.exists()
