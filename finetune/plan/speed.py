"""How long work takes, and what it costs: floating-point operations over a stated share of the peak.

The efficiency model, the same for every model and GPU:

1. The operations of a step are counted on the model's shapes: two per weight and token forward, causal attention (a
   token sees half its sequence on average), the head again for each multi-token prediction module; backward twice that
   where the weights are trained, once where only adapters are; one more forward where activations are recomputed.
2. A GPU does `efficiency` of its dense bf16 peak, 40 % unless another share is given. DeepSeek reports 38.9 % for V3 on
   2,048 H800, measured as here (arXiv 2505.09343, table 4), Meta 38 to 43 % for Llama-3.1-405B on 8,192 and 16,384 H100
   (arXiv 2407.21783, table 4).
3. The peak is that of bf16 in fp8 training too, since products are no longer what takes the time then: at V3's the
   all-to-all takes as long as computing (arXiv 2412.19437, section 3.2.1), and what fp8 gains, it hides. Taking the fp8
   peak for it would halve V3's hours, against what was measured.
4. Traffic is hidden behind computing as far as it is no longer; what is longer is waited for.
5. Energy is the GPU's thermal design power for all hours: no host, no cooling. Cost is GPU hours at a price.
"""

from dataclasses import dataclass

from .cluster import Gpu
from .counts import TokenFlops

EFFICIENCY = 0.40
# Of reading weights and cache while generating. Kernels for it reach 0.9 (FlashMLA: 3,000 of 3,350 GB/s on an H800);
# between them the GPU waits.
BANDWIDTH_EFFICIENCY = 0.6
SECONDS_PER_HOUR = 3600


@dataclass(frozen=True)
class Work:
    """How a token is trained on."""

    backward: float = 2.0
    """Times the forward pass: 2 where weights are trained, 1 where they are frozen and only passed."""
    recompute: float = 0.0
    """Forward passes done again: 1 with gradient checkpointing."""

    @property
    def passes(self) -> float:
        """Return how many forward passes a step costs."""
        return 1 + self.backward + self.recompute


@dataclass(frozen=True)
class Bill:
    """What a number of tokens takes on a number of GPUs."""

    tokens: float
    gpu_hours: float
    hours: float
    energy_kwh: float
    cost: float | None
    """In USD; None where no price is known."""


def seconds_per_token(flops: TokenFlops, work: Work, gpu: Gpu, efficiency: float = EFFICIENCY) -> float:
    """Return the GPU-seconds of computing that training on a token takes."""
    return flops.forward * work.passes / (gpu.tflops_bf16 * 1e12 * efficiency)


def make_bill(tokens: float, gpu_seconds_per_token: float, gpu: Gpu, num_gpus: int) -> Bill:
    """Return hours, energy and cost of `tokens` tokens."""
    gpu_hours = tokens * gpu_seconds_per_token / SECONDS_PER_HOUR
    return Bill(
        tokens=tokens,
        gpu_hours=gpu_hours,
        hours=gpu_hours / num_gpus,
        energy_kwh=gpu_hours * gpu.tdp_w / 1000,
        cost=None if gpu.price_per_hour is None else gpu_hours * gpu.price_per_hour,
    )


def decode_seconds_per_token(
    read_bytes: float, cache_bytes: float, batch: int, flops_forward: float, gpu: Gpu, efficiency: float = EFFICIENCY
) -> float:
    """Return the GPU-seconds of generating a token: reading or computing, whichever takes longer.

    Args:
        read_bytes: weights read for one step of the whole batch, over all GPUs of the replica.
        cache_bytes: keys and values read per sequence and step.
        batch: sequences generated at a time on the replica.
        flops_forward: of one token.
        gpu: whose bandwidth and peak count.
        efficiency: of computing.
    """
    reading = (read_bytes / batch + cache_bytes) / (gpu.bandwidth_gb_per_s * 1e9 * BANDWIDTH_EFFICIENCY)
    return max(reading, flops_forward / (gpu.tflops_bf16 * 1e12 * efficiency))
