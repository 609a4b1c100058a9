"""Distillation from recipes: what a run leaves, that it goes on as if never stopped, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from seeklet.finetune.carry_out import carry_out
from seeklet.finetune.distill.teacher import load_teacher
from seeklet.finetune.distill.topk_reader import TopKCache
from seeklet.finetune.errors import DataError, RecipeError
from seeklet.finetune.lora.files import load_adapter
from seeklet.finetune.recipe import DistillRecipe, ModelSettings, TopKRecipe, load_recipe
from tests.finetune.conftest import RunHere
from tests.finetune.distill.stage_runs import logged, run, train_in_this_process, write_recipe
from tests.modeling.tensors import assert_same

LORA = {"targets": ["attention", "dense_mlp"], "rank": 2, "alpha": 8, "dropout": 0.1}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {f"{file.name}/{k}": v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


@pytest.mark.parametrize(
    ("stage", "kills"), [("distill", [("step", 5)]), ("distill-topk", [("batch", 4), ("step", 3)])], ids=str
)
def test_a_run_and_one_that_was_killed_and_went_on(stage: str, kills: list[tuple[str, int]], tmp_path: Path) -> None:
    """The same to the last bit, also where the teacher was killed in the middle of its work."""
    whole, killed = (write_recipe(tmp_path / name, stage, adapter=LORA) for name in ("whole", "killed"))
    run(whole)
    for number, kill in enumerate(kills):
        run(killed, resume=number > 0, kill=kill)
    run(killed, resume=True)
    runs = [path.parent / "run" for path in (whole, killed)]
    assert_same(weights(runs[1] / "adapter"), weights(runs[0] / "adapter"))
    assert logged(runs[1]) == logged(runs[0])
    if stage == "distill-topk":
        assert_same(weights(runs[1] / "teacher_topk"), weights(runs[0] / "teacher_topk"))
        assert len(list((runs[0] / "teacher_topk").glob("shard-*"))) > 1
    entries = logged(runs[0])
    divergences = [entry["divergence"] for entry in entries if "divergence" in entry]
    assert len(divergences) == 6 and all(value > 0 for value in divergences)
    assert sum(any(key.startswith("eval_") for key in entry) for entry in entries) == 2


def test_what_on_policy_distillation_leaves(tmp_path: Path, run_here: RunHere) -> None:
    path = write_recipe(tmp_path, "distill", adapter={**LORA, "dropout": 0.0}, output={"merge": True})
    code, said, errors = run_here("train", path)
    assert code == 0, errors
    out = tmp_path / "run"
    assert "warning" not in said, "nothing here is about reasoning"
    assert "teacher: teacher, " in said and "Done: 6 steps, divergence from the teacher" in said
    figures = {file.stem for file in (out / "plots").iterdir()}
    assert figures == {"divergence", "length", "entropy", "learning_rate"}
    card = (out / "README.md").read_text()
    entries = [entry for entry in logged(out) if "divergence" in entry]
    for words in (
        "- on-policy-distillation",
        f"| training, first | 1 | {entries[0]['divergence']:.4f} |",
        f"| training, last | 6 | {entries[-1]['divergence']:.4f} |",
        "| held-out, best |",
        "teacher: teacher",
        "![Divergence from the teacher](plots/divergence.png)",
    ):
        assert words in card
    assert str(tmp_path) not in card
    merged = AutoModelForCausalLM.from_pretrained(out / "merged").eval()
    whole = load_adapter(AutoModelForCausalLM.from_pretrained(tmp_path / "model"), out / "adapter").eval()
    tokens = torch.arange(20).view(2, 10)
    with torch.no_grad():
        torch.testing.assert_close(merged(tokens).logits, whole(tokens).logits, atol=1e-5, rtol=0)


def test_what_distillation_from_a_cache_leaves_and_a_second_student_that_needs_no_teacher(
    tmp_path: Path, run_here: RunHere
) -> None:
    path = write_recipe(tmp_path, "distill-topk", cache={"dir": str(tmp_path / "cache")})
    code, said, errors = run_here("train", path)
    assert code == 0, errors
    assert "teacher reads " in said and "; 0 of them are in " in said and "tokens read by the teacher: " in said
    out = tmp_path / "run"
    figures = {file.stem for file in (out / "plots").iterdir()}
    assert figures == {"divergence", "held_out", "learning_rate", "tokens_per_s"}
    entries = logged(out)
    divergences = [entry["divergence"] for entry in entries if "divergence" in entry]
    assert divergences[-1] < divergences[0], "at this learning rate it learns in six steps"
    card = (out / "README.md").read_text()
    assert f"| training, first | 1 | {divergences[0]:.4f} |" in card and "| loss | step |" in card
    # The teacher is gone; another student of the same data learns the same from what it left.
    shutil.rmtree(tmp_path / "teacher")
    code, said, errors = run_here("train", path, "teacher=null", f"output.dir={tmp_path / 'second'}")
    assert code == 0, errors
    assert "teacher reads" not in said
    assert_same(weights(tmp_path / "second" / "model"), weights(out / "model"))
    # Nor need the recipe change for that.
    code, said, errors = run_here("train", path, f"output.dir={tmp_path / 'third'}", "--dry-run")
    assert code == 0, errors
    assert f"{tmp_path / 'cache'} is whole: no teacher is needed" in said


def test_a_teacher_that_is_an_adapter(tmp_path: Path) -> None:
    """What a run of seeklet has trained teaches, without being merged first."""
    first = write_recipe(tmp_path / "first", "distill", adapter=LORA, trainer={"max_steps": 2})
    trained = train_in_this_process(first).trained
    second = write_recipe(tmp_path / "second", "distill", teacher={"path": str(trained)}, trainer={"max_steps": 2})
    assert train_in_this_process(second).steps == 2
    teacher: Any = load_teacher(ModelSettings(path=str(trained)))
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "first" / "model")
    whole = load_adapter(base, trained).eval()
    tokens = torch.arange(20).view(2, 10)
    with torch.no_grad():
        torch.testing.assert_close(teacher(tokens).logits, whole(tokens).logits)
    assert not any(parameter.requires_grad for parameter in teacher.parameters()) and not teacher.training


def test_other_tokens_are_told_in_a_line_and_compared_as_texts(tmp_path: Path, run_here: RunHere) -> None:
    llama = "meta-llama/Llama-3.2-1B-Instruct"
    for stage in ("distill", "distill-topk"):
        path = write_recipe(tmp_path / stage, stage, kind=llama)
        code, _, errors = run_here("train", path)
        assert code == 2
        [line] = errors.splitlines()
        assert "teacher and student do not write the same tokens: " in line
        assert "allowed: the same tokens, or stage distill with distillation.alignment: text" in line
        assert not (path.parent / "run" / "recipe.yaml").exists()
    path = write_recipe(tmp_path / "text", "distill", kind=llama, distillation={"alignment": "text"})
    code, _, errors = run_here("train", path)
    assert code == 2 and "teacher.path: " in errors and "no chat template" in errors
    _give_template(tmp_path / "text" / "teacher")
    code, said, errors = run_here("train", path)
    assert code == 0, errors
    assert "warning: the student's tokenizer" in said and "writes <think> as " in said


def _give_template(folder: Path) -> None:
    """Give a tokenizer a template that opens the reasoning."""
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: <think>\n"
    (folder / "chat_template.jinja").write_text(template)


def test_a_dry_run_says_what_the_teacher_takes_and_writes_nothing(tmp_path: Path, run_here: RunHere) -> None:
    for stage in ("distill", "distill-topk"):
        path = write_recipe(tmp_path / stage, stage)
        code, said, errors = run_here("train", path, "--dry-run")
        assert code == 0, errors
        teacher = AutoModelForCausalLM.from_pretrained(path.parent / "teacher")
        number = sum(parameter.numel() for parameter in teacher.parameters())
        assert f"teacher: {number:,} parameters, " in said
        assert "6 optimizer steps of 4 s" in said and "Dry run: nothing was trained" in said
        assert not (path.parent / "run").exists()
        rows = [line for line in said.splitlines() if "counted from the model's shapes" in line]
        assert any("teacher" in row for row in rows) == (stage == "distill"), "it is not there when the student learns"
    assert "It reads first, alone: " in said and "of each the 8 most likely, " in said


@pytest.mark.parametrize(
    ("stage", "changes", "said"),
    [
        ("distill", ["teacher.path=./nowhere"], "teacher.path: ./nowhere: no such folder"),
        ("distill", ["teacher={}"], "teacher.path: missing"),
        ("distill", ["trainer.beta=1.5"], "trainer.beta: "),
        ("distill", ["trainer.temperature=0"], "trainer.temperature: "),
        ("distill", ["trainer.teacher_model_name_or_path=x"], "trainer.teacher_model_name_or_path: belongs to teacher"),
        ("distill", ["trainer.beta=0.5", "distillation.alignment=text"], "trainer.beta: is 0.5, but distillation"),
        ("distill", ["distillation.use_mtp=true", "trainer.use_vllm=true"], "distillation.use_mtp: is of seeklet's"),
        ("distill", ["distillation.use_mtp=true"], "distillation.use_mtp is true, but the model has no"),
        ("distill", ["data={}"], "data: unknown key"),
        ("distill-topk", ["teacher=null"], "teacher: is null, and "),
        ("distill-topk", ["teacher.path=./nowhere"], "teacher.path: ./nowhere: no such folder"),
        ("distill-topk", ["cache.num_tokens=100000"], "num_tokens is 100,000; allowed: at most the teacher's"),
        ("distill-topk", ["distillation.alignment=text"], "distillation.alignment: unknown key"),
    ],
    ids=str,
)
def test_mistakes_are_found_before_anything_is_trained(
    stage: str, changes: list[str], said: str, tmp_path: Path
) -> None:
    path = write_recipe(tmp_path, stage)
    recipe_class: Any = DistillRecipe if stage == "distill" else TopKRecipe
    with pytest.raises((RecipeError, DataError)) as caught:
        recipe = load_recipe(path, changes, recipe_class)
        carry_out(recipe)
    assert said in str(caught.value)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_vllm_that_is_not_installed_is_told_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seeklet.finetune.trainer_settings.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"trainer\.use_vllm is true, but vllm is not installed"):
        carry_out(load_recipe(write_recipe(tmp_path, "distill"), ["trainer.use_vllm=true"], DistillRecipe))
    assert not (tmp_path / "run").exists()


def test_the_teacher_is_not_written_over(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "distill")
    with pytest.raises(RecipeError, match=r"output\.dir: .*: is the folder of the model itself"):
        load_recipe(path, [f"output.dir={tmp_path / 'teacher'}"], DistillRecipe)


def test_a_cache_of_something_else_is_told_before_the_folder_is_a_runs(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "distill-topk", cache={"dir": str(tmp_path / "cache")}, trainer={"max_steps": 1})
    train_in_this_process(path)
    assert TopKCache(tmp_path / "cache").manifest.teacher == "teacher"
    for change, said in (
        ("cache.num_tokens=5", "num_tokens is 8, and now it is 5"),
        ("teacher.path=org/other", "teacher is 'teacher', and now it is 'org/other'"),
        ("data.system=Be short.", "is not the one that the teacher has read"),
    ):
        recipe = load_recipe(path, [change, f"output.dir={tmp_path / 'other'}"], TopKRecipe)
        with pytest.raises(DataError, match=said):
            carry_out(recipe)
        assert not (tmp_path / "other" / "recipe.yaml").exists()


def test_a_damaged_cache_is_told(tmp_path: Path, run_here: RunHere) -> None:
    path = write_recipe(tmp_path, "distill-topk", cache={"dir": str(tmp_path / "cache")}, trainer={"max_steps": 1})
    train_in_this_process(path)
    shard = tmp_path / "cache" / "shard-00000.safetensors"
    original = shard.read_bytes()
    shard.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    again = ("train", path, f"output.dir={tmp_path / 'again'}")
    code, _, errors = run_here(*again)
    assert code == 2 and f"{shard}: is damaged" in errors and len(errors.splitlines()) == 1
    # As the message says: what was deleted is made again, and nothing else.
    shard.unlink()
    code, _, errors = run_here(*again)
    assert code == 0, errors
    assert shard.read_bytes() == original
    manifest = json.loads((tmp_path / "cache" / "manifest.json").read_text())
    assert sum(part["num_rows"] for part in manifest["shards"]) == manifest["num_rows"]
