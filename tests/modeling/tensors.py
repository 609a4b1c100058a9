"""Comparing tensors bit by bit, and reading what a checkpoint holds."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from seeklet.modeling import SeekletForCausalLM


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bytes of a tensor of any dtype, so that NaN equals NaN and 0.0 is not -0.0."""
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def assert_same(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Assert the same names, dtypes, shapes and bits."""
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (actual[name].dtype, actual[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(bits(actual[name]), bits(tensor)), name


def read(folder: Path) -> dict[str, torch.Tensor]:
    """Return every tensor in the safetensors files of `folder`."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def load(folder: Path, model_class: Any = SeekletForCausalLM, **kwargs: Any) -> Any:
    """Return the model of a checkpoint; untyped, as transformers types what it holds as tensors or modules."""
    return model_class.from_pretrained(folder, **kwargs)


def config_of(folder: Path) -> dict[str, Any]:
    """Return the config.json in `folder`."""
    return json.loads((folder / "config.json").read_text())
