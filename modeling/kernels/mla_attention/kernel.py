"""MLA attention in Triton: keys of two parts, the rope part shared by all heads and never expanded, values narrower.

Forward is one kernel, backward two. What a query sees is a range of keys, causal or given, and within it a mask if
there is one; blocks outside of the ranges of all their queries are not touched.
"""

# B batch, H heads, S queries, T keys, N nope, R rope, V value

from typing import Any

import torch
import triton

from ..launch import Configuration, capability, device_of, num_multiprocessors
from ..tuned import tuned
from .backward import backward_key_kernel, backward_query_kernel
from .forward import forward_kernel
from .parts import Inputs, by_token

MAX_WIDTH = 128
# Enough programs to a multiprocessor that the last ones to finish weigh little.
PROGRAMS_PER_MULTIPROCESSOR = 4
# BLOCK_S, BLOCK_T, num_warps, num_stages by kernel: the largest of those tried that spill nothing at 192/128.
SM_80 = {"forward": (128, 32, 8, 2), "query": (32, 32, 4, 2), "key": (32, 32, 4, 2)}
SM_90 = {"forward": (128, 64, 8, 3), "query": (128, 64, 8, 2), "key": (32, 64, 8, 2)}
FP32 = {"forward": (32, 16, 8, 1), "query": (32, 16, 8, 1), "key": (16, 32, 8, 1)}


def takes(inputs: Inputs) -> bool:
    """Return whether the kernels take these dtypes, sizes and this kind of mask; nothing is taken that is empty."""
    dtype, mask = inputs.q_nope.dtype, inputs.mask
    known = dtype in (torch.bfloat16, torch.float16, torch.float32)
    same = known and all(x.dtype == dtype and x.numel() and x.shape[-1] <= MAX_WIDTH for x in inputs[:5])
    return same and (mask is None or mask.dtype == torch.bool)


def _tiling(kernel: str, dtype: torch.dtype, capability: int) -> dict[str, int]:
    sizes = FP32 if dtype == torch.float32 else SM_90 if capability >= 90 else SM_80
    names = ["BLOCK_S", "BLOCK_T", "num_warps", "num_stages"]
    tiling = dict(zip(names, sizes[kernel], strict=True))
    return tiling if dtype == torch.float32 else tiling | tuned(f"mla_attention.{kernel}", capability)


def _widths(nope: int, rope: int, value: int) -> dict[str, int]:
    sizes = {"NOPE": nope, "ROPE": rope, "VALUE": value}
    return sizes | {f"BLOCK_{name}": max(16, triton.next_power_of_2(size)) for name, size in sizes.items()}


def _dense(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _causal_ends(inputs: Inputs) -> torch.Tensor:
    queries, keys = inputs.q_nope.shape[2], inputs.k_nope.shape[2]
    return torch.arange(keys - queries + 1, keys + 1, dtype=torch.int32, device=inputs.q_nope.device)


def _ranges(inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return the first key that each query sees and the one behind the last, (B, S) each; None where causal."""
    shape = (inputs.q_nope.shape[0], inputs.q_nope.shape[2])
    first = end = None
    if inputs.first_keys is not None:
        first, end = inputs.first_keys.to(torch.int32), _causal_ends(inputs)
    if inputs.mask is not None:
        keys = inputs.k_nope.shape[2]
        seen = inputs.mask.expand(*inputs.mask.shape[:-1], keys)
        while seen.dim() < 4:
            seen = seen.unsqueeze(0)
        # Of any head.
        seen = seen.any(1).to(torch.uint8)
        some = seen.amax(-1)
        starts = torch.where(some > 0, seen.argmax(-1), keys).to(torch.int32)
        ends = torch.where(some > 0, keys - seen.flip(-1).argmax(-1), 0).to(torch.int32)
        first = starts if first is None else torch.maximum(first, starts)
        end = ends if end is None else torch.minimum(end, ends)
    if first is None or end is None:
        return None
    return first.expand(shape).contiguous(), end.expand(shape).contiguous()


def _arguments(inputs: Inputs) -> tuple[list[Any], list[Any], dict[str, Any]]:
    """Return tensors, numbers and constants that all three kernels take."""
    tensors = [_dense(x) for x in inputs[:5]]
    (B, heads, queries, nope), keys = inputs.q_nope.shape, inputs.k_nope.shape[2]
    mask, strides = tensors[0], (0, 0, 0, 0)
    if inputs.mask is not None:
        mask = inputs.mask.expand(B, heads, queries, keys).view(torch.uint8)
        strides = mask.stride()
    ranges = _ranges(inputs)
    numbers = [queries, keys, inputs.scaling]
    numbers += [stride for tensor in tensors for stride in tensor.stride()[:-1]] + [*strides]
    constants = {"HEADS": heads, **_widths(nope, inputs.q_rope.shape[-1], inputs.value.shape[-1])}
    constants |= {"RANGES": ranges is not None, "MASK": inputs.mask is not None}
    return [*tensors, mask, *(ranges or (mask, mask))], numbers, constants


def forward(inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output (B, H, S, V) in memory as (B, S, H, V), and log2 of the sum of 2^scores (B, H, S) in fp32.

    A query that sees nothing gets zeros.
    """
    tensors, numbers, constants = _arguments(inputs)
    B, heads, queries, _ = inputs.q_nope.shape
    output = by_token(inputs.value, heads, queries, inputs.value.shape[-1])
    lse = torch.empty((B, heads, queries), dtype=torch.float32, device=output.device)
    tiling = _tiling("forward", output.dtype, capability(output))
    with device_of(output):
        grid = (triton.cdiv(queries, tiling["BLOCK_S"]), heads, B)
        forward_kernel[grid](*tensors, output, lse, *numbers, **constants, **tiling)
    return output, lse


def heads_in_a_group(heads: int, programs: int, multiprocessors: int) -> int:
    """Return how many heads' rope gradients are summed in a program: at most 16, and the GPU stays filled."""
    group = 1
    while heads % (2 * group) == 0 and group < 16:
        if programs // (2 * group) < PROGRAMS_PER_MULTIPROCESSOR * multiprocessors:
            break
        group *= 2
    return group


def backward(
    grad: torch.Tensor,
    output: torch.Tensor,
    lse: torch.Tensor,
    inputs: Inputs,
    grad_k_nope: torch.Tensor,
    grad_value: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients to q_nope, q_rope and k_rope; those to k_nope and value are written to the tensors given."""
    tensors, numbers, constants = _arguments(inputs)
    (B, heads, queries, nope), keys, rope = inputs.q_nope.shape, inputs.k_nope.shape[2], inputs.q_rope.shape[-1]
    grad = grad.transpose(1, 2).contiguous()
    output = output.transpose(1, 2).contiguous()
    grad_q_nope, grad_q_rope = (by_token(output, heads, queries, size) for size in (nope, rope))
    delta = torch.empty_like(lse)
    by_query, by_key = (_tiling(kernel, output.dtype, capability(output)) for kernel in ("query", "key"))
    key_blocks = triton.cdiv(keys, by_key["BLOCK_T"])
    group = heads_in_a_group(heads, B * heads * key_blocks, num_multiprocessors(output))
    shares = torch.empty((B, heads // group, keys, rope), dtype=torch.float32, device=output.device)
    by_key |= {"GROUP": group, "NOPE_STEP": grad_k_nope.stride(1), "VALUE_STEP": grad_value.stride(1)}
    with device_of(output):
        grid = (triton.cdiv(queries, by_query["BLOCK_S"]), heads, B)
        backward_query_kernel[grid](
            *tensors, output, lse, grad, delta, grad_q_nope, grad_q_rope, *numbers, **constants, **by_query
        )
        backward_key_kernel[(key_blocks, heads // group, B)](
            *tensors, lse, grad, delta, grad_k_nope, shares, grad_value, *numbers, **constants, **by_key
        )
    return grad_q_nope, grad_q_rope, shares.sum(1).to(output.dtype)


TYPES = {"mask_ptr": "*u8", "first_ptr": "*i32", "end_ptr": "*i32", "scaling": "fp32"}
TYPES |= dict.fromkeys(["lse_ptr", "delta_ptr", "grad_k_rope_ptr"], "*fp32")


def _configuration(
    name: str, function: Any, kernel: str, heads: int, group: int, ranges: bool, step: int, chip: int
) -> Configuration:
    tiling = _tiling(kernel, torch.bfloat16, chip)
    warps, stages = tiling.pop("num_warps"), tiling.pop("num_stages")
    constants = {"HEADS": heads, **_widths(128, 64, 128), **tiling, "RANGES": ranges, "MASK": False}
    constants |= {"GROUP": group, "NOPE_STEP": step, "VALUE_STEP": step} if kernel == "key" else {}
    names = [name for name in function.arg_names if name not in constants]
    signature = {name: TYPES.get(name, "*bf16" if name.endswith("_ptr") else "i32") for name in names}
    strides = [name for name in names if name[-2:] in ("_b", "_h", "_s", "_t") and not name.startswith("mask")]
    return Configuration(name, function, signature, constants, warps, stages, True, tuple(strides), (chip,))


def configurations() -> list[Configuration]:
    """Return the kernels at 128 heads (DeepSeek-V3) and 16 (Moonlight), causal and packed, in bf16.

    With the gradients of keys and values beside each other, as from the latent, at 128 heads.
    """
    functions = {"forward": forward_kernel, "query": backward_query_kernel, "key": backward_key_kernel}
    shapes = (("v3", 128, 16, False), ("v3_packed", 128, 16, True), ("moonlight", 16, 2, False))
    found = [
        _configuration(f"{kernel}_bf16_{name}_sm{chip}", function, kernel, heads, group, ranges, 128, chip)
        for name, heads, group, ranges in shapes
        for kernel, function in functions.items()
        for chip in (80, 90, 100)
    ]
    found += [
        _configuration(f"key_bf16_v3_from_latent_sm{chip}", backward_key_kernel, "key", 128, 16, False, 256, chip)
        for chip in (80, 90, 100)
    ]
    return found
