"""A rollout of a nano model, for a test to kill: `python killed.py FOLDER`."""

import sys
from pathlib import Path
from typing import Any

import torch

from seeklet.finetune.rewards import RewardSet, RewardSettings
from seeklet.finetune.rollout.dataset import Origin
from seeklet.finetune.rollout.report import RolloutReport
from seeklet.finetune.rollout.run import fingerprint_weights, rollout
from seeklet.finetune.rollout.settings import RejectionSamplingSettings
from tests.finetune.characters import VOCABULARY
from tests.finetune.rollout.attempts import TOKENIZER, sums
from tests.modeling.nano import build_ours

SIZES: dict[str, Any] = {"vocab_size": len(VOCABULARY), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
NUM_PROMPTS = 24


def run(folder: Path, use_mtp: bool = False) -> RolloutReport:
    """Return the report of a rollout that takes any answer of an even number of tokens for right."""
    torch.set_num_threads(1)
    model = build_ours(**SIZES, num_nextn_predict_layers=1)
    rewards = RewardSet([RewardSettings("overlong", settings={"max_tokens": 8, "buffer_tokens": 6})])
    settings = RejectionSamplingSettings(
        threshold=-0.5,
        max_new_tokens=12,
        batch_size=8,
        requires_format=False,
        requires_reasoning=False,
        use_mtp=use_mtp,
    )
    origin = Origin(str(Path(__file__).parent / "nano"), weights=fingerprint_weights(model))
    # A set of texts has another order in each process.
    prompts = [prompt._replace(columns={**prompt.columns, "tags": {"a", "b", "c"}}) for prompt in sums(NUM_PROMPTS)]
    report = rollout(model, TOKENIZER, prompts, rewards, settings, folder, origin)
    assert report is not None
    return report


if __name__ == "__main__":
    run(Path(sys.argv[1]))
