"""Routed SwiGLU experts over fused 3-D weights, forward and backward, keeping only the input and gate_up output.

Two ways of the same sum: a loop over the experts that were hit (any dtype and size; best on CPU, where a token's
few experts are all that is touched) and `F.grouped_mm` (no synchronisation with the host; best on CUDA).
"""

# T tokens, K experts a token, S = T*K rows sorted by expert, E experts, H hidden, I expert width

import torch
from torch.nn import functional as F

from ..linear.reference import matmul, matmul_over_rows
from ..swiglu.reference import swiglu_backward


def sort_rows(indices_TK: torch.Tensor, num_experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows `token * K + k` sorted by expert, stable (S,), and how many each expert gets (E,); int64."""
    flat = indices_TK.flatten()
    return flat.sort(stable=True).indices, torch.bincount(flat, minlength=num_experts)[:num_experts]


def activation(gate_up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return gate, up and silu(gate) * up, each (S, I) in fp32 or wider, from `gate_up` (S, 2I)."""
    gate, up = gate_up.to(torch.promote_types(gate_up.dtype, torch.float32)).chunk(2, -1)
    return gate, up, F.silu(gate).mul_(up)


def sum_by_token(by_row: torch.Tensor, rows: torch.Tensor, top_k: int) -> torch.Tensor:
    """Return the sum of each token's `top_k` rows (T, H), from rows sorted by expert (S, H); fp32 inside.

    By inverse permutation, not by atomic adds: the same bits every time.
    """
    inverse = torch.empty_like(rows)
    inverse[rows] = torch.arange(rows.numel(), device=rows.device)
    return F.embedding_bag(inverse.view(-1, top_k), by_row, mode="sum")


def hit_experts(counts: torch.Tensor) -> list[tuple[int, slice]]:
    """Return (expert, its rows) of the experts that got any."""
    hit, start = [], 0
    for expert, count in enumerate(counts.tolist()):
        if count:
            hit.append((expert, slice(start, start + count)))
        start += count
    return hit


def forward_loop(x_TH, indices_TK, weights_TK, gate_up_proj, down_proj, save: bool):
    """Return (output (T, H), gate_up (S, 2I) or empty, rows (S,), counts (E,)), one expert after the other.

    `gate_up` is empty unless `save`.
    """
    top_k = indices_TK.shape[1]
    rows, counts = sort_rows(indices_TK, gate_up_proj.shape[0])
    x = x_TH.index_select(0, rows // top_k)
    weights = weights_TK.flatten().index_select(0, rows)[:, None]
    gate_up = x.new_empty(x.shape[0], gate_up_proj.shape[1])
    by_row = torch.empty_like(x)
    for expert, part in hit_experts(counts):
        hidden = matmul(x[part], gate_up_proj[expert].t(), out=gate_up[part])
        weighted = activation(hidden)[2].mul_(weights[part]).to(x.dtype)
        matmul(weighted, down_proj[expert].t(), out=by_row[part])
    return sum_by_token(by_row, rows, top_k), gate_up if save else gate_up.new_empty(0, gate_up.shape[1]), rows, counts


def forward_one_token(x_TH, indices_TK, weights_TK, gate_up_proj, down_proj):
    """Return the output (1, H) for a single token, whose experts get one row each: nothing to sort or to gather."""
    experts = indices_TK[0].tolist()
    gate_up = torch.cat([F.linear(x_TH, gate_up_proj[expert]) for expert in experts])
    weighted = activation(gate_up)[2].mul_(weights_TK.t()).to(x_TH.dtype).split(1)
    by_row = torch.cat([F.linear(row, down_proj[expert]) for row, expert in zip(weighted, experts, strict=True)])
    return by_row.sum(0, keepdim=True)


def backward_loop(grad_TH, x_TH, weights_TK, gate_up_proj, down_proj, gate_up, rows, counts, needs_weights: bool):
    """Return the gradients of (x (T, H), weights (T, K), gate_up_proj, down_proj); the last two empty unless asked.

    `x_TH` is looked at for these two only.
    """
    top_k, dtype = weights_TK.shape[1], grad_TH.dtype
    wide = torch.promote_types(dtype, torch.float32)
    tokens, weights = rows // top_k, weights_TK.flatten().index_select(0, rows)[:, None]
    grad_rows = grad_TH.index_select(0, tokens)
    x = x_TH.index_select(0, tokens) if needs_weights else None
    by_row, grad_weights = torch.empty_like(grad_rows), grad_rows.new_empty(rows.numel(), dtype=wide)
    grads = [torch.empty_like(w) if needs_weights else grad_TH.new_empty(0) for w in (gate_up_proj, down_proj)]
    hit = hit_experts(counts)
    if needs_weights and len(hit) < gate_up_proj.shape[0]:
        for grad in grads:
            grad[counts == 0] = 0
    for expert, part in hit:
        gate, up, active = activation(gate_up[part])
        grad_active = matmul(grad_rows[part], down_proj[expert]).to(wide)
        # The weighted sum over I both gives the weight's gradient and spares keeping the down projection's output.
        grad_weights[rows[part]] = (grad_active * active).sum(-1)
        grad_hidden = torch.cat(swiglu_backward(grad_active.mul_(weights[part]), gate, up), -1).to(dtype)
        matmul(grad_hidden, gate_up_proj[expert], out=by_row[part])
        if x is not None:
            matmul_over_rows(grad_hidden, x[part], out=grads[0][expert])
            matmul_over_rows(grad_rows[part], active.mul_(weights[part]).to(dtype), out=grads[1][expert])
    grad_weights = grad_weights.view_as(weights_TK).to(weights_TK.dtype)
    return sum_by_token(by_row, rows, top_k), grad_weights, grads[0], grads[1]


def forward_grouped(x_TH, indices_TK, weights_TK, gate_up_proj, down_proj, save: bool):
    """Return what `forward_loop` returns, by two `F.grouped_mm` over all rows at once."""
    top_k = indices_TK.shape[1]
    rows, counts = sort_rows(indices_TK, gate_up_proj.shape[0])
    ends = counts.cumsum(0).to(torch.int32)
    wide = torch.promote_types(x_TH.dtype, torch.float32)
    tokens, weights = rows // top_k, weights_TK.flatten()[rows].to(wide)
    gate_up = F.grouped_mm(x_TH[tokens], gate_up_proj.transpose(-2, -1), offs=ends)
    weighted = activation(gate_up)[2].mul_(weights[:, None]).to(x_TH.dtype)
    result = F.grouped_mm(weighted, down_proj.transpose(-2, -1), offs=ends)
    return sum_by_token(result, rows, top_k), gate_up if save else gate_up[:0].clone(), rows, counts


def backward_grouped(grad_TH, x_TH, weights_TK, gate_up_proj, down_proj, gate_up, rows, counts, needs_weights: bool):
    """Return what `backward_loop` returns, by `F.grouped_mm`."""
    top_k = weights_TK.shape[1]
    ends = counts.cumsum(0).to(torch.int32)
    wide = torch.promote_types(x_TH.dtype, torch.float32)
    tokens, weights = rows // top_k, weights_TK.flatten()[rows].to(wide)[:, None]
    grad = grad_TH[tokens].contiguous()
    gate, up, active = activation(gate_up)
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
    grad_weights = torch.empty_like(grad_rows)
    grad_weights[rows] = grad_rows
    return (
        sum_by_token(by_row, rows, top_k),
        grad_weights.view_as(weights_TK).to(weights_TK.dtype),
        grad_gate_up_proj,
        grad_down_proj,
    )


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
