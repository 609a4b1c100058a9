"""Every recipe of distillation for two steps on nano models of its own architectures."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from seeklet.finetune.carry_out import carry_out
from seeklet.finetune.recipe import DistillRecipe, TopKRecipe, TrainingRecipe, load_recipe
from tests.finetune.conftest import RunHere
from tests.finetune.nano_checkpoints import ROOT, build_checkpoint, build_tokenizer

RECIPES = sorted((ROOT / "recipes").glob("distill_*.yaml"))
# What a machine without a GPU and a network cannot do as the recipe says; and small batches.
HERE = (
    "trainer.use_cpu=true",
    "trainer.bf16=false",
    "trainer.max_steps=2",
    "trainer.per_device_train_batch_size=2",
    "trainer.gradient_accumulation_steps=1",
    "trainer.warmup_steps=0",
    "trainer.logging_steps=1",
    "trainer.eval_strategy=no",
    "model.attn_implementation=null",
)
# The first ends a text, the second is padding.
TURNS = ("<｜end▁of▁sentence｜>", "<｜▁pad▁｜>", "<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>")
R1 = (*TURNS, "<think>", "</think>")
QUESTION = [{"role": "user", "content": "?"}]


def give_tokens_of_r1(folder: Path) -> Path:
    """Put a tokenizer with R1's tokens and template beside a nano model, and rows for them into it."""
    tokenizer = build_tokenizer(R1, bos="<｜begin▁of▁sentence｜>")
    tokenizer.chat_template = (ROOT / "finetune/data/templates/deepseek-r1.jinja").read_text(encoding="utf-8")
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    return folder


def write_problems(file: Path) -> Path:
    rows = [{"problem": f"What is {i}+1?", "answer": str(i + 1)} for i in range(12)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def write_traces(file: Path) -> Path:
    """Write traces as they are published: the reasoning in the text of the answer."""
    rows = []
    for i in range(12):
        answer = f"<think>\n{i} and one more is {i + 1}.\n</think>\n\nIt is {i + 1}."
        messages = [{"role": "user", "content": f"What is {i}+1?"}, {"role": "assistant", "content": answer}]
        rows.append({"messages": messages, "num_tokens": 20, "source": "made up"})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def nano_overrides(asked: TrainingRecipe, folder: Path) -> list[str]:
    """Write nano models and data in place of what the recipe names."""
    model = build_checkpoint(asked.model.path, folder / "model")
    overrides = [f"model.path={model}"]
    teacher: Any = getattr(asked, "teacher", None)
    if teacher is not None:
        # Architecture and tokens of all but Llama's students: a Qwen2.5.
        overrides.append(f"teacher.path={build_checkpoint('Qwen2.5', folder / 'teacher', num_hidden_layers=3)}")
    if "R1" in (asked.model.tokenizer or ""):
        overrides.append(f"model.tokenizer={give_tokens_of_r1(model)}")
    if teacher is not None and "R1" in teacher.path:
        give_tokens_of_r1(folder / "teacher")
    if isinstance(asked, DistillRecipe):
        overrides += [f"prompts.train={write_problems(folder / 'problems.jsonl')}", "trainer.max_completion_length=6"]
    elif asked.stage == "sft":
        overrides.append(f"data.train={write_traces(folder / 'traces.jsonl')}")
    return [*overrides, *HERE, "prompts.validation=0.0" if isinstance(asked, DistillRecipe) else "data.validation=0.0"]


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_two_steps(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    asked = load_recipe(file, (), TrainingRecipe)
    overrides = [*nano_overrides(asked, tmp_path), f"output.dir={tmp_path / 'out'}"]
    result = carry_out(load_recipe(file, overrides, TrainingRecipe))
    assert result.steps == 2 and result.trained.is_dir()
    entries = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    steps = [entry for entry in entries if "loss" in entry]
    assert [entry["step"] for entry in steps] == [1, 2]
    assert all(math.isfinite(entry["loss"]) and entry["grad_norm"] > 0 for entry in steps)
    assert all(("divergence" in entry) == isinstance(asked, DistillRecipe | TopKRecipe) for entry in steps)
    if asked.stage == "sft":
        tokenizer = AutoTokenizer.from_pretrained(result.trained)
        prompt = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
        assert str(prompt).endswith("<｜User｜>?<｜Assistant｜><think>\n")


@pytest.mark.parametrize("file", [file for file in RECIPES if "traces" not in file.stem], ids=lambda file: file.stem)
def test_dry_run(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_here: RunHere) -> None:
    monkeypatch.chdir(ROOT)
    overrides = nano_overrides(load_recipe(file, (), TrainingRecipe), tmp_path)
    code, said, errors = run_here("train", file, *overrides, f"output.dir={tmp_path / 'out'}", "--dry-run")
    assert code == 0, errors
    assert "2 optimizer steps of 2 s" in said and "teacher: " in said and not (tmp_path / "out").exists()
