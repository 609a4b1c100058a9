"""Each layer is its function: put in a model's layer by the `kernels` library, it gives what the operator gives."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from kernels import Mode, kernelize, use_kernel_mapping
from torch import nn

from seeklet.modeling.kernelize import InTree
from seeklet.modeling.kernels import functional, layers
from tests.modeling.nano import build_ours

MODEL = build_ours()
ATTENTION, MOE = MODEL.model.layers[1].self_attn, MODEL.model.layers[1].mlp
CONFIG = MODEL.config
BATCH, QUERIES, KEYS = 2, 3, 5
HEADS, NOPE, ROPE = CONFIG.num_attention_heads, CONFIG.qk_nope_head_dim, CONFIG.qk_rope_head_dim
VALUE, LATENT, HIDDEN = CONFIG.v_head_dim, CONFIG.kv_lora_rank, CONFIG.hidden_size
FIRST_KEYS = torch.tensor([[0, 0, 2, 2, 2]])


def drawn(*shape: int) -> torch.Tensor:
    """Return normal numbers with a gradient to come."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).requires_grad_()


class Case(NamedTuple):
    """A layer of the model, what it is given, and the function that says the same."""

    layer: nn.Module
    inputs: tuple[Any, ...]
    function: Callable[..., Any]


def add_rms_norm(layer: Any, hidden: torch.Tensor, residual: torch.Tensor) -> Any:
    return functional.add_rms_norm(hidden, residual, layer.weight, layer.variance_epsilon)


def attend_expanded(_, q_nope, q_rope, latent, k_rope, weight, expanded, mask, scaling, first_keys):
    key, value = expanded[..., :NOPE], expanded[..., NOPE:]
    return functional.mla_attention(q_nope, q_rope, key, k_rope, value, mask, scaling, first_keys)


def attend_from_latent(_, q_nope, q_rope, latent, k_rope, weight, expanded, mask, scaling, first_keys):
    return functional.mla_attention_from_latent(q_nope, q_rope, latent, k_rope, weight, mask, scaling, first_keys)


def decode(_, q_latent, q_rope, latent, k_rope, mask, scaling):
    if mask is None:
        mask = torch.ones(QUERIES, KEYS, dtype=torch.bool).tril(KEYS - QUERIES)
    return functional.mla_decode(q_latent, q_rope, latent, k_rope, mask, scaling)


def route(layer: Any, hidden: torch.Tensor, delta: torch.Tensor) -> Any:
    logits = hidden @ layer.weight.T + delta
    return logits, *functional.route(logits, layer.e_score_correction_bias, **layer.routing)


QUERY = drawn(BATCH, HEADS, KEYS, NOPE), drawn(BATCH, HEADS, KEYS, ROPE), drawn(BATCH, KEYS, LATENT)
KEY = drawn(BATCH, KEYS, ROPE)
DECODE = drawn(BATCH, HEADS, QUERIES, LATENT), drawn(BATCH, HEADS, QUERIES, ROPE), drawn(BATCH, KEYS, LATENT), KEY
SEEN = torch.tensor([[True, False, True, True, False]] * QUERIES)[None, None]
ANGLES = drawn(1, KEYS, ROPE // 2).detach().repeat(1, 1, 2)
CHOSEN = torch.tensor([[0, 5, 2], [3, 1, 7], [0, 1, 2], [6, 5, 4]])
CASES = {
    "SeekletRMSNorm": Case(
        ATTENTION.kv_a_layernorm,
        (drawn(4, LATENT),),
        lambda layer, x: functional.rms_norm(x, layer.weight, layer.variance_epsilon),
    ),
    "SeekletAddRMSNorm": Case(
        MODEL.model.layers[1].post_attention_layernorm, (drawn(4, HIDDEN), drawn(4, HIDDEN)), add_rms_norm
    ),
    "SeekletSwiGLU": Case(
        MOE.shared_experts.activation, (drawn(4, 24), drawn(4, 24)), lambda _, gate, up: functional.swiglu(gate, up)
    ),
    "SeekletApplyRope": Case(
        ATTENTION.apply_rope,
        (QUERY[1], drawn(BATCH, 1, KEYS, ROPE), ANGLES.cos(), ANGLES.sin()),
        lambda layer, q, k, cos, sin: functional.apply_rope(q, k, cos, sin, layer.interleaved),
    ),
    "SeekletMLAAttention": Case(
        ATTENTION.attend,
        (*QUERY, KEY, drawn(HEADS * (NOPE + VALUE), LATENT), None, None, 0.3, FIRST_KEYS),
        attend_from_latent,
    ),
    "SeekletMLAAttention expanded": Case(
        ATTENTION.attend,
        (*QUERY, KEY, None, drawn(BATCH, HEADS, KEYS, NOPE + VALUE), None, 0.3, FIRST_KEYS),
        attend_expanded,
    ),
    "SeekletMLADecode": Case(ATTENTION.decode, (*DECODE, SEEN, 0.3), decode),
    "SeekletMLADecode causal": Case(ATTENTION.decode, (*DECODE, None, 0.3), decode),
    "SeekletRouter": Case(MOE.gate, (drawn(4, HIDDEN), drawn(4, CONFIG.n_routed_experts)), route),
    "SeekletExperts": Case(
        MOE.experts,
        (drawn(4, HIDDEN), CHOSEN, drawn(4, 3)),
        lambda layer, x, indices, weights: functional.grouped_experts(
            x, indices, weights, layer.gate_up_proj, layer.down_proj
        ),
    ),
}


def outputs_and_gradients(run: Callable[..., Any], case: Case) -> list[torch.Tensor]:
    """Return what comes of the inputs, and the gradients of these and of the layer's parameters."""
    leaves = [x for x in case.inputs if isinstance(x, torch.Tensor) and x.requires_grad]
    leaves += list(case.layer.parameters())
    for leaf in leaves:
        leaf.grad = None
    made = run(*case.inputs)
    outputs = made if isinstance(made, tuple) else (made,)
    differentiable = [output for output in outputs if output.requires_grad]
    torch.stack([(output * output.detach().cos()).sum() for output in differentiable]).sum().backward()
    return [*(output.detach() for output in outputs), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def test_no_layer_is_left_out() -> None:
    """Those that keep fp8 have their tests with the operators."""
    names = {name for name in vars(layers) if name.startswith("Seeklet") and not name.startswith("SeekletFp8")}
    assert {name.partition(" ")[0] for name in CASES} == names


@pytest.mark.parametrize("name", CASES)
def test_layer_is_its_function(name: str) -> None:
    case = CASES[name]
    hook = name.partition(" ")[0]
    own = outputs_and_gradients(case.layer, case)
    expected = outputs_and_gradients(lambda *inputs: case.function(case.layer, *inputs), case)
    mapping: Any = {hook: {"cpu": InTree(hook)}}
    with use_kernel_mapping(mapping, inherit_mapping=False):
        kernelize(case.layer, mode=Mode.TRAINING | Mode.TORCH_COMPILE, device="cpu", use_fallback=False)
    try:
        assert vars(case.layer)["forward"].__func__ is getattr(layers, hook).forward
        actual = outputs_and_gradients(case.layer, case)
    finally:
        del case.layer.forward
    assert len(actual) > len(case.layer._parameters) + 1
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(actual, own, rtol=1e-5, atol=1e-6)


def test_the_sum_under_autocast_stays_as_wide_as_the_residual() -> None:
    """A projection gives half precision there."""
    layer = MODEL.model.layers[1].post_attention_layernorm
    half, wide = drawn(4, HIDDEN).detach().bfloat16(), drawn(4, HIDDEN).detach()
    actual = layers.SeekletAddRMSNorm.forward(layer, half, wide)
    assert actual[1].dtype == torch.float32
    torch.testing.assert_close(actual, layer(half, wide))
