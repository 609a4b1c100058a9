"""Absorbed MLA decoding in Triton: the latent cache is read by each block of heads, in splits that fill the GPU.

A program holds the queries of some heads and goes through every `splits`-th block of keys; a second kernel puts the
splits together by their log-sum-exp. Heads and query tokens are rows of one tile, as all heads share one key.
"""

# B batch, S query tokens, H heads, T cached tokens, L latent (kv_lora_rank), R rope dimensions

import torch
import triton

from ..launch import Configuration, capability, device_of, num_multiprocessors
from .programs import ADDITIVE_MASK, BOOL_MASK, NO_MASK, bounds_kernel, combine_kernel, split_kernel

MAX_LATENT, MAX_ROPE = 512, 128
# Beyond, putting the splits together takes longer than what they save.
MAX_SPLITS = 64
# Of a multiprocessor: a program takes less than half of its shared memory.
PROGRAMS_AT_ONCE = 2


def takes(q_latent: torch.Tensor, q_rope: torch.Tensor, latent: torch.Tensor, rope: torch.Tensor) -> bool:
    """Return whether the kernels take these dtypes and sizes; nothing is taken that is empty."""
    tensors = (q_latent, q_rope, latent, rope)
    same = q_latent.dtype in (torch.bfloat16, torch.float16, torch.float32) and {x.dtype for x in tensors} == {
        q_latent.dtype
    }
    return same and latent.shape[-1] <= MAX_LATENT and rope.shape[-1] <= MAX_ROPE and all(x.numel() for x in tensors)


def _tiling(num_rows: int, dtype: torch.dtype, capability: int) -> dict[str, int]:
    if dtype == torch.float32:
        return {"BLOCK_ROWS": 16, "BLOCK_T": 16, "num_warps": 8, "num_stages": 1}
    # With 64 keys neither would two programs have room on sm_80, nor one on chips with less memory.
    keys = 64 if capability >= 90 else 32
    # 64 rows, as wgmma would have them, spill with 512 columns of output.
    if num_rows <= 16:
        return {"BLOCK_ROWS": 16, "BLOCK_T": keys, "num_warps": 4, "num_stages": 2}
    return {"BLOCK_ROWS": 32, "BLOCK_T": keys, "num_warps": 8, "num_stages": 2}


def num_splits(programs: int, num_blocks: int, multiprocessors: int) -> int:
    """Return in how many parts the keys are split: as many as fill the GPU once, from shapes alone."""
    return max(1, min(PROGRAMS_AT_ONCE * multiprocessors // programs, num_blocks, MAX_SPLITS))


def _dense(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _widths(latent: int, rope: int) -> dict[str, int]:
    block_l, block_r = (max(16, triton.next_power_of_2(size)) for size in (latent, rope))
    return {"LATENT": latent, "ROPE": rope, "BLOCK_L": block_l, "BLOCK_R": block_r}


def forward(
    q_latent_BHSL: torch.Tensor,
    q_rope_BHSR: torch.Tensor,
    latent_BTL: torch.Tensor,
    rope_BTR: torch.Tensor,
    mask: torch.Tensor | None,
    lengths_B: torch.Tensor | None,
    scaling: float,
) -> torch.Tensor:
    """Return the attention output in latent space (B, H, S, L), zeros for a query that sees nothing."""
    B, H, S, L = q_latent_BHSL.shape
    T = latent_BTL.shape[1]
    q_latent, q_rope, latent, rope = map(_dense, (q_latent_BHSL, q_rope_BHSR, latent_BTL, rope_BTR))
    device, rows = latent.device, H * S
    tiling = _tiling(rows, latent.dtype, capability(latent))
    row_blocks = triton.cdiv(rows, tiling["BLOCK_ROWS"])
    splits = num_splits(B * row_blocks, triton.cdiv(T, tiling["BLOCK_T"]), num_multiprocessors(latent))
    output = torch.empty((B, H, S, L), dtype=latent.dtype, device=device)
    partial = output if splits == 1 else torch.empty((B * rows, splits, L), dtype=torch.float32, device=device)
    lse = torch.empty((B * rows, splits), dtype=torch.float32, device=device)
    kind, strides, bounds = NO_MASK.value, (0, 0, 0, 0), lse
    given = latent if mask is None else mask
    if mask is not None:
        kind = BOOL_MASK.value if mask.dtype == torch.bool else ADDITIVE_MASK.value
        given = mask.expand(B, H, S, T)
        given = given.view(torch.uint8) if mask.dtype == torch.bool else given
        strides = given.stride()
    lengths = lse if lengths_B is None else lengths_B.to(torch.int32).contiguous()
    with device_of(latent):
        if mask is not None and lengths_B is None:
            bounds = torch.empty((B, 2), dtype=torch.int32, device=device)
            lines = (H if strides[1] else 1, S if strides[2] else 1)
            bounds_kernel[(B,)](given, bounds, *lines, T, *strides, MASK=kind, BLOCK=1024)
        split_kernel[(row_blocks, splits, B)](
            q_latent,
            q_rope,
            latent,
            rope,
            given,
            bounds,
            lengths,
            partial,
            lse,
            rows,
            S,
            T,
            splits,
            scaling,
            *q_latent.stride()[:3],
            *q_rope.stride()[:3],
            *latent.stride()[:2],
            *rope.stride()[:2],
            *strides,
            MASK=kind,
            LENGTHS=lengths_B is not None,
            **_widths(L, rope.shape[-1]),
            **tiling,
        )
        if splits > 1:
            block_l = triton.next_power_of_2(L)
            combine_kernel[(B * rows,)](partial, lse, output, splits, LATENT=L, BLOCK_L=block_l, num_warps=2)
    return output


def _split_configuration(name: str, heads: int, mask: int, chip: int) -> Configuration:
    signature = dict.fromkeys(["q_latent_ptr", "q_rope_ptr", "latent_ptr", "rope_ptr"], "*bf16")
    signature |= {
        "mask_ptr": "*u8" if mask == BOOL_MASK.value else "*bf16",
        "bounds_ptr": "*i32",
        "lengths_ptr": "*i32",
    }
    signature |= {"output_ptr": "*fp32", "lse_ptr": "*fp32", "scaling": "fp32"}
    signature |= dict.fromkeys(["num_rows", "num_queries", "num_keys", "num_splits"], "i32")
    strides = [f"{tensor}_{of}" for tensor in ("q_latent", "q_rope") for of in "bhs"]
    strides += [f"{tensor}_{of}" for tensor in ("latent", "rope") for of in "bt"]
    signature |= dict.fromkeys([*strides, *(f"mask_{of}" for of in "bhst")], "i32")
    tiling = _tiling(heads, torch.bfloat16, chip)
    warps, stages = tiling.pop("num_warps"), tiling.pop("num_stages")
    constants = {**_widths(512, 64), **tiling, "MASK": mask, "LENGTHS": mask == NO_MASK.value}
    return Configuration(
        f"{name}_sm{chip}", split_kernel, signature, constants, warps, stages, True, tuple(strides), (chip,)
    )


def configurations() -> list[Configuration]:
    """Return the kernels at 128 heads (DeepSeek-V3) and 16 (Moonlight): ragged, and with a mask; bf16."""
    numbers = dict.fromkeys(["num_heads", "num_queries", "num_keys", *(f"stride_{of}" for of in "bhst")], "i32")
    splits = (("v3", 128, NO_MASK), ("v3_mask", 128, BOOL_MASK), ("moonlight", 16, NO_MASK))
    return [
        *(
            _split_configuration(f"split_bf16_{name}", heads, mask.value, chip)
            for name, heads, mask in splits
            for chip in (80, 90, 100)
        ),
        Configuration(
            "combine_bf16",
            combine_kernel,
            {"partial_ptr": "*fp32", "lse_ptr": "*fp32", "output_ptr": "*bf16", "num_splits": "i32"},
            {"LATENT": 512, "BLOCK_L": 512},
            num_warps=2,
        ),
        Configuration(
            "bounds",
            bounds_kernel,
            {"mask_ptr": "*u8", "bounds_ptr": "*i32", **numbers},
            {"MASK": BOOL_MASK.value, "BLOCK": 1024},
        ),
    ]
