"""QLoRA beside LoRA on bf16 weights, and beside transformers' own bitsandbytes load of the same mixture of experts.

    python -m benchmarks.bench_qlora [--threads 1] [--repeats 9] [--out benchmarks/results]

Needs bitsandbytes. Steps are timed in turns in one process; bytes are those of all parameters and buffers.
"""

import argparse
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import BitsAndBytesConfig, DeepseekV3ForCausalLM

from benchmarks.bench_lora import BATCH, RANK, _adamw, _randomized, lora_step
from benchmarks.bench_model import our_model
from benchmarks.report import keep, machine, make_folder
from benchmarks.timing import compare
from seeklet.finetune.adapter_settings import AdapterSettings
from seeklet.finetune.lora.attach import attach
from seeklet.modeling import SeekletForCausalLM

TARGETS = ("attention", "dense_mlp", "shared_experts", "routed_experts")
LENGTHS = (64, 512)
TIME_TARGET, BYTES_TARGET = 1.6, 0.45


def load_ours(folder: str, **kwargs: Any) -> Any:
    """Return our model of the checkpoint in bf16, or quantised."""
    return SeekletForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **kwargs)


def count_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters and buffers, and of what bitsandbytes keeps beside its parameters."""
    tensors = [*model.parameters(), *model.buffers()]
    states: list[Any] = [state for p in model.parameters() if (state := getattr(p, "quant_state", None)) is not None]
    return sum(tensor.nbytes for tensor in [*tensors, *(state.absmax for state in states)])


def main() -> None:
    """Measure, print the table, and keep it under `--out`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="PyTorch's threads")
    parser.add_argument("--repeats", type=int, default=9, help="interleaved repeats of every comparison")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the result files")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    make_folder(parser, arguments.out)
    lines = ["| what | nf4 | beside it | nf4 / beside it | at most | met |", "|---|---|---|---|---|---|"]
    ratios: dict[str, float] = {}

    def add(what: str, ours: float, peer: float, unit: str, target: float) -> None:
        ratios[what] = round(ours / peer, 3)
        met = "yes" if ours / peer <= target else "no"
        lines.append(f"| {what} | {ours:.1f} {unit} | {peer:.1f} {unit} | {ours / peer:.2f}x | {target:g}x | {met} |")
        print(lines[-1], flush=True)

    print("\n".join(lines), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        our_model(torch.bfloat16).save_pretrained(folder)
        quantised, plain = load_ours(folder, quantize="nf4"), load_ours(folder)
        four_bits = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
        stock = DeepseekV3ForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, quantization_config=four_bits)
        bytes_of = {name: count_bytes(m) / 1e6 for name, m in (("q", quantised), ("b", plain), ("s", stock))}
        del stock
        add("model, beside transformers with bitsandbytes", bytes_of["q"], bytes_of["s"], "MB", BYTES_TARGET)
        add("model, beside bf16", bytes_of["q"], bytes_of["b"], "MB", BYTES_TARGET)
        settings = AdapterSettings(targets=TARGETS, rank=RANK)
        models = [_randomized(attach(model, settings)).train() for model in (quantised, plain)]
        optimizers = [_adamw(model) for model in models]
        for length in LENGTHS:
            steps = [
                lambda m=model, o=optimizer, n=length: lora_step(m, o, n)
                for model, optimizer in zip(models, optimizers, strict=True)
            ]
            what = f"step of LoRA on all projections, r={RANK}, B={BATCH} T={length}, beside bf16"
            row = compare(what, TIME_TARGET, steps[0], steps[1], arguments.repeats)
            add(what, row.ours_s * 1e3, row.peer_s * 1e3, "ms", TIME_TARGET)
    keep(arguments.out, "qlora", {**machine(), "bitsandbytes": version("bitsandbytes")}, lines, ratios)


if __name__ == "__main__":
    main()
