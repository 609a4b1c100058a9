"""Time and peak memory of loading a 2 GB bf16 checkpoint: ours beside transformers' DeepseekV3ForCausalLM.

Every load is a process of its own, the two alternating, after the files were read once (warm page cache). Reported
is the load itself, and the load with one pass over all weights: transformers maps some of the weights from the file
and reads them when they are first used.

    python -m benchmarks.loading
"""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers

ROOT = Path(__file__).resolve().parents[1]
OURS, PEER = "SeekletForCausalLM", "DeepseekV3ForCausalLM"
REPEATS = 5
# 1.0e9 parameters, 92 % of them in routed experts (V3: 97 %).
SIZES: dict[str, Any] = {
    "vocab_size": 32768,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "moe_intermediate_size": 1024,
    "num_hidden_layers": 10,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "n_routed_experts": 32,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "q_lora_rank": 384,
    "kv_lora_rank": 512,
}


def make_checkpoint(folder: str) -> int:
    """Return the size in bytes of a checkpoint that transformers' own model writes to `folder`."""
    transformers.logging.disable_progress_bar()
    config = transformers.DeepseekV3Config(**SIZES)
    model = transformers.DeepseekV3ForCausalLM._from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="500MB")
    return sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))


def load_once(name: str, folder: str) -> dict[str, float]:
    """Return seconds and peak MiB of loading `folder` by the class `name`, alone and with a first use of all weights.

    To be called in a fresh process, as the peak is that of the process.
    """
    if name == OURS:
        from seeklet.modeling import SeekletForCausalLM as model_class
    else:
        model_class = transformers.DeepseekV3ForCausalLM
    transformers.logging.disable_progress_bar()
    start = time.perf_counter()
    model = model_class.from_pretrained(folder, dtype=torch.bfloat16)
    load_s, load_mib = time.perf_counter() - start, peak_mib()
    for tensor in model.state_dict().values():
        tensor.view(-1)[::32].float().sum()
    return {
        "load_s": load_s,
        "load_mib": load_mib,
        "first_use_s": time.perf_counter() - start,
        "first_use_mib": peak_mib(),
    }


def peak_mib() -> float:
    """Return the largest resident memory of this process so far, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest / (2**20 if sys.platform == "darwin" else 2**10)


def measure(repeats: int = REPEATS) -> dict[str, Any]:
    """Return the medians of both classes (`ours`, `peer`), their spread, and `ratios` ours/peer of each figure."""
    runs: dict[str, list[dict[str, float]]] = {OURS: [], PEER: []}
    with tempfile.TemporaryDirectory() as folder:
        nbytes = make_checkpoint(folder)
        for repeat in range(repeats + 1):
            for name in (OURS, PEER) if repeat % 2 else (PEER, OURS):
                command = [sys.executable, "-m", "benchmarks.loading", name, folder]
                output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
                # The first of each only warms the page cache.
                if repeat:
                    runs[name].append(json.loads(output.splitlines()[-1]))
    figures = list(runs[OURS][0])
    medians = {name: {f: statistics.median(run[f] for run in runs[name]) for f in figures} for name in runs}
    spread = {
        name: {f: [min(run[f] for run in runs[name]), max(run[f] for run in runs[name])] for f in figures}
        for name in runs
    }
    return {
        "checkpoint_bytes": nbytes,
        "repeats": repeats,
        "ours": medians[OURS],
        "peer": medians[PEER],
        "spread": {"ours": spread[OURS], "peer": spread[PEER]},
        "ratios": {f: medians[OURS][f] / medians[PEER][f] for f in figures},
    }


def show(result: dict[str, Any]) -> str:
    """Return the table of a result of `measure`."""
    lines = [
        f"Loading {result['checkpoint_bytes'] / 1e9:.2f} GB of bf16, median of {result['repeats']} fresh processes "
        f"(smallest … largest), {os.cpu_count()} cores",
        f"{'':24}{'seeklet':>26}{'transformers':>26}{'ratio':>8}",
    ]
    titles = {
        "load_s": "load, s",
        "load_mib": "load, peak MiB",
        "first_use_s": "load + first use, s",
        "first_use_mib": "load + first use, peak MiB",
    }
    for figure, title in titles.items():
        cells = []
        for side in ("ours", "peer"):
            low, high = result["spread"][side][figure]
            digits = 2 if figure.endswith("_s") else 0
            cells.append(f"{result[side][figure]:.{digits}f} ({low:.{digits}f} … {high:.{digits}f})")
        lines.append(f"{title:26}{cells[0]:>24}{cells[1]:>26}{result['ratios'][figure]:>8.2f}")
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    return "\n".join([*lines, versions])


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(load_once(*sys.argv[1:])))
    else:
        print(show(measure()))
