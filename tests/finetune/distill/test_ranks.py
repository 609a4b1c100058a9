"""Distillation in two processes (gloo) is distillation in one: on samples, across tokenizers and from a cache."""

import socket
from pathlib import Path

import pytest
import torch

from tests.finetune.distill import ranks
from tests.finetune.sft_runs import start_process
from tests.modeling.nano import relative_error
from tests.modeling.tensors import assert_same


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    processes = [start_process(ranks.join_and_train, tmp_path, 2, rank, port) for rank in range(2)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    first, second = (torch.load(tmp_path / f"rank{rank}-of-2.pt", weights_only=False) for rank in range(2))
    alone = ranks.train(tmp_path / "one", 1)
    for name in ("seeklet", "dense", "text", "cache"):
        assert_same(first[name], second[name])
        wrong = {
            key: error
            for key, weight in alone[name].items()
            if (error := relative_error(first[name][key], weight)) > 1e-5
        }
        assert wrong == {}, name
        assert len(first[f"{name} log"]) == len(alone[f"{name} log"]) == ranks.STEPS
        for entry, expected in zip(first[f"{name} log"], alone[f"{name} log"], strict=True):
            for measured in {"loss", "divergence", "mtp_loss"} & expected.keys():
                assert entry[measured] == pytest.approx(expected[measured], rel=1e-4), (name, measured)
            assert "divergence" in expected and ("mtp_loss" in expected) == (name in ("seeklet", "cache"))
