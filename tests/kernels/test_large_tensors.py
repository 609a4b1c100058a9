"""Kernels where addresses do not fit into 32 bits: tensors in files that have room for all and hold what is written.

Every input is spread so that its last entry along one dimension lies 2^31 numbers behind its first, as in DeepSeek-V3's
experts or in long contexts. Results are, to the bit, those of the same numbers side by side.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

pytest.importorskip("triton", reason="needs triton, which does not come with every build of torch")

from seeklet.modeling.kernels import functional
from seeklet.modeling.kernels.swiglu import kernel as swiglu
from tests.kernels.interpreter import Builder, interpreted

FAR = 2**31


def empty_file(folder: Path, numel: int, dtype: torch.dtype) -> torch.Tensor:
    """Return so many zeros, which take no room on the disk until they are written."""
    name = folder / f"{len(list(folder.iterdir()))}"
    # Of bytes, as not every dtype can be read from a file.
    return torch.from_file(str(name), shared=True, size=numel * dtype.itemsize, dtype=torch.uint8).view(dtype)


def tensors(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    """Return random bf16 tensors."""
    return [bf16(*shape) for shape in shapes]


def spread(tensor: torch.Tensor, folder: Path, dimension: int) -> torch.Tensor:
    """Return the same numbers, those of two neighbours along the dimension far from each other."""
    size = tensor.shape[dimension]
    step = -(-FAR // (size - 1) // 16) * 16
    assert step > tensor.numel()
    strides = [step if i == dimension else stride for i, stride in enumerate(tensor.contiguous().stride())]
    last = sum((count - 1) * stride for count, stride in zip(tensor.shape, strides, strict=True))
    far = empty_file(folder, last + 1, tensor.dtype).as_strided(tensor.shape, strides)
    far.copy_(tensor.detach())
    assert far.data_ptr() + far.element_size() * FAR <= far.select(dimension, size - 1).data_ptr()
    return far


def bf16(*shape: int) -> torch.Tensor:
    return torch.randn(shape).bfloat16()


def codes(*shape: int) -> torch.Tensor:
    return torch.randn(shape).to(torch.float8_e4m3fn)


EXPERTS = torch.tensor([[0, 2], [2, 1], [1, 0], [2, 0], [0, 1]])
ROUTING: dict[str, Any] = {"scoring_func": "sigmoid", "n_group": 1, "topk_group": 1, "top_k": 2}
ROUTING |= {"norm_topk_prob": True, "routed_scaling_factor": 2.5}


def experts(x, weights, gate_up, down) -> torch.Tensor:
    return functional.grouped_experts(x, EXPERTS, weights, gate_up, down)


def fp8_experts(x, weights, gate_up, up_scale, down, down_scale) -> torch.Tensor:
    return functional.grouped_fp8(x, EXPERTS, weights, gate_up, up_scale, down, down_scale)


def quantized_experts(x, weights, gate_up, up_scale, down, down_scale) -> torch.Tensor:
    return functional.grouped_fp8_quantized(x, EXPERTS, weights, gate_up, up_scale, down, down_scale)


def attention(q_nope, q_rope, k_nope, k_rope, value) -> torch.Tensor:
    return functional.mla_attention(q_nope, q_rope, k_nope, k_rope, value, None, 0.2)


def decode(q_latent, q_rope, latent, rope) -> torch.Tensor:
    return functional.mla_decode(q_latent, q_rope, latent, rope, None, 0.2)


def rope(q, k_nope, k_rope, cos, sin) -> torch.Tensor:
    return torch.cat(functional.assemble_query_key(q, k_nope, k_rope, cos, sin, True))


def norm(x, residual, weight) -> torch.Tensor:
    return torch.cat(functional.add_rms_norm(x, residual, weight, 1e-6))


def route(logits, bias) -> torch.Tensor:
    return functional.route(logits, bias, **ROUTING)[0]


def head(hidden, weight) -> torch.Tensor:
    return torch.cat(functional.linear_log_probs(hidden, weight, torch.arange(5)))


def codes_and_scales(values) -> torch.Tensor:
    found, scale = functional.quantize_activations(values)
    return found.float() * scale


def values_of(found, scale) -> torch.Tensor:
    return functional.dequantize(found, scale.detach())


def attention_inputs() -> list[torch.Tensor]:
    return tensors((1, 3, 5, 16), (1, 3, 5, 16), (1, 3, 5, 16), (1, 5, 16), (1, 3, 5, 16))


def fp8_inputs() -> list[torch.Tensor]:
    return [
        bf16(5, 16),
        torch.rand(5, 2),
        codes(3, 32, 16),
        torch.rand(3, 2, 1, 1),
        codes(3, 16, 16),
        torch.rand(3, 1, 1),
    ]


# An operator, its inputs, and along which dimension each is spread: None where it stays as it is.
CASES: dict[str, tuple[Callable[..., torch.Tensor], Callable[[], list[torch.Tensor]], tuple[int | None, ...]]] = {
    "experts": (experts, lambda: [bf16(5, 16), torch.rand(5, 2), bf16(3, 32, 16), bf16(3, 16, 16)], (0, None, 0, 0)),
    "fp8 experts": (fp8_experts, fp8_inputs, (0, None, 0, None, 0, None)),
    "experts in fp8": (quantized_experts, fp8_inputs, (0, None, 0, None, 0, None)),
    "attention, heads": (attention, attention_inputs, (1, 1, 1, None, 1)),
    "attention, tokens": (attention, attention_inputs, (2, 2, 2, 1, 2)),
    "decode, keys": (decode, lambda: tensors((1, 3, 1, 16), (1, 3, 1, 16), (1, 40, 16), (1, 40, 16)), (1, 1, 1, 1)),
    "decode, rows": (decode, lambda: tensors((3, 2, 1, 16), (3, 2, 1, 16), (3, 9, 16), (3, 9, 16)), (0, 0, 0, 0)),
    "rope, heads": (
        rope,
        lambda: tensors((1, 3, 5, 32), (1, 3, 5, 16), (1, 1, 5, 16), (1, 5, 16), (1, 5, 16)),
        (1, 1, 2, None, None),
    ),
    "norm": (norm, lambda: [bf16(5, 16), bf16(5, 16), bf16(16)], (0, 0, None)),
    "swiglu": (functional.swiglu, lambda: [bf16(5, 16), bf16(5, 16)], (0, 0)),
    "router": (route, lambda: [torch.randn(5, 8), torch.randn(8)], (0, None)),
    "head": (head, lambda: [bf16(5, 16), bf16(40, 16)], (0, 0)),
    "fp8 product": (functional.fp8_linear, lambda: [bf16(5, 16), codes(40, 16), torch.rand(1, 1)], (0, 0, None)),
    "quantisation": (codes_and_scales, lambda: [bf16(5, 16)], (0,)),
    "dequantisation": (values_of, lambda: [codes(5, 16), torch.rand(1, 1)], (0, None)),
}


@pytest.mark.parametrize("name", CASES)
def test_inputs_whose_entries_lie_far_apart(name: str, tmp_path: Path) -> None:
    run, draw, dimensions = CASES[name]
    near = draw()
    far = [x if at is None else spread(x, tmp_path, at) for x, at in zip(near, dimensions, strict=True)]
    results = []
    with interpreted() as launched:
        for inputs in (near, far):
            leaves = [x.requires_grad_() if x.dtype in (torch.bfloat16, torch.float32) else x for x in inputs]
            output = run(*leaves)
            results.append([output, *_gradients(output, [x for x in leaves if x.requires_grad])])
    assert launched
    assert results[0][0].isfinite().all()
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def _gradients(output: torch.Tensor, leaves: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Return those to the leaves, zeros for what has no part in the output."""
    if not output.requires_grad:
        return ()
    return torch.autograd.grad(output.float().square().sum(), leaves, allow_unused=True, materialize_grads=True)


def test_the_last_of_more_numbers_than_32_bits_count(tmp_path: Path) -> None:
    """One row of more than 2^31: only the program that comes last runs, as two million of them would."""
    last = FAR // swiglu.BLOCK + 1
    numel = (last + 1) * swiglu.BLOCK
    gate, up, out = (empty_file(tmp_path, numel, torch.bfloat16) for _ in range(3))
    for tensor in (gate, up):
        tensor[-swiglu.BLOCK :] = bf16(swiglu.BLOCK)
    plain = Builder.set_grid_idx

    def to_the_last(self, x: int, y: int, z: int) -> None:
        plain(self, x, y, z)
        # Beyond the grid of one program, which the interpreter does not know.
        self.grid_idx = (last, 0, 0)

    with interpreted(), mock.patch.object(Builder, "set_grid_idx", to_the_last):
        swiglu.forward_kernel[(1,)](gate, up, out, numel, last + 1, 0, 0, BLOCK=swiglu.BLOCK)
    part = slice(-swiglu.BLOCK, None)
    with interpreted():
        assert torch.equal(out[part], functional.swiglu(gate[part].clone(), up[part].clone()))
