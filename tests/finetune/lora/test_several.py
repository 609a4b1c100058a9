"""Several adapters on one model: chosen, switched off, added up, merged, taken away; as plain PEFT does it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from seeklet.finetune.errors import AdapterError
from seeklet.finetune.lora.attach import adapted, attach
from seeklet.finetune.lora.files import load_adapter, save_adapter
from tests.finetune.lora.adapters import ALL, attached, build, loss_and_gradients, settings, stirred, tokens
from tests.modeling.nano import relative_error

KINDS = ("attention", "routed_experts", "router")


def two_adapters(**fields: Any) -> PeftModel:
    """Return a float64 model with the adapters "default" of rank 3 and "second" of rank 5."""
    model = attached(build(torch.float64), *KINDS, **fields)
    return stirred(attach(model, settings(*KINDS, rank=5, **fields), "second"), "second", seed=4)


def single(which: str) -> PeftModel:
    """Return a float64 model with one of these two alone."""
    rank, seed = {"default": (3, 3), "second": (5, 4)}[which]
    return attached(build(torch.float64), *KINDS, name=which, seed=seed, rank=rank)


def logits(model: PeftModel) -> torch.Tensor:
    return model.eval()(tokens()).logits


def activate(model: PeftModel, *names: str) -> PeftModel:
    """Return `model` with these adapters active; PEFT has several at a time by its inner model only."""
    inner: Any = model.base_model
    inner.set_adapter(list(names))
    return model


def test_each_is_chosen_by_its_name() -> None:
    model = two_adapters()
    assert relative_error(logits(model), logits(single("default"))) < 1e-12
    model.set_adapter("second")
    assert relative_error(logits(model), logits(single("second"))) < 1e-12
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if ".second." in name}
    assert set(loss_and_gradients(model.train(), tokens())[1]) == trained


def test_none_within_disable_adapter() -> None:
    model, base = two_adapters(), build(torch.float64).eval()
    with model.disable_adapter():
        assert torch.equal(logits(model), base(tokens()).logits)
    assert relative_error(logits(model), base(tokens()).logits) > 1e-2


@pytest.mark.parametrize("names", [("default", "second"), ("second", "default")])
def test_two_active_at_once_are_added_up(names: tuple[str, str]) -> None:
    """What both add is what merging both gives, and both get the gradient of the sum."""
    model = activate(two_adapters(), *names)
    merged = two_adapters().merge_and_unload(adapter_names=list(names))
    assert relative_error(logits(model), merged.eval()(tokens()).logits) < 1e-12
    gradients = loss_and_gradients(model.train(), tokens())[1]
    assert {name.partition(".lora_")[2].split(".")[1] for name in gradients} == {"default", "second"}
    # Each factor's gradient, as plain PEFT's materialised sum has it.
    plain = activate(rewrapped(two_adapters()), *names)
    others = loss_and_gradients(plain.train(), tokens())[1]
    assert gradients.keys() == others.keys()
    assert all(relative_error(gradients[name], others[name]) < 1e-11 for name in others)


def rewrapped(ours: PeftModel) -> PeftModel:
    """Return the same adapters in plain PEFT's own computation."""
    configs = []
    for config in ours.peft_config.values():
        assert isinstance(config, LoraConfig)
        configs.append(
            LoraConfig(
                r=config.r,
                lora_alpha=config.lora_alpha,
                target_modules=config.target_modules,
                target_parameters=config.target_parameters,
                task_type="CAUSAL_LM",
            )
        )
    model = get_peft_model(build(torch.float64), configs[0])
    assert isinstance(model, PeftModel)
    model.add_adapter("second", configs[1])
    model.load_state_dict(ours.state_dict())
    return model


def test_dropouts_must_agree_where_several_are_trained_at_once() -> None:
    model = attached(build(), *KINDS, dropout=0.1)
    attach(model, settings(*KINDS, dropout=0.2), "second")
    activate(model, "default", "second")
    with pytest.raises(
        AdapterError, match=r"default, second are active with dropout \(0.1, 0.2\); allowed: one for all"
    ):
        model.train()(tokens())
    model.eval()(tokens())
    equal = activate(two_adapters(dropout=0.1), "default", "second")
    assert relative_error(equal.train()(tokens()).logits, logits(equal)) > 1e-4


def test_merged_into_the_weights_and_out_again() -> None:
    model = two_adapters()
    expected, base = logits(model), build(torch.float64).eval()(tokens()).logits
    model.merge_adapter()
    assert relative_error(logits(model), expected) < 1e-12
    with model.disable_adapter():
        assert relative_error(logits(model), base) < 1e-12
    assert relative_error(logits(model), expected) < 1e-12
    model.merge_adapter(["second"])
    model.unmerge_adapter()
    assert relative_error(logits(model), expected) < 1e-12


def test_merged_and_unloaded_it_is_a_plain_model_again() -> None:
    model = attached(build(torch.float64), *ALL)
    expected = logits(model)
    merged = model.merge_and_unload()
    assert merged.state_dict().keys() == build().state_dict().keys()
    assert relative_error(merged.eval()(tokens()).logits, expected) < 1e-12


def test_deleted_it_leaves_the_other() -> None:
    model = two_adapters()
    model.delete_adapter("default")
    model.set_adapter("second")
    assert relative_error(logits(model), logits(single("second"))) < 1e-12
    assert not any(".default." in name for name, _ in model.named_parameters())


def test_unloaded_it_is_as_before() -> None:
    plain = two_adapters().unload()
    assert torch.equal(plain.eval()(tokens()).logits, build(torch.float64).eval()(tokens()).logits)


def test_weighted_merges_are_those_of_peft() -> None:
    """PEFT offers none of adapters on parameters, and says so; of the others it offers all."""
    with pytest.raises(ValueError, match=r"add_weighted_adapter does not support targeting nn.Parameter"):
        inner: Any = two_adapters().base_model
        inner.add_weighted_adapter(["default", "second"], [0.5, 0.5], "mixed", "cat")
    model = attached(build(torch.float64), "attention")
    stirred(attach(model, settings("attention"), "second"), "second", seed=4)
    model.base_model.add_weighted_adapter(["default", "second"], [1.0, 1.0], "mixed", combination_type="cat")
    model.set_adapter("mixed")
    assert relative_error(logits(model), logits(activate(model, "default", "second"))) < 1e-12


OTHERS = {
    "modules beside parameters": (("routed_experts",), ("attention",)),
    "parameters beside modules": (("attention",), ("routed_experts", "router", "o_proj")),
    "more of them": (("routed_experts",), ("attention", "dense_mlp", "routed_experts")),
    "all": (("shared_experts",), ALL),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_second_one_of_other_targets(case: str, tmp_path: Path) -> None:
    """It has the targets, the table and the numbers it would have alone; so has each when saved and loaded alone."""
    first, second = OTHERS[case]
    model, alone = attached(build(torch.float64), *first), attached(build(torch.float64), *second, name="second")
    stirred(attach(model, settings(*second), "second"), "second")
    assert adapted(model, "second") == adapted(alone, "second")
    assert adapted(model) == adapted(attached(build(torch.float64), *first))
    expected = {}
    for name in ("default", "second"):
        model.set_adapter(name)
        expected[name] = logits(model)
        save_adapter(model, tmp_path / name, name)
    assert relative_error(expected["default"], logits(attached(build(torch.float64), *first))) < 1e-12
    assert relative_error(expected["second"], expected["default"]) > 1e-3
    for name in expected:
        assert relative_error(logits(load_adapter(build(torch.float64), tmp_path / name)), expected[name]) < 1e-12
    model.delete_adapter("default")
    model.set_adapter("second")
    assert relative_error(logits(model), expected["second"]) < 1e-12
    assert adapted(model, "second") == adapted(alone, "second")


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("second", [("mtp",), ("routed_experts",), ("experts.gate_up_proj",)])
def test_other_parameters_are_refused_and_the_first_goes_on(
    second: tuple[str, ...], loaded: bool, tmp_path: Path
) -> None:
    """PEFT wraps all parameters of a module in one order, and what is on disk is told apart by that order."""
    model = attached(build(torch.float64), "routed_experts", "router")
    expected = logits(model)
    save_adapter(attached(build(torch.float64), *second), tmp_path / "second")
    with pytest.raises(
        AdapterError, match=r"of the adapters 'default' and 'second' only one has .*mlp.*; allowed: the"
    ):
        if loaded:
            load_adapter(model, tmp_path / "second", "second")
        else:
            attach(model, settings(*second), "second")
    assert list(model.peft_config) == ["default"]
    assert torch.equal(logits(model), expected)
