"""What the README tells a user to type does what it says."""

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

from seeklet.modeling import SeekletConfig, SeekletForCausalLM
from tests.finetune.characters import build_tokenizer

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
