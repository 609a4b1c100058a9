"""A training that is killed with SIGKILL, wherever it is, and resumed is the uninterrupted one, bit by bit."""

import io
import json
import random
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from seeklet.finetune.recipe import load_recipe
from seeklet.finetune.run import Run
from seeklet.finetune.run_folder import RunFolder, check_run_folder
from tests.finetune.sft_runs import plain_entries, run, start, write_recipe
from tests.modeling.tensors import assert_same
from tests.modeling.test_checkpoint_resume import optimizer_state

ADAPTER = {
    "targets": ["attention", "shared_experts", "routed_experts", "mtp"],
    "rank": 2,
    "alpha": 8,
    "dropout": 0.2,
}
SECTIONS: dict[str, dict[str, Any]] = {"full": {}, "adapter": {"adapter": ADAPTER}}


@pytest.fixture(scope="module", params=["full", "adapter"])
def uninterrupted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Return the kind of training, and the folder of a run that nothing has interrupted."""
    folder = tmp_path_factory.mktemp(request.param)
    run(write_recipe(folder, **SECTIONS[request.param]))
    return request.param, folder / "run"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a model or an adapter, the router biases included."""
    return {f"{file.name}/{k}": v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def trained(folder: Path) -> Path:
    return next(path for path in (folder / "adapter", folder / "model") if path.is_dir())


def assert_same_run(actual: Path, expected: Path) -> None:
    """Assert that weights, optimizer, random state and log are equal, to the last bit."""
    assert sorted(p.name for p in actual.iterdir()) == sorted(p.name for p in expected.iterdir())
    assert_same(weights(trained(actual)), weights(trained(expected)))
    last = "checkpoints/checkpoint-6"
    assert_same(weights(actual / last), weights(expected / last))
    (tensors, others), (expected_tensors, expected_others) = (optimizer_state(run / last) for run in (actual, expected))
    assert any(name.endswith("/exp_avg_sq") for name in tensors)
    assert_same(tensors, expected_tensors)
    assert others == expected_others
    states = [torch.load(run / last / "rng_state.pth", weights_only=False) for run in (actual, expected)]
    assert torch.equal(states[0]["cpu"], states[1]["cpu"]) and states[0]["python"] == states[1]["python"]
    assert plain_entries(actual / "metrics.jsonl") == plain_entries(expected / "metrics.jsonl")
    names = [sorted(path.name for path in (run / "checkpoints").iterdir()) for run in (actual, expected)]
    assert names[0] == names[1] and len(names[0]) == 2


def test_the_uninterrupted_run_is_worth_comparing_with(uninterrupted: tuple[str, Path]) -> None:
    """Everything that has to be restored has changed between the checkpoints that are there."""
    _, folder = uninterrupted
    first, last = (weights(folder / "checkpoints" / f"checkpoint-{step}") for step in (4, 6))
    unchanged = [name for name in last if torch.equal(first[name], last[name])]
    assert unchanged == []
    assert any("e_score_correction_bias" in name for name in last)
    assert any("experts" in name for name in last) and any("layers.2" in name for name in last)
    losses = [entry["loss"] for entry in plain_entries(folder / "metrics.jsonl") if "loss" in entry]
    assert len(set(losses)) == 6
    state = json.loads((folder / "checkpoints" / "checkpoint-6" / "trainer_state.json").read_text())
    assert state["num_input_tokens_seen"] > 0


# Step 5 lies in the second epoch, of which a part has been seen, and has no checkpoint of its own.
@pytest.mark.parametrize("kill", [("step", 1), ("step", 5), ("save", 4), ("delete", 6)], ids=str)
def test_killed_and_resumed(uninterrupted: tuple[str, Path], tmp_path: Path, kill: tuple[str, int]) -> None:
    kind, expected = uninterrupted
    recipe = write_recipe(tmp_path, **SECTIONS[kind])
    run(recipe, kill=kill)
    if kill[0] != "step":
        left = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.startswith(".")]
        assert len(left) == 1, "the kill was not in the middle of the work"
    run(recipe, resume=True)
    assert_same_run(tmp_path / "run", expected)


@pytest.mark.slow
def test_killed_again_and_again_at_random_moments(uninterrupted: tuple[str, Path], tmp_path: Path) -> None:
    kind, expected = uninterrupted
    recipe, moments = write_recipe(tmp_path, **SECTIONS[kind]), random.Random(5)
    kills, process = 0, None
    for attempt in range(60):
        process = start(recipe, resume=(tmp_path / "run" / "recipe.yaml").is_file())
        # Later with each attempt, so that one of them gets to the end on any machine.
        process.join(moments.uniform(0.05, 0.4) * (1 + attempt / 2))
        if process.exitcode is not None:
            break
        process.kill()
        process.join()
        kills += 1
    assert process is not None and process.exitcode == 0 and kills >= 1
    assert_same_run(tmp_path / "run", expected)


def test_resuming_what_is_done_changes_nothing(uninterrupted: tuple[str, Path], tmp_path: Path) -> None:
    kind, expected = uninterrupted
    recipe = write_recipe(tmp_path, **SECTIONS[kind])
    run(recipe)
    before = time.time()
    run(recipe, resume=True)
    assert_same_run(tmp_path / "run", expected)
    assert all(path.stat().st_mtime < before for path in (tmp_path / "run" / "checkpoints").iterdir())


def test_killed_as_it_begins_it_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is the first thing it writes: a folder that holds files and no run would be refused."""
    recipe: Any = load_recipe(write_recipe(tmp_path, adapter=ADAPTER))

    def is_killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("seeklet.finetune.run.write_text", is_killed)
    process = SimpleNamespace(process_index=0)
    with pytest.raises(KeyboardInterrupt):
        Run(recipe, RunFolder.of(recipe), process, Console(file=io.StringIO()), None).begin()
    check_run_folder(recipe, resume=False)
