"""The planner's memory beside what training takes: nano and bench models, whole and LoRA, with and without recomputing.

    python -m benchmarks.bench_plan

Peak bytes of tensors in a step, weights, gradients and AdamW's states included, as PyTorch's allocator saw them
(`finetune/plan/measure.py` says why not the resident size). Each case runs in a fresh process.
"""

import json
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from benchmarks.bench_model import SIZES
from seeklet.finetune.demo.nano import student_config, teacher_config
from seeklet.finetune.plan.check import ALL_TARGETS, Case, make_recipe, measure, predict
from seeklet.modeling import SeekletConfig

RESULTS = Path(__file__).parent / "results"
TARGET = 0.10


def bench_config() -> PreTrainedConfig:
    """Return the bench model's config."""
    return SeekletConfig(**SIZES)


def bench_config_with_mtp() -> PreTrainedConfig:
    """Return the same with a multi-token prediction module."""
    return SeekletConfig(**SIZES, num_nextn_predict_layers=1)


CASES: dict[str, list[Case]] = {
    "nano": [
        Case("all weights", 8, 256),
        Case("all weights, short", 32, 64),
        Case("all weights, checkpointing", 8, 256, checkpointing=True),
        Case("all weights, accumulated", 8, 256, accumulation=2),
        Case("LoRA", 8, 256, ALL_TARGETS),
        Case("LoRA of attention", 8, 256, ("attention",)),
        Case("LoRA, checkpointing", 16, 128, ALL_TARGETS, checkpointing=True),
    ],
    "dense": [Case("all weights", 8, 256), Case("LoRA, checkpointing", 8, 256, ALL_TARGETS[:2], checkpointing=True)],
    "bench": [
        Case("all weights", 4, 256),
        Case("all weights, checkpointing", 4, 256, checkpointing=True),
        Case("LoRA", 4, 256, ALL_TARGETS),
        Case("LoRA, checkpointing", 8, 256, ALL_TARGETS, checkpointing=True),
        Case("all weights, long", 1, 1024),
        Case("QLoRA nf4", 4, 256, ALL_TARGETS, quantization="nf4"),
        Case("QLoRA nf4, checkpointing", 8, 256, ALL_TARGETS, checkpointing=True, quantization="nf4"),
        Case("QLoRA int8, attention", 4, 256, ("attention",), quantization="int8"),
    ],
    "bench with MTP": [
        Case("all weights", 4, 256),
        Case("LoRA, checkpointing, accumulated", 4, 256, ALL_TARGETS, checkpointing=True, accumulation=2),
    ],
}
MODELS = {
    "nano": teacher_config,
    "dense": student_config,
    "bench": bench_config,
    "bench with MTP": bench_config_with_mtp,
}


def run_case(model: str, index: int) -> dict[str, Any]:
    """Return what one case was predicted and measured to take, in bytes; to be called in a fresh process."""
    torch.manual_seed(0)
    case, config = CASES[model][index], MODELS[model]()
    with tempfile.TemporaryDirectory() as folder:
        recipe = make_recipe(case, config, Path(folder))
        predicted = predict(recipe)
        measured = measure(recipe, config)
    shape = f"{case.sequences} x {case.tokens}"
    return {"model": model, "case": case.name, "batch": shape, "predicted": predicted, "measured": measured}


def main() -> None:
    """Run all cases, print a line each, and write the results."""
    rows: list[dict[str, Any]] = []
    for model, cases in CASES.items():
        for index in range(len(cases)):
            command = [sys.executable, "-m", "benchmarks.bench_plan", model, str(index)]
            run = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append(json.loads(run.stdout.splitlines()[-1]))
            print(_line(rows[-1]), flush=True)
    worst = max(abs(row["predicted"] / row["measured"] - 1) for row in rows)
    name = f"{datetime.now(UTC):%Y-%m-%d}_plan_cpu_{torch.get_num_threads()}threads"
    (RESULTS / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n")
    head = "| model | case | batch | predicted MB | measured MB | ratio |\n|---|---|---|---|---|---|\n"
    text = (
        f"# Planner: predicted and measured peak memory\n\ntorch {torch.__version__}, CPU, fp32, AdamW; tensor bytes "
        f"as PyTorch's allocator saw them. Largest difference {worst:.1%}, target {TARGET:.0%}.\n\n"
    )
    (RESULTS / f"{name}.md").write_text(text + head + "\n".join(_line(row) for row in rows) + "\n")
    print(f"largest difference {worst:.1%}, target {TARGET:.0%}")
    if worst > TARGET:
        raise SystemExit(1)


def _line(row: dict[str, Any]) -> str:
    sizes = f"{row['predicted'] / 1e6:.1f} | {row['measured'] / 1e6:.1f}"
    return f"| {row['model']} | {row['case']} | {row['batch']} | {sizes} | {row['predicted'] / row['measured']:.3f} |"


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(run_case(sys.argv[1], int(sys.argv[2]))))
    else:
        main()
