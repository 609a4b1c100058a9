"""Training in two processes (gloo) is training in one: weights, router biases, losses, and a checkpoint of both."""

import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.finetune import ranks
from tests.finetune.sft_runs import start_process
from tests.modeling.nano import relative_error
from tests.modeling.tensors import assert_same, read


def train_in_two(folder: Path) -> list[dict[str, Any]]:
    """Return what each of two processes has."""
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    processes = [start_process(ranks.join_and_train, folder, 2, rank, port) for rank in range(2)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    return [torch.load(folder / f"rank{rank}-of-2.pt", weights_only=False) for rank in range(2)]


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    first, second = train_in_two(tmp_path / "two")
    alone = ranks.train(tmp_path / "one", 1)
    assert (alone["world"], first["world"], second["world"]) == (1, 2, 2)
    # Both of them the same, bit by bit, router biases included.
    assert_same(first["weights"], second["weights"])
    wrong = {
        name: error
        for name, weight in alone["weights"].items()
        if (error := relative_error(first["weights"][name], weight)) > 1e-9
    }
    assert wrong == {}
    biases = [name for name in alone["weights"] if name.endswith("e_score_correction_bias")]
    assert len(biases) == 3
    # Moves are of one size whatever the load is: they are equal, not close.
    assert all(torch.equal(first["weights"][name], alone["weights"][name]) for name in biases)
    log, expected = ([e for e in run["log"] if "train_runtime" not in e] for run in (first, alone))
    assert len(log) == len(expected) == ranks.STEPS + 1
    for entry, wanted in zip(log, expected, strict=True):
        same = {name for name in wanted if "per_s" not in name and name not in ("memory_gib", "eval_runtime")}
        assert {name: entry[name] for name in same} == pytest.approx({name: wanted[name] for name in same}, rel=1e-6)
    names = {"optimizer.pt", "scheduler.pt", "trainer_state.json", "rng_state_0.pth", "rng_state_1.pth"}
    assert names <= {path.name for path in (tmp_path / "two" / "checkpoint-3").iterdir()}
    assert_same(read(tmp_path / "two" / "model"), read(tmp_path / "two" / "checkpoint-3"))
    assert [path.name for path in (tmp_path / "two").iterdir() if path.name.startswith(".")] == []
