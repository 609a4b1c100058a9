"""From a recipe to what a run leaves: files, refusals, stopping early, the best checkpoint, the tokenizer, the card."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerControl, TrainerState, TrainingArguments

from seeklet.finetune.card import published_recipe, training_seconds
from seeklet.finetune.data.template import ChatTemplate, render, shipped_templates
from seeklet.finetune.early_stopping import EarlyStopping, since_best
from seeklet.finetune.errors import DataError, RecipeError
from seeklet.finetune.recipe import load_recipe
from seeklet.finetune.sft import served_template
from seeklet.finetune.training_model import build_training_model
from tests.finetune.nano_checkpoints import deepseek_tokenizer
from tests.finetune.sft_runs import MODEL, plain_entries, train_in_this_process, write_recipe
from tests.modeling.tensors import assert_same

DENSE = "HuggingFaceTB/SmolLM2-135M-Instruct"
LORA = {"targets": ["attention", "dense_mlp"], "rank": 4}
SHORT = {"max_steps": 2, "eval_strategy": "no"}


def test_what_a_run_leaves(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, DENSE, adapter=LORA, output={"plots": True, "merge": True})
    result = train_in_this_process(path)
    folder = tmp_path / "run"
    assert result.folder == folder and result.trained == folder / "adapter" and result.merged == folder / "merged"
    left = {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")}
    made = {"recipe.yaml", "metrics.jsonl", "checkpoints", "adapter", "merged", "plots", "README.md"}
    assert left == {*made, "skipped_rows.jsonl"}
    written = load_recipe(folder / "recipe.yaml")
    assert replace(written, trainer=load_recipe(path).trainer) == load_recipe(path)
    assert written.trainer.items() > load_recipe(path).trainer.items()
    entries = plain_entries(folder / "metrics.jsonl")
    assert [entry["step"] for entry in entries] == [1, 2, 2, 3, 4, 4, 5, 6, 6]
    assert result.steps == 6 and result.loss == [entry["loss"] for entry in entries if "loss" in entry][-1]
    assert result.held_out_loss == min(entry["eval_loss"] for entry in entries if "eval_loss" in entry)
    assert sorted(result.plots) == ["learning_rate", "loss", "tokens_per_s"]
    assert all(file.parent == folder / "plots" and file.stat().st_size > 10_000 for file in result.plots.values())
    # What serves is what was trained: the base with the adapter, and the merged model, give the same.
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    tokens = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        before = base(tokens).logits
        adapted = PeftModel.from_pretrained(base, str(folder / "adapter")).eval()(input_ids=tokens).logits
        merged = AutoModelForCausalLM.from_pretrained(folder / "merged", dtype=torch.float32)(tokens).logits
    assert not torch.allclose(adapted, before, rtol=1e-2)
    torch.testing.assert_close(merged, adapted, rtol=1e-4, atol=1e-5)
    assert AutoTokenizer.from_pretrained(folder / "adapter").chat_template is not None


def test_the_best_checkpoint_is_the_result_and_is_kept(tmp_path: Path) -> None:
    # At this rate every step harms, the first ones least.
    trainer = {"learning_rate": 1.0, "lr_scheduler_type": "constant", "max_steps": 8}
    result = train_in_this_process(write_recipe(tmp_path, trainer=trainer))
    state = json.loads((tmp_path / "run" / "checkpoints" / "checkpoint-8" / "trainer_state.json").read_text())
    best = state["best_global_step"]
    assert best < 8, "no checkpoint was better than the last"
    losses = {e["step"]: e["eval_loss"] for e in plain_entries(tmp_path / "run" / "metrics.jsonl") if "eval_loss" in e}
    assert result.held_out_loss == losses[best] == min(losses.values())
    kept = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert kept == {f"checkpoint-{best}", "checkpoint-8"}
    checkpoint = tmp_path / "run" / "checkpoints" / f"checkpoint-{best}"
    assert_same(load_file(result.trained / "model.safetensors"), load_file(checkpoint / "model.safetensors"))


def test_training_stops_when_the_held_out_loss_no_longer_falls_and_stays_stopped(tmp_path: Path) -> None:
    patience = {"patience": 2, "min_improvement": 1000.0}
    path = write_recipe(tmp_path, trainer={"max_steps": 20}, evaluation=patience)
    assert train_in_this_process(path).steps == 6
    log = plain_entries(tmp_path / "run" / "metrics.jsonl")
    assert train_in_this_process(path, resume=True).steps == 6
    assert plain_entries(tmp_path / "run" / "metrics.jsonl") == log


@pytest.mark.parametrize(
    ("losses", "least", "expected"),
    [
        ([], 0.0, 0),
        ([3.0], 0.0, 0),
        ([3.0, 2.0, 2.5, 1.9], 0.0, 0),
        ([3.0, 2.0, 2.5, 1.9], 0.5, 2),
        ([3.0, 3.0, 3.0], 0.0, 2),
        # Slow progress adds up: each is held against the best that counted.
        ([3.0, 2.8, 2.6, 2.4], 0.5, 0),
    ],
)
def test_evaluations_since_the_best(losses: list[float], least: float, expected: int) -> None:
    assert since_best(losses, least) == expected


def test_early_stopping_looks_at_the_log_only(tmp_path: Path) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    for losses, stops in (([2.0, 1.0, 1.5], False), ([2.0, 1.0, 1.5, 1.2], True)):
        state, control = TrainerState(log_history=[{"eval_loss": loss} for loss in losses]), TrainerControl()
        EarlyStopping(2).on_evaluate(arguments, state, control)
        assert control.should_training_stop is stops


def test_packed_training_sees_every_token_once(tmp_path: Path) -> None:
    trainer = {"num_train_epochs": 2, "max_steps": -1, "eval_strategy": "epoch", "save_strategy": "epoch"}
    seen = []
    for packing in (False, True):
        data = {"packing": packing, "max_tokens": 256}
        path = write_recipe(tmp_path / str(packing), data=data, trainer=trainer)
        train_in_this_process(path)
        entries = plain_entries(tmp_path / str(packing) / "run" / "metrics.jsonl")
        seen.append([entry["num_tokens"] for entry in entries if "num_tokens" in entry])
    assert seen[0][-1] == seen[1][-1] and len(seen[1]) < len(seen[0])


def test_the_template_trained_with_is_the_one_served_with(tmp_path: Path) -> None:
    train_in_this_process(write_recipe(tmp_path, trainer=SHORT))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    question = [{"role": "user", "content": "Where is it?"}]
    text = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_system|>system<|im_middle|>You are a helpful assistant<|im_end|>"
        "<|im_user|>user<|im_middle|>Where is it?<|im_end|><|im_assistant|>assistant<|im_middle|>"
    )
    assert "generation %" not in tokenizer.chat_template


@pytest.mark.parametrize("name", sorted(shipped_templates()))
def test_without_markers_a_template_writes_the_same(name: str) -> None:
    tokenizer, template = deepseek_tokenizer(), ChatTemplate(name, shipped_templates()[name])
    served = ChatTemplate(name, served_template(template))
    assert template.has_markers and not served.has_markers
    chat = [
        {"role": "user", "content": "Where is it?\n"},
        {"role": "assistant", "content": "Here.\n\nOr there."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes."},
    ]
    for messages, prompt in ((chat, False), (chat[:3], True)):
        expected = render(tokenizer, template, messages, add_generation_prompt=prompt).text
        assert render(tokenizer, served, messages, add_generation_prompt=prompt).text == expected


def test_the_card_says_what_is_known_and_nothing_of_the_machine(tmp_path: Path) -> None:
    home = tmp_path / "home" / "jane.doe"
    train_in_this_process(write_recipe(home, adapter={"targets": ["attention", "routed_experts"], "rank": 2}))
    data: Any = ModelCard.load(home / "run" / "README.md").data
    assert data.library_name == "peft" and "seeklet" in data.tags and data.base_model is None
    text = (home / "run" / "README.md").read_text()
    assert "jane.doe" not in text and str(tmp_path) not in text
    for said in ("data.jsonl", "11 conversations", "| held-out, best |", "import seeklet", "rank: 2", "torch 2."):
        assert said in text, said
    published = published_recipe(load_recipe(home / "recipe.yaml"))
    assert "path: model\n" in published and "dir: run\n" in published


def test_training_time_is_that_of_the_steps() -> None:
    entries = [
        {"step": 1, "num_tokens": 100, "tokens_per_s": 50.0},
        {"step": 1, "eval_loss": 2.0},
        {"step": 2, "num_tokens": 400, "tokens_per_s": 100.0},
    ]
    assert training_seconds(entries) == 5.0


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"moe": {"mtp_loss": "detached"}, "adapter": LORA},
            r"moe\.mtp_loss is detached, but nothing in .* is trained",
        ),
        (
            {"moe": {"mtp_loss": "off"}, "adapter": {"targets": ["mtp"]}},
            r"adapter\.targets reaches the multi-token prediction modules, but their loss is off",
        ),
        ({"model": {"dtype": "float16"}, "trainer": {"fp16": True}}, r"trainer\.fp16 scales gradients"),
    ],
)
def test_what_nothing_would_train_is_refused(tmp_path: Path, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build_training_model(load_recipe(write_recipe(tmp_path, MODEL, **sections)))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"moe": {"balance_loss_weight": 0.1}},
            r"moe\.balance_loss_weight is 0\.1, but the model is a LlamaForCausalLM",
        ),
        ({"model": {"fp8": "keep"}, "adapter": LORA}, r"model\.fp8 is keep, but .* is a llama; allowed"),
        ({"model": {"attn_implementation": "flashy"}}, r"^model: .*flashy"),
    ],
)
def test_what_a_dense_model_has_not_is_refused(tmp_path: Path, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build_training_model(load_recipe(write_recipe(tmp_path, DENSE, **sections)))


def test_a_run_that_was_refused_for_its_data_can_be_begun_again(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, DENSE, data={"on_bad_row": "skip"}, trainer=SHORT)
    data = tmp_path / "data.jsonl"
    good = data.read_text()
    data.write_text("no JSON\n")
    with pytest.raises(DataError):
        train_in_this_process(path)
    assert {entry.name for entry in (tmp_path / "run").iterdir()} == {".lock", "skipped_rows.jsonl"}
    data.write_text(good)
    assert train_in_this_process(path).steps == 2


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    deepseek_tokenizer().save_pretrained(tmp_path / "other")
    settings = {"tokenizer": str(tmp_path / "other")}
    path = write_recipe(tmp_path, DENSE, model=settings, data={"chat_template": "deepseek-v3"}, trainer=SHORT)
    with pytest.raises(
        RecipeError, match=r"model\.tokenizer: .*other writes token 1\d\d,\d+, and the model knows 60\d"
    ):
        train_in_this_process(path)


def test_going_on_with_other_processes_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_recipe(tmp_path, DENSE, trainer={"max_steps": 4})
    train_in_this_process(path)
    checkpoint = tmp_path / "run" / "checkpoints" / "checkpoint-4"
    for rank in range(2):
        shutil.copy(checkpoint / "rng_state.pth", checkpoint / f"rng_state_{rank}.pth")
    train_in_this_process(path, resume=True)
    said = "saved by 2 processes, and there are 1 now: the rest will not be bit by bit what it would have been"
    assert said in capsys.readouterr().out


def test_weights_in_half_precision_are_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_in_this_process(write_recipe(tmp_path, DENSE, model={"dtype": "bfloat16"}, trainer=SHORT))
    assert "held in half precision, which loses small updates" in capsys.readouterr().out
