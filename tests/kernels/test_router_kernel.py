"""The router's Triton kernels and operator: the choice exactly, weights and gradients as precisely as the reference."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="needs triton, which does not come with every build of torch")

from seeklet.modeling.kernels.router import kernel, op, reference
from tests.kernels.devices import DEVICES, assert_kernel_as_precise_as, kernels_on
from tests.kernels.memory import tensors_kept

NAMES = ("scoring_func", "n_group", "topk_group", "top_k", "norm_topk_prob", "routed_scaling_factor")
# experts, and the settings
CASES = {
    "nano": (8, ("sigmoid", 4, 2, 3, True, 2.5)),
    "v3": (256, ("sigmoid", 8, 4, 8, True, 2.5)),
    "moonlight": (64, ("sigmoid", 1, 1, 6, True, 2.446)),
    "kimi_k2": (384, ("sigmoid", 1, 1, 8, True, 2.827)),
    "v2": (160, ("softmax", 8, 3, 6, False, 16.0)),
    "one_expert_a_group": (12, ("softmax", 12, 5, 5, True, 1.0)),
    "all_groups_open": (9, ("sigmoid", 3, 3, 4, False, 1.0)),
    "odd_groups": (15, ("softmax", 3, 2, 7, True, 1.5)),
    "one_expert": (1, ("sigmoid", 1, 1, 1, True, 1.0)),
    "the_most": (512, ("sigmoid", 16, 7, 16, True, 2.5)),
}


def setting(case: str) -> dict[str, Any]:
    return dict(zip(NAMES, CASES[case][1], strict=True))


def draw(tokens: int, experts: int, ties: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits and bias; with ties, of so few values that experts and groups are equal all the time."""
    if not ties:
        return torch.randn(tokens, experts), torch.randn(experts) / 10
    return torch.randint(0, 5, (tokens, experts)) / 4, torch.randint(0, 2, (experts,)) / 8


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_chooses_and_counts_as_the_reference_does(case: str, ties: bool, device: str) -> None:
    logits, bias = (tensor.to(device) for tensor in draw(33, CASES[case][0], ties))
    with kernels_on(device):
        weights, indices, counts = op.route_and_count(logits, bias, **setting(case))
    expected_weights, expected = reference.route(logits, bias, **setting(case))
    assert torch.equal(indices, expected)
    torch.testing.assert_close(weights, expected_weights)
    assert torch.equal(counts, torch.bincount(expected.flatten(), minlength=CASES[case][0]).int())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES)
def test_errs_no_more_than_the_reference(case: str, device: str) -> None:
    """The choice is given, so that fp32 and float64 do not differ in it."""
    experts = CASES[case][0]
    logits, bias = draw(7, experts)
    choice = reference.route(logits, bias, **setting(case))[1]
    assert_kernel_as_precise_as(
        lambda x: op.route(x, bias.to(x.device), expert_choice=choice.to(x.device), **setting(case))[0],
        lambda x: reference.route(x, bias, expert_choice=choice, **setting(case))[0],
        [logits],
        torch.float32,
        device,
    )


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_sizes(data: st.DataObject) -> None:
    groups, size = data.draw(st.integers(1, 16)), data.draw(st.integers(1, 20))
    opened = data.draw(st.integers(1, groups))
    chosen: dict[str, Any] = {
        "scoring_func": data.draw(st.sampled_from(["sigmoid", "softmax"])),
        "n_group": groups,
        "topk_group": opened,
        "top_k": data.draw(st.integers(1, min(16, opened * size))),
        "norm_topk_prob": data.draw(st.booleans()),
        "routed_scaling_factor": 1.5,
    }
    torch.manual_seed(data.draw(st.integers(0, 99)))
    logits, bias = draw(data.draw(st.integers(1, 9)), groups * size, data.draw(st.booleans()))
    leaf, other = (logits.clone().requires_grad_() for _ in range(2))
    weights, indices = reference.route(other, bias, **chosen)
    cotangent = torch.randn_like(weights)
    with kernels_on("cpu"):
        actual, chosen_by_kernel = op.route(leaf, bias, **chosen)
        actual.backward(cotangent)
    weights.backward(cotangent)
    assert torch.equal(chosen_by_kernel, indices)
    torch.testing.assert_close(actual, weights)
    torch.testing.assert_close(leaf.grad, other.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_replayed_choice(device: str) -> None:
    """Where it is negative the router chooses; the others count and get weights and gradients as if it had."""
    logits, bias = (tensor.to(device) for tensor in draw(9, 8))
    choice = torch.stack([torch.randperm(8)[:3] for _ in range(9)]).to(device)
    choice[::2] = -1
    choice = choice.to(torch.int32).t().contiguous().t()
    leaf, other = (logits.clone().requires_grad_() for _ in range(2))
    with kernels_on(device):
        weights, indices, counts = op.route_and_count(leaf, bias, expert_choice=choice, **setting("nano"))
        weights.square().sum().backward()
    expected, chosen = reference.route(other, bias, expert_choice=choice, **setting("nano"))
    expected.square().sum().backward()
    assert torch.equal(indices, chosen) and torch.equal(chosen[1::2], choice[1::2].long())
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(leaf.grad, other.grad)
    assert torch.equal(counts, torch.bincount(chosen.flatten(), minlength=8).int())


@pytest.mark.parametrize("device", DEVICES)
def test_strided_logits_and_gradient(device: str) -> None:
    bias = torch.zeros(8, device=device)
    for logits in (torch.randn(5, 24, device=device)[:, 8:16], torch.randn(8, 5, device=device).t()):
        leaf, other = (logits.detach().requires_grad_() for _ in range(2))
        cotangent = torch.randn(3, 5, device=device).t()
        with kernels_on(device):
            weights, indices = op.route(leaf, bias, **setting("nano"))
            gradient = torch.autograd.grad(weights, leaf, cotangent)
        expected, chosen = reference.route(other, bias, **setting("nano"))
        assert torch.equal(indices, chosen)
        torch.testing.assert_close(gradient, torch.autograd.grad(expected, other, cotangent))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("value", [-200.0, 200.0, float("nan"), float("inf")])
def test_extreme_logits_choose_experts_that_exist(value: float, device: str) -> None:
    logits = torch.full((3, 256), value, device=device)
    with kernels_on(device):
        weights, indices = op.route(logits, torch.zeros(256, device=device), **setting("v3"))
    assert indices.tolist() == [list(range(8))] * 3
    assert value != value or weights.isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
def test_closed_groups_fill_up_only_what_is_left(device: str) -> None:
    """One group of two is open, three experts are asked for: the third is the first of those closed."""
    chosen: dict[str, Any] = {**setting("nano"), "topk_group": 1}
    logits = torch.tensor([[0.0, 0.0, 1.0, 2.0, 0.0, 0.0, 1.0, 1.5]], device=device)
    with kernels_on(device):
        indices = op.route(logits, torch.full((8,), -5.0, device=device), **chosen)[1]
    assert indices.tolist() == [[3, 2, 0]]


@pytest.mark.parametrize("device", DEVICES)
def test_no_tokens(device: str) -> None:
    leaf = torch.empty(0, 8, device=device, requires_grad=True)
    with kernels_on(device):
        weights, _, counts = op.route_and_count(leaf, torch.zeros(8, device=device), **setting("nano"))
        weights.sum().backward()
    assert weights.shape == (0, 3) and leaf.grad is not None and not counts.any()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", ["nano", "v2"])
@pytest.mark.parametrize("replay", [False, True])
def test_registered_as_torch_asks(case: str, replay: bool, device: str) -> None:
    logits, bias = (tensor.to(device) for tensor in draw(3, CASES[case][0]))
    choice = torch.full((3, CASES[case][1][3]), -1, device=device) if replay else None
    with kernels_on(device):
        torch.library.opcheck(op._forward, (logits.requires_grad_(), bias, choice, *CASES[case][1], True))


def test_the_operator_on_cpu_is_the_reference() -> None:
    for case in CASES:
        logits, bias = (tensor.double() for tensor in draw(5, CASES[case][0]))
        leaf, other = (logits.clone().requires_grad_() for _ in range(2))
        weights, indices, counts = op.route_and_count(leaf, bias, **setting(case))
        expected, chosen = reference.route(other, bias, **setting(case))
        assert torch.equal(weights, expected) and torch.equal(indices, chosen)
        assert torch.equal(counts, torch.bincount(chosen.flatten(), minlength=CASES[case][0]).int())
        cotangent = torch.randn_like(weights)
        weights.backward(cotangent)
        expected.backward(cotangent)
        torch.testing.assert_close(leaf.grad, other.grad)


def test_compiled_without_a_graph_break() -> None:
    logits, bias = draw(5, 8)
    compiled = torch.compile(
        lambda x: op.route(x, bias, **setting("nano"))[0].square(), backend="aot_eager", fullgraph=True
    )
    leaf, other = (logits.clone().requires_grad_() for _ in range(2))
    with kernels_on("cpu"):
        compiled(leaf).sum().backward()
    reference.route(other, bias, **setting("nano"))[0].square().sum().backward()
    torch.testing.assert_close(leaf.grad, other.grad)


def test_keeps_the_chosen_scores_only() -> None:
    logits, bias = draw(20, 256)
    with kernels_on("cpu"):
        kept = tensors_kept(lambda: op.route(logits.requires_grad_(), bias, **setting("v3")))
    assert sorted(tensor.numel() for tensor in kept.values()) == [20 * 8, 20 * 8]


def test_the_kernel_is_what_runs_where_it_takes_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, bias = draw(3, 8)
    seen = []
    original = kernel.forward
    monkeypatch.setattr(kernel, "forward", lambda *given: seen.append(given[0].dtype) or original(*given))
    with kernels_on("cpu"):
        op.route(logits, bias, **setting("nano"))
        op.route(logits.double(), bias, **setting("nano"))
        op.route(logits.bfloat16(), bias, **setting("nano"))
    op.route(logits, bias, **setting("nano"))
    assert seen == [torch.float32]
    assert not kernel.takes(torch.empty(1, 513), 1, 8) and not kernel.takes(torch.empty(1, 64), 1, 17)


def test_second_derivatives_are_refused() -> None:
    logits, bias = draw(3, 8)
    weights, _ = op.route(logits.requires_grad_(), bias, **setting("nano"))
    with pytest.raises(RuntimeError, match="router has no second derivative"):
        torch.autograd.grad(weights.sum(), logits, create_graph=True)
