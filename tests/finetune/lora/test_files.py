"""Adapters on disk: PEFT's format read both ways, router biases beside it, what does not fit, and killed saves."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, DeepseekV3ForCausalLM, LlamaConfig, LlamaForCausalLM

from seeklet.finetune.errors import AdapterError
from seeklet.finetune.lora.attach import attach
from seeklet.finetune.lora.files import load_adapter, peft_model, save_adapter
from seeklet.modeling import SeekletError, SeekletForCausalLM
from tests.finetune.lora.adapters import ALL, EXPERTS, attached, build, saved_base, settings, stirred, tokens
from tests.modeling.nano import relative_error
from tests.modeling.tensors import assert_same, load

MAIN = tuple(kind for kind in ALL if kind != "mtp")
COMBINATIONS = [*[(kind,) for kind in MAIN], MAIN, ("attention", "dense_mlp")]


def stock(folder: Path) -> Any:
    """Return transformers' own model of a checkpoint, in float64, which its grouped products cannot do."""
    model = load(folder, DeepseekV3ForCausalLM, dtype=torch.float64)
    model.set_experts_implementation("eager")
    return model


def ours(folder: Path) -> Any:
    return load(folder, dtype=torch.float64)


def logits(model: Any) -> torch.Tensor:
    return model.eval()(tokens()).logits


def lora_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if ".lora_" in name or "modules_to_save" in name}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return saved_base(tmp_path / "base", build(num_nextn_predict_layers=0))


@pytest.mark.parametrize("kinds", COMBINATIONS)
def test_plain_peft_reloads_it_on_stock_transformers(base: Path, tmp_path: Path, kinds: tuple[str, ...]) -> None:
    """Dense and shared MLPs too, which PEFT takes for the routed experts by their names; and with dropout trained."""
    model = attached(ours(base), *kinds, dropout=0.1, rslora=True)
    save_adapter(model, tmp_path / "adapter")
    reloaded = PeftModel.from_pretrained(stock(base), str(tmp_path / "adapter"))
    # Stock's router computes in fp32.
    assert relative_error(logits(reloaded), logits(model)) < 1e-5
    assert relative_error(logits(stock(base)), logits(model)) > 1e-3
    assert {name: t.shape for name, t in lora_of(reloaded).items()} == {
        name: t.shape for name, t in lora_of(model).items()
    }


@pytest.mark.parametrize("kinds", COMBINATIONS)
def test_what_plain_peft_saved_from_stock_transformers_is_loaded(
    base: Path, tmp_path: Path, kinds: tuple[str, ...]
) -> None:
    save_adapter(attached(ours(base), *kinds), tmp_path / "adapter")
    theirs = PeftModel.from_pretrained(stock(base), str(tmp_path / "adapter"))
    theirs = stirred(theirs, seed=8)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    reloaded = load_adapter(ours(base), tmp_path / "theirs")
    assert relative_error(logits(reloaded), logits(theirs)) < 1e-5
    split = [m for m in reloaded.modules() if type(m).__module__.startswith("seeklet.finetune.lora")]
    assert len(split) == sum(2 if kind == "router" else 4 for kind in kinds if kind in ("router", "routed_experts"))


def test_an_adapter_that_plain_peft_made_by_itself(base: Path, tmp_path: Path) -> None:
    config = LoraConfig(r=3, lora_alpha=5, target_modules=["o_proj"], target_parameters=EXPERTS, task_type="CAUSAL_LM")
    theirs = get_peft_model(stock(base), config)
    assert isinstance(theirs, PeftModel)
    stirred(theirs).save_pretrained(str(tmp_path / "theirs"))
    assert relative_error(logits(load_adapter(ours(base), tmp_path / "theirs")), logits(theirs)) < 1e-5


def test_a_round_trip_is_exact(tmp_path: Path) -> None:
    """In bf16, MTP and modules saved whole included; the adapter in fp32, as PEFT keeps it."""
    whole = ("lm_head", "embed_tokens")
    folder = saved_base(tmp_path / "base", build(torch.bfloat16))
    model = attached(load(folder, dtype=torch.bfloat16), *ALL, dropout=0.25, modules_to_save=whole)
    save_adapter(model, tmp_path / "adapter")
    again = load_adapter(load(folder, dtype=torch.bfloat16), tmp_path / "adapter", trainable=True)
    assert_same(lora_of(again), lora_of(model))
    assert torch.equal(logits(again), logits(model))
    assert {name: p.requires_grad for name, p in again.named_parameters()} == {
        name: p.requires_grad for name, p in model.named_parameters()
    }
    config = again.peft_config["default"]
    assert isinstance(config, LoraConfig) and config.lora_dropout == 0.25
    frozen = load_adapter(load(folder, dtype=torch.bfloat16), tmp_path / "adapter")
    assert not any(p.requires_grad for p in frozen.parameters())


def test_plain_peft_reads_the_folder_by_itself(base: Path, tmp_path: Path) -> None:
    model = attached(ours(base), *MAIN)
    save_adapter(model, tmp_path / "adapter")
    found = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert found["base_model_name_or_path"] == str(base) and found["lora_dropout"] == 0
    assert found["target_modules"] == sorted(found["target_modules"])
    auto = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "adapter"), dtype=torch.float64)
    assert type(auto.get_base_model()) is SeekletForCausalLM
    assert relative_error(logits(auto), logits(model)) < 1e-11
    # transformers' own way, onto a model and from the folder alone.
    onto = ours(base)
    onto.load_adapter(str(tmp_path / "adapter"))
    assert relative_error(logits(onto), logits(model)) < 1e-11
    alone = load(tmp_path / "adapter", AutoModelForCausalLM, dtype=torch.float64)
    assert relative_error(logits(alone), logits(model)) < 1e-11


def test_other_models_are_saved_and_loaded_as_peft_does(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"vocab_size": 97, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    model = attached(LlamaForCausalLM.from_pretrained(tmp_path / "base"), "attention", "dense_mlp", dropout=0.1)
    save_adapter(model, tmp_path / "adapter")
    assert sorted(os.listdir(tmp_path / "adapter")) == ["adapter_config.json", "adapter_model.safetensors"]
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["lora_dropout"] == 0.1
    for again in (
        load_adapter(LlamaForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter"),
        PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(tmp_path / "base"), str(tmp_path / "adapter")),
    ):
        assert torch.equal(logits(again), logits(model))


def test_router_biases_go_with_the_adapter(base: Path, tmp_path: Path) -> None:
    """Also where the router is adapted itself; loaded onto a fresh model, and into the one that trains on."""
    model = attached(ours(base), "router", "routed_experts")
    for layer in model.get_base_model().model.layers[1:]:
        layer.mlp.router.e_score_correction_bias.normal_()
    save_adapter(model, tmp_path / "adapter")
    stored = load_file(tmp_path / "adapter" / "router_bias.safetensors")
    assert stored.keys() == {f"model.layers.{n}.mlp.gate.e_score_correction_bias" for n in (1, 2)}
    assert torch.equal(logits(load_adapter(ours(base), tmp_path / "adapter")), logits(model))
    expected = logits(model)
    for layer in model.get_base_model().model.layers[1:]:
        layer.mlp.router.e_score_correction_bias.zero_()
    assert not torch.equal(logits(model), expected)
    # Plain PEFT loads everything but them.
    model.load_adapter(str(tmp_path / "adapter"), "default", is_trainable=True)
    assert not torch.equal(logits(model), expected)
    assert load_adapter(model, tmp_path / "adapter") is model
    assert torch.equal(logits(model), expected)


def test_resumed_training_goes_on_as_if_never_stopped(base: Path, tmp_path: Path) -> None:
    def step(model: Any, optimizer: torch.optim.Optimizer, number: int) -> None:
        model.train()(input_ids=tokens(seed=number), labels=tokens(seed=number)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.get_base_model().update_router_bias(speed=0.01)

    def made() -> tuple[PeftModel, torch.optim.Optimizer]:
        model = attach(ours(base), settings("attention", "routed_experts"))
        return model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)

    torch.manual_seed(0)
    model, optimizer = made()
    for number in range(4):
        if number == 2:
            save_adapter(model, tmp_path / "checkpoint")
        step(model, optimizer, number)
    resumed, optimizer = made()
    load_adapter(resumed, tmp_path / "checkpoint")
    for number in (2, 3):
        step(resumed, optimizer, number)
    assert_same(resumed.state_dict(), model.state_dict())


def test_a_second_adapter_from_a_folder(base: Path, tmp_path: Path) -> None:
    first, second = (attached(ours(base), *MAIN, seed=seed) for seed in (1, 2))
    for name, model in (("first", first), ("second", second)):
        save_adapter(model, tmp_path / name)
    model = load_adapter(ours(base), tmp_path / "first")
    assert load_adapter(model, tmp_path / "second", "other", trainable=True) is model
    assert torch.equal(logits(model), logits(first))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if ".other." in name}
    model.set_adapter("other")
    assert torch.equal(logits(model), logits(second))
    save_adapter(model, tmp_path / "third", "other")
    assert_same(*(load_file(tmp_path / n / "adapter_model.safetensors") for n in ("third", "second")))


def test_found_inside_what_is_wrapped_around_it(base: Path, tmp_path: Path) -> None:
    model = attached(ours(base), "attention")
    save_adapter(nn.Sequential(model), tmp_path / "wrapped")
    save_adapter(model, tmp_path / "bare")
    assert_same(*(load_file(tmp_path / n / "adapter_model.safetensors") for n in ("wrapped", "bare")))
    with pytest.raises(AdapterError, match="a Linear has no adapter"):
        peft_model(nn.Linear(1, 1))
    with pytest.raises(AdapterError, match="there is no adapter 'none'; there are: default"):
        save_adapter(model, tmp_path / "none", "none")


def test_a_state_dict_that_was_gathered_is_what_is_saved(base: Path, tmp_path: Path) -> None:
    model = attached(ours(base), *MAIN)
    gathered = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    save_adapter(model, tmp_path / "adapter", state_dict=gathered)
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    expected = {name.replace(".default", ""): tensor + 1 for name, tensor in lora_of(model).items()}
    assert_same(stored, expected)


def test_other_files_of_the_folder_stay_and_old_ones_go(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    save_adapter(attached(ours(base), "attention", "routed_experts"), folder)
    (folder / "notes.txt").write_text("mine")
    save_adapter(attached(ours(base), "attention", seed=9), folder)
    assert (folder / "notes.txt").read_text() == "mine"
    assert (
        relative_error(logits(load_adapter(ours(base), folder)), logits(attached(ours(base), "attention", seed=9))) == 0
    )


def test_a_save_that_fails_leaves_the_old_adapter(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "adapter"
    model = attached(ours(base), "attention")
    save_adapter(model, folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("seeklet.finetune.lora.files._write_config", full)
    with pytest.raises(OSError, match="No space left"):
        save_adapter(stirred(model, seed=7), folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert sorted(os.listdir(tmp_path)) == ["adapter", "base"]


def break_rank(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    save_file({name: tensor[:2] if "lora_A" in name else tensor for name, tensor in load_file(file).items()}, file)


def break_names(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    save_file({name.replace("o_proj", "p_proj"): tensor for name, tensor in load_file(file).items()}, file)


def break_bias(folder: Path) -> None:
    save_file({"model.layers.9.mlp.gate.e_score_correction_bias": torch.zeros(8)}, folder / "router_bias.safetensors")


def break_config(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "IA3"}')


BROKEN = {
    "no config": (lambda folder: (folder / "adapter_config.json").unlink(), "adapter_config.json.*No such file"),
    "no weights": (
        lambda folder: (folder / "adapter_model.safetensors").unlink(),
        "adapter_model.safetensors: No such",
    ),
    "no JSON": (lambda folder: (folder / "adapter_config.json").write_text("{"), "adapter_config.json: Expecting"),
    "a list": (lambda folder: (folder / "adapter_config.json").write_text("[]"), "peft_type is 'list'; allowed: LORA"),
    "another method": (break_config, "peft_type is 'IA3'; allowed: LORA"),
    "cut off": (lambda folder: os.truncate(folder / "adapter_model.safetensors", 99), "expected a safetensors file"),
    "another rank": (break_rank, r"does not fit the model: .*lora_A.weight is \(2, 40\), expected \(3, 40\)"),
    "other names": (break_names, r"o_proj.lora_A.weight is missing; .*p_proj.lora_A.weight is not in the model"),
    "another layer's bias": (break_bias, "model.layers.9.mlp.gate.e_score_correction_bias is not in this model"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_folder_that_does_not_fit_is_refused(base: Path, tmp_path: Path, how: str) -> None:
    spoil, message = BROKEN[how]
    save_adapter(attached(ours(base), "attention", "router"), tmp_path / "adapter")
    spoil(tmp_path / "adapter")
    model = ours(base)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(SeekletError, match=message):
        load_adapter(model, tmp_path / "adapter")
    assert_same(dict(model.state_dict()), before)


def test_a_model_without_the_targets_is_refused_too(tmp_path: Path, base: Path) -> None:
    """MTP in the adapter, none in the model."""
    folder = saved_base(tmp_path / "mtp", build())
    save_adapter(attached(ours(folder), "attention", "mtp"), tmp_path / "adapter")
    with pytest.raises(AdapterError, match=r"model.layers.3.*is not in"):
        load_adapter(ours(base), tmp_path / "adapter")
