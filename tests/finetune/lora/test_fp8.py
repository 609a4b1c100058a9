"""Adapters on a frozen block-fp8 base: they change the output, and train as on the dequantised weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from seeklet.finetune.errors import AdapterError
from seeklet.finetune.lora.attach import adapted, attach
from seeklet.finetune.lora.files import load_adapter, save_adapter
from seeklet.modeling.fp8 import Fp8Experts, Fp8Linear
from tests.finetune.lora.adapters import ALL, EXPERTS, attached, build, loss_and_gradients, settings, tokens
from tests.modeling.fp8_checkpoint import ODD
from tests.modeling.nano import build_ours, relative_error
from tests.modeling.tensors import load

KEPT = ("attention", "dense_mlp", "shared_experts", "routed_experts")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a block-fp8 checkpoint whose sizes are no multiples of 128, with an MTP module."""
    folder = tmp_path_factory.mktemp("fp8") / "base"
    torch.manual_seed(0)
    build_ours(**ODD, num_hidden_layers=2).save_pretrained(folder, block_fp8=True)
    return folder


def kept(base: Path, dtype: torch.dtype = torch.float32) -> Any:
    model = load(base, dtype=dtype, keep_fp8=True)
    assert {type(model.model.layers[1].mlp.experts), type(model.model.layers[0].mlp.up_proj)} == {Fp8Experts, Fp8Linear}
    return model.train()


def dequantized(base: Path, dtype: torch.dtype = torch.float32) -> Any:
    return load(base, dtype=dtype).train()


@pytest.mark.parametrize("kinds", [*[(kind,) for kind in ALL], ALL])
def test_trains_as_on_the_dequantised_base(base: Path, kinds: tuple[str, ...]) -> None:
    """The same loss and the same gradient of every factor; and the adapter changes the output."""
    ours, dense = (attached(model, *kinds) for model in (kept(base), dequantized(base)))
    (loss, gradients), (other_loss, others) = (loss_and_gradients(model, tokens()) for model in (ours, dense))
    assert relative_error(loss, other_loss) < 1e-5
    assert gradients.keys() == others.keys()
    assert {name: e for name in others if (e := relative_error(gradients[name], others[name])) > 1e-3} == {}
    with ours.disable_adapter():
        plain = loss_and_gradients_free(ours)
    assert abs(plain - loss) > 1e-4


def loss_and_gradients_free(model: Any) -> torch.Tensor:
    """Return the loss without gradients."""
    with torch.no_grad():
        return model(input_ids=tokens(), labels=tokens()).loss


@pytest.mark.parametrize("kinds", [(kind,) for kind in KEPT])
def test_in_bf16_errs_no_more_than_the_dequantised_base_does(base: Path, kinds: tuple[str, ...]) -> None:
    ours, dense = (attached(model, *kinds) for model in (kept(base, torch.bfloat16), dequantized(base, torch.bfloat16)))
    exact = attached(dequantized(base, torch.bfloat16).double(), *kinds)
    truth, own, theirs = (loss_and_gradients(model, tokens())[1] for model in (exact, ours, dense))
    for name in truth:
        allowed = 2 * relative_error(theirs[name], truth[name]) + 2**-7
        assert relative_error(own[name], truth[name]) <= allowed, name


@pytest.mark.parametrize("kinds", [("routed_experts",), KEPT])
def test_the_loss_falls(base: Path, kinds: tuple[str, ...]) -> None:
    model = attach(kept(base, torch.bfloat16), settings(*kinds, rank=4))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(25):
        losses.append(loss_and_gradients(model, tokens())[0].item())
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


def test_the_codes_stay_and_the_factors_are_in_fp32(base: Path) -> None:
    model = attached(kept(base, torch.bfloat16), *ALL)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    assert any(p.dtype == torch.float8_e4m3fn for p in before.values())
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    loss_and_gradients(model, tokens())
    optimizer.step()
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name].view(torch.uint8), old.view(torch.uint8)) for name, old in before.items())


def test_the_table_is_that_of_the_dequantised_model(base: Path) -> None:
    tables = [adapted(attach(model, settings(*ALL))) for model in (kept(base), dequantized(base))]
    assert tables[0] == tables[1] and len(tables[0]) == len(ALL)


def test_a_round_trip_and_onto_the_dequantised_base(base: Path, tmp_path: Path) -> None:
    model = attached(kept(base), *ALL)
    save_adapter(model, tmp_path / "adapter")
    logits = model.eval()(tokens()).logits
    assert torch.equal(load_adapter(kept(base), tmp_path / "adapter").eval()(tokens()).logits, logits)
    dense = load_adapter(dequantized(base), tmp_path / "adapter").eval()(tokens()).logits
    assert relative_error(dense, logits) < 1e-4
    plain = PeftModel.from_pretrained(dequantized(base), str(tmp_path / "adapter")).eval()(tokens()).logits
    assert relative_error(plain, logits) < 1e-4


@pytest.mark.parametrize("kinds", [("attention",), ("routed_experts",)])
def test_merging_into_the_codes_is_refused(base: Path, kinds: tuple[str, ...]) -> None:
    with pytest.raises(AdapterError, match="cannot be added to weights kept in fp8; load the model with keep_fp8=F"):
        attached(kept(base), *kinds).merge_and_unload()


def test_plain_peft_on_the_codes_is_refused_instead_of_doing_nothing(base: Path) -> None:
    config = LoraConfig(r=2, target_modules=[], target_parameters=EXPERTS, task_type="CAUSAL_LM")
    model = get_peft_model(kept(base), config)
    with pytest.raises(RuntimeError, match="added to the fp8 codes of the routed experts, where it changes nothing"):
        model(input_ids=tokens())


def test_a_bf16_base_beside_is_no_other_model() -> None:
    """What the tests above compare with does adapt: a guard against comparing nothing with nothing."""
    model = attached(build(), "routed_experts")
    plain = build().eval()(tokens()).logits
    assert relative_error(model.eval()(tokens()).logits, plain) > 1e-3
