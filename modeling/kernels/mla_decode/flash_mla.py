"""DeepSeek's FlashMLA in place of the Triton kernel, where it is installed and the heads fill its tiles of 64.

The package is `flash_mla`; the Hub's build of it serves as well once it goes by that name:
`sys.modules["flash_mla"] = kernels.get_kernel("kernels-community/flash-mla")`.
"""

# B batch, S query tokens, H heads, T cached tokens, L latent (512), R rope dimensions (64)

import importlib
import importlib.util
import sys

import torch

from ..launch import capability

MIN_HEADS = 64
PAGE = 64


def flash_mla_available() -> bool:
    """Return whether `flash_mla` can be imported."""
    return "flash_mla" in sys.modules or importlib.util.find_spec("flash_mla") is not None


def flash_mla_takes(q_latent: torch.Tensor, q_rope: torch.Tensor, latent: torch.Tensor, mask: object) -> bool:
    """Return whether FlashMLA is the one to call: sm_90, at least 64 heads, V3's sizes, half precision, no mask."""
    sizes = (q_latent.shape[-1], q_rope.shape[-1]) == (512, 64)
    half = q_latent.dtype == latent.dtype and latent.dtype in (torch.bfloat16, torch.float16)
    fits = mask is None and sizes and half and q_latent.shape[1] >= MIN_HEADS and capability(latent) == 90
    return fits and flash_mla_available()


def forward(
    q_latent_BHSL: torch.Tensor,
    q_rope_BHSR: torch.Tensor,
    latent_BTL: torch.Tensor,
    rope_BTR: torch.Tensor,
    lengths_B: torch.Tensor | None,
    scaling: float,
) -> torch.Tensor:
    """Return the attention output in latent space (B, H, S, L)."""
    library = importlib.import_module("flash_mla")
    B, heads, queries, L = q_latent_BHSL.shape
    device = latent_BTL.device
    query = torch.cat((q_latent_BHSL, q_rope_BHSR), dim=-1).transpose(1, 2).contiguous()
    pages = _pages(latent_BTL, rope_BTR)
    table = torch.arange(pages.shape[0], dtype=torch.int32, device=device).view(B, -1)
    causal = lengths_B is not None
    lengths = latent_BTL.new_full((B,), latent_BTL.shape[1], dtype=torch.int32) if lengths_B is None else lengths_B
    lengths = lengths.to(torch.int32)
    metadata, splits = library.get_mla_metadata(lengths, queries * heads, 1)
    output, _ = library.flash_mla_with_kvcache(
        query, pages, table, lengths, L, metadata, splits, softmax_scale=scaling, causal=causal
    )
    return output.transpose(1, 2).contiguous()


def _pages(latent_BTL: torch.Tensor, rope_BTR: torch.Tensor) -> torch.Tensor:
    """Return the cache as pages (B * pages a row, 64, 1, L + R): as it lies, or copied where it lies otherwise.

    It lies so where latent and rope are slices of one dense tensor (B, T, L + R) and T is a multiple of 64.
    """
    B, T, L = latent_BTL.shape
    width = L + rope_BTR.shape[-1]
    beside = rope_BTR.data_ptr() == latent_BTL.data_ptr() + L * latent_BTL.element_size()
    dense = latent_BTL.stride() == rope_BTR.stride() == (T * width, width, 1)
    if beside and dense and T % PAGE == 0:
        return latent_BTL.as_strided((B * T // PAGE, PAGE, 1, width), (PAGE * width, width, width, 1))
    pages = latent_BTL.new_zeros(B, -(-T // PAGE) * PAGE, width)
    pages[:, :T, :L], pages[:, :T, L:] = latent_BTL, rope_BTR
    return pages.view(-1, PAGE, 1, width)
