"""The share of a processor's own peak that a short training run reaches on this machine."""

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch

from seeklet.modeling import SeekletConfig, SeekletForCausalLM
from seeklet.modeling.kernels.linear.reference import matmul

from .counts import count_flops
from .speed import Work

_STEPS, _SEQUENCES, _TOKENS = 3, 2, 256
_CPU_SIZES: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "moe_intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 128,
    "q_lora_rank": 192,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
}
# A Moonlight of four layers: wide enough that a GPU's products are as large as in earnest.
_GPU_SIZES: dict[str, Any] = {
    **{"vocab_size": 32768, "hidden_size": 2048, "intermediate_size": 11264, "moe_intermediate_size": 1408},
    **{"num_hidden_layers": 4, "num_attention_heads": 16, "n_routed_experts": 64, "num_experts_per_tok": 6},
    **{"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "kv_lora_rank": 512, "q_lora_rank": None},
}


@dataclass(frozen=True)
class Calibration:
    """What was measured."""

    device: str
    peak_flops: float
    """Of the largest product that fits well, measured here too."""
    step_flops: float

    wide: int
    """Rows and columns of that product."""

    @property
    def efficiency(self) -> float:
        """Return the share of the peak that a training step reaches."""
        return min(1.0, self.step_flops / self.peak_flops)

    def describe(self) -> str:
        """Return what was measured in a line."""
        return (
            f"{self.efficiency:.0%}, on {self.device}: a training step of a small mixture of experts does "
            f"{self.step_flops / 1e9:,.1f} GFLOP/s of the {self.peak_flops / 1e9:,.1f} of a plain product, {self.wide} "
            "wide"
        )


def measure_efficiency() -> Calibration:
    """Return what a short training run of a small model reaches here, beside a plain matrix product.

    On a GPU in bf16, on a CPU in fp32. Both peaks are measured, so that the share can be carried to a faster machine;
    what a small model leaves unused of a large GPU is in it, and makes the plan careful.
    """
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    dtype, width = (torch.bfloat16, 8192) if on_gpu else (torch.float32, 1024)
    one, other = (torch.randn(width, width, dtype=dtype, device=device) for _ in range(2))
    # Of a CPU the faster of its libraries: seeklet's layers take oneDNN where PyTorch takes MKL.
    product_s = min(_median_seconds(lambda m=multiply: m(one, other), device) for multiply in (torch.mm, matmul))
    torch.manual_seed(0)
    config = SeekletConfig(**(_GPU_SIZES if on_gpu else _CPU_SIZES), balance_loss_weight=0.0)
    tokens = 4096 if on_gpu else _TOKENS
    with torch.device(device):
        model = SeekletForCausalLM._from_config(config, dtype=dtype).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    ids = torch.randint(0, config.vocab_size, (_SEQUENCES, tokens), device=device)

    def step() -> None:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step_s = _median_seconds(step, device)
    flops = count_flops(model, tokens).forward * Work().passes * _SEQUENCES * tokens
    name = torch.cuda.get_device_name() if on_gpu else f"this CPU ({torch.get_num_threads()} threads)"
    return Calibration(name, 2 * width**3 / product_s, flops / step_s, width)


def _median_seconds(work: Any, device: torch.device) -> float:
    times = []
    for index in range(_STEPS + 1):
        begun = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if index:
            times.append(time.perf_counter() - begun)
    return statistics.median(times)
