"""A seeklet model's weights as vLLM loads them: under their published names, one tensor an expert."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from seeklet.modeling import SeekletPreTrainedModel
from seeklet.modeling.checkpoint_names import layer_number, slots
from seeklet.modeling.moe import SeekletRouter

NamedTensors = Iterable[tuple[str, torch.Tensor]]


def published_tensors(model: SeekletPreTrainedModel, parameters: NamedTensors) -> Iterator[tuple[str, torch.Tensor]]:
    """Give the `parameters` of a seeklet model, then its router biases, by their names on disk.

    Left out are multi-token prediction modules, which vLLM's model of DeepSeek-V3 has no place for. Router biases are
    buffers, which trainers do not send; where they are updated, vLLM would route by old ones.
    """
    num_main = model.config.num_hidden_layers
    for name, tensor in parameters:
        layer = layer_number(name)
        if layer is None or layer < num_main:
            for slot in slots(name, tensor.shape):
                yield slot.disk_name, tensor[slot.index]
    for name, module in model.named_modules():
        if isinstance(module, SeekletRouter) and int(layer_number(name) or 0) < num_main:
            # An adapter on the router puts the router itself one level down.
            yield f"{name.removesuffix('.base_layer')}.e_score_correction_bias", module.e_score_correction_bias


def send_published_names(generation: Any, model: SeekletPreTrainedModel) -> None:
    """Make TRL's `VLLMGeneration` send the weights of a seeklet model as `published_tensors` gives them."""
    parameters: Callable[[], NamedTensors] = generation._iter_named_params
    generation._iter_named_params = lambda: published_tensors(model, parameters())
