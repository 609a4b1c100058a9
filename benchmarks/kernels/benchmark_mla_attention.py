"""MLA attention in training, causal, beside PyTorch's on query and key in one piece, and the libraries installed.

And from the latent, beside the projection followed by attention, which keeps keys and values for backward.
"""

from collections.abc import Callable

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.kernels.case import MODELS, PUBLISHED, Case, Kept, Model, Target, forward_and_backward, is_installed
from seeklet.modeling.kernels.mla_attention.from_latent import mla_attention_from_latent
from seeklet.modeling.kernels.mla_attention.library import FLASH_ATTENTION, attend
from seeklet.modeling.kernels.mla_attention.op import mla_attention
from seeklet.modeling.kernels.mla_attention.parts import joined

BYTES = (
    "S tokens, H heads, D = N + R key and V value columns, L latent, bf16: forward 2S(H(D + N + V) + R + HV) + 4SH "
    "(queries, keys, values, output; log-sum-exp), backward that and 2S(H(D + N + 2V) + R) of gradients; from the "
    "latent, 2S(L + R) + 2HL(N + V) (latent, rope key, weight) in place of keys and values, as often, and of gradients"
)
FLOPS = (
    "causal, half of the square: forward HS²(D + V), backward HS²(3D + 2V); from the latent, 2SLH(N + V) forward and "
    "thrice that backward besides"
)
PEERS = {"FlashAttention 4": "flash_attn.cute", "FlashAttention 3": "flash_attn_interface"}
TARGETS = Target("TFLOP/s", 500), Target("TFLOP/s", 380)
LATENT = {"V3": 512, "Moonlight": 512, "nano": 32}
IN_TWO_STEPS = "projection, then attention"


def _sdpa(*parts: torch.Tensor) -> torch.Tensor:
    query, key = joined(*parts[:4])
    return F.scaled_dot_product_attention(query, key, parts[4], is_causal=True, scale=query.shape[-1] ** -0.5)


def _padded(*parts: torch.Tensor) -> torch.Tensor:
    """Return the output of PyTorch's FlashAttention, which wants values as wide as keys."""
    value = F.pad(parts[4], (0, parts[1].shape[-1]))
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return _sdpa(*parts[:4], value)[..., : parts[4].shape[-1]]


def _ours(q_nope, q_rope, k_nope, k_rope, value) -> torch.Tensor:
    return mla_attention(q_nope, q_rope, k_nope, k_rope, value, None, (q_nope.shape[-1] + q_rope.shape[-1]) ** -0.5)


def _cudnn(q_nope, q_rope, k_nope, k_rope, value) -> torch.Tensor:
    scaling = (q_nope.shape[-1] + q_rope.shape[-1]) ** -0.5
    return attend(q_nope, q_rope, k_nope, k_rope, value, None, scaling, library="cudnn")


def _best(q_nope, q_rope, k_nope, k_rope, value) -> torch.Tensor:
    scaling = (q_nope.shape[-1] + q_rope.shape[-1]) ** -0.5
    return attend(q_nope, q_rope, k_nope, k_rope, value, None, scaling)


def functions(on_gpu: bool) -> dict[str, Callable[..., torch.Tensor]]:
    """Return what is compared; of FlashAttention the best one that is installed."""
    found: dict[str, Callable[..., torch.Tensor]] = {"ours": _ours, "sdpa": _sdpa}
    if any(is_installed(module) for module in FLASH_ATTENTION):
        found["FlashAttention, the best installed"] = _best
    if on_gpu:
        found |= {"cuDNN": _cudnn, "sdpa, flash, padded": _padded}
    return found


def _draw(model: Model, widths: tuple[int, ...], device: torch.device) -> list[torch.Tensor]:
    shape = (1, model.tokens, model.heads)
    return [torch.randn(*shape, width, dtype=torch.bfloat16, device=device).transpose(1, 2) for width in widths]


def _rows(*shape: int, device: torch.device) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.bfloat16, device=device)


def from_latent(q_nope, q_rope, latent, k_rope, weight) -> torch.Tensor:
    """Return ours from the latent."""
    scaling = (q_nope.shape[-1] + q_rope.shape[-1]) ** -0.5
    return mla_attention_from_latent(q_nope, q_rope, latent, k_rope, weight, None, scaling)


def in_two_steps(q_nope, q_rope, latent, k_rope, weight) -> torch.Tensor:
    """Return the same of keys and values made first."""
    heads, nope = q_nope.shape[1], q_nope.shape[-1]
    expanded = F.linear(latent, weight).unflatten(-1, (heads, -1)).transpose(1, 2)
    return _ours(q_nope, q_rope, expanded[..., :nope], k_rope, expanded[..., nope:])


def _draw_latent(name: str, device: torch.device) -> list[torch.Tensor]:
    model, latent = MODELS[name], LATENT[name]
    weight = _rows(model.heads * 2 * model.nope, latent, device=device).div_(latent**0.5)
    rows = [_rows(1, model.tokens, width, device=device) for width in (latent, model.rope)]
    return [*_draw(model, (model.nope, model.rope), device), *rows, weight]


def cases() -> list[Case]:
    """Return forward and backward of each model; values are as wide as the keys' part without rope."""
    found = []
    for name, model in MODELS.items():
        tokens, heads, nope, rope = model.tokens, model.heads, model.nope, model.rope

        def draw(device: torch.device, model: Model = model) -> list[torch.Tensor]:
            a, b, c, d = _draw(model, (model.nope, model.rope, model.nope, model.nope), device)
            return [a, b, c, _rows(1, model.tokens, model.rope, device=device), d]

        def draw_latent(device: torch.device, name: str = name) -> list[torch.Tensor]:
            return _draw_latent(name, device)

        read = 2 * tokens * (heads * (nope + rope + 3 * nope) + rope) + 4 * tokens * heads
        num_bytes = (read, read + 2 * tokens * (heads * (nope + rope + 3 * nope) + rope))
        square = heads * tokens**2
        num_flops = (square * (2 * nope + rope), square * (3 * (nope + rope) + 2 * nope))
        targets = TARGETS if name in PUBLISHED else (None, None)
        compared = functions(torch.cuda.is_available())
        found += forward_and_backward(name, num_bytes, num_flops, draw, compared, targets)
        small = 2 * tokens * (LATENT[name] + rope) + 4 * heads * LATENT[name] * nope
        per_head = 2 * tokens * heads * (nope + rope + nope)
        read = per_head + small + 4 * tokens * heads
        product = 4 * tokens * LATENT[name] * heads * nope
        found += forward_and_backward(
            f"from the latent, {name}",
            (read, 2 * read),
            (num_flops[0] + product, num_flops[1] + 3 * product),
            draw_latent,
            {"ours": from_latent, IN_TWO_STEPS: in_two_steps},
        )
    return found


def kept() -> list[Kept]:
    """Return what is kept from the latent: queries, latent, rope key, output, and a number a query and head."""
    found = []
    for name, model in MODELS.items():
        per_head = model.heads * (2 * model.nope + model.rope)
        minimal = 2 * model.tokens * (per_head + LATENT[name] + model.rope) + 4 * model.tokens * model.heads

        def call(device: torch.device, name: str = name):
            inputs = [tensor.requires_grad_() for tensor in _draw_latent(name, device)]
            return (lambda: from_latent(*inputs)), inputs[4:]

        found.append(Kept(f"kept from the latent, {name}", minimal, call, 1.15))
    return found
