"""Weights kept in fp8: computed with, trained upon, cast, copied, loaded and written back as they were."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import register_parametrization
from transformers import AutoModelForCausalLM, FineGrainedFP8Config

import seeklet
from seeklet.modeling import SeekletForCausalLM, SeekletModel
from seeklet.modeling.fp8 import Fp8Experts, Fp8Linear
from seeklet.modeling.kernelize import InTree
from seeklet.modeling.kernels.block_fp8.reference import dequantize
from tests.kernels.interpreter import interpreted
from tests.modeling.fp8_checkpoint import ODD, expected_weights, write_fp8
from tests.modeling.nano import draw_tokens, relative_error
from tests.modeling.tensors import assert_same, config_of, load, read


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(5)
    return write_fp8(tmp_path_factory.mktemp("odd"), ODD)


def load_both(folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """Return the checkpoint dequantised, its fp8 part frozen, and kept."""
    dense = load(folder, dtype=dtype)
    kept = load(folder, dtype=dtype, keep_fp8=True)
    trainable = {name for name, parameter in kept.named_parameters() if parameter.requires_grad}
    for name, parameter in dense.named_parameters():
        parameter.requires_grad_(name in trainable)
    return dense, kept


def test_kept_fp8_computes_what_the_dequantised_model_does(odd: Path) -> None:
    dense, kept = load_both(odd, torch.float32)
    kinds = [type(module) for module in kept.modules()]
    assert kinds.count(Fp8Experts) == 3
    # Four layers with q_a, q_b, kv_a and o; a dense MLP, and three shared experts.
    assert kinds.count(Fp8Linear) == 4 * 4 + 3 + 3 * 3
    assert {p.dtype for n, p in kept.named_parameters() if not p.requires_grad} == {torch.float8_e4m3fn}
    ids = draw_tokens(2, 11)
    for model in (dense, kept):
        model.train()
    outputs = [model(ids, labels=ids, return_logits=True) for model in (dense, kept)]
    assert relative_error(outputs[1].logits, outputs[0].logits) < 1e-5
    for output in outputs:
        output.loss.backward()
    gradients = {name: p.grad for name, p in kept.named_parameters() if p.grad is not None}
    assert {"model.embed_tokens.weight", "model.layers.1.self_attn.kv_b_proj.weight"} < gradients.keys()
    for name, parameter in dense.named_parameters():
        if name in gradients:
            assert relative_error(gradients[name], parameter.grad) < 1e-4, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_linear_layer_and_its_gradient(dtype: torch.dtype) -> None:
    layer = Fp8Linear(300, 200)
    layer.weight.data = torch.randn(200, 300).to(torch.float8_e4m3fn)
    layer.weight_scale_inv.copy_(torch.rand(2, 3) + 0.5)
    weight = dequantize(layer.weight, layer.weight_scale_inv, dtype)
    x = torch.randn(2, 7, 300, dtype=dtype, requires_grad=True)
    grad = torch.randn(2, 7, 200, dtype=dtype)
    output = layer(x)
    output.backward(grad)
    assert output.dtype == dtype
    assert torch.equal(output, F.linear(x, weight))
    assert x.grad is not None and torch.equal(x.grad, grad @ weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_experts_and_their_gradients(dtype: torch.dtype) -> None:
    """Odd sizes, and an expert that no token reaches; gate and up have blocks of their own."""
    experts = Fp8Experts(num_experts=4, hidden_dim=140, intermediate_dim=200)
    for name, tensor in experts.state_dict().items():
        tensor.copy_(torch.rand_like(tensor) + 0.5 if name.endswith("_scale_inv") else torch.randn(tensor.shape))
    indices = torch.tensor([[0, 1], [1, 3], [3, 0], [1, 0], [0, 3]])
    inputs = [torch.randn(5, 140).to(dtype), torch.rand(5, 2)]
    grad = torch.randn(5, 140).to(dtype)

    def run(forward, wide: torch.dtype) -> list[torch.Tensor]:
        x = inputs[0].to(wide, copy=True).requires_grad_()
        weights = inputs[1].to(torch.promote_types(wide, torch.float32), copy=True).requires_grad_()
        output = forward(x, weights)
        output.backward(grad.to(wide))
        assert x.grad is not None and weights.grad is not None
        return [output.detach(), x.grad, weights.grad]

    def formula(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        rows = []
        for token in range(5):
            row = 0
            for k in range(2):
                e = indices[token, k]
                codes, scale = experts.gate_up_proj[e], experts.gate_up_proj_scale_inv[e]
                gate, up, down = (
                    dequantize(c, s, torch.float32).to(dtype).to(x.dtype)
                    for c, s in (
                        (codes[:200], scale[0]),
                        (codes[200:], scale[1]),
                        (experts.down_proj[e], experts.down_proj_scale_inv[e]),
                    )
                )
                row = row + weights[token, k] * (down @ (F.silu(gate @ x[token]) * (up @ x[token])))
            rows.append(row)
        return torch.stack(rows)

    actual = run(lambda x, weights: experts(x, indices, weights), dtype)
    for ours, plain, truth in zip(actual, run(formula, dtype), run(formula, torch.float64), strict=True):
        # The floor: a router weight's gradient is summed over I here, over H in the formula.
        assert relative_error(ours, truth) <= 2 * relative_error(plain, truth) + 4 * torch.finfo(dtype).eps


def test_kept_fp8_saves_no_dequantised_weight_for_backward(odd: Path) -> None:
    kept = load(odd, keep_fp8=True)
    layer = kept.model.layers[1]
    weights = {tuple(t.shape) for name, t in layer.state_dict().items() if t.dtype == torch.float8_e4m3fn}
    weights |= {shape[1:] for shape in weights if len(shape) == 3}
    saved = []
    x = torch.randn(30, 264, dtype=torch.bfloat16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer.mlp.experts(x, torch.tensor([[0, 1], [1, 3]] * 15), torch.rand(30, 2)).sum().backward()
        layer.self_attn.q_a_proj(x).sum().backward()
    of_weights = [t for t in saved if tuple(t.shape) in weights or tuple(t.shape[::-1]) in weights]
    assert len(of_weights) == 2 + 1
    assert {t.dtype for t in of_weights} == {torch.float8_e4m3fn}
    assert x.grad is not None and x.grad.isfinite().all()


def test_kept_fp8_is_written_back_as_it_was(odd: Path, tmp_path: Path) -> None:
    kept = load(odd, keep_fp8=True)
    kept.save_pretrained(tmp_path / "fp8", max_shard_size="300KB")
    assert_same(read(tmp_path / "fp8"), read(odd))
    assert config_of(tmp_path / "fp8")["quantization_config"] == config_of(odd)["quantization_config"]
    kept.save_pretrained(tmp_path / "bf16", block_fp8=False)
    assert_same(read(tmp_path / "bf16"), expected_weights(odd, torch.bfloat16))
    assert "quantization_config" not in config_of(tmp_path / "bf16")


def test_casts_and_copies_leave_fp8_as_it_is(odd: Path) -> None:
    kept = load(odd, keep_fp8=True)
    before = {n: t.clone() for n, t in kept.state_dict().items() if "fp8" in str(t.dtype) or "float8" in str(t.dtype)}
    scales = {n: t.clone() for n, t in kept.state_dict().items() if n.endswith("_scale_inv")}
    assert len(before) == len(scales) == 28 + 2 * 3
    for model in (copy.deepcopy(kept), kept.half(), kept.float(), kept.to(torch.bfloat16), kept.to("cpu")):
        state = model.state_dict()
        assert_same({name: state[name] for name in before}, before)
        assert_same({name: state[name] for name in scales}, scales)
        assert model.model.layers[0].self_attn.kv_b_proj.weight.dtype == model.lm_head.weight.dtype
    assert kept.float().model.norm.weight.dtype == torch.float32
    assert kept.to("meta").model.layers[1].mlp.experts.down_proj.dtype == torch.float8_e4m3fn


def test_kept_fp8_loads_its_own_and_the_published_names(odd: Path) -> None:
    kept = load(odd, keep_fp8=True)
    state = {name: tensor.clone() for name, tensor in kept.state_dict().items()}
    for source in (state, read(odd)):
        source = {n: t for n, t in source.items() if not n.endswith("kv_b_proj.weight_scale_inv")}
        source |= {n: t for n, t in state.items() if n.endswith("kv_b_proj.weight")}
        other = load(odd, keep_fp8=True)
        for tensor in other.state_dict().values():
            tensor.view(torch.uint8).zero_()
        other.load_state_dict(source)
        assert_same(other.state_dict(), state)


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        ({"keep_fp8": True}, True),
        ({"quantization_config": FineGrainedFP8Config(dequantize=False)}, True),
        ({"quantization_config": FineGrainedFP8Config(dequantize=True)}, False),
        ({"quantization_config": {"quant_method": "fp8", "dequantize": True}}, False),
        ({}, False),
    ],
)
def test_how_to_ask_for_kept_fp8(odd: Path, arguments: dict[str, Any], kept: bool) -> None:
    model = AutoModelForCausalLM.from_pretrained(odd, **arguments)
    assert type(model) is SeekletForCausalLM
    assert isinstance(model.model.layers[1].mlp.experts, Fp8Experts) == kept


def test_asking_for_both_is_refused(odd: Path) -> None:
    with pytest.raises(ValueError, match="contradict"):
        load(odd, keep_fp8=True, quantization_config=FineGrainedFP8Config(dequantize=True))


def test_adapters_on_kept_fp8_train_as_on_the_dequantised_model(odd: Path) -> None:
    gradients = []
    targets = ["q_a_proj", "o_proj", "down_proj", "kv_b_proj"]
    for model in load_both(odd, torch.float32):
        adapted = get_peft_model(model, LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
        generator = torch.Generator().manual_seed(3)
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                assert parameter.dtype == torch.float32
                parameter.data.normal_(0, 0.02, generator=generator)
        adapted.train()
        ids = draw_tokens(2, 11)
        adapted(input_ids=ids, labels=ids).loss.backward()
        gradients.append({name: p.grad for name, p in adapted.named_parameters() if p.requires_grad})
    dense, kept = gradients
    assert kept.keys() == dense.keys() and len(kept) > 2 * 4 * 3
    for name, gradient in kept.items():
        assert gradient is not None and gradient.any(), name
        assert relative_error(gradient, dense[name]) < 1e-4, name


def test_adapters_are_made_in_the_dtype_that_is_computed_in(odd: Path) -> None:
    kept = load(odd, keep_fp8=True)
    config = LoraConfig(r=4, target_modules=["o_proj"])
    adapted = get_peft_model(kept, config, autocast_adapter_dtype=False)
    adapters = [p for name, p in adapted.named_parameters() if "lora_" in name]
    assert {p.dtype for p in adapters} == {torch.bfloat16}


def test_autocast_computes_in_its_dtype() -> None:
    layer = Fp8Linear(64, 32)
    x = torch.randn(3, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer(x).dtype == torch.float32


def test_a_bias_is_loaded_and_trained(tmp_path: Path) -> None:
    folder = write_fp8(tmp_path, ODD | {"attention_bias": True})
    dense, kept = load_both(folder, torch.float32)
    ids = draw_tokens(2, 7)
    assert relative_error(kept(ids).logits, dense(ids).logits) < 1e-5
    assert kept.model.layers[0].self_attn.o_proj.bias.requires_grad


def test_a_base_model_keeps_fp8(odd: Path, tmp_path: Path) -> None:
    base = load(odd, SeekletModel, keep_fp8=True)
    assert isinstance(base.layers[1].mlp.experts, Fp8Experts)
    expected = {name.removeprefix("model."): t for name, t in load(odd, keep_fp8=True).state_dict().items()}
    del expected["lm_head.weight"]
    assert_same(base.state_dict(), expected)
    base.save_pretrained(tmp_path)
    again = load(tmp_path, SeekletModel, keep_fp8=True)
    assert_same(again.state_dict(), expected)


def test_kept_fp8_generates_the_same(odd: Path) -> None:
    dense, kept = load_both(odd, torch.float32)
    ids = draw_tokens(2, 5)
    tokens = [model.generate(ids, max_new_tokens=12, do_sample=False) for model in (dense, kept)]
    assert torch.equal(*tokens)


def fp8_layer(kind: type[Fp8Linear] | type[Fp8Experts]) -> tuple[Any, list[torch.Tensor]]:
    """Return a layer of this kind with weights, and inputs to it, its tokens first."""
    tokens = torch.randn(5, 40)
    layer = kind(40, 24, bias=True) if kind is Fp8Linear else Fp8Experts(3, 40, 24)
    for name, tensor in layer.state_dict().items():
        tensor.copy_(torch.rand_like(tensor) + 0.5 if name.endswith("_scale_inv") else torch.randn(tensor.shape))
    routing = [torch.tensor([[0, 1], [1, 2], [2, 0], [1, 0], [0, 2]]), torch.rand(5, 2)]
    return layer, [tokens, *(routing if kind is Fp8Experts else [])]


@pytest.mark.parametrize("kind", [Fp8Linear, Fp8Experts])
def test_kernelized_it_computes_the_same(kind: type[Fp8Linear] | type[Fp8Experts]) -> None:
    layer, (tokens, *routing) = fp8_layer(kind)
    results = []
    with interpreted() as launched:
        for kernelized in (False, True):
            if kernelized:
                [row] = seeklet.kernelize(layer, "training", device="cpu", quiet=True)
                assert row.layer == f"Seeklet{kind.__name__}" and row.kernel == "fused (Triton)"
            x = tokens.clone().requires_grad_()
            output = layer(x, *routing)
            results.append([output.detach(), *torch.autograd.grad(output.sum(), x)])
    assert launched
    for actual, expected in zip(*results, strict=True):
        assert relative_error(actual, expected) < 1e-6


@pytest.mark.parametrize("kind", [Fp8Linear, Fp8Experts])
def test_inputs_rounded_to_fp8_are_to_be_asked_for(kind: type[Fp8Linear] | type[Fp8Experts]) -> None:
    layer, inputs = fp8_layer(kind)
    hook = f"Seeklet{kind.__name__}"
    with torch.no_grad():
        expected = layer(*inputs)
    with torch.no_grad(), interpreted():
        seeklet.kernelize(layer, "inference", "cpu", mapping={hook: {"cpu": InTree(f"{hook}Quantized")}}, quiet=True)
        assert 1e-3 < relative_error(layer(*inputs), expected) < 0.1
        seeklet.unkernelize(layer)
        assert torch.equal(layer(*inputs), expected)


def test_a_kernel_refuses_adapters_on_the_codes_too() -> None:
    layer, inputs = fp8_layer(Fp8Experts)
    with interpreted():
        seeklet.kernelize(layer, "inference", device="cpu", quiet=True)
        register_parametrization(layer, "down_proj", nn.Identity())
        with pytest.raises(RuntimeError, match="changes nothing"):
            layer(*inputs)
