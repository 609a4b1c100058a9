"""Routed SwiGLU experts over fused 3-D weights, forward and backward, keeping only the input and gate_up output.

Two ways of the same sum: a loop over the experts that were hit (any dtype and size; best on CPU, where a token's
few experts are all that is touched) and `F.grouped_mm` (no synchronisation with the host; best on CUDA).
"""

# T tokens, K experts a token, S = T*K rows sorted by expert, E experts, H hidden, I expert width

import torch
from torch.nn import functional as F

from ..swiglu.reference import swiglu_backward


def sort_rows(indices_TK: torch.Tensor, num_experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows `token * K + k` sorted by expert, stable (S,), and how many each expert gets (E,); int64."""
    flat = indices_TK.flatten()
    return flat.sort(stable=True).indices, torch.bincount(flat, minlength=num_experts)[:num_experts]


def _activation(gate_up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    gate, up = gate_up.to(torch.promote_types(gate_up.dtype, torch.float32)).chunk(2, -1)
    return gate, up, F.silu(gate) * up


def forward_loop(x_TH, indices_TK, weights_TK, gate_up_proj, down_proj, save: bool):
    """Return (output (T, H), gate_up (S, 2I) or empty, rows (S,), counts (E,)), one expert after the other.

    The output is summed in fp32 (float64 for float64) and rounded once. `gate_up` is empty unless `save`.
    """
    top_k = indices_TK.shape[1]
    rows, counts = sort_rows(indices_TK, gate_up_proj.shape[0])
    wide = torch.promote_types(x_TH.dtype, torch.float32)
    output = x_TH.new_zeros(x_TH.shape, dtype=wide)
    gate_up = x_TH.new_empty((rows.numel() if save else 0, gate_up_proj.shape[1]))
    tokens, weights = rows // top_k, weights_TK.flatten()[rows].to(wide)
    start = 0
    for expert, count in enumerate(counts.tolist()):
        if count == 0:
            continue
        part = slice(start, start + count)
        start += count
        hidden = x_TH[tokens[part]] @ gate_up_proj[expert].t()
        if save:
            gate_up[part] = hidden
        weighted = _activation(hidden)[2].mul_(weights[part, None]).to(x_TH.dtype)
        output.index_add_(0, tokens[part], (weighted @ down_proj[expert].t()).to(wide))
    return output.to(x_TH.dtype), gate_up, rows, counts


def backward_loop(grad_TH, x_TH, weights_TK, gate_up_proj, down_proj, gate_up, rows, counts, needs_weights: bool):
    """Return the gradients of (x (T, H), weights (T, K), gate_up_proj, down_proj); the last two empty unless asked."""
    top_k = weights_TK.shape[1]
    wide = torch.promote_types(x_TH.dtype, torch.float32)
    grad_x = x_TH.new_zeros(x_TH.shape, dtype=wide)
    grad_rows = x_TH.new_empty(rows.numel(), dtype=wide)
    grad_gate_up_proj = torch.empty_like(gate_up_proj) if needs_weights else gate_up_proj.new_empty(0)
    grad_down_proj = torch.empty_like(down_proj) if needs_weights else down_proj.new_empty(0)
    tokens, weights = rows // top_k, weights_TK.flatten()[rows].to(wide)
    start = 0
    for expert, count in enumerate(counts.tolist()):
        if count == 0:
            if needs_weights:
                grad_gate_up_proj[expert].zero_()
                grad_down_proj[expert].zero_()
            continue
        part = slice(start, start + count)
        start += count
        weight = weights[part, None]
        grad = grad_TH[tokens[part]]
        gate, up, active = _activation(gate_up[part])
        grad_active = (grad @ down_proj[expert]).to(wide)
        grad_rows[part] = (grad_active * active).sum(-1)
        grad_gate, grad_up = swiglu_backward(grad_active.mul_(weight), gate, up)
        grad_hidden = torch.cat((grad_gate, grad_up), -1).to(x_TH.dtype)
        if needs_weights:
            torch.mm(grad.t(), active.mul_(weight).to(x_TH.dtype), out=grad_down_proj[expert])
            torch.mm(grad_hidden.t(), x_TH[tokens[part]], out=grad_gate_up_proj[expert])
        grad_x.index_add_(0, tokens[part], (grad_hidden @ gate_up_proj[expert]).to(wide))
    grad_weights = torch.empty_like(grad_rows)
    grad_weights[rows] = grad_rows
    return grad_x.to(x_TH.dtype), grad_weights.view_as(weights_TK).to(weights_TK.dtype), grad_gate_up_proj, grad_down_proj


def forward_grouped(x_TH, indices_TK, weights_TK, gate_up_proj, down_proj, save: bool):
    """Return what `forward_loop` returns, by two `F.grouped_mm` over all rows at once."""
    top_k = indices_TK.shape[1]
    rows, counts = sort_rows(indices_TK, gate_up_proj.shape[0])
    ends = counts.cumsum(0).to(torch.int32)
    wide = torch.promote_types(x_TH.dtype, torch.float32)
    tokens, weights = rows // top_k, weights_TK.flatten()[rows].to(wide)
    gate_up = F.grouped_mm(x_TH[tokens], gate_up_proj.transpose(-2, -1), offs=ends)
    weighted = _activation(gate_up)[2].mul_(weights[:, None]).to(x_TH.dtype)
    result = F.grouped_mm(weighted, down_proj.transpose(-2, -1), offs=ends)
    # Scatter by inverse permutation and sum over K: deterministic, unlike atomic adds.
    by_token = torch.empty_like(result)
    by_token[rows] = result
    output = by_token.view(-1, top_k, x_TH.shape[1]).sum(1, dtype=wide)
    return output.to(x_TH.dtype), gate_up if save else gate_up[:0].clone(), rows, counts


def backward_grouped(grad_TH, x_TH, weights_TK, gate_up_proj, down_proj, gate_up, rows, counts, needs_weights: bool):
    """Return what `backward_loop` returns, by `F.grouped_mm`."""
    top_k = weights_TK.shape[1]
    ends = counts.cumsum(0).to(torch.int32)
    wide = torch.promote_types(x_TH.dtype, torch.float32)
    tokens, weights = rows // top_k, weights_TK.flatten()[rows].to(wide)[:, None]
    grad = grad_TH[tokens].contiguous()
    gate, up, active = _activation(gate_up)
    grad_active = F.grouped_mm(grad, down_proj, offs=ends).to(wide)
    grad_rows = (grad_active * active).sum(-1)
    grad_gate, grad_up = swiglu_backward(grad_active.mul_(weights), gate, up)
    grad_hidden = torch.cat((grad_gate, grad_up), -1).to(x_TH.dtype)
    grad_gate_up_proj, grad_down_proj = gate_up_proj.new_empty(0), down_proj.new_empty(0)
    if needs_weights:
        weighted = active.mul_(weights).to(x_TH.dtype)
        grad_down_proj = F.grouped_mm(grad.t(), weighted, offs=ends)
        grad_gate_up_proj = F.grouped_mm(grad_hidden.t(), x_TH[tokens], offs=ends)
    by_row = F.grouped_mm(grad_hidden, gate_up_proj, offs=ends)
    by_token = torch.empty_like(by_row)
    by_token[rows] = by_row
    grad_weights = torch.empty_like(grad_rows)
    grad_weights[rows] = grad_rows
    grad_x = by_token.view(-1, top_k, x_TH.shape[1]).sum(1, dtype=wide).to(x_TH.dtype)
    return grad_x, grad_weights.view_as(weights_TK).to(weights_TK.dtype), grad_gate_up_proj, grad_down_proj


def can_group(x_TH: torch.Tensor, gate_up_proj: torch.Tensor, down_proj: torch.Tensor) -> bool:
    """Return whether `F.grouped_mm` exists and takes these tensors: on CUDA, bf16, rows of whole 16 bytes."""
    return (
        hasattr(F, "grouped_mm")
        and x_TH.is_cuda
        and x_TH.dtype == gate_up_proj.dtype == torch.bfloat16
        and gate_up_proj.shape[-1] % 8 == 0
        and down_proj.shape[-1] % 8 == 0
        and torch.cuda.get_device_capability(x_TH.device) >= (8, 0)
    )
