"""Reinforcement learning in two processes (gloo): they stay in step and stay the same."""

import socket
from pathlib import Path

import torch

from tests.finetune import grpo_ranks
from tests.finetune.sft_runs import start_process
from tests.finetune.test_grpo_trainer import SIZES
from tests.modeling.nano import build_ours
from tests.modeling.tensors import assert_same


def test_two_processes_sample_in_step_and_train_the_same_model(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    processes = [start_process(grpo_ranks.join, tmp_path, rank, port) for rank in range(2)]
    try:
        for process in processes:
            process.join(200)
            assert process.exitcode == 0
    finally:
        for process in processes:
            process.kill()
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=False) for rank in range(2))
    # A process whose rows have all ended goes on, as gathering parameters takes both.
    assert first["passes, synced True"] == second["passes, synced True"] == 20
    assert first["passes, synced False"] < second["passes, synced False"] == 20
    for found in (first, second):
        assert found["tokens, synced True"] == found["tokens, synced False"]
    # Both of them the same, bit by bit, router biases included; and something was learnt.
    assert_same(first["weights"], second["weights"])
    before = build_ours(**SIZES, num_nextn_predict_layers=1).state_dict()
    changed = {name for name, weight in first["weights"].items() if not torch.equal(weight, before[name])}
    assert any("experts" in name for name in changed) and any("e_score_correction_bias" in name for name in changed)
