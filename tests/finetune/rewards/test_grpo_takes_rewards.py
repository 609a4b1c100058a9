"""A set of rewards in TRL's own GRPOTrainer: plain prompts and conversations, columns, logs and failures."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM
from trl import GRPOConfig, GRPOTrainer

from seeklet.finetune.errors import TrainingError
from seeklet.finetune.rewards import RewardSet, RewardSettings
from seeklet.finetune.rewards.guards import RewardGuard
from tests.finetune.characters import EOS, VOCABULARY, build_tokenizer

PLAIN = ["1+2", "3-4+5", "7", "8+8-1"]
CONVERSATIONS = [[{"role": "user", "content": text}] for text in PLAIN]


def make_trainer(folder: Path, prompts: list[Any], rewards: RewardSet, **columns: Any) -> GRPOTrainer:
    sizes: dict[str, int] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    ends: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": VOCABULARY.index(EOS)}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(VOCABULARY), **sizes, **ends))
    config = GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=6,
        max_steps=3,
        learning_rate=1e-3,
        reward_weights=rewards.weights,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        use_cpu=True,
    )
    return GRPOTrainer(
        model=model,
        reward_funcs=list(rewards.functions),
        args=config,
        train_dataset=Dataset.from_dict({"prompt": prompts, **columns}),
        processing_class=build_tokenizer(),
        callbacks=[RewardGuard(rewards, first_steps=2, recent_steps=2)],
    )


def embedding(trainer: GRPOTrainer) -> torch.Tensor:
    model: Any = trainer.model
    return model.model.embed_tokens.weight.detach().clone()


@pytest.mark.parametrize("prompts", [PLAIN, CONVERSATIONS], ids=["plain", "conversations"])
def test_rewards_train_and_are_logged(prompts: list[Any], tmp_path: Path) -> None:
    rewards = RewardSet(
        [
            RewardSettings("exact", 2.0),
            RewardSettings("overlong", 0.5, settings={"max_tokens": 6, "buffer_tokens": 6}),
            RewardSettings("exact", 1.0, name="other", settings={"column": "sometimes"}),
        ],
        max_failed_share=0.8,
    )
    columns = {"answer": ["3", "4", "7", "15"], "sometimes": ["x", None, "y", "z"]}
    trainer = make_trainer(tmp_path, prompts, rewards, **columns)
    before = embedding(trainer)
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert len(steps) == 3
    for entry in steps:
        # Six tokens at most, and of those as many sixths are taken off: by hand, from the mean length TRL logs.
        assert entry["rewards/overlong/mean"] == pytest.approx(-entry["completions/mean_length"] / 6, abs=1e-6)
        total = 2 * entry["rewards/exact/mean"] + 0.5 * entry["rewards/overlong/mean"] + entry["rewards/other/mean"]
        assert entry["reward"] == pytest.approx(total, abs=1e-6)
        assert (entry["rewards/exact/failed"], entry["rewards/overlong/failed"]) == (0.0, 0.0)
    assert not torch.equal(before, embedding(trainer))
    # One row of four has no other answer; each of its samples failed, and scored 0.
    assert 0 <= steps[-1]["rewards/other/failed"] <= 0.5
    assert rewards.failures.num_failed["other"] in (0, 4, 8, 12)
    assert rewards.failures.num_failed["exact"] == 0


def test_a_run_whose_rewards_mostly_fail_ends(tmp_path: Path) -> None:
    rewards = RewardSet([RewardSettings("exact", settings={"column": "solution"})], window=16)
    trainer = make_trainer(tmp_path, PLAIN, rewards, answer=["3", "4", "7", "15"])
    with pytest.raises(TrainingError, match=r'reward exact at step 1: 100% of the last 16 .* has no "solution"'):
        trainer.train()


def test_equal_rewards_and_none_at_all_train_on_nothing_and_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "def silent(completion, row):\n    return None\ndef equal(completion, row):\n    return 1.0\n"
    (tmp_path / "silent_rewards.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    # Trainer writes null for what is no number.
    for name, expected in (("silent", None), ("equal", 1.0)):
        caplog.clear()
        rewards = RewardSet([RewardSettings("own", name=name, settings={"function": f"silent_rewards:{name}"})])
        trainer = make_trainer(tmp_path, PLAIN, rewards)
        before = embedding(trainer)
        trainer.train()
        steps = [entry for entry in trainer.state.log_history if "reward" in entry]
        assert [entry["reward"] for entry in steps] == [expected] * 3
        assert torch.equal(before, embedding(trainer))
        told = " ".join(record.getMessage() for record in caplog.records if "rewards.guards" in record.name)
        assert ("was no number" in told) == (name == "silent")
        assert ("hardly anything left to learn" in told) == (name == "equal")
