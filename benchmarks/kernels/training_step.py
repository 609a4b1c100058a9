"""A fine-tuning step of two DeepSeek-V3 layers with LoRA on all: ours with kernels, beside stock transformers + PEFT.

    python -m benchmarks.kernels.training_step [--out benchmarks/results]
    python -m benchmarks.kernels.training_step --smoke      # on CPU at nano size: that everything here runs

A dense and a sparse layer at V3's sizes, 8,192 tokens in one row, bf16, rank 16 on every projection and on the routed
experts, AdamW on the factors. The weights are the same, drawn by name. Each side is a process of its own; stock takes
whichever of its settings is fastest. Reported are the median step and the peak of the memory that PyTorch allocates.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from benchmarks.bench_lora import ATTENTION, EXPERTS, RANK
from benchmarks.kernels.results import record
from benchmarks.kernels.run import NOT_RUN
from benchmarks.report import make_folder
from seeklet.finetune.adapter_settings import AdapterSettings
from seeklet.finetune.lora.attach import attach
from seeklet.modeling import SeekletConfig, SeekletForCausalLM
from seeklet.modeling.kernelize import kernelize

ROOT = Path(__file__).resolve().parents[2]
SIDES = ("ours", "stock + PEFT")
FASTER, LESS_MEMORY = 2.0, 0.6
STEPS, WARM_UP = 5, 2
# transformers' settings that may be its best in training.
SETTINGS = (("sdpa", "grouped_mm"), ("sdpa", "eager"))
TIMEOUT_S = 240

HEADER = ["| what | step, ms | tokens/s | peak, GiB |", "|---|---|---|---|"]


class Shape(NamedTuple):
    """Sizes of a model, and the tokens of a step."""

    tokens: int
    config: dict[str, Any]


V3 = Shape(8192, {"num_hidden_layers": 2, "first_k_dense_replace": 1})
NANO = Shape(
    64,
    {
        "vocab_size": 122,
        "hidden_size": 96,
        "intermediate_size": 384,
        "moe_intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "q_lora_rank": 48,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 24,
        "qk_rope_head_dim": 8,
        "v_head_dim": 24,
        "first_k_dense_replace": 1,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
    },
)


class Measured(NamedTuple):
    """Median time of a step and the peak of allocated memory, None where nobody counts it; and what was measured."""

    step_s: float
    peak_gib: float | None
    what: str


def _fill(model: nn.Module) -> None:
    """Draw each weight by its name, so that both models have the same."""
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            seed = zlib.crc32(name.encode())
            generator = torch.Generator(parameter.device).manual_seed(seed)
            nn.init.normal_(parameter, std=0.02, generator=generator)


def ours(shape: Shape, device: torch.device) -> nn.Module:
    """Return our model with LoRA on all, and its kernels where there is a GPU."""
    with device:
        model = SeekletForCausalLM._from_config(
            SeekletConfig(**shape.config, balance_loss_weight=0.0, num_nextn_predict_layers=0), dtype=torch.bfloat16
        )
    _fill(model)
    targets = ("attention", "dense_mlp", "shared_experts", "routed_experts")
    adapted = attach(model, AdapterSettings(targets=targets, rank=RANK))
    kernelize(adapted, "training", quiet=device.type == "cpu")
    return adapted


def stock(shape: Shape, device: torch.device) -> Any:
    """Return transformers' model with PEFT's LoRA on attention and routed experts.

    For this model PEFT takes gate_proj, up_proj and down_proj to be the routed experts', in whatever form they are
    given, and leaves those of dense layers and shared experts alone: stock has the less to do.
    """
    with device:
        model = DeepseekV3ForCausalLM._from_config(DeepseekV3Config(**shape.config), dtype=torch.bfloat16)
    _fill(model)
    config = LoraConfig(
        r=RANK, lora_alpha=32, target_modules=ATTENTION, target_parameters=EXPERTS, task_type="CAUSAL_LM"
    )
    return get_peft_model(model, config)


class _Steps:
    """Steps of one model on tokens that change."""

    def __init__(self, model: nn.Module, shape: Shape, device: torch.device) -> None:
        self.model, self.shape, self.device = model.train(), shape, device
        self.optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
        self.vocabulary = shape.config.get("vocab_size", DeepseekV3Config().vocab_size)

    def seconds(self) -> float:
        """Run a step; return how long it took."""
        tokens = torch.randint(2, self.vocabulary, (1, self.shape.tokens), device=self.device)
        self._wait()
        start = time.perf_counter()
        self.model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def measure(side: str, shape: Shape, device: torch.device, repeats: int = STEPS) -> Measured:
    """Return what one side takes; in a process of its own, where memory counts."""
    torch.manual_seed(0)
    settings: Sequence[tuple[str, str] | None] = (None,) if side == "ours" else SETTINGS
    model = ours(shape, device) if side == "ours" else stock(shape, device)
    found = []
    for setting in settings:
        if setting is not None:
            base = model.get_base_model()  # pyright: ignore[reportCallIssue]
            base.set_attn_implementation(setting[0])
            base.set_experts_implementation(setting[1])
        found.append(
            _measured(
                model,
                shape,
                device,
                repeats,
                "seeklet with kernels" if setting is None else f"stock, {'+'.join(setting)}",
            )
        )
    return min(found, key=lambda each: each.step_s)


def _measured(model: nn.Module, shape: Shape, device: torch.device, repeats: int, what: str) -> Measured:
    steps = _Steps(model, shape, device)
    for _ in range(min(WARM_UP, repeats)):
        steps.seconds()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    median = statistics.median(steps.seconds() for _ in range(repeats))
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    return Measured(median, peak, what)


def in_a_process(side: str) -> Measured | str:
    """Return what one side takes on the GPU, or in a line why it failed."""
    command = [sys.executable, "-m", "benchmarks.kernels.training_step", "--side", side]
    try:
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"took more than {TIMEOUT_S} s"
    if run.returncode:
        return (run.stderr.strip().splitlines() or [f"exit code {run.returncode}"])[-1]
    print(run.stdout, end="")
    return Measured(**json.loads(run.stdout.splitlines()[-1]))


def lines_of(tokens: int, found: dict[str, Measured | str]) -> Iterator[str]:
    """Give the lines of the table: both sides, then the two ratios beside what is to be reached."""
    for side, each in found.items():
        if isinstance(each, str):
            yield f"| {side} | FAILED: {each} | | |"
            continue
        peak = "-" if each.peak_gib is None else f"{each.peak_gib:.1f}"
        yield f"| {side} ({each.what}) | {each.step_s * 1e3:.1f} | {tokens / each.step_s:.0f} | {peak} |"
    for name, (ratio, is_met) in ratios_of(found).items():
        yield f"| {name} | {ratio:.2f}x | {'met' if is_met else 'not met'} | |"


def ratios_of(found: dict[str, Measured | str]) -> dict[str, tuple[float, bool]]:
    """Return each ratio with whether it is reached; those of which a side failed are left out."""
    ours, theirs = (found[side] for side in SIDES)
    if isinstance(ours, str) or isinstance(theirs, str):
        return {}
    faster = theirs.step_s / ours.step_s
    ratios = {f"times as fast (target ≥ {FASTER:g})": (faster, faster >= FASTER)}
    if ours.peak_gib is not None and theirs.peak_gib is not None:
        memory = ours.peak_gib / theirs.peak_gib
        ratios[f"times the memory (target ≤ {LESS_MEMORY:g})"] = (memory, memory <= LESS_MEMORY)
    return ratios


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure both sides, print and keep the table; 1 where ours failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--smoke", action="store_true", help="on CPU at nano size, one step; nothing is kept")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.smoke:
        found: dict[str, Measured | str] = {side: measure(side, NANO, torch.device("cpu"), 1) for side in SIDES}
        print(*HEADER, *lines_of(NANO.tokens, found), sep="\n")
        return 0
    if not torch.cuda.is_available():
        print(NOT_RUN)
        return 0
    if given.side:
        print(json.dumps(measure(given.side, V3, torch.device("cuda"))._asdict()))
        return 0
    make_folder(parser, given.out)
    found: dict[str, Measured | str] = dict.fromkeys(SIDES, "not measured yet")
    for side in SIDES:
        found[side] = in_a_process(side)
        # One side is something, where the time is over before the other.
        lines = [*HEADER, *lines_of(V3.tokens, found)]
        print(*lines, sep="\n")
        ratios = {name: ratio for name, (ratio, _) in ratios_of(found).items()}
        print(f"kept in {record(given.out, 'training step', lines, ratios)}", flush=True)
    return 1 if isinstance(found["ours"], str) else 0


if __name__ == "__main__":
    raise SystemExit(main())
