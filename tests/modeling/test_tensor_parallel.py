"""transformers' tensor parallelism on our classes: two processes, each with its part of every sharded weight."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import spawn
from transformers.distributed import DistributedConfig

from seeklet.modeling import SeekletForCausalLM
from tests.modeling.nano import assert_same_gradients, build_ours, draw_tokens, relative_error

RANKS = 2


def train_on_one_rank(rank: int, path: Path) -> None:
    """Compare a step of the sharded with one of the whole model, head, experts, MTP and balance loss included."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS)}
    torch.set_num_threads(1)
    store = dist.FileStore(str(path / "store"), RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    distributed = DistributedConfig(tp_size=RANKS)
    sharded = SeekletForCausalLM.from_pretrained(path, dtype=torch.float32, distributed_config=distributed).train()
    whole = SeekletForCausalLM.from_pretrained(path, dtype=torch.float32).train()
    assert isinstance(sharded.lm_head.weight, DTensor)
    assert isinstance(sharded.get_parameter("model.layers.1.mlp.experts.gate_up_proj"), DTensor)
    # Enough rows for oneDNN, which takes plain tensors only.
    tokens = draw_tokens(2, 20)
    losses = [model(tokens, labels=tokens).loss for model in (sharded, whole)]
    for loss in losses:
        loss.backward()
    for parameter in sharded.parameters():
        if isinstance(parameter.grad, DTensor):
            parameter.grad = parameter.grad.full_tensor()
    assert relative_error(losses[0], losses[1]) <= 1e-6
    assert_same_gradients(sharded, whole, 1e-5)
    dist.destroy_process_group()


@pytest.mark.slow
def test_loss_and_gradients_are_those_of_the_whole_model(tmp_path: Path) -> None:
    build_ours(num_nextn_predict_layers=1).save_pretrained(tmp_path)
    spawn(train_on_one_rank, (tmp_path,), RANKS)
