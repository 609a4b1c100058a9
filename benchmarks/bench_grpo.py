"""One GRPO step, rollout included, beside TRL's trainer on the stock model with the same weights.

python -m benchmarks.bench_grpo [--repeats 5] [--threads 1] [--out benchmarks/results]
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM
from trl import GRPOConfig, GRPOTrainer

from benchmarks.report import keep, machine, make_folder
from benchmarks.timing import Comparison, compare
from seeklet.finetune.demo.nano import teacher_config
from seeklet.finetune.demo.tokenizer import build_tokenizer
from seeklet.finetune.grpo_trainer import SeekletGRPOTrainer
from seeklet.modeling import SeekletForCausalLM

PROMPTS, GROUP, NEW_TOKENS = 16, 8, 48
TARGET = 1.3


def models() -> tuple[SeekletForCausalLM, DeepseekV3ForCausalLM]:
    """Return the demo's model, ours and transformers', with the same weights; without what only ours would train."""
    torch.manual_seed(0)
    config = teacher_config()
    config.num_nextn_predict_layers, config.balance_loss_weight = 0, 0.0
    ours = SeekletForCausalLM(config)
    with tempfile.TemporaryDirectory() as folder:
        ours.save_pretrained(folder)
        stock = DeepseekV3ForCausalLM.from_pretrained(folder, config=DeepseekV3Config.from_pretrained(folder))
    return ours, stock


def make_config(folder: str) -> GRPOConfig:
    """Return settings of a step of 16 prompts with 8 samples of 48 tokens each."""
    return GRPOConfig(
        output_dir=folder,
        per_device_train_batch_size=PROMPTS * GROUP,
        num_generations=GROUP,
        max_completion_length=NEW_TOKENS,
        max_steps=1,
        learning_rate=0.0,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )


def count_digits(completions: list[Any], **kwargs: Any) -> list[float | None]:
    """Return a reward that differs within every group."""
    return [float(sum(character.isdigit() for character in completion[0]["content"])) for completion in completions]


def compare_step(repeats: int) -> Comparison:
    """Return the comparison of rollout, rewards, loss, gradients and optimizer step."""
    ours, stock = models()
    prompts = [[{"role": "user", "content": f"{a}+{b}-{a}+{b}"}] for a in range(4) for b in range(4)]
    data, tokenizer = Dataset.from_dict({"prompt": prompts}), build_tokenizer()
    rows = [{"prompt": prompt} for prompt in prompts for _ in range(GROUP)]
    with tempfile.TemporaryDirectory() as folder:
        trainers: list[Any] = [
            SeekletGRPOTrainer(ours, [count_digits], make_config(folder), tokenizer, data),
            GRPOTrainer(
                stock, [count_digits], make_config(folder), train_dataset=data, processing_class=build_tokenizer()
            ),
        ]
        steps = [_step(trainer, rows) for trainer in trainers]
        return compare(
            f"GRPO step, {PROMPTS}x{GROUP} samples of {NEW_TOKENS} tokens", TARGET, steps[0], steps[1], repeats
        )


def _step(trainer: Any, rows: list[dict[str, Any]]) -> Any:
    # Every sample is as long as every other.
    trainer.eos_token_ids = [10**6]
    trainer.generation_config.eos_token_id = [10**6]
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    model = trainer.model.train()

    def step() -> None:
        torch.manual_seed(1)
        trainer.training_step(model, rows, None)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    return step


def main() -> None:
    """Measure, print, and keep the table under `--out`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="interleaved repeats of every comparison")
    parser.add_argument("--threads", type=int, default=1, help="PyTorch's threads")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the result files")
    arguments = parser.parse_args()
    make_folder(parser, arguments.out)
    torch.set_num_threads(arguments.threads)
    row = compare_step(arguments.repeats)
    lines = [
        "| what | seeklet, s | TRL with transformers' model, s | ratio | target | met |",
        "|---|---|---|---|---|---|",
        f"| {row.name}, the demo's model | {row.ours_s:.2f} ({row.ours_range[0]:.2f}-{row.ours_range[1]:.2f}) "
        f"| {row.peer_s:.2f} ({row.peer_range[0]:.2f}-{row.peer_range[1]:.2f}) | {row.ratio:.2f}x | {row.target}x "
        f"| {'yes' if row.ratio >= row.target else 'no'} |",
    ]
    print("\n".join(lines))
    keep(arguments.out, "grpo", machine(), lines, {row.name: row.ratio})


if __name__ == "__main__":
    main()
