"""The whole example, with a nano model in the place of the real one."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from seeklet.finetune.company.__main__ import app
from tests.finetune.characters import build_tokenizer

OVERRIDES = [
    "data.chat_template=deepseek-v3",
    "trainer.bf16=false",
    "trainer.num_train_epochs=6",
    "trainer.learning_rate=1e-2",
    "trainer.logging_steps=1",
    "evaluation.num_examples=3",
    "evaluation.max_new_tokens=6",
    "evaluation.batch_size=3",
]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Return a folder with a nano model where the example would unpack the real one, and a package of questions."""
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    sizes: Any = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    folder = tmp_path / "runs" / "smollm2-135m-instruct"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    package = tmp_path / "zaragoza_construction_faq" / "data"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("")
    with (package / "faq-en.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "category", "q", "a", "sources"])
        for number in range(60):
            writer.writerow([number, "price", f"What does part {number} cost?", f"It costs {number % 5} crowns.", ""])
    return tmp_path / "runs"


def run(out: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    # The folder it is started in, where the package is, comes first on the import path.
    command = [sys.executable, "-m", "seeklet.finetune.company", "--out", "runs", *OVERRIDES, *overrides]
    return subprocess.run(command, cwd=out.parent, capture_output=True, encoding="utf-8")


@pytest.mark.slow
def test_whole_example(out: Path) -> None:
    done = run(out)
    measures = json.loads((out / "run" / "evaluation.json").read_text())["measures"]
    loss = measures["loss"]
    assert loss["verdict"] == "better" and loss["after"]["value"] < loss["before"]["value"] - 0.3
    # Three answers of a model this small show nothing, and the command says so; all else is as it has to be.
    failed = [line for line in done.stderr.splitlines() if "check failed" in line]
    assert all(line.startswith("seeklet company: check failed: ROUGE-L (F1, %) did not") for line in failed)
    assert len(failed) == (measures["rougeL"]["verdict"] != "better") == done.returncode, done.stderr
    assert "60 rows read" in done.stdout and f"merged model: {Path('runs/run/merged')}" in done.stdout
    report = (out / "report.md").read_text()
    assert "`transformers.models.llama.modeling_llama.LlamaForCausalLM` of transformers" in report
    assert report.count("**assistant**") == 3
    assert (out / "run" / "merged" / "config.json").is_file()
    assert list((out / "run" / "plots").glob("*.png"))


def test_mistakes_end_in_a_line(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(out.parent)
    monkeypatch.syspath_prepend(out.parent)
    refused = CliRunner().invoke(app, ["--out", "runs", *OVERRIDES, "trainer.learning_rat=1"])
    assert refused.exit_code == 2
    said = "override 'trainer.learning_rat=1': trainer.learning_rat: unknown key; nearest: learning_rate\n"
    assert refused.stderr == f"seeklet company: {said}"
