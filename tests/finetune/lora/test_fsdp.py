"""Adapters on a base that two processes share (FSDP2, on CPU): trained, saved and resumed, with the router biases."""

import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.finetune.lora import fsdp_ranks
from tests.finetune.sft_runs import start_process
from tests.modeling.nano import relative_error
from tests.modeling.tensors import assert_same


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """Return the adapter in `folder` with its router biases."""
    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}


@pytest.mark.slow
def test_trained_as_by_one_process_and_resumed_bit_by_bit(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    processes = [start_process(fsdp_ranks.train_twice, tmp_path, 2, rank, port) for rank in range(2)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    alone = fsdp_ranks.make(tmp_path / "alone", 1)
    before = fsdp_ranks.biases(alone)
    alone.train()
    alone.save_trained(tmp_path / "alone" / "adapter")
    expected, whole, resumed = (stored(tmp_path / name / "adapter") for name in ("alone", "whole", "resumed"))
    assert whole.keys() == expected.keys()
    assert {name: e for name in expected if (e := relative_error(whole[name], expected[name])) > 1e-12} == {}
    assert_same(resumed, whole)
    # Moves are of one size whatever the load is: they are equal, not close.
    after = fsdp_ranks.biases(alone)
    assert len(after) == 3 and not any(torch.equal(after[name], before[name]) for name in after)
    for rank in range(2):
        found = torch.load(tmp_path / f"rank{rank}.pt")
        for run in ("whole", "resumed"):
            assert_same(found[run], after)
