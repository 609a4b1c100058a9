"""Whose MLA attention runs: FlashAttention's where it is installed and fits, else the operator of this package.

FlashAttention 4 published 611-634 TFLOP/s forward at 192/128 on an H100; it and FlashAttention 3 want query and key in
one piece, the rope key expanded, and keep these and the values for backward, where `mla_attention_from_latent` keeps
neither: it is speed that is chosen for here. cuDNN (643 forward, 442 backward on an H200) comes with every CUDA build
of torch: it is taken when asked for by name, until it has been measured beside ours.
"""

# B batch, H heads, S queries, T keys, N nope, R rope, V value

import importlib
import importlib.util
import sys
from collections.abc import Collection, Sequence
from typing import Any, Literal

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..launch import capability, runs_triton
from .from_latent import mla_attention_from_latent
from .op import mla_attention
from .parts import joined

# Best first: module, and the compute capabilities it is written for.
FLASH_ATTENTION = {"flash_attn.cute": (90, 100), "flash_attn_interface": (90,)}
# Columns of keys and of values that both of them are compiled for, of those MLA has: DeepSeek's own.
HEAD_SIZES = (192, 128)
Library = Literal["best", "ours", "cudnn"]


def installed(module: str) -> bool:
    """Return whether a module can be imported, without importing it."""
    if module in sys.modules:
        return True
    package = module.partition(".")[0]
    return importlib.util.find_spec(package) is not None and importlib.util.find_spec(module) is not None


def best_of(present: Collection[str], capability: int, head_sizes: tuple[int, int], dtype: torch.dtype) -> str:
    """Return the first of FlashAttention's modules that is present and fits, or "ours"."""
    if head_sizes == HEAD_SIZES and dtype in (torch.bfloat16, torch.float16):
        for module, capabilities in FLASH_ATTENTION.items():
            if capability in capabilities and module in present:
                return module
    return "ours"


def best_library(parts: Sequence[torch.Tensor], value_width: int, mask: object, first_keys: object) -> str:
    """Return the module to call, or "ours": for anything but plain causal attention on a GPU.

    `parts` begin with `q_nope` and `q_rope`, as the arguments of `attend` do.
    """
    q_nope, q_rope = parts[:2]
    if mask is not None or first_keys is not None or not runs_triton(q_nope):
        return "ours"
    present = [module for module in FLASH_ATTENTION if installed(module)]
    sizes = (q_nope.shape[-1] + q_rope.shape[-1], value_width)
    return best_of(present, capability(q_nope), sizes, q_nope.dtype)


def attend(
    q_nope_BHSN: torch.Tensor,
    q_rope_BHSR: torch.Tensor,
    k_nope_BHTN: torch.Tensor,
    k_rope_BTR: torch.Tensor,
    value_BHTV: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    first_keys_BS: torch.Tensor | None = None,
    library: Library = "best",
) -> torch.Tensor:
    """Return what `mla_attention` does, from the best library installed, from cuDNN, or from this package.

    Raises:
        ValueError: cuDNN is asked for with a mask or `first_keys_BS`, which it is not given here.
    """
    parts = (q_nope_BHSN, q_rope_BHSR, k_nope_BHTN, k_rope_BTR)
    if library == "cudnn" and (mask is not None or first_keys_BS is not None):
        raise ValueError("library is 'cudnn', given a mask or first_keys; allowed with these: 'best' and 'ours'")
    chosen = best_library(parts, value_BHTV.shape[-1], mask, first_keys_BS) if library == "best" else library
    if chosen == "ours":
        return mla_attention(*parts, value_BHTV, mask, scaling, first_keys_BS)
    query, key = joined(*parts)
    if chosen == "cudnn":
        return _cudnn(query, key, value_BHTV, scaling)
    flash: Any = importlib.import_module(chosen)
    by_token = (x.transpose(1, 2) for x in (query, key, value_BHTV))
    output = flash.flash_attn_func(*by_token, softmax_scale=scaling, causal=True)
    # FlashAttention 4 also returns the log-sum-exp, 3 in some versions.
    return (output[0] if isinstance(output, tuple) else output).transpose(1, 2)


def attend_from_latent(
    q_nope_BHSN: torch.Tensor,
    q_rope_BHSR: torch.Tensor,
    latent_BTL: torch.Tensor,
    k_rope_BTR: torch.Tensor,
    weight: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    first_keys_BS: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return what `mla_attention_from_latent` does, from it or, of expanded keys, from the best library installed."""
    heads, nope = q_nope_BHSN.shape[1], q_nope_BHSN.shape[-1]
    parts = (q_nope_BHSN, q_rope_BHSR)
    if best_library(parts, weight.shape[0] // heads - nope, mask, first_keys_BS) == "ours":
        return mla_attention_from_latent(*parts, latent_BTL, k_rope_BTR, weight, mask, scaling, first_keys_BS)
    expanded = F.linear(latent_BTL, weight).unflatten(-1, (heads, -1)).transpose(1, 2)
    return attend(*parts, expanded[..., :nope], k_rope_BTR, expanded[..., nope:], mask, scaling)


def _cudnn(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
    if query.shape[2] != key.shape[2]:
        raise ValueError(f"library is 'cudnn', with {query.shape[2]} queries of {key.shape[2]} keys; allowed: as many")
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
