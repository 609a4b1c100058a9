"""What TRL sends vLLM of a seeklet model: names and values of the published checkpoint."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from trl.distributed import DistributedBackend
from trl.generation.vllm_generation import VLLMGeneration

from seeklet.finetune.vllm_weights import send_published_names
from seeklet.modeling.checkpoint_names import layer_number
from tests.finetune.lora.adapters import ALL, attached, build


class Server:
    """Takes what TRL's client sends a vLLM server, and looks at nothing but that."""

    def __init__(self) -> None:
        self.announced: list[tuple[str, str, list[int]]] = []
        self.sent: dict[str, torch.Tensor] = {}

    def update_named_params(self, announced: list[tuple[str, str, list[int]]], tensors: Any) -> None:
        self.announced = announced
        self.sent = {name: tensor.detach().clone() for name, tensor in tensors}

    def reset_prefix_cache(self) -> None:
        pass


def generation(model: Any) -> Any:
    """Return TRL's own sender, without the vLLM that is not installed here."""
    made: Any = VLLMGeneration.__new__(VLLMGeneration)
    made.model, made.accelerator, made.mode = model, Accelerator(cpu=True), "server"
    made._dist, made._weight_metadata, made.vllm_client = DistributedBackend(made.accelerator), None, Server()
    return made


class Engine:
    """Takes what TRL loads into a vLLM of the training's own process, and looks at nothing but that."""

    def __init__(self) -> None:
        self.sent: dict[str, torch.Tensor] = {}
        inner = SimpleNamespace(model_runner=SimpleNamespace(model=self))
        self.llm_engine = SimpleNamespace(model_executor=SimpleNamespace(driver_worker=inner))

    def load_weights(self, tensors: list[tuple[str, torch.Tensor]]) -> None:
        self.sent |= {name: tensor.detach().clone() for name, tensor in tensors}

    def reset_prefix_cache(self) -> None:
        pass


def published(model: Any, folder: Path) -> dict[str, torch.Tensor]:
    """Return what a saved model's main layers have on disk."""
    model.save_pretrained(folder)
    num_main = model.config.num_hidden_layers
    return {
        name: tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
        if (layer := layer_number(name)) is None or layer < num_main
    }


@pytest.mark.parametrize("targets", [(), ("attention",), ("router",), ALL], ids=str)
def test_names_and_values_are_those_of_the_checkpoint(tmp_path: Path, targets: tuple[str, ...]) -> None:
    """In a later step, too, after the router biases have moved."""
    model = attached(build(), *targets) if targets else build()
    bare = model.get_base_model() if targets else model
    sender = generation(model)
    send_published_names(sender, bare)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sender.sync_weights()
    for layer in bare.model.layers[1:]:
        getattr(layer.mlp.gate, "base_layer", layer.mlp.gate).e_score_correction_bias.add_(0.5)
    sender.sync_weights()
    expected = published(copy.deepcopy(model).merge_and_unload() if targets else model, tmp_path)
    sent = sender.vllm_client.sent
    assert sent.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(sent[name], tensor, rtol=1e-6, atol=1e-7, msg=name)
    announced = [(name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)) for name, tensor in sent.items()]
    assert sender.vllm_client.announced == announced
    # What was merged to be sent is taken apart again.
    for name, tensor in model.state_dict().items():
        if "e_score" not in name:
            torch.testing.assert_close(tensor, before[name], rtol=1e-5, atol=1e-6)


def test_in_the_trainings_own_process_they_are_the_same() -> None:
    """Experts one by one and not fused, router biases, an adapter merged; no multi-token prediction."""
    model = attached(build(), *ALL)
    bare, sent = model.get_base_model(), []
    for mode in ("server", "colocate"):
        sender = generation(model)
        sender.mode, sender.enable_sleep_mode, sender.llm = mode, False, Engine()
        send_published_names(sender, bare)
        sender.sync_weights()
        sent.append(sender.vllm_client.sent if mode == "server" else sender.llm.sent)
    assert sent[0].keys() == sent[1].keys()
    for name, tensor in sent[0].items():
        assert torch.equal(sent[1][name], tensor), name
    config, names = bare.config, sent[1].keys()
    assert config.num_nextn_predict_layers > 0
    assert max(layer for name in names if (layer := layer_number(name)) is not None) == config.num_hidden_layers - 1
    last = f"model.layers.{config.num_hidden_layers - 1}.mlp"
    assert {f"{last}.experts.{config.n_routed_experts - 1}.up_proj.weight", f"{last}.gate.weight"} <= names
    assert f"{last}.gate.e_score_correction_bias" in names
    assert not any("lora" in name or "base_layer" in name or "gate_up_proj" in name for name in names)


def test_without_it_experts_have_names_that_vllm_does_not_know() -> None:
    """If TRL or transformers ever send single experts, this module has done its work."""
    sender = generation(build())
    assert any(name.endswith("mlp.experts.gate_up_proj") for name, _ in sender._iter_named_params())


def test_trainers_send_so_where_vllm_samples() -> None:
    from seeklet.finetune.sampling_trainer import SamplingTrainer

    model = build()
    for uses in (True, False):
        trainer: Any = SimpleNamespace(use_vllm=uses, vllm_generation=generation(model))
        SamplingTrainer.send_published_names(trainer, model)
        names = [name for name, _ in trainer.vllm_generation._iter_named_params()]
        assert ("model.layers.1.mlp.experts.0.gate_proj.weight" in names) == uses
