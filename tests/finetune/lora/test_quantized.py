"""Adapters on a base in 4 and 8 bits: they train as on the weights that the codes stand for."""

from pathlib import Path

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from seeklet.finetune.errors import AdapterError
from seeklet.finetune.lora.attach import adapted, attach
from seeklet.finetune.lora.files import load_adapter, save_adapter
from seeklet.finetune.lora.merge import merge_adapter
from seeklet.modeling import quantized as quantized_modules
from seeklet.modeling.blockwise import QUANTIZATIONS
from tests.finetune.lora.adapters import ALL, attached, loss_and_gradients, settings, tokens
from tests.modeling.nano import relative_error
from tests.modeling.quantizable import dequantized, double, load_quantized, write_base
from tests.modeling.tensors import load


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("quantized") / "base")


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_those_of_the_dequantised_model(base: Path, quantization: str, dtype: torch.dtype) -> None:
    """Of every factor, against float64, with at most twice the error of plain layers with the same weights."""
    ours = load_quantized(base, quantization, dtype)
    plain = dequantized(base, ours, dtype)
    models = [attached(model, *ALL) for model in (double(plain), ours, plain)]
    (truth, exact), (loss, own), (_, theirs) = (loss_and_gradients(model, tokens()) for model in models)
    assert relative_error(loss, truth) < (1e-5 if dtype == torch.float32 else 0.02)
    assert own.keys() == exact.keys()
    for name, gradient in exact.items():
        floor = 1e-5 if dtype == torch.float32 else 2**-7
        assert relative_error(own[name], gradient) <= 2 * relative_error(theirs[name], gradient) + floor, name


@pytest.mark.parametrize("kinds", [("attention",), ("routed_experts",)])
def test_an_adapter_beside_layers_without_one(base: Path, kinds: tuple[str, ...]) -> None:
    ours = load_quantized(base, "nf4")
    plain = dequantized(base, ours)
    (_, own), (_, theirs) = (loss_and_gradients(attached(model, *kinds), tokens()) for model in (ours, plain))
    assert {name: e for name in theirs if (e := relative_error(own[name], theirs[name])) > 1e-4} == {}


def test_the_table_is_that_of_the_plain_model(base: Path) -> None:
    tables = [adapted(attach(model, settings(*ALL))) for model in (load_quantized(base, "nf4"), load(base))]
    assert tables[0] == tables[1] and len(tables[0]) == len(ALL)


def test_nothing_of_a_stacks_size_is_kept_and_only_hit_experts_are_dequantised(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = attached(load_quantized(base, "nf4"), "routed_experts")
    experts = model.get_base_model().model.layers[1].mlp.experts
    inner = experts.get_base_layer()
    dense = inner.weight_shape("gate_up_proj").numel()
    shapes, seen = [], quantized_modules.dequantize
    monkeypatch.setattr(quantized_modules, "dequantize", lambda *a: shapes.append(a[0].shape) or seen(*a))
    kept: list[int] = []
    x = torch.randn(4, 64, requires_grad=True)
    index, weights = torch.tensor([[0, 5]] * 4), torch.rand(4, 2)

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(0 if tensor.dtype == torch.uint8 else tensor.numel())
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        experts(x, index, weights).sum().backward()
    # Two experts, two projections, forward and backward; what is kept is smaller than the factors themselves.
    assert len(shapes) == 8 and {len(shape) for shape in shapes} == {2}
    assert max(kept) < dense / 2


def test_a_round_trip(base: Path, tmp_path: Path) -> None:
    model = attached(load_quantized(base, "nf4"), *ALL)
    save_adapter(model, tmp_path / "adapter")
    logits = model.eval()(tokens()).logits
    assert torch.equal(load_adapter(load_quantized(base, "nf4"), tmp_path / "adapter").eval()(tokens()).logits, logits)


def test_merging_takes_the_checkpoints_own_weights(base: Path, tmp_path: Path) -> None:
    """Not those that the codes stand for: what was rounded off is no part of what the adapter changed."""
    save_adapter(attached(load_quantized(base, "nf4"), *ALL), tmp_path / "adapter")
    merge_adapter(tmp_path / "adapter", tmp_path / "merged", base, dtype=torch.float32)
    expected = load_adapter(load(base, dtype=torch.float32), tmp_path / "adapter").eval()(tokens()).logits
    assert relative_error(load(tmp_path / "merged").eval()(tokens()).logits, expected) < 1e-5


@pytest.mark.parametrize("kinds", [("attention",), ("routed_experts",)])
def test_merging_into_the_codes_is_refused(base: Path, kinds: tuple[str, ...]) -> None:
    with pytest.raises(AdapterError, match="cannot be added to quantised weights; merge it into the checkpoint"):
        attached(load_quantized(base, "nf4"), *kinds).merge_and_unload()


def test_the_loss_falls_and_the_codes_stay(base: Path) -> None:
    model = attach(load_quantized(base, "nf4", torch.bfloat16), settings("attention", "routed_experts", rank=4))
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.dtype == torch.uint8}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(25):
        losses.append(loss_and_gradients(model, tokens())[0].item())
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(dict(model.named_parameters())[name], old) for name, old in before.items())


def test_dropout_is_that_of_the_dequantised_model(base: Path) -> None:
    ours = load_quantized(base, "nf4")
    found = []
    for model in (ours, dequantized(base, ours)):
        model = attached(model, "routed_experts", dropout=0.3)
        torch.manual_seed(7)
        found.append(loss_and_gradients(model, tokens())[1])
    assert {name: e for name in found[1] if (e := relative_error(found[0][name], found[1][name])) > 1e-4} == {}
