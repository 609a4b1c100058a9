"""MLA attention in Triton against the reference: forward, every gradient, packed, padded, masked, and the libraries."""

# B batch, H heads, S queries, T keys, N nope, R rope, V value

import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="needs triton, which does not come with every build of torch")

from seeklet.modeling.kernels.mla_attention import kernel, library, op, reference
from tests.kernels.devices import DEVICES, assert_kernel_as_precise_as, kernels_on
from tests.kernels.interpreter import interpreted

SCALING = 0.3
SMALL = (16, 16, 4, 1)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut what the tests below draw into several blocks of queries and keys."""
    for sizes in (kernel.SM_80, kernel.SM_90, kernel.FP32):
        for name in sizes:
            monkeypatch.setitem(sizes, name, SMALL)


def draw(B: int = 2, H: int = 4, S: int = 37, T: int = 37, N: int = 12, R: int = 6, V: int = 10) -> list[torch.Tensor]:
    shapes = ((B, H, S, N), (B, H, S, R), (B, H, T, N), (B, T, R), (B, H, T, V))
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


def ours(inputs, mask=None, first_keys=None) -> torch.Tensor:
    q_nope, q_rope, k_nope, k_rope, value = inputs
    return op.mla_attention(q_nope, q_rope, k_nope, k_rope, value, mask, SCALING, first_keys)


def theirs(inputs, mask=None, first_keys=None) -> torch.Tensor:
    """Return the reference's output on query and key in one piece, each head with its own rope key."""
    q_nope, q_rope, k_nope, k_rope, value = inputs
    query = torch.cat((q_nope, q_rope), -1)
    key = torch.cat((k_nope, k_rope[:, None].expand(-1, k_nope.shape[1], -1, -1)), -1)
    if first_keys is not None:
        T, S = key.shape[2], query.shape[2]
        keys = torch.arange(T)
        mask = (keys <= torch.arange(T - S, T)[:, None]) & (keys >= first_keys[:, None, :, None])
    return reference.mla_attention(query, key, value, mask, SCALING)


def assert_precise(inputs, dtype: torch.dtype, device: str, mask=None, first_keys=None) -> None:
    there = [None if x is None else x.to(device) for x in (mask, first_keys)]
    assert_kernel_as_precise_as(
        lambda *x: ours(x, *there), lambda *x: theirs(x, mask, first_keys), inputs, dtype, device
    )


# Two documents of 1 and 36 tokens; several of 1; five tokens of padding on the left.
PACKED = torch.stack(
    [op.first_keys(torch.tensor([0, *range(36)])), op.first_keys(torch.tensor([0, 0, 0, *range(30), 0, 1, 2, 3]))]
)
PADDED = torch.tensor([0, 5])[:, None].expand(2, 37)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("first_keys", [None, PACKED, PADDED], ids=["causal", "packed", "padded"])
def test_errs_no_more_than_the_reference(small_blocks: None, first_keys, dtype: torch.dtype, device: str) -> None:
    assert_precise(draw(), dtype, device, first_keys=first_keys)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_bool_mask(small_blocks: None, dtype: torch.dtype, device: str) -> None:
    """With holes, not causal, a head each or for all; whole blocks that nothing sees."""
    holes = torch.rand(2, 4, 37, 37) > 0.4
    narrow = torch.zeros(2, 1, 37, 37, dtype=torch.bool)
    narrow[..., 17:30] = True
    for mask in (holes, narrow, holes[:1, :1]):
        assert_precise(draw(), dtype, device, mask=mask)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("S", "T"), [(1, 1), (1, 40), (5, 21), (20, 33)])
def test_fewer_queries_than_keys(small_blocks: None, S: int, T: int, device: str) -> None:
    assert_precise(draw(S=S, T=T), torch.bfloat16, device)


@pytest.mark.parametrize("device", DEVICES)
def test_published_head_sizes_in_the_blocks_of_a_gpu(device: str) -> None:
    assert_precise(draw(B=1, H=2, S=140, T=140, N=128, R=64, V=128), torch.bfloat16, device)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(sizes=st.tuples(*(st.integers(1, most) for most in (2, 6, 40, 30, 12, 30))), more=st.integers(0, 9))
def test_any_shape(sizes, more: int) -> None:
    B, H, S, N, R, V = sizes
    torch.manual_seed(sum(sizes))
    first_keys = torch.randint(0, more + 1, (B, S))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(kernel.SM_90, "forward", SMALL)
        assert_precise(draw(B, H, S, S + more, N, R, V), torch.bfloat16, "cpu", first_keys=first_keys)


def test_documents_start_where_positions_do() -> None:
    expected = torch.tensor([[0, 0, 0, 3, 3]])
    assert torch.equal(op.first_keys(torch.tensor([[0, 1, 2, 0, 1]])), expected)
    assert torch.equal(op.first_keys_of_cu_seqlens(torch.tensor([0, 3, 5]), 5), expected)
    assert torch.equal(op.first_keys_of_cu_seqlens(torch.arange(4), 3)[0], torch.arange(3))


@pytest.mark.parametrize("device", DEVICES)
def test_a_query_that_sees_nothing_gets_zeros_and_gives_no_gradient(small_blocks: None, device: str) -> None:
    inputs = [x.float().to(device).requires_grad_() for x in draw()]
    with kernels_on(device):
        output = ours(inputs, None, PADDED.to(device))
        gradients = torch.autograd.grad(output.sum(), inputs)
    assert not output[1, :, :5].any() and not gradients[0][1, :, :5].any() and not gradients[4][1, :, :5].any()
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("device", DEVICES)
def test_strided_inputs_as_the_model_has_them(small_blocks: None, device: str) -> None:
    """Heads transposed, parts as slices of one projection, and a gradient expanded from one number."""
    q = torch.randn(2, 20, 4, 18, device=device, requires_grad=True)
    kv = torch.randn(2, 20, 4, 22, device=device, requires_grad=True)
    rope = torch.randn(2, 20, 40, device=device, requires_grad=True)

    def run(attend) -> list[torch.Tensor]:
        query, expanded = q.transpose(1, 2), kv.transpose(1, 2)
        output = attend((query[..., :12], query[..., 12:], expanded[..., :12], rope[..., 34:], expanded[..., 12:]))
        return [output, *torch.autograd.grad(output.sum(), (q, kv, rope))]

    expected = run(theirs)
    with kernels_on(device):
        actual = run(ours)
    torch.testing.assert_close(actual, expected)
    assert actual[0].transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("device", DEVICES)
def test_the_same_bits_every_time_in_groups_of_heads(small_blocks: None, device: str, monkeypatch) -> None:
    inputs = [x.float().to(device).requires_grad_() for x in draw()]
    monkeypatch.setattr(kernel, "num_multiprocessors", lambda _: 1)
    with kernels_on(device):
        runs = [torch.autograd.grad(ours(inputs).square().sum(), inputs) for _ in range(2)]
    assert all(torch.equal(*pair) for pair in zip(*runs, strict=True))
    torch.testing.assert_close(runs[0], torch.autograd.grad(theirs(inputs).square().sum(), inputs))


def test_rope_gradients_are_summed_over_as_many_heads_as_leave_the_gpu_filled() -> None:
    assert kernel.heads_in_a_group(128, 128 * 128, 132) == 16
    assert kernel.heads_in_a_group(16, 16 * 128, 132) == 2
    assert kernel.heads_in_a_group(6, 10**6, 132) == 2
    assert kernel.heads_in_a_group(4, 4, 132) == 1


@pytest.mark.parametrize("device", DEVICES)
def test_registered_as_torch_asks(device: str) -> None:
    inputs = [x.float().to(device).requires_grad_() for x in draw(1, 2, 5, 5)]
    with kernels_on(device):
        torch.library.opcheck(op._forward, (*inputs, None, PADDED[1:, :5].to(device), SCALING))


@pytest.mark.parametrize("device", DEVICES)
def test_compiled_without_a_graph_break(device: str) -> None:
    inputs = [x.float().to(device).requires_grad_() for x in draw(1, 2, 5, 5)]
    compiled = torch.compile(lambda *x: ours(x).square(), backend="aot_eager", fullgraph=True)
    with kernels_on(device):
        gradients = torch.autograd.grad(compiled(*inputs).sum(), inputs)
    torch.testing.assert_close(gradients, torch.autograd.grad(theirs(inputs).square().sum(), inputs))


def test_the_kernels_are_what_runs_and_additive_masks_take_the_reference() -> None:
    inputs = [x.float().requires_grad_() for x in draw(1, 2, 5, 5)]
    names = ["forward_kernel", "backward_query_kernel", "backward_key_kernel"]
    with interpreted() as launched:
        ours(inputs).sum().backward()
        assert launched == {f"mla_attention.{name}": 1 for name in names}
        additive = torch.randn(1, 1, 5, 5)
        torch.testing.assert_close(ours(inputs, additive), theirs(inputs, additive))
        assert launched.total() == 3


def test_on_cpu_the_operator_is_the_reference() -> None:
    inputs = [x.requires_grad_() for x in draw()]
    for first_keys in (None, PACKED):
        gradients = torch.autograd.grad(ours(inputs, None, first_keys).square().sum(), inputs)
        expected = torch.autograd.grad(theirs(inputs, None, first_keys).square().sum(), inputs)
        torch.testing.assert_close(gradients, expected)
    with pytest.raises(RuntimeError, match="mla_attention has no second derivative"):
        torch.autograd.grad(ours(inputs).sum(), inputs, create_graph=True)


def stand_in(calls: list[str], name: str, returns_lse: bool) -> SimpleNamespace:
    """Return a module with FlashAttention's function, which checks what it is given."""

    def flash_attn_func(query, key, value, softmax_scale, causal):
        calls.append(name)
        assert causal and query.shape[-1] == key.shape[-1] == value.shape[-1] + 8
        heads_first = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        output = reference.mla_attention(*heads_first, None, softmax_scale)
        return (output.transpose(1, 2), None) if returns_lse else output.transpose(1, 2)

    return SimpleNamespace(flash_attn_func=flash_attn_func)


def test_the_best_library_installed_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    q_nope, q_rope, k_nope, k_rope, value = inputs = [x.bfloat16() for x in draw(V=10)]
    expected = theirs(inputs)
    monkeypatch.setattr(library, "HEAD_SIZES", (18, 10))
    with interpreted() as launched:
        assert library.best_library(inputs, 10, None, None) == "ours"
        for module, returns_lse in (("flash_attn_interface", False), ("flash_attn.cute", True)):
            monkeypatch.setitem(sys.modules, module, stand_in(calls, module, returns_lse))
            output = library.attend(q_nope, q_rope, k_nope, k_rope, value, None, SCALING)
            assert calls[-1] == module and torch.equal(output, expected)
        assert not launched
        library.attend(q_nope, q_rope, k_nope, k_rope, value, None, SCALING, library="ours")
        library.attend(q_nope, q_rope, k_nope, k_rope, value, None, SCALING, PACKED)
        assert len(calls) == 2 and launched.total() == 2


@pytest.mark.parametrize(
    ("present", "capability", "sizes", "dtype", "chosen"),
    [
        (["flash_attn_interface", "flash_attn.cute"], 90, (192, 128), torch.bfloat16, "flash_attn.cute"),
        (["flash_attn_interface"], 90, (192, 128), torch.float16, "flash_attn_interface"),
        (["flash_attn_interface"], 100, (192, 128), torch.bfloat16, "ours"),
        (["flash_attn_interface", "flash_attn.cute"], 100, (192, 128), torch.bfloat16, "flash_attn.cute"),
        (["flash_attn_interface", "flash_attn.cute"], 80, (192, 128), torch.bfloat16, "ours"),
        (["flash_attn_interface", "flash_attn.cute"], 90, (32, 24), torch.bfloat16, "ours"),
        (["flash_attn_interface", "flash_attn.cute"], 90, (192, 128), torch.float32, "ours"),
        ([], 90, (192, 128), torch.bfloat16, "ours"),
    ],
)
def test_which_library_is_the_best(present, capability: int, sizes, dtype: torch.dtype, chosen: str) -> None:
    assert library.best_of(present, capability, sizes, dtype) == chosen


def test_cudnn_takes_no_mask() -> None:
    q_nope, q_rope, k_nope, k_rope, value = (x.bfloat16() for x in draw())
    with pytest.raises(ValueError, match="allowed with these: 'best' and 'ours'"):
        library.attend(q_nope, q_rope, k_nope, k_rope, value, None, SCALING, PACKED, library="cudnn")
    with pytest.raises(ValueError, match="'cudnn', with 36 queries of 37 keys"):
        shorter = (q_nope[:, :, 1:], q_rope[:, :, 1:])
        library.attend(*shorter, k_nope, k_rope, value, None, SCALING, library="cudnn")
