"""Models that FSDP does not share out are read by each process, where it reads the trained one only once."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torch import nn
from trl.trainer import grpo_trainer

from seeklet.finetune.distill.teacher import load_teacher
from seeklet.finetune.read_once import reference_like_policy
from seeklet.finetune.recipe import ModelSettings
from seeklet.finetune.training_model import load_for_training
from tests.finetune.nano_checkpoints import build_checkpoint


@pytest.fixture
def second_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Be one that FSDP sends its part, in the eyes of transformers."""
    for name in ("ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING"):
        monkeypatch.setenv(name, "true")
    monkeypatch.setenv("LOCAL_RANK", "1")
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def has_weights(model: Any) -> bool:
    assert isinstance(model, nn.Module)
    return all(bool(parameter.any()) for parameter in model.parameters() if parameter.dim() > 1)


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-7B", "Moonlight"])
def test_teacher_and_reference(name: str, second_process: None, tmp_path: Path) -> None:
    settings = ModelSettings(path=str(build_checkpoint(name, tmp_path / "model")), dtype="float32")
    assert not has_weights(load_for_training(settings))
    assert has_weights(load_teacher(settings))
    with reference_like_policy():
        reference: Any = grpo_trainer.create_model_from_path(settings.path, dtype="float32")
    assert has_weights(reference) and type(reference) is type(load_for_training(settings))
    assert not has_weights(load_for_training(settings))
