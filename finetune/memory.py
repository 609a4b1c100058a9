"""How much memory training takes, by part: counted where it can be counted, and said where it is an estimate."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedConfig

from seeklet.modeling import SeekletConfig

# What each of transformers' optimizers keeps: tensors like the parameter (of its dtype), and bytes per parameter.
OPTIMIZER_STATES = {
    "adamw_torch": (2, 0),
    "adamw_torch_fused": (2, 0),
    "adamw_apex_fused": (2, 0),
    "stable_adamw": (2, 0),
    "adamw_bnb_8bit": (0, 2),
    "adamw_8bit": (0, 2),
    "paged_adamw": (0, 8),
    "paged_adamw_32bit": (0, 8),
    "paged_adamw_8bit": (0, 2),
    "adamw_torch_8bit": (0, 2),
    "adamw_torch_4bit": (0, 1),
    "lion_32bit": (0, 4),
    "lion_8bit": (0, 1),
    "adagrad": (1, 0),
    "rmsprop": (1, 0),
    "sgd": (0, 0),
}
# Of tensors of fewer numbers they keep fp32, of others a scale for each so many (bitsandbytes' optim/optimizer.py).
_LEAST_IN_8_BITS, _BLOCK_IN_8_BITS = 4096, 256
# Of tensors of fewer numbers bitsandbytes does not page what it keeps.
_LEAST_PAGED = 100_000


@dataclass(frozen=True)
class Memory:
    """Bytes in one process that holds the whole model."""

    weights: int
    gradients: int
    optimizer: int | None
    """None where nobody has counted what this optimizer keeps."""
    activations: int
    """An estimate; the others are counts."""
    teacher: int = 0
    """Weights of a teacher beside the model."""

    @property
    def total(self) -> int:
        """Bytes of all parts that are known."""
        return self.weights + self.teacher + self.gradients + (self.optimizer or 0) + self.activations

    def shared(self, num_processes: int) -> "Memory":
        """Return what each of several processes takes that share all but the activations."""
        optimizer = None if self.optimizer is None else self.optimizer // num_processes
        weights, gradients = self.weights // num_processes, self.gradients // num_processes
        return Memory(weights, gradients, optimizer, self.activations, self.teacher // num_processes)


@dataclass(frozen=True)
class Batch:
    """What goes through the model at a time, and how."""

    sequences: int
    tokens: int
    """In the longest sequence."""
    itemsize: int
    """Bytes of a number that is computed with: 2 in bf16, 4 in fp32."""
    checkpointing: bool


def measure_memory(model: nn.Module, optimizer: str, batch: Batch, teacher: nn.Module | None = None) -> Memory:
    """Return what training `model` takes, beside `teacher` where there is one; on the meta device none is taken."""
    tensors = [*model.parameters(), *model.buffers()]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return Memory(
        weights=count_bytes(tensors),
        gradients=count_bytes(trainable),
        optimizer=count_optimizer_bytes(trainable, optimizer),
        # Every causal language model of transformers has one; the type of nn.Module does not say so.
        activations=_estimate_activations(model.config, batch),  # pyright: ignore[reportArgumentType]
        teacher=0 if teacher is None else count_bytes([*teacher.parameters(), *teacher.buffers()]),
    )


def count_bytes(tensors: Sequence[torch.Tensor]) -> int:
    """Return the bytes of tensors, each once."""
    # Tied weights are one tensor under two names.
    return sum(tensor.numel() * tensor.dtype.itemsize for tensor in {id(tensor): tensor for tensor in tensors}.values())


def count_optimizer_bytes(trainable: Sequence[torch.Tensor], optimizer: str) -> int | None:
    """Return what an optimizer keeps of these parameters, or None where nobody has counted it."""
    if optimizer not in OPTIMIZER_STATES:
        return None
    tensors, extra_bytes = OPTIMIZER_STATES[optimizer]
    if optimizer.endswith("8bit"):
        return sum(extra_bytes * _bytes_in_8_bits(parameter.numel()) for parameter in trainable)
    return tensors * count_bytes(trainable) + extra_bytes * sum(parameter.numel() for parameter in trainable)


def count_paged_bytes(trainable: Sequence[torch.Tensor], optimizer: str) -> int:
    """Return how many of these bytes may wait in the host's memory."""
    if not optimizer.startswith("paged"):
        return 0
    paged = [parameter for parameter in trainable if parameter.numel() >= _LEAST_PAGED]
    return count_optimizer_bytes(paged, optimizer) or 0


def _bytes_in_8_bits(number: int) -> int:
    return 4 * number if number < _LEAST_IN_8_BITS else number + 4 * -(-number // _BLOCK_IN_8_BITS)


def _estimate_activations(config: PreTrainedConfig, batch: Batch) -> int:
    """Return about what autograd saves of a forward pass: per token and layer the inputs of what has a gradient."""
    hidden, layers = config.hidden_size, config.num_hidden_layers
    layer = _count_saved_numbers(config) * batch.itemsize
    kept = hidden * batch.itemsize * layers + layer if batch.checkpointing else layer * layers
    return batch.sequences * batch.tokens * kept


def _count_saved_numbers(config: PreTrainedConfig) -> int:
    """Return about how many numbers a decoder layer saves per token.

    The norms and the inputs of the projections are some widths of the hidden state; then come queries, keys, values
    and the output of the attention, and, of the feed-forward, what both projections give, the activation and the
    product. Against what autograd saved of models of six layers: 1.07 of Llama's, 1.06 of Qwen2's, 0.97 of seeklet's.
    """
    hidden, heads = config.hidden_size, config.num_attention_heads
    if isinstance(config, SeekletConfig):
        keys = heads * (config.qk_nope_head_dim + config.qk_rope_head_dim)
        latent = config.kv_lora_rank + config.qk_rope_head_dim + (config.q_lora_rank or 0)
        attention = 2 * (keys + heads * config.v_head_dim + latent)
        active = config.num_experts_per_tok + (config.n_shared_experts or 0)
        # Its norms save their input alone, and its experts what the first two projections give.
        return 5 * hidden + attention + 2 * active * config.moe_intermediate_size
    head = getattr(config, "head_dim", None) or hidden // heads
    attention = 2 * head * (heads + (getattr(config, "num_key_value_heads", None) or heads))
    return 8 * hidden + attention + 4 * (getattr(config, "intermediate_size", None) or 4 * hidden)
