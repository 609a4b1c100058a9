"""Experts shared by two and four processes (gloo): the training of one process, and checkpoints as of one."""

import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from seeklet.modeling.expert_slices import ExpertSlice
from tests.finetune import expert_ranks, world_ranks
from tests.finetune.sft_runs import start_process
from tests.modeling.nano import SIZES, relative_error
from tests.modeling.tensors import read

LARGEST_DIFFERENCE = 1e-5
CHECKPOINTS = ("model", f"checkpoint-{world_ranks.SAVED_AT}", f"checkpoint-{world_ranks.STEPS}")


def launch(folder: Path, world: int, sharing: int, **settings: Any) -> list[dict[str, Any]]:
    """Return what each of `world` processes has found."""
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    processes = [
        start_process(expert_ranks.join, folder, world, rank, port, sharing, settings) for rank in range(world)
    ]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(world)]


def assert_same_losses(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert len(found["losses"]) == len(expected["losses"])
    assert max(abs(a - b) for a, b in zip(found["losses"], expected["losses"], strict=True)) <= LARGEST_DIFFERENCE
    for entry, wanted in zip(found["log"], expected["log"], strict=True):
        if "grad_norm" in wanted:
            # Before clipping, of the experts of all processes.
            assert entry["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-4)
            loads = [name for name in wanted if name.startswith("expert_load")]
            assert len(loads) == 3 and all(entry[name] == wanted[name] for name in loads)


def assert_same_gradients(found: list[dict[str, Any]], expected: dict[str, Any], sharing: int) -> None:
    for rank, one in enumerate(found):
        part, cut = ExpertSlice(rank % sharing, sharing), 0
        assert one["gradients"].keys() == expected["gradients"].keys()
        for name, whole in expected["gradients"].items():
            if one["gradients"][name].shape != whole.shape:
                cut += 1
                whole = part.of_last(whole, expert_ranks.EXPERTS) if "lora_B" in name else part.of(whole)
            assert relative_error(one["gradients"][name], whole) < 1e-5, (rank, name)
        # Two matrices of two layers and of the multi-token prediction module, which an adapter adds two factors to.
        assert cut == (18 if any("lora" in name for name in expected["gradients"]) else 6)


def assert_same_checkpoint(found: Path, expected: Path) -> None:
    weights, wanted = read(found), read(expected)
    assert {name: (t.shape, t.dtype) for name, t in weights.items()} == {
        name: (t.shape, t.dtype) for name, t in wanted.items()
    }
    wrong = {name: e for name in wanted if (e := relative_error(weights[name], wanted[name])) > 1e-4}
    assert wrong == {}
    if (expected / "optimizer.pt").exists():
        state, other = (torch.load(folder / "optimizer.pt") for folder in (found, expected))
        assert state["param_groups"] == other["param_groups"] and state["state"].keys() == other["state"].keys()
        for number, values in other["state"].items():
            for key, value in values.items():
                assert relative_error(state["state"][number][key], value) < 1e-3, (number, key)


@pytest.mark.slow
def test_two_processes_share_experts_and_train_as_one(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    alone = {name: expert_ranks.run(one, 1, name == "adapter", None) for name in ("whole", "adapter")}
    saved_at = f"checkpoint-{world_ranks.SAVED_AT}"
    resumed = {False: one / "whole" / saved_at, True: one / "adapter" / saved_at}
    found = launch(two, 2, 2, resumed=resumed)
    for name, expected in alone.items():
        assert expected["losses"][-1] < 0.95 * expected["losses"][0]
        for each in found:
            assert_same_losses(each[name], expected)
            assert_same_losses(each[f"{name} resumed"], expected)
        assert_same_gradients([each[name] for each in found], expected, 2)
        for folder in CHECKPOINTS:
            assert_same_checkpoint(two / name / folder, one / name / folder)
        # One process goes on from what two have saved.
        again = expert_ranks.run(one, 1, name == "adapter", two / name / saved_at)
        assert_same_losses(again, expected)


@pytest.mark.slow
@pytest.mark.parametrize("sharing", [2, 4])
def test_four_processes_share_experts_and_nodes_are_limited(tmp_path: Path, sharing: int) -> None:
    alone = expert_ranks.run(tmp_path / "one", 1, False, None, max_steps=3)
    found = launch(tmp_path / "four", 4, sharing, max_steps=3)
    for each in found:
        assert_same_losses(each["whole"], alone)
    assert_same_gradients([each["whole"] for each in found], alone, sharing)
    spread = [entry["routing/nodes_per_token"] for entry in found[0]["whole"]["log"] if "loss" in entry]
    # Each process is a node: of the model's four groups a token's experts are in two.
    assert SIZES["topk_group"] == 2 and len(spread) == 3
    assert all(nodes == 2 if sharing == 4 else 1 < nodes < 2 for nodes in spread)
