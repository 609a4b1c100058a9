"""Adapters for tests: every kind of target, weights that are no zeros, and plain PEFT's way of the same."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from seeklet.finetune.adapter_settings import PLAIN_TARGETS, AdapterSettings
from seeklet.finetune.lora.attach import attach
from seeklet.finetune.lora.config import published_targets
from tests.modeling.nano import build_ours, draw_tokens

ALL = tuple(PLAIN_TARGETS)
RANK = 3
# Runs the command line; returns exit code, output and errors.
RunHere = Callable[..., tuple[int, str, str]]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def build(dtype: torch.dtype = torch.float32, **overrides: Any) -> Any:
    """Return a nano model of ours, MTP module included, without a loss that counts experts."""
    sizes: dict[str, Any] = {"num_nextn_predict_layers": 1, "balance_loss_weight": 0.0, **overrides}
    return build_ours(**sizes).to(dtype)


def settings(*targets: str, **fields: Any) -> AdapterSettings:
    """Return settings of a small rank, and of an alpha that shows where it is left out."""
    return AdapterSettings(**{"targets": targets, "rank": RANK, "alpha": 4.5, **fields})


def attached(model: Any, *targets: str, name: str = "default", seed: int = 3, **fields: Any) -> Any:
    """Return `model` with an adapter as in the middle of its training: B is not zero."""
    return stirred(attach(model, settings(*targets, **fields), name), name, seed)


def with_plain_peft(model: Any, adapted: Any, **fields: Any) -> Any:
    """Return `model` with the adapter of `adapted`, its weights included, in plain PEFT's own computation."""
    ours = adapted.peft_config["default"]
    assert isinstance(ours, LoraConfig)
    modules, parameters = published_targets(ours.target_modules, ours.target_parameters)
    config = LoraConfig(
        r=ours.r,
        lora_alpha=ours.lora_alpha,
        use_rslora=ours.use_rslora,
        target_modules=modules,
        target_parameters=parameters or None,
        task_type=ours.task_type,
        **fields,
    )
    peft = get_peft_model(model, config)
    peft.load_state_dict({key: tensor for key, tensor in adapted.state_dict().items() if ".lora_" in key}, strict=False)
    assert isinstance(peft, PeftModel)
    return peft


@torch.no_grad()
def stirred(model: PeftModel, name: str = "default", seed: int = 3) -> PeftModel:
    """Return `model` with random weights in both factors of one adapter, and moved modules that are saved whole."""
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in model.named_parameters():
        is_factor, is_whole = ".lora_" in key and f".{name}." in key, f"modules_to_save.{name}" in key
        if is_factor or is_whole:
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)
            parameter.copy_(drawn * 0.2 if is_factor else parameter + drawn * 0.1)
    return model


def loss_and_gradients(model: nn.Module, tokens: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the loss and the gradient of every parameter that has one; none must be missing that is trained."""
    model.zero_grad(set_to_none=True)
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def saved_base(folder: Path, model: Any, **arguments: Any) -> Path:
    """Return the folder of `model` as a checkpoint; the model itself stays as it is."""
    copy.deepcopy(model).save_pretrained(folder, **arguments)
    return folder


def tokens(batch: int = 2, length: int = 9, seed: int = 1) -> torch.Tensor:
    """Return token ids (batch, length)."""
    return draw_tokens(batch, length, seed)
