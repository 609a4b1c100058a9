"""MLA attention from the latent against the projection followed by attention: values, gradients, bytes kept."""

# B batch, H heads, S queries, T keys, L latent, N nope, R rope, V value

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("triton", reason="needs triton, which does not come with every build of torch")

from seeklet.modeling.kernels.mla_attention import from_latent, kernel, op, reference
from tests.kernels.devices import DEVICES, assert_kernel_as_precise_as, kernels_on
from tests.kernels.interpreter import interpreted
from tests.kernels.memory import tensors_kept

SCALING = 0.3
B, H, N, R, V, L = 2, 4, 12, 6, 10, 14
PACKED = torch.stack(
    [op.first_keys(torch.tensor([0, *range(20)])), op.first_keys(torch.tensor([0, 0, 0, *range(14), 0, 1, 2, 3]))]
)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut what the tests below draw into several blocks of queries and keys."""
    for sizes in (kernel.SM_80, kernel.SM_90, kernel.FP32):
        for name in sizes:
            monkeypatch.setitem(sizes, name, (16, 16, 4, 1))


def draw(S: int = 21, T: int = 21, V: int = V) -> list[torch.Tensor]:
    shapes = ((B, H, S, N), (B, H, S, R), (B, T, L), (B, T, R), (H * (N + V), L))
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


def ours(inputs, mask=None, first_keys=None) -> torch.Tensor:
    q_nope, q_rope, latent, k_rope, weight = inputs
    return from_latent.mla_attention_from_latent(q_nope, q_rope, latent, k_rope, weight, mask, SCALING, first_keys)


def expanded(inputs) -> tuple[torch.Tensor, ...]:
    q_nope, q_rope, latent, k_rope, weight = inputs
    made = F.linear(latent, weight).unflatten(-1, (H, -1)).transpose(1, 2)
    return q_nope, q_rope, made[..., :N], k_rope, made[..., N:]


def in_two_steps(inputs, mask=None, first_keys=None) -> torch.Tensor:
    """Return the output of `mla_attention` behind a projection."""
    q_nope, q_rope, k_nope, k_rope, value = expanded(inputs)
    return op.mla_attention(q_nope, q_rope, k_nope, k_rope, value, mask, SCALING, first_keys)


def theirs(inputs, mask=None) -> torch.Tensor:
    """Return the reference's output on query and key in one piece."""
    q_nope, q_rope, k_nope, k_rope, value = expanded(inputs)
    key = torch.cat((k_nope, k_rope[:, None].expand(-1, H, -1, -1)), -1)
    return reference.mla_attention(torch.cat((q_nope, q_rope), -1), key, value, mask, SCALING)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("V", [10, 5])
def test_errs_no_more_than_the_reference(small_blocks: None, V: int, dtype: torch.dtype, device: str) -> None:
    assert_kernel_as_precise_as(lambda *x: ours(x), lambda *x: theirs(x), draw(V=V), dtype, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["causal", "packed", "bool mask", "fewer queries"])
def test_is_attention_behind_the_projection_to_the_bit(small_blocks: None, kind: str, device: str) -> None:
    """On a GPU to the order of sums of the projection, which differs with the shape of its inputs."""
    inputs = [x.float().to(device).requires_grad_() for x in draw(S=9 if kind == "fewer queries" else 21)]
    mask = (torch.rand(B, 1, 21, 21) > 0.4).to(device) if kind == "bool mask" else None
    first_keys = PACKED.to(device) if kind == "packed" else None
    with kernels_on(device):
        outputs = [attend(inputs, mask, first_keys) for attend in (ours, in_two_steps)]
        gradients = [torch.autograd.grad(output.square().sum(), inputs) for output in outputs]
    for actual, expected in zip((outputs[0], *gradients[0]), (outputs[1], *gradients[1]), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0 if device == "cpu" else 1e-5, atol=1e-5)
    assert outputs[0].transpose(1, 2).is_contiguous()


def test_on_cpu_the_operator_is_the_reference() -> None:
    inputs = [x.requires_grad_() for x in draw()]
    additive = torch.randn(1, 1, 21, 21)
    for mask in (None, additive):
        actual = torch.autograd.grad(ours(inputs, mask).square().sum(), inputs)
        torch.testing.assert_close(actual, torch.autograd.grad(theirs(inputs, mask).square().sum(), inputs))


@pytest.mark.parametrize("trained", [(0,), (2,), (4,), (3, 4)])
def test_only_what_is_asked_for_gets_a_gradient(trained: tuple[int, ...]) -> None:
    """As of a frozen projection: no product for a gradient that nobody reads."""
    inputs = draw()
    leaves = [inputs[position].requires_grad_() for position in trained]
    expected = torch.autograd.grad(theirs(inputs).square().sum(), leaves)
    torch.testing.assert_close(torch.autograd.grad(ours(inputs).square().sum(), leaves), expected)


@pytest.mark.parametrize("device", DEVICES)
def test_the_bytes_kept_are_those_of_the_formula(small_blocks: None, device: str) -> None:
    """Queries, latent, rope key, weight, output, and a number a query and head: no key and no value of any head."""
    S = 21
    inputs = [x.bfloat16().to(device).requires_grad_() for x in draw(S, S)]
    with kernels_on(device):
        kept = tensors_kept(lambda: ours(inputs))
        before = tensors_kept(lambda: in_two_steps(inputs))
    numbers = B * S * (H * (N + R) + L + R + H * V) + H * (N + V) * L
    size = 2 * numbers + 4 * B * H * S
    assert sum(x.numel() * x.element_size() for x in kept.values()) == size
    # Keys and values are two views of one tensor.
    without = size + 2 * B * S * H * (N + V)
    assert sum(x.numel() * x.element_size() for x in before.values()) == without


@pytest.mark.parametrize("device", DEVICES)
def test_registered_as_torch_asks(device: str) -> None:
    inputs = [x.float().to(device).requires_grad_() for x in draw(5, 5)]
    with kernels_on(device):
        torch.library.opcheck(from_latent._forward, (*inputs, None, None, SCALING))


@pytest.mark.parametrize("device", DEVICES)
def test_compiled_without_a_graph_break_and_under_autocast(device: str) -> None:
    inputs = [x.float().to(device).requires_grad_() for x in draw(6, 9)]
    compiled = torch.compile(lambda *x: ours(x).square(), backend="aot_eager", fullgraph=True)
    with kernels_on(device):
        gradients = torch.autograd.grad(compiled(*inputs).sum(), inputs)
        expected = torch.autograd.grad(ours(inputs).square().sum(), inputs)
        with torch.autocast(device, torch.bfloat16):
            half = ours(inputs)
        torch.testing.assert_close(half, ours([x.bfloat16() for x in inputs]))
    torch.testing.assert_close(gradients, expected)


def test_the_kernels_are_what_runs_and_twice_differentiated_it_says_no() -> None:
    inputs = [x.float().requires_grad_() for x in draw(5, 5)]
    names = ["forward_kernel", "backward_query_kernel", "backward_key_kernel"]
    with interpreted() as launched:
        ours(inputs).sum().backward()
        assert launched == {f"mla_attention.{name}": 1 for name in names}
    with pytest.raises(RuntimeError, match="mla_attention_from_latent has no second derivative"):
        torch.autograd.grad(ours(inputs).sum(), inputs, create_graph=True)


@pytest.mark.parametrize(("rows", "width"), [(H * (N + V) + 1, L), (H * N, L), (H * (N + V), L + 1)])
def test_a_weight_of_another_shape_is_refused(rows: int, width: int) -> None:
    inputs = [*draw()[:4], torch.randn(rows, width, dtype=torch.float64)]
    with pytest.raises(ValueError, match=r"allowed: \(heads \* \(columns \+ those of the values\), latent\)"):
        ours(inputs)
