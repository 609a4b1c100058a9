"""Experts shared by two and four processes (gloo): the training of one process, and checkpoints as of one."""

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from seeklet.finetune.errors import RecipeError, TrainingError
from seeklet.finetune.recipe import load_recipe
from seeklet.finetune.sft import train
from seeklet.finetune.training_model import check_expert_parallel
from seeklet.modeling.checkpoint_load import Copier
from seeklet.modeling.checkpoint_names import expert_number
from seeklet.modeling.expert_slices import ExpertSlice, whole_sizes
from tests.finetune import expert_ranks, world_ranks
from tests.finetune.sft_runs import MODEL, plain_entries, start_process, write_recipe
from tests.modeling.fp8_checkpoint import ODD, write_fp8
from tests.modeling.nano import SIZES, build_ours, relative_error
from tests.modeling.tensors import assert_same, load, read

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
    found = launch(two, 2, 2, resumed=resumed, recipe=write_adapter_recipe(tmp_path / "shared", 1))
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
    train(load_recipe(write_adapter_recipe(tmp_path / "alone", 2)))
    # Each of the two has read its experts alone, and drawn the adapters of all.
    runs = [tmp_path / name / "run" for name in ("shared", "alone")]
    assert_same_checkpoint(runs[0] / "adapter", runs[1] / "adapter")
    shown = [(run / "README.md").read_text().splitlines() for run in runs]
    assert "- routed experts: 4, shared by 2 processes (2 of each layer on each)" in shown[0]
    (trained,) = [line for line in shown[1] if "parameters trained" in line]
    assert trained in shown[0]
    held_out = [[e["eval_loss"] for e in plain_entries(run / "metrics.jsonl") if "eval_loss" in e] for run in runs]
    assert len(held_out[0]) == 1 and held_out[0] == pytest.approx(held_out[1], rel=1e-5)


def write_adapter_recipe(folder: Path, accumulation: int) -> Path:
    """Write a recipe of two steps that train an adapter of everything."""
    steps = {"max_steps": 2, "per_device_train_batch_size": 1, "gradient_accumulation_steps": accumulation}
    adapter = {"targets": ["attention", "shared_experts", "routed_experts", "mtp"], "rank": 2, "alpha": 4}
    sizes = {"attention_dropout": 0.0}
    return write_recipe(folder, sizes=sizes, adapter=adapter, trainer={**steps, "per_device_eval_batch_size": 1})


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


def test_shards_are_not_gone_on_with(tmp_path: Path) -> None:
    trainer = world_ranks.make(tmp_path, 1)
    trainer._experts = SimpleNamespace(slice=ExpertSlice(0, 2))
    (tmp_path / "checkpoint-10" / "pytorch_model_fsdp_0").mkdir(parents=True)
    with pytest.raises(TrainingError, match=r"checkpoint-10 was saved by FSDP in shards, and trainer\.expert_parallel"):
        trainer._load_from_checkpoint(str(tmp_path / "checkpoint-10"))


def experts_recipe(folder: Path, sharing: int, architecture: str = MODEL, **trainer: Any) -> Path:
    """Write a recipe whose processes are to share the experts."""
    return write_recipe(folder, architecture, trainer={"expert_parallel": sharing, **trainer})


@pytest.mark.parametrize(
    ("environment", "trainer", "said"),
    [
        ({"WORLD_SIZE": "4"}, {}, "is 3 with 4 processes; allowed: a divisor of their number, 1, 2, 4"),
        ({"ACCELERATE_USE_FSDP": "true"}, {}, "is 3, and FSDP shares out the experts itself; start it with recipes/"),
        ({}, {"optim": "adafactor"}, "is 3, and trainer.optim is adafactor; allowed with it: adamw_torch, "),
        (
            {},
            {"auto_find_batch_size": True},
            "is 3, and trainer.auto_find_batch_size lets one process do what the others",
        ),
        ({}, {"fp16": True}, "is 3, and trainer.fp16 scales each process's gradients by itself; allowed: trainer.bf16"),
    ],
)
def test_what_cannot_be_shared_is_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    trainer: dict[str, Any],
    said: str,
) -> None:
    recipe = experts_recipe(tmp_path, 3, **trainer)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError) as raised:
        load_recipe(recipe)
    (line,) = str(raised.value).splitlines()
    assert line.startswith(f"{recipe}:") and f"trainer.expert_parallel: {said}" in line


@pytest.mark.parametrize(
    ("architecture", "sharing", "processes", "said"),
    [
        (MODEL, 3, 3, "is 3, for 4 routed experts in 3 processes; allowed: a divisor, 1"),
        (
            MODEL,
            2,
            1,
            "is 2, for 4 routed experts in 1 process; allowed: a divisor, 1; start it with accelerate",
        ),
        (MODEL, 8, None, "is 8, for 4 routed experts; allowed: a divisor, 1, 2, 4"),
        ("Qwen/Qwen2.5-7B", 2, 2, "is a qwen2; allowed: 1, except for mixtures of experts of the DeepSeek-V3 arch"),
    ],
)
def test_what_the_model_cannot_be_cut_into_is_said(
    tmp_path: Path, architecture: str, sharing: int, processes: int | None, said: str
) -> None:
    recipe = load_recipe(experts_recipe(tmp_path, sharing, architecture))
    with pytest.raises(RecipeError, match="expert_parallel is") as raised:
        check_expert_parallel(recipe, processes)
    assert said in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("is_fp8", [False, True], ids=["plain", "fp8 kept"])
def test_each_process_reads_its_part_of_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_fp8: bool
) -> None:
    if is_fp8:
        write_fp8(tmp_path, ODD)
    else:
        build_ours(num_nextn_predict_layers=1).save_pretrained(tmp_path)
    whole_model = load(tmp_path, keep_fp8=is_fp8)
    whole, copy, read_numbers = whole_model.state_dict(), Copier.copy, []

    def note(self: Copier, reader: Any, read: Any, target: torch.Tensor) -> Any:
        read_numbers.append(expert_number(read.source.name))
        return copy(self, reader, read, target)

    monkeypatch.setattr(Copier, "copy", note)
    per_part = whole_model.config.n_routed_experts // 2
    for kept in (ExpertSlice(0, 2), ExpertSlice(1, 2)):
        model = load(tmp_path, keep_fp8=is_fp8, expert_slice=kept)
        found = model.state_dict()
        wanted = {name: kept.of(tensor) if ".experts." in name else tensor for name, tensor in whole.items()}
        assert_same(found, wanted)
        first = kept.index * per_part
        assert {*read_numbers} == {None, *range(first, first + per_part)}
        read_numbers.clear()
        assert sum(size for _, size in whole_sizes(model)) == whole_model.num_parameters()
