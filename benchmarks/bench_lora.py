"""LoRA on the routed experts: ours beside stock transformers with PEFT's `target_parameters`, on the same weights.

    python -m benchmarks.bench_lora [--threads 2] [--repeats 9] [--skip-memory] [--out benchmarks/results]

Steps are timed in turns in one process. Memory is the peak of a process that does nothing else, less the interpreter
and its libraries: what routed experts cost is that peak with them and attention, less that with attention alone.
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn

from benchmarks.bench_model import SETTINGS, SIZES, choose_fastest, our_model, stock_model, use
from benchmarks.memory import GIVE_BACK, REPEATS, ROOT, resident_mib
from benchmarks.report import keep, machine, make_folder
from benchmarks.timing import Comparison, compare, speed_line
from seeklet.finetune.adapter_settings import AdapterSettings
from seeklet.finetune.lora.attach import attach
from seeklet.modeling.kernels.grouped_lora import op
from tests.kernels.memory import largest_tensor_made

RANK = 16
ATTENTION = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
# (dtype, tokens a sequence, at least so many times faster)
STEPS = ((torch.float32, 64, 2.5), (torch.float32, 512, 1.4), (torch.bfloat16, 64, 2.5), (torch.bfloat16, 512, 1.4))
MEMORY_TARGET = 0.4
BATCH, MEMORY_LENGTH = 4, 512


def our_adapted(dtype: torch.dtype, attention: bool, experts: bool) -> nn.Module:
    """Return our model with LoRA on what is asked for."""
    targets = ("attention",) * attention + ("routed_experts",) * experts
    model = attach(our_model(dtype), AdapterSettings(targets=targets, rank=RANK))
    return _randomized(model)


def stock_adapted(dtype: torch.dtype, attention: bool, experts: bool) -> nn.Module:
    """Return transformers' model with plain PEFT's LoRA on what is asked for."""
    config = LoraConfig(
        r=RANK,
        lora_alpha=32,
        target_modules=ATTENTION if attention else [],
        target_parameters=EXPERTS if experts else None,
        task_type="CAUSAL_LM",
    )
    return _randomized(get_peft_model(stock_model(dtype), config))


def lora_step(model: nn.Module, optimizer: torch.optim.Optimizer, length: int) -> None:
    """Run one training step of the adapter: forward, backward, AdamW; other tokens every time."""
    tokens = torch.randint(2, SIZES["vocab_size"], (BATCH, length))
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def compare_lora(dtype: torch.dtype, length: int, target: float, repeats: int) -> Comparison:
    """Return the comparison of a step with LoRA on the routed experts only."""
    models: list[Any] = [make(dtype, attention=False, experts=True) for make in (our_adapted, stock_adapted)]
    models[0].load_state_dict(models[1].state_dict())
    runs: list[Callable[[], None]] = []
    for model in models:
        optimizer = _adamw(model.train())
        runs.append(lambda m=model, o=optimizer: lora_step(m, o, length))
    fastest = choose_fastest(models[1].get_base_model(), runs[1], SETTINGS)
    name = f"LoRA on routed experts, r={RANK}, B={BATCH} T={length}, {_name(dtype)} (peer: {fastest})"
    return compare(name, target, runs[0], runs[1], repeats)


def peak_mib(side: str, dtype: str, experts: bool, setting: tuple[str, str]) -> float:
    """Return the peak of a process that trains an adapter of attention, or of it and the experts; in a fresh one."""
    before = resident_mib()
    make = our_adapted if side == "ours" else stock_adapted
    model: Any = make(getattr(torch, dtype), attention=True, experts=experts)
    if side == "peer":
        use(model.get_base_model(), setting)
    optimizer = _adamw(model.train())
    for _ in range(2):
        lora_step(model, optimizer, MEMORY_LENGTH)
    gc.collect()
    # Writing 5 sets the peak back to the present size.
    Path("/proc/self/clear_refs").write_text("5")
    lora_step(model, optimizer, MEMORY_LENGTH)
    return resident_mib("VmHWM") - before


def measure_memory(dtype: str, setting: tuple[str, str] = ("sdpa", "grouped_mm")) -> dict[str, float]:
    """Return what routed experts add to the peak (MiB, median), ours and the peer's, and the ratio of the two."""
    added = {}
    for side in ("ours", "peer"):
        peaks = []
        for experts in ("0", "1"):
            command = [sys.executable, "-m", "benchmarks.bench_lora", "--peak", side, dtype, experts, *setting]
            runs = []
            for _ in range(REPEATS):
                environment = {**os.environ, **GIVE_BACK}
                run = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
                runs.append(json.loads(run.stdout.splitlines()[-1]))
            peaks.append(statistics.median(runs))
        added[side] = peaks[1] - peaks[0]
    return {**added, "ratio": added["ours"] / added["peer"]}


def _randomized(model: Any) -> nn.Module:
    # B of zeros would spare nobody anything, but is no adapter in the middle of its training either.
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.02)
    return model


def _adamw(model: nn.Module) -> torch.optim.Optimizer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=1e-4, fused=True)


def _name(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]


def largest_tensor(side: str) -> float:
    """Return the largest tensor that a step makes, its operators' own included, in numbers of the smaller stack."""
    make = our_adapted if side == "ours" else stock_adapted
    model = make(torch.float32, attention=False, experts=True).train()
    optimizer = _adamw(model)
    made = largest_tensor_made(lambda: lora_step(model, optimizer, STEPS[0][1]), (op._forward, op._backward))
    return made / (SIZES["n_routed_experts"] * SIZES["hidden_size"] * SIZES["moe_intermediate_size"])


def memory_lines(ratios: dict[str, float]) -> Iterator[str]:
    """Measure memory; give the lines of the table, and add to `ratios`."""
    largest = {side: largest_tensor(side) for side in ("ours", "peer")}
    what = "largest tensor made in a step, in stacks of down projections"
    ratios[what] = round(largest["ours"], 3)
    met = "yes" if largest["ours"] < 1 else "no"
    yield f"| {what} | {largest['ours']:.2f} | {largest['peer']:.2f} | | below 1x | {met} |"
    for dtype in ("float32", "bfloat16"):
        row = measure_memory(dtype)
        what = f"peak memory that routed experts add to LoRA on attention, B={BATCH} T={MEMORY_LENGTH}, {dtype}"
        ratios[what] = round(row["ratio"], 2)
        met = "yes" if row["ratio"] <= MEMORY_TARGET else "no"
        cells = f"{row['ours']:.0f} MiB | {row['peer']:.0f} MiB | {row['ratio']:.2f}x | {MEMORY_TARGET:g}x | {met}"
        yield f"| {what} | {cells} |"


def main() -> None:
    """Measure, print the table, and keep it under `--out`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="PyTorch's threads")
    parser.add_argument("--repeats", type=int, default=9, help="interleaved repeats of every comparison")
    parser.add_argument("--skip-memory", action="store_true", help="leave out memory, read from Linux's /proc")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the result files")
    parser.add_argument("--peak", nargs=5, metavar="...", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=UserWarning, module="peft")
    if arguments.peak:
        side, dtype, experts, *setting = arguments.peak
        print(json.dumps(peak_mib(side, dtype, experts == "1", (setting[0], setting[1]))))
        return
    make_folder(parser, arguments.out)
    lines = ["| what | seeklet, ms | transformers + PEFT, ms | ratio | target | met |", "|---|---|---|---|---|---|"]
    print("\n".join(lines), flush=True)
    ratios: dict[str, float] = {}
    for dtype, length, target in STEPS:
        row = compare_lora(dtype, length, target, arguments.repeats)
        ratios[row.name] = round(row.ratio, 2)
        lines.append(speed_line(row))
        print(lines[-1], flush=True)
    for line in () if arguments.skip_memory else memory_lines(ratios):
        lines.append(line)
        print(line, flush=True)
    keep(arguments.out, "lora", machine(), lines, ratios)


if __name__ == "__main__":
    main()
