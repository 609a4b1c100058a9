"""Loss of the output head: ours beside cross entropy of the full logits and beside TRL's own chunks.

    python -m benchmarks.bench_head_loss [--threads 2] [--repeats 3] [--out benchmarks/results]

4,096 tokens, hidden size 512, vocabulary 129,280; forward and backward, with the head trained (full fine-tuning) and
frozen (LoRA). Time in one process, in turns; peak memory each in a fresh process, above the inputs.
"""

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F
from trl.kernels.chunked_logprob import ChunkedLogProbFunction

from benchmarks.memory import GIVE_BACK, ROOT, resident_mib
from benchmarks.report import keep, machine, make_folder
from benchmarks.timing import Comparison, seconds
from seeklet.modeling.kernels.linear_cross_entropy.reference import linear_cross_entropy

TOKENS, HIDDEN, VOCAB = 4096, 512, 129_280
# As SFTTrainer of TRL 1.16 calls it: tiles over the vocabulary, and the metrics it logs.
TRL_TILE, TRL_OUTPUTS = 32_768, ("log_probs", "entropy", "is_top1")
MEMORY_TARGET, SPEED_TARGET = 0.15, 1.0
Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def full_logits(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean cross entropy as transformers computes it: all logits, in fp32."""
    return F.cross_entropy(F.linear(hidden, weight).float(), targets)


def trl_chunks(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean cross entropy as TRL's SFTTrainer computes it."""
    log_probs, *_ = ChunkedLogProbFunction.apply(hidden, weight, None, targets, 1.0, TRL_TILE, None, 1.0, TRL_OUTPUTS)
    return -log_probs.mean()


def ours(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean cross entropy as seeklet computes it."""
    return linear_cross_entropy(hidden, weight, targets) / targets.numel()


LOSSES: dict[str, Loss] = {"ours": ours, "full": full_logits, "trl": trl_chunks}
PEERS = {"full": "full logits", "trl": "TRL's chunks"}


def draw_inputs(dtype: torch.dtype, head_trained: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return hidden states (T, H), the head's weight (V, H) and targets (T,)."""
    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN).to(dtype).requires_grad_()
    weight = (torch.randn(VOCAB, HIDDEN) / HIDDEN**0.5).to(dtype).requires_grad_(head_trained)
    return hidden, weight, torch.randint(0, VOCAB, (TOKENS,))


def step(loss: Loss, inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> float:
    """Run forward and backward, and return the loss."""
    value = loss(*inputs)
    value.backward()
    for tensor in inputs:
        tensor.grad = None
    return value.item()


def warm_up(loss: Loss, inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    """Run on a small piece, for which libraries load and threads start."""
    hidden, weight, targets = inputs
    step(loss, (hidden[:64].detach().requires_grad_(), weight[:1024].detach(), targets[:64] % 1024))


def compare_speed(dtype: torch.dtype, head_trained: bool, repeats: int) -> dict[str, Comparison]:
    """Return the comparison of a forward and backward pass with each peer, all of them run in turns."""
    inputs = draw_inputs(dtype, head_trained)
    times: dict[str, list[float]] = {which: [] for which in LOSSES}
    for loss in LOSSES.values():
        warm_up(loss, inputs)
    for repeat in range(repeats):
        for which in sorted(LOSSES, reverse=bool(repeat % 2)):
            times[which].append(seconds(lambda which=which: step(LOSSES[which], inputs)))
    medians = {which: statistics.median(found) for which, found in times.items()}
    spread = {which: (min(found), max(found)) for which, found in times.items()}
    case = f"{str(dtype).removeprefix('torch.')}, head {'trained' if head_trained else 'frozen'}"
    return {
        peer: Comparison(f"{case}, {title}", SPEED_TARGET, medians["ours"], spread["ours"], medians[peer], spread[peer])
        for peer, title in PEERS.items()
    }


def peak_once(which: str, dtype: str, head: str) -> float:
    """Return the peak memory (MiB) above the inputs of one pass; to be called in a fresh process."""
    inputs = draw_inputs(getattr(torch, dtype), head == "trained")
    warm_up(LOSSES[which], inputs)
    base = resident_mib()
    Path("/proc/self/clear_refs").write_text("5")
    step(LOSSES[which], inputs)
    return resident_mib("VmHWM") - base


def peak_mib(which: str, dtype: str, head: str, threads: int) -> float:
    """Return the peak memory (MiB) of one pass in a fresh process; what is allocated does not vary."""
    command = [sys.executable, "-m", "benchmarks.bench_head_loss", "--threads", str(threads)]
    command += ["--peak", which, dtype, head]
    environment = {**os.environ, **GIVE_BACK}
    run = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    return float(run.stdout.splitlines()[-1])


def speed_line(row: Comparison) -> str:
    """Return one line of the table of times: median (smallest-largest)."""
    cells = [
        f"{median:.2f} ({low:.2f}-{high:.2f})"
        for median, (low, high) in ((row.ours_s, row.ours_range), (row.peer_s, row.peer_range))
    ]
    met = "yes" if row.ratio >= row.target else "no"
    ratio = f"{row.ratio:.2f}x faster | at least {row.target:g}x"
    return f"| time, {row.name} | {cells[0]} s | {cells[1]} s | {ratio} | {met} |"


def memory_line(name: str, ours_mib: float, peer_mib: float, has_target: bool) -> str:
    """Return one line of the table of peaks."""
    ratio = ours_mib / peer_mib
    target, met = (f"at most {MEMORY_TARGET:g}x", "yes" if ratio <= MEMORY_TARGET else "no") if has_target else ("", "")
    return f"| {name} | {ours_mib:.0f} MiB | {peer_mib:.0f} MiB | {ratio:.3f}x | {target} | {met} |"


def main() -> None:
    """Measure, print the table, and keep it under `--out`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="PyTorch's threads")
    parser.add_argument("--repeats", type=int, default=3, help="interleaved repeats of every comparison")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the result files")
    parser.add_argument("--peak", nargs=3, metavar=("LOSS", "DTYPE", "HEAD"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        print(peak_once(*arguments.peak))
        return
    make_folder(parser, arguments.out)
    about = machine()
    lines = ["| what | seeklet | peer | ratio | target | met |", "|---|---|---|---|---|---|"]
    print("\n".join(lines), flush=True)
    ratios: dict[str, float] = {}
    cases = [(dtype, trained) for dtype in (torch.float32, torch.bfloat16) for trained in (True, False)]
    for dtype, trained in cases:
        dtype_name, head = str(dtype).removeprefix("torch."), "trained" if trained else "frozen"
        peaks = {which: peak_mib(which, dtype_name, head, arguments.threads) for which in LOSSES}
        rows = compare_speed(dtype, trained, arguments.repeats)
        for peer, title in PEERS.items():
            name = f"peak memory, {dtype_name}, head {head}, {title}"
            ratios[name] = round(peaks["ours"] / peaks[peer], 3)
            lines.append(memory_line(name, peaks["ours"], peaks[peer], peer == "full"))
            print(lines[-1], flush=True)
            ratios[f"time, {rows[peer].name}"] = round(rows[peer].ratio, 2)
            lines.append(speed_line(rows[peer]))
            print(lines[-1], flush=True)
    keep(arguments.out, "head_loss", about, lines, ratios)


if __name__ == "__main__":
    main()
