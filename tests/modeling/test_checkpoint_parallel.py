"""Loading by several processes: under FSDP only the first reads, as it sends the others what it read."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from seeklet.modeling import CheckpointError
from tests.modeling.nano import build_ours
from tests.modeling.tensors import assert_same, load

RANKS = 2


def load_on_one_rank(rank: int, path: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS)}
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(path / "store"), RANKS), rank=rank, world_size=RANKS)
    expected = build_ours(num_nextn_predict_layers=1).bfloat16().state_dict()
    if rank:
        expected = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
    assert_same(load(path / "bf16").state_dict(), expected)
    dequantised = load(path / "fp8").model.layers[1].mlp.experts.down_proj
    assert dequantised.dtype == torch.bfloat16 and bool(dequantised.any()) == (rank == 0)
    with pytest.raises(CheckpointError, match="keep_fp8=True under FSDP"):
        load(path / "fp8", keep_fp8=True)
    dist.destroy_process_group()


@pytest.mark.slow
def test_under_fsdp_only_the_first_process_reads(tmp_path: Path) -> None:
    model = build_ours(num_nextn_predict_layers=1).bfloat16()
    model.save_pretrained(tmp_path / "bf16")
    model.save_pretrained(tmp_path / "fp8", block_fp8=True)
    spawn(load_on_one_rank, (tmp_path,), RANKS)
