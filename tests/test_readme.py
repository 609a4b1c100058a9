"""What the README tells a user to type does what it says."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

from seeklet.modeling import SeekletConfig, SeekletForCausalLM
from tests.finetune.characters import build_tokenizer
from tests.finetune.nano_checkpoints import build_checkpoint

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_quick_start_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer = build_tokenizer()
    config = SeekletConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        first_k_dense_replace=1,
        kv_lora_rank=16,
        q_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=8,
        num_nextn_predict_layers=1,
        # The tiny model's own taste for the end token must not cut the comparison short.
        eos_token_id=None,
        pad_token_id=0,
    )
    path = Path("path/to/any/deepseek_v3/checkpoint")
    SeekletForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)

    snippet, training = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    exec(compile(snippet, "README.md", "exec"), names)

    assert isinstance(names["model"], SeekletForCausalLM)
    assert names["plain"].shape[1] == names["prompt"]["input_ids"].shape[1] + 100
    torch.testing.assert_close(names["drafted"], names["plain"], rtol=0, atol=0)
    assert json.loads(Path("out/config.json").read_text(encoding="utf-8"))["model_type"] == "deepseek_v3"
    again = SeekletForCausalLM.from_pretrained("out")
    held = names["model"].state_dict()
    assert held.keys() == again.state_dict().keys()
    for name, tensor in again.state_dict().items():
        torch.testing.assert_close(tensor, held[name], rtol=0, atol=0, msg=name)

    names["args"] = TrainingArguments("trained", max_steps=1, use_cpu=True, report_to=[], save_strategy="no")
    names["data"] = [{"input_ids": [1, 2, 3, 4], "labels": [1, 2, 3, 4]}]
    exec(compile(training, "README.md", "exec"), names)
    names["trainer"].train()
    moved = [b for n, b in names["model"].named_buffers() if n.endswith("e_score_correction_bias")]
    # A layer that was in perfect balance has nothing to move.
    assert any(bias.abs().sum() > 0 for bias in moved)


def test_every_make_target_the_readme_names_exists_and_helps() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z0-9-]+):", makefile, re.MULTILINE))
    named = set(re.findall(r"`make ([a-z0-9-]+)`|^make ([a-z0-9-]+)", README, re.MULTILINE))
    named = {first or second for first, second in named}
    assert {"demo", "test", "check", "bench"} <= named <= targets
    explained = set(re.findall(r'@echo "make ([a-z0-9-]+) ', makefile))
    assert explained == targets - {"help"}


@pytest.mark.slow
def test_commands_of_your_own_data_run_as_written(tmp_path: Path) -> None:
    """In their order, in a folder where the name of the recipe's model is a nano model of the same architecture."""
    section = README.split("## Your own data\n", 1)[1].split("\n## ", 1)[0]
    blocks = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    commands = [shlex.split(line) for block in blocks for line in block.splitlines() if line.startswith("seeklet ")]
    assert [command[1] for command in commands] == [
        *("data", "train", "train", "evaluate"),
        *("merge", "export-adapter", "chat"),
    ]
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    name = "HuggingFaceTB/SmolLM2-135M-Instruct"
    build_checkpoint(name, tmp_path / name)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "200"}
    output = []
    for command in commands:
        process = subprocess.run(
            [sys.executable, "-m", "seeklet.finetune", *command[1:]],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            encoding="utf-8",
        )
        assert process.returncode == 0, (command, process.stdout + process.stderr)
        output.append(process.stdout)
    assert "0 errors" in output[0]
    assert "nothing was trained" in output[1]
    run = tmp_path / "runs" / "sft_smollm2-135m_support_cpu"
    for left in ("adapter", "merged", "metrics.jsonl", "plots/loss.png", "README.md", "evaluation.md"):
        assert (run / left).exists(), left
    assert (tmp_path / "merged" / "model.safetensors").read_bytes() == (
        run / "merged" / "model.safetensors"
    ).read_bytes()
