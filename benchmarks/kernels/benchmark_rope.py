"""Rope and the assembly of queries and keys, beside the same from slices and concatenations."""

import torch

from benchmarks.kernels import rope_cuda
from benchmarks.kernels.case import MODELS, PUBLISHED, Case, Target, forward_and_backward
from seeklet.modeling.kernels.rope.op import assemble_query_key
from seeklet.modeling.kernels.rope.reference import assemble_query_key as plain

BYTES = (
    "T tokens, H heads, N columns as they are and R to rotate, bf16: forward and backward 2T(2H(N + R) of the queries, "
    "H(2N + R) + R of the keys, 2R of the tables)"
)
FLOPS = "none of matrix products"
TARGET = Target("of the copy", 0.8)


def cases() -> list[Case]:
    """Return forward and backward of each model."""
    found = []
    for name, model in MODELS.items():
        heads, nope, rope = model.heads, model.nope, model.rope

        def draw(device: torch.device, model: tuple[int, ...] = model) -> list[torch.Tensor]:
            tokens, _, _, _, heads, nope, rope = model
            shapes = ((1, tokens, heads, nope + rope), (1, tokens, heads, nope), (1, tokens, 1, rope))
            return [torch.randn(shape, dtype=torch.bfloat16, device=device).transpose(1, 2) for shape in shapes]

        def turned(device: torch.device, tokens: int = model.tokens, rope: int = rope) -> list[torch.Tensor]:
            angles = torch.arange(tokens, device=device)[:, None] * torch.logspace(0, -4, rope // 2, device=device)
            angles = torch.cat((angles, angles), dim=-1)[None]
            return [angles.cos().bfloat16(), angles.sin().bfloat16()]

        def with_tables(function, turned=turned):
            tables: dict[torch.device, list[torch.Tensor]] = {}

            def run(q: torch.Tensor, k_nope: torch.Tensor, k_rope: torch.Tensor):
                if q.device not in tables:
                    tables[q.device] = turned(q.device)
                return function(q, k_nope, k_rope, *tables[q.device], True)

            return run

        num_bytes = 2 * model.tokens * (2 * heads * (nope + rope) + heads * (2 * nope + rope) + rope + 2 * rope)
        functions = {
            "ours": with_tables(assemble_query_key),
            "eager": with_tables(plain),
            "torch.compile": with_tables(torch.compile(plain)),
        }
        if rope_cuda.LIBRARY.is_file() and nope % 16 == rope % 16 == 0:
            torch.ops.load_library(rope_cuda.LIBRARY)
            functions["CUDA C++"] = with_tables(rope_cuda.assemble_query_key)
        targets = (TARGET, TARGET) if name in PUBLISHED else (None, None)
        found += forward_and_backward(name, (num_bytes, num_bytes), (0, 0), draw, functions, targets)
    return found
