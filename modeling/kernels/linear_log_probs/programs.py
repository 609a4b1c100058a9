"""The Triton programs of a linear head's log-probabilities: what a tile of logits is made into before it is gone."""

# T tokens, H hidden, V vocabulary

import triton
import triton.language as tl


@triton.jit
def _place(num_rows, turns, BLOCK_T: tl.constexpr, GROUP: tl.constexpr):
    """Return the rows of this program, and which of the `turns`, splits or tiles of the vocabulary, it takes.

    GROUP blocks of rows go through all turns side by side, and then the next.
    """
    num_blocks = tl.cdiv(num_rows, BLOCK_T)
    group = tl.program_id(0) // (GROUP * turns)
    blocks_here = tl.minimum(num_blocks - group * GROUP, GROUP)
    place = tl.program_id(0) % (GROUP * turns)
    row = (group * GROUP + place % blocks_here) * BLOCK_T + tl.arange(0, BLOCK_T)
    return row, place // blocks_here


@triton.jit
def _logits(
    hidden,
    weight,
    row,
    column,
    WIDTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """Return a tile of logits in fp32; rows and columns past the end repeat the last one.

    `hidden` and `weight` are each an address, a number of rows and the distance of two.
    """
    inner = tl.arange(0, BLOCK_H)
    hidden_row = tl.minimum(row, hidden[1] - 1).to(tl.int64)
    weight_row = tl.minimum(column, weight[1] - 1).to(tl.int64)
    hidden_ptrs = hidden[0] + hidden_row[:, None] * hidden[2] + inner[None, :]
    weight_ptrs = weight[0] + weight_row[None, :] * weight[2] + inner[:, None]
    logits = tl.zeros((BLOCK_T, BLOCK_V), tl.float32)
    for start in range(0, WIDTH, BLOCK_H):
        if WIDTH % BLOCK_H == 0:
            left, right = tl.load(hidden_ptrs), tl.load(weight_ptrs)
        else:
            left = tl.load(hidden_ptrs, mask=inner[None, :] < WIDTH - start, other=0.0)
            right = tl.load(weight_ptrs, mask=inner[:, None] < WIDTH - start, other=0.0)
        # fp32 inputs are multiplied as PyTorch does by default, without tf32.
        logits = tl.dot(left, right, logits, input_precision="ieee")
        hidden_ptrs += BLOCK_H
        weight_ptrs += BLOCK_H
    return logits


@triton.jit
def forward_kernel(
    hidden_ptr,
    weight_ptr,
    targets_ptr,
    largest_ptr,
    total_ptr,
    target_ptr,
    moment_ptr,
    num_rows,
    num_columns,
    num_splits,
    blocks_per_split,
    stride_hidden,
    stride_weight,
    inverse_temperature,
    WIDTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
    GROUP: tl.constexpr,
    ENTROPY: tl.constexpr,
):
    """Write, of BLOCK_T rows and one split of the vocabulary, with z the logits over the temperature:

    m = max z, sum exp(z - m), the target's z or 0, and sum exp(z - m) (z - m).
    """
    hidden, weight = (hidden_ptr, num_rows, stride_hidden), (weight_ptr, num_columns, stride_weight)
    row, split = _place(num_rows, num_splits, BLOCK_T, GROUP)
    target = tl.load(targets_ptr + row, mask=row < num_rows, other=-1)

    largest = tl.full((BLOCK_T,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_T,), tl.float32)
    at_target = tl.zeros((BLOCK_T,), tl.float32)
    moment = tl.zeros((BLOCK_T,), tl.float32)
    first = split * blocks_per_split
    last = tl.minimum(first + blocks_per_split, tl.cdiv(num_columns, BLOCK_V))
    for block in range(first, last):
        column = block * BLOCK_V + tl.arange(0, BLOCK_V)
        z = _logits(hidden, weight, row, column, WIDTH, BLOCK_T, BLOCK_V, BLOCK_H)
        z = tl.where((column < num_columns)[None, :], z * inverse_temperature, float("-inf"))
        at_target += tl.sum(tl.where(column[None, :] == target[:, None], z, 0.0), axis=1)
        before = largest
        largest = tl.maximum(largest, tl.max(z, axis=1))
        shift = tl.where(before == float("-inf"), 0.0, before - largest)
        shrink = tl.exp(shift)
        p = tl.exp(z - largest[:, None])
        if ENTROPY:
            # 0 * -inf is NaN.
            each = tl.where(p == 0, 0.0, p * (z - largest[:, None]))
            moment = (moment + total * shift) * shrink + tl.sum(each, axis=1)
        total = total * shrink + tl.sum(p, axis=1)
    place = split.to(tl.int64) * num_rows + row
    tl.store(largest_ptr + place, largest, mask=row < num_rows)
    tl.store(total_ptr + place, total, mask=row < num_rows)
    tl.store(target_ptr + place, at_target, mask=row < num_rows)
    if ENTROPY:
        tl.store(moment_ptr + place, moment, mask=row < num_rows)


@triton.jit
def backward_kernel(
    hidden_ptr,
    weight_ptr,
    targets_ptr,
    normalizer_ptr,
    entropy_ptr,
    grad_log_probs_ptr,
    grad_entropy_ptr,
    grad_logits_ptr,
    num_rows,
    num_columns,
    part_start,
    part_columns,
    stride_hidden,
    stride_weight,
    inverse_temperature,
    WIDTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
    GROUP: tl.constexpr,
    ENTROPY: tl.constexpr,
):
    """Write a tile of the gradient to the logits of columns part_start to part_start + part_columns."""
    hidden, weight = (hidden_ptr, num_rows, stride_hidden), (weight_ptr, num_columns, stride_weight)
    row, tile = _place(num_rows, tl.cdiv(part_columns, BLOCK_V), BLOCK_T, GROUP)
    within = tile * BLOCK_V + tl.arange(0, BLOCK_V)
    column = part_start + within
    z = _logits(hidden, weight, row, column, WIDTH, BLOCK_T, BLOCK_V, BLOCK_H)
    real = row < num_rows
    target = tl.load(targets_ptr + row, mask=real, other=-1)
    normalizer = tl.load(normalizer_ptr + row, mask=real, other=0.0)
    grad = tl.load(grad_log_probs_ptr + row, mask=real, other=0.0)
    log_p = z * inverse_temperature - normalizer[:, None]
    p = tl.exp(log_p)
    # d log p_t / dz = onehot - p; dH / dz = -p (log p + H)
    factor = tl.broadcast_to(grad[:, None], p.shape)
    if ENTROPY:
        entropy = tl.load(entropy_ptr + row, mask=real, other=0.0)
        grad_entropy = tl.load(grad_entropy_ptr + row, mask=real, other=0.0)
        factor += grad_entropy[:, None] * (tl.where(p == 0, 0.0, log_p) + entropy[:, None])
    grad_logits = tl.where(column[None, :] == target[:, None], grad[:, None], 0.0) - p * factor
    out_ptrs = grad_logits_ptr + row.to(tl.int64)[:, None] * part_columns + within[None, :]
    tl.store(out_ptrs, grad_logits * inverse_temperature, mask=real[:, None] & (within < part_columns)[None, :])
