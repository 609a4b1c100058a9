"""A linear head's log-probabilities in Triton: logits live in registers, tile by tile, and never in memory.

Forward keeps four numbers a row while it goes through the vocabulary. Backward makes the logits again, a part of the
vocabulary at a time, and stores only their gradient in the dtype of the inputs, for two matrix products that are
PyTorch's own: the part's rows of the weight gradient are final, and the hidden states' gradient is summed in fp32.
"""

# T tokens, H hidden, V vocabulary

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton

from ..launch import Configuration, capability, device_of, num_multiprocessors
from ..tuned import tuned
from .programs import backward_kernel, forward_kernel

# Numbers of the logits' gradient that are held at once, 128 MiB in bf16: 8,192 columns of 8,192 tokens. Each part costs
# one more pass over the hidden states' gradient in fp32, 5 % of its products at H = 7168.
PART_ELEMENTS = 2**26
MIN_PART_COLUMNS = 4096
# Blocks of rows that run at the same time; their hidden states, 16 x 128 x H, stay in the second-level cache.
GROUP = 16


def takes(hidden_TH: torch.Tensor, weight_VH: torch.Tensor) -> bool:
    """Return whether the kernels take these dtypes; nothing is taken without rows, columns or width."""
    dtypes = hidden_TH.dtype == weight_VH.dtype and hidden_TH.dtype in (torch.bfloat16, torch.float32)
    return dtypes and hidden_TH.numel() > 0 and weight_VH.numel() > 0


class Rows(NamedTuple):
    """What forward found of each row, all (T,) in fp32.

    Attributes:
        log_probs: of the targets; where a target is negative, of nothing.
        normalizer: log of the sum of exponentials of the logits over the temperature.
        entropy: in nats; empty where not asked for.
    """

    log_probs: torch.Tensor
    normalizer: torch.Tensor
    entropy: torch.Tensor


def _tiling(dtype: torch.dtype, is_forward: bool, capability: int) -> dict[str, int]:
    # fp32 is multiplied outside of the tensor cores, from registers that larger tiles would spill.
    if dtype == torch.float32:
        return {"BLOCK_T": 64, "BLOCK_V": 64, "BLOCK_H": 16, "num_warps": 8, "num_stages": 2}
    # Twice as wide, half the traffic, where it fits into the registers: backward on sm_90 and both on sm_100 spill.
    wide = is_forward and capability == 90
    tiling = {"BLOCK_T": 128, "BLOCK_V": 256 if wide else 128, "BLOCK_H": 64, "num_warps": 8, "num_stages": 3 + wide}
    return tiling | tuned(f"linear_log_probs.{'forward' if is_forward else 'backward'}", capability)


def _dense_rows(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def forward(
    hidden_TH: torch.Tensor, weight_VH: torch.Tensor, targets_T: torch.Tensor, temperature: float, with_entropy: bool
) -> Rows:
    """Return the targets' log-probabilities, the normalisers and, where asked, the entropies of all rows."""
    rows, columns = hidden_TH.shape[0], weight_VH.shape[0]
    hidden, weight = _dense_rows(hidden_TH), _dense_rows(weight_VH)
    tiling = _tiling(hidden.dtype, True, capability(hidden))
    row_blocks, column_blocks = triton.cdiv(rows, tiling["BLOCK_T"]), triton.cdiv(columns, tiling["BLOCK_V"])
    # As many splits of the vocabulary as fill the device beside the blocks of rows.
    splits = min(column_blocks, triton.cdiv(num_multiprocessors(hidden), min(row_blocks, GROUP)))
    per_split = triton.cdiv(column_blocks, splits)
    splits = triton.cdiv(column_blocks, per_split)
    found = torch.empty((3 + with_entropy, splits, rows), dtype=torch.float32, device=hidden.device)
    with device_of(hidden):
        forward_kernel[(row_blocks * splits,)](
            hidden,
            weight,
            targets_T.contiguous(),
            *found[:3],
            found[-1],
            rows,
            columns,
            splits,
            per_split,
            hidden.stride(0),
            weight.stride(0),
            1.0 / temperature,
            WIDTH=hidden.shape[1],
            GROUP=GROUP,
            ENTROPY=with_entropy,
            **tiling,
        )
    largest, total, at_target = found[:3]
    share = largest + total.log()
    normalizer = share.logsumexp(0)
    entropy = torch.empty(0, dtype=torch.float32, device=hidden.device)
    if with_entropy:
        # Of a split, the mean of normalizer - z under its own distribution, times what it has of the whole.
        entropy = ((share - normalizer).exp() * (normalizer - largest - found[3] / total)).sum(0)
    return Rows(at_target.sum(0) - normalizer, normalizer, entropy)


def _parts(rows: int, columns: int) -> Iterator[slice]:
    size = max(MIN_PART_COLUMNS, PART_ELEMENTS // rows)
    return (slice(start, min(start + size, columns)) for start in range(0, columns, size))


def backward(
    hidden_TH: torch.Tensor,
    weight_VH: torch.Tensor,
    targets_T: torch.Tensor,
    found: Rows,
    grad_log_probs: torch.Tensor,
    grad_entropy: torch.Tensor | None,
    temperature: float,
    needs_hidden: bool,
    needs_weight: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return the gradients to `hidden_TH` and `weight_VH`, where needed, given those to log-probabilities and entropy.

    Rows whose gradients are zero count nothing, whatever their target.
    """
    rows, columns = hidden_TH.shape[0], weight_VH.shape[0]
    hidden, weight = _dense_rows(hidden_TH), _dense_rows(weight_VH)
    tiling = _tiling(hidden.dtype, False, capability(hidden))
    parts = list(_parts(rows, columns))
    buffer = torch.empty(rows * (parts[0].stop - parts[0].start), dtype=hidden.dtype, device=hidden.device)
    grad_hidden = None
    grad_weight = torch.empty(weight_VH.shape, dtype=weight.dtype, device=hidden.device) if needs_weight else None
    for part in parts:
        size = part.stop - part.start
        grad_logits = buffer[: rows * size].view(rows, size)
        with device_of(hidden):
            backward_kernel[(triton.cdiv(rows, tiling["BLOCK_T"]) * triton.cdiv(size, tiling["BLOCK_V"]),)](
                hidden,
                weight,
                targets_T.contiguous(),
                found.normalizer,
                found.normalizer if grad_entropy is None else found.entropy,
                grad_log_probs.contiguous(),
                grad_log_probs if grad_entropy is None else grad_entropy.contiguous(),
                grad_logits,
                rows,
                columns,
                part.start,
                size,
                hidden.stride(0),
                weight.stride(0),
                1.0 / temperature,
                WIDTH=hidden.shape[1],
                GROUP=GROUP,
                ENTROPY=grad_entropy is not None,
                **tiling,
            )
        if needs_hidden:
            product = grad_logits @ weight[part]
            if len(parts) > 1:
                product = product.to(torch.float32) if grad_hidden is None else grad_hidden.add_(product)
            grad_hidden = product
        if grad_weight is not None:
            torch.mm(grad_logits.t(), hidden, out=grad_weight[part])
    return None if grad_hidden is None else grad_hidden.to(hidden.dtype), grad_weight


# Hidden sizes.
PUBLISHED = {"v3": 7168, "moonlight": 2048}


def _configuration(
    name: str, width: int, dtype: torch.dtype, is_forward: bool, with_entropy: bool, chip: int
) -> Configuration:
    kind = "bf16" if dtype == torch.bfloat16 else "fp32"
    signature = {"hidden_ptr": f"*{kind}", "weight_ptr": f"*{kind}", "targets_ptr": "*i64", "num_rows": "i32"}
    signature |= dict.fromkeys(["num_columns", "stride_hidden", "stride_weight"], "i32")
    fp32 = ["normalizer_ptr", "entropy_ptr", "grad_log_probs_ptr", "grad_entropy_ptr"]
    whole = ["part_start", "part_columns"]
    if is_forward:
        fp32 = ["largest_ptr", "total_ptr", "target_ptr", "moment_ptr"]
        whole = ["num_splits", "blocks_per_split"]
    else:
        signature["grad_logits_ptr"] = f"*{kind}"
    signature |= dict.fromkeys(fp32, "*fp32") | dict.fromkeys(whole, "i32") | {"inverse_temperature": "fp32"}
    tiling = _tiling(dtype, is_forward, chip)
    warps, stages = tiling.pop("num_warps"), tiling.pop("num_stages")
    what = "forward" if is_forward else "backward"
    return Configuration(
        f"{what}_{kind}_{name}{'_entropy' if with_entropy else ''}_sm{chip}",
        forward_kernel if is_forward else backward_kernel,
        signature,
        {**tiling, "WIDTH": width, "GROUP": GROUP, "ENTROPY": with_entropy},
        num_warps=warps,
        num_stages=stages,
        tensor_cores=dtype == torch.bfloat16,
        aligned=("stride_hidden", "stride_weight", *(() if is_forward else ("part_columns",))),
        capabilities=(chip,),
    )


def configurations() -> list[Configuration]:
    """Return the kernels at the widths of DeepSeek-V3 and Moonlight in bf16, and of the latter in fp32."""
    kinds = [(name, PUBLISHED[name], torch.bfloat16, entropy) for name, entropy in (("v3", False), ("v3", True))]
    kinds += [("moonlight", 2048, torch.bfloat16, False), ("moonlight", 2048, torch.float32, True)]
    return [
        _configuration(name, width, dtype, is_forward, with_entropy, chip)
        for is_forward in (True, False)
        for name, width, dtype, with_entropy in kinds
        for chip in (80, 90, 100)
    ]
