"""Nano models whose sizes can be quantised, and what a quantised one stands for: the same with dense weights."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seeklet.modeling.blockwise import dequantize
from seeklet.modeling.quantized import LARGEST, QuantizedExperts, QuantizedLinear
from tests.modeling.nano import build_ours
from tests.modeling.tensors import load

# Rows of 96 and 32 numbers are cut into blocks of 32, those of 64 and 128 into blocks of 64.
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "q_lora_rank": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "v_head_dim": 32,
    "num_nextn_predict_layers": 1,
    "balance_loss_weight": 0.0,
}


def write_base(folder: Path, dtype: torch.dtype = torch.bfloat16, **overrides: Any) -> Path:
    """Write a checkpoint that can be quantised."""
    build_ours(**SIZES | overrides).to(dtype).save_pretrained(folder)
    return folder


def load_quantized(folder: Path, quantize: str, dtype: torch.dtype = torch.float32) -> Any:
    """Return the quantised model of a checkpoint, in training mode."""
    return load(folder, dtype=dtype, quantize=quantize).train()


def dense_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights of a quantised module as fp32 tensors of their own shapes."""
    found = {}
    for key, codes in module.named_parameters(recurse=False):
        if codes.dtype == torch.uint8:
            pair = (codes, module.get_buffer(key + LARGEST))
            quantization: Any = module.quantization
            stacked = (
                [dequantize(*one, quantization, torch.float32) for one in zip(*pair, strict=True)]
                if (codes.dim() == 3)
                else None
            )
            found[key] = dequantize(*pair, quantization, torch.float32) if stacked is None else torch.stack(stacked)
    return found


def dequantized(folder: Path, quantized: nn.Module, dtype: torch.dtype = torch.float32) -> Any:
    """Return the checkpoint's model in plain layers, with the weights that those of `quantized` stand for."""
    model = load(folder, dtype=dtype).train()
    with torch.no_grad():
        for name, module in quantized.named_modules():
            if isinstance(module, QuantizedLinear | QuantizedExperts):
                for key, weight in dense_weights(module).items():
                    model.get_submodule(name).get_parameter(key).copy_(weight)
    return model


def double(model: nn.Module) -> Any:
    """Return a float64 copy."""
    return copy.deepcopy(model).double()
