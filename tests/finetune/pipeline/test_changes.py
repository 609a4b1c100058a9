"""What was changed or damaged since a stage was done is told in a line before anything is built upon it."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.finetune.conftest import RunHere
from tests.finetune.pipeline.killed import read_manifest


def change_product(run: Path) -> str:
    file = run / "grpo" / "model" / "model.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values())).view(-1)[0] += 1
    save_file(tensors, file, {"format": "pt"})
    return "model.safetensors is not the same since stage grpo was done; put it back as it was, or do the stage again"


def remove_product(run: Path) -> str:
    (run / "grpo" / "model").rename(run / "grpo" / "gone")
    return "what stage grpo left, is missing; put it back as it was, or do the stage again: --from grpo"


def remove_file(run: Path) -> str:
    (run / "cold" / "merged" / "config.json").unlink()
    return "config.json is missing since stage cold was done"


def change_data(run: Path) -> str:
    with (run.parent / "data.jsonl").open("a") as file:
        file.write("\n")
    return "stages.cold.data.train[0]: "


def change_model(run: Path) -> str:
    with (run.parent / "model" / "config.json").open("a") as file:
        file.write("\n")
    return "stages.cold.model.path: "


def cut_manifest(run: Path) -> str:
    text = (run / "manifest.json").read_text()
    (run / "manifest.json").write_text(text[: len(text) // 2])
    return "is damaged, so nobody can say what is done (JSONDecodeError"


def forge_manifest(run: Path) -> str:
    manifest = read_manifest(run)
    manifest["stages"][0]["recipe"]["trainer"]["max_steps"] = 9
    (run / "manifest.json").write_text(json.dumps(manifest))
    return "(ValueError: the recipe of cold is not that of its hash)"


def lead_manifest_astray(run: Path) -> str:
    manifest = read_manifest(run)
    manifest["stages"][1]["name"] = "../../elsewhere"
    (run / "manifest.json").write_text(json.dumps(manifest))
    return "(ValueError: the stage '../../elsewhere')"


def empty_manifest(run: Path) -> str:
    (run / "manifest.json").write_text("[]")
    return "is damaged, so nobody can say what is done"


@pytest.mark.parametrize(
    "damage",
    [
        change_product, remove_product, remove_file, change_data, change_model,
        cut_manifest, forge_manifest, lead_manifest_astray, empty_manifest,
    ],
)  # fmt: skip
def test_what_was_changed_meanwhile(done: Path, run_here: RunHere, damage: Any) -> None:
    said = damage(done.parent / "run")
    code, _, errors = run_here("run", done, "--resume")
    assert code == 2 and said in errors and len(errors.splitlines()) == 1, errors
