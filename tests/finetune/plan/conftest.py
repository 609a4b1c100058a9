"""Models of published configs on the meta device, built once."""

from collections.abc import Callable
from functools import cache

import pytest
import torch
from transformers import PreTrainedModel

from seeklet.finetune.plan.model_config import build_on_meta, published_config


@cache
def _build(name: str) -> PreTrainedModel:
    return build_on_meta(published_config(name), torch.bfloat16)


@pytest.fixture(scope="session")
def meta_model() -> Callable[[str], PreTrainedModel]:
    """Give the function that returns the meta model of a published config."""
    return _build
