"""Load balance of the experts in transformers' Trainer and those built on it: bias update, and load in the logs."""

from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from seeklet.modeling import SeekletError, SeekletPreTrainedModel

from .inner_model import find_inside


class NotASeekletModelError(SeekletError, TypeError):
    """A model without seeklet's routers was given where their load is to be balanced."""


class RouterBiasCallback(TrainerCallback):
    """Moves the router biases once per optimiser step, by the load of all its micro-batches on all ranks.

    To each entry of the Trainer's log it adds, for every MoE layer N, `expert_load_max_over_mean/layer_N`: the tokens
    of the fullest expert over the mean of all, 1 being perfect balance, as a mean over the steps since the last entry.
    The entries stand in `trainer.state.log_history` and `trainer_state.json`; reporters see them where this callback
    stands before them in `trainer.callback_handler.callbacks`.
    """

    def __init__(self, speed: float | None = None):
        """Move biases by `speed` a step; None takes `config.bias_update_speed`, 0 freezes them and still measures."""
        self.speed = speed
        self._ratios: list[torch.Tensor] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Check the model before any work is done.

        Raises:
            NotASeekletModelError: there is no seeklet model in `model`.
        """
        seeklet_model(model)
        self._ratios = []

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Move the biases; here, so that what Trainer evaluates, logs and saves after this step has them moved."""
        loads = seeklet_model(model).update_router_bias(speed=self.speed)
        if loads:
            self._ratios.append(max_over_mean(torch.stack(loads)))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Add the load since the last entry to the one that is being made; evaluations between steps have none."""
        if not self._ratios:
            return
        ratios = torch.stack(self._ratios).mean(0).tolist()
        self._ratios = []
        layers = moe_layer_indices(seeklet_model(model))
        added = {f"expert_load_max_over_mean/layer_{n}": ratio for n, ratio in zip(layers, ratios, strict=True)}
        state.log_history[-1].update(added)
        if logs is not None:
            logs.update(added)


def seeklet_model(model: nn.Module) -> SeekletPreTrainedModel:
    """Return the seeklet model inside what PEFT, accelerate, DDP, FSDP or torch.compile made of it.

    Raises:
        NotASeekletModelError: there is none.
    """
    found = find_inside(model, SeekletPreTrainedModel)
    if found is None:
        raise NotASeekletModelError(f"expert load is balanced in seeklet models only; got a {type(model).__name__}")
    return found


def moe_layer_indices(model: SeekletPreTrainedModel) -> list[int]:
    """Return which of `model.layers` route, MTP modules included: the order of what `update_router_bias` returns."""
    decoder: Any = model.base_model
    return [index for index, layer in enumerate(decoder.layers) if layer.is_moe]


def max_over_mean(load: torch.Tensor) -> torch.Tensor:
    """Return the largest count over the mean: fp32 (L,) of `load` (L, E); 1 where no expert got anything."""
    load = load.to(torch.float32)
    return torch.where(load.sum(-1) > 0, load.amax(-1) / load.mean(-1), 1.0)
