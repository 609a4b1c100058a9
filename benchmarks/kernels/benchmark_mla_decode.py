"""Absorbed MLA decoding, one token a row, beside PyTorch's attention on the joined cache, and FlashMLA alone."""

import torch
from torch.nn import functional as F

from benchmarks.kernels.case import MODELS, Case, Target, is_installed
from seeklet.modeling.kernels.mla_decode import flash_mla
from seeklet.modeling.kernels.mla_decode.op import mla_decode
from seeklet.modeling.kernels.mla_decode.reference import mla_decode as plain

BYTES = "B rows of T keys, H heads, L latent and R rope columns, bf16: 2BT(L + R) of the cache, 2BH(2L + R) of queries"
FLOPS = "2BHT(2L + R)"
PEERS = {"FlashMLA": "flash_mla"}
# Latent columns; rows, and keys of each, of a pass.
SIZES = {"V3": (512, 16, 8192), "Moonlight": (512, 64, 8192), "nano": (32, 2, 256)}


def _sdpa(q_latent: torch.Tensor, q_rope: torch.Tensor, latent: torch.Tensor, rope: torch.Tensor, scaling: float):
    key = torch.cat((latent, rope), dim=-1)[:, None].expand(-1, q_latent.shape[1], -1, -1)
    value = latent[:, None].expand(-1, q_latent.shape[1], -1, -1)
    return F.scaled_dot_product_attention(torch.cat((q_latent, q_rope), dim=-1), key, value, scale=scaling)


def cases() -> list[Case]:
    """Return a decode step of each model; FlashMLA is what "ours" calls at 128 heads where it is installed."""
    many_heads = Target("TFLOP/s", 600 if is_installed(PEERS["FlashMLA"]) else 400)
    targets = {"V3": many_heads, "Moonlight": Target("TB/s", 3), "nano": None}
    found = []
    for name, model in MODELS.items():
        latent, rows, keys = SIZES[name]
        width = 2 * latent + model.rope
        shapes = [(rows, model.heads, 1, latent), (rows, model.heads, 1, model.rope)]
        shapes += [(rows, keys, latent), (rows, keys, model.rope)]
        scaling = (model.nope + model.rope) ** -0.5

        def runs(device: torch.device, shapes: list[tuple[int, ...]] = shapes, scaling: float = scaling):
            a, b, c, d = (torch.randn(shape, dtype=torch.bfloat16, device=device) for shape in shapes)
            found = {
                "ours": lambda: mla_decode(a, b, c, d, None, scaling),
                "eager": lambda: plain(a, b, c, d, None, scaling)[0],
                "sdpa": lambda: _sdpa(a, b, c, d, scaling),
            }
            if device.type == "cuda" and flash_mla.flash_mla_takes(a, b, c, None):
                # What "ours" hands this case to; so the kernel of its own is measured besides.
                from seeklet.modeling.kernels.mla_decode import kernel

                found["ours, without FlashMLA"] = lambda: kernel.forward(a, b, c, d, None, None, scaling)
            return found

        num_bytes = 2 * rows * keys * (latent + model.rope) + 2 * rows * model.heads * width
        found.append(Case(f"decode, {name}", num_bytes, 2 * rows * model.heads * keys * width, runs, targets[name]))
    return found
