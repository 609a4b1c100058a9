"""The split computation against PEFT's own, which builds W + s B A: loss, logits and every gradient."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from transformers import DeepseekV3ForCausalLM

from seeklet.finetune.lora.attach import attach
from tests.finetune.lora.adapters import (
    ALL,
    RANK,
    attached,
    build,
    loss_and_gradients,
    saved_base,
    settings,
    stirred,
    tokens,
    with_plain_peft,
)
from tests.kernels.memory import largest_tensor_made
from tests.modeling.nano import SIZES, relative_error
from tests.modeling.tensors import load

MAIN = tuple(kind for kind in ALL if kind != "mtp")


def assert_equal(ours: Any, peft: Any, tolerance: float, batch: torch.Tensor) -> None:
    (loss, gradients), (other_loss, other_gradients) = (loss_and_gradients(model, batch) for model in (ours, peft))
    assert relative_error(loss, other_loss) <= tolerance
    assert gradients.keys() == other_gradients.keys()
    errors = {name: relative_error(gradients[name], other_gradients[name]) for name in gradients}
    assert {name: error for name, error in errors.items() if not error <= tolerance} == {}
    logits = [model.eval()(batch).logits for model in (ours, peft)]
    assert relative_error(logits[0], logits[1]) <= tolerance


@pytest.mark.parametrize("kinds", [*[(kind,) for kind in ALL], ALL, ("attention", "routed_experts")])
@pytest.mark.parametrize("rslora", [False, True])
def test_equals_pefts_own_computation_in_float64(kinds: tuple[str, ...], rslora: bool) -> None:
    ours = attached(build(torch.float64), *kinds, rslora=rslora)
    assert_equal(ours, with_plain_peft(build(torch.float64), ours), 1e-11, tokens())


def test_with_experts_that_get_no_token() -> None:
    """Their factors get a gradient of zeros, as in PEFT's computation, not None."""
    sizes = {"n_routed_experts": 32}
    ours = attached(build(torch.float64, **sizes), "routed_experts")
    assert_equal(ours, with_plain_peft(build(torch.float64, **sizes), ours), 1e-11, tokens(1, 4))
    a = loss_and_gradients(ours, tokens(1, 4))[1]
    [factor] = [g for name, g in a.items() if "layers.1.mlp.experts.base_layer.lora_A" in name]
    hit = factor.unflatten(0, (32, RANK)).abs().amax((1, 2)) > 0
    assert 0 < hit.sum() <= 12


@pytest.mark.parametrize("which", ["gate_up_proj", "down_proj"])
def test_one_projection_of_the_experts_alone(which: str) -> None:
    ours = attached(build(torch.float64), f"mlp.experts.{which}")
    assert_equal(ours, with_plain_peft(build(torch.float64), ours), 1e-11, tokens())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_errs_no_more_than_pefts_own_computation(dtype: torch.dtype) -> None:
    """Of the experts' factors, in a low precision, held against float64 at the same weights."""
    ours = attached(build(dtype), "routed_experts")
    exact = with_plain_peft(build(dtype).double(), ours).double()
    peft = with_plain_peft(build(dtype), ours)
    # The router's choices are made from the same hidden states up to rounding: one MoE layer, so that all choose alike.
    truth, own, theirs = (loss_and_gradients(model, tokens())[1] for model in (exact, ours, peft))
    for name in truth:
        if "layers.1." in name:
            continue
        allowed = 2 * relative_error(theirs[name], truth[name]) + torch.finfo(dtype).eps
        assert relative_error(own[name], truth[name]) <= allowed, name


def test_on_stock_transformers_with_plain_peft(tmp_path: Path) -> None:
    """Another model class, whose router computes in fp32."""
    base = build(num_nextn_predict_layers=0)
    stock = load(saved_base(tmp_path / "base", base), DeepseekV3ForCausalLM, dtype=torch.float32)
    stock.set_experts_implementation("eager")
    ours = attached(base, *MAIN)
    assert_equal(ours, with_plain_peft(stock, ours), 2e-4, tokens())


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_changes_nothing(reentrant: bool, dropout: float) -> None:
    """With dropout the same numbers are dropped when the forward pass is run again."""
    results = []
    for checkpointing in (False, True):
        model = attached(build(torch.float64), *ALL, dropout=dropout)
        if checkpointing:
            model.enable_input_require_grads()
            model.get_base_model().gradient_checkpointing_enable({"use_reentrant": reentrant})
        torch.manual_seed(11)
        results.append(loss_and_gradients(model, tokens())[1])
    plain, checkpointed = results
    assert plain.keys() == checkpointed.keys()
    assert all(relative_error(checkpointed[name], plain[name]) <= 1e-12 for name in plain)


@pytest.mark.parametrize("kinds", [("routed_experts",), ("router",), ALL])
def test_dropout_is_for_training_only_and_follows_the_seed(kinds: tuple[str, ...]) -> None:
    model = attached(build(torch.float64), *kinds, dropout=0.3)
    assert torch.equal(model.eval()(tokens()).logits, model(tokens()).logits)
    without = attached(build(torch.float64), *kinds)
    assert relative_error(model(tokens()).logits, without.eval()(tokens()).logits) == 0
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(model.train()(tokens()).logits)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert relative_error(drawn[0], without(tokens()).logits) > 1e-3


def test_no_tensor_as_large_as_the_experts_is_made() -> None:
    """In a whole training step: no W + B A, no gradient of W, no copy of W; plain PEFT makes several."""
    from seeklet.modeling.kernels.grouped_experts import op as experts_op
    from seeklet.modeling.kernels.grouped_lora import op

    sizes: dict[str, Any] = {"n_routed_experts": 64, "vocab_size": 97, "hidden_size": 48, "moe_intermediate_size": 32}
    ours = attached(build(**sizes), *ALL)
    stack = 64 * 48 * 32
    inside = (op._forward, op._backward, experts_op._forward, experts_op._backward)

    def step(model: Any) -> None:
        model(input_ids=tokens(1, 5), labels=tokens(1, 5)).loss.backward()

    assert largest_tensor_made(lambda: step(ours), inside) < stack / 4
    peft = with_plain_peft(build(**sizes), ours)
    assert largest_tensor_made(lambda: step(peft), inside) == 2 * stack


def test_autocast_makes_no_copy_of_the_experts_either() -> None:
    from seeklet.modeling.kernels.grouped_lora import op

    sizes: dict[str, Any] = {"n_routed_experts": 64, "hidden_size": 48, "moe_intermediate_size": 32}
    model = attached(build(num_nextn_predict_layers=0, **sizes), "routed_experts")

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=tokens(1, 5), labels=tokens(1, 5)).loss
        loss.backward()

    assert largest_tensor_made(step, (op._forward, op._backward)) < 64 * 48 * 32 / 4


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_compiled_equals_eager(dropout: float) -> None:
    """One MoE layer, its router, routed and shared experts adapted, in one graph."""
    model = attached(build(num_nextn_predict_layers=0), *MAIN[2:], dropout=dropout)
    moe = model.get_base_model().model.layers[1].mlp
    x = torch.randn(2, 3, SIZES["hidden_size"], requires_grad=True)
    parameters = [x, *(p for p in moe.parameters() if p.requires_grad)]
    results = []
    for run in (moe, torch.compile(moe, backend="aot_eager", fullgraph=True)):
        torch.manual_seed(4)
        results.append(torch.autograd.grad(run(x).square().sum(), parameters))
    torch.testing.assert_close(results[1], results[0])


def test_checkpoint_of_a_single_layer_sees_the_same_adapter() -> None:
    """torch's own function around a module, as trainers use it outside transformers."""
    model = attached(build(torch.float64), "routed_experts")
    moe = model.get_base_model().model.layers[1].mlp
    x = torch.randn(2, 3, SIZES["hidden_size"], dtype=torch.float64, requires_grad=True)
    parameters = [x, *(p for p in moe.parameters() if p.requires_grad)]
    plain = torch.autograd.grad(moe(x).square().sum(), parameters)
    again = checkpoint(moe, x, use_reentrant=False)
    assert isinstance(again, torch.Tensor)
    torch.testing.assert_close(torch.autograd.grad(again.square().sum(), parameters), plain)


def test_generation_equals_that_of_plain_peft() -> None:
    """Decoding token by token: absorbed attention, one token a step, MTP drafts left out."""
    ours = attached(build(torch.float64), *ALL).eval()
    peft = with_plain_peft(build(torch.float64), ours).eval()
    arguments: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    generated = [model.generate(input_ids=tokens(2, 5), **arguments) for model in (ours, peft)]
    assert torch.equal(generated[0], generated[1])
    assert not torch.equal(generated[0], build(torch.float64).eval().generate(tokens(2, 5), **arguments))


def test_the_router_bias_moves_behind_an_adapter_of_the_router() -> None:
    model = stirred(attach(build(bias_update_speed=0.1), settings("router")))
    loss_and_gradients(model, tokens())
    base: Any = model.get_base_model()
    router = base.model.layers[1].mlp.router
    before = router.e_score_correction_bias.clone()
    loads = base.update_router_bias()
    assert len(loads) == 3 and loads[0].sum() == tokens().numel() * SIZES["num_experts_per_tok"]
    assert ((router.e_score_correction_bias - before).abs() - 0.1).abs().max() < 1e-6
