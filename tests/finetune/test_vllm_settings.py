"""What a recipe says of vLLM: of one mode alone, weights that can be sent, and lengths and processes that fit."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from seeklet.finetune.errors import RecipeError
from seeklet.finetune.recipe import GrpoRecipe, load_recipe
from tests.finetune.nano_checkpoints import ROOT

SERVER = {"use_vllm": True, "vllm_mode": "server"}


def write(folder: Path, trainer: Mapping[str, Any], model: str = "", adapter: str = "") -> Path:
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    (folder / "data.jsonl").write_text('{"prompt": "1+1", "answer": "2"}\n')
    lines = "".join(f"\n  {name}: {str(value).lower()}" for name, value in trainer.items())
    file = folder / "r.yaml"
    file.write_text(
        f"stage: grpo\nmodel: {{path: {folder / 'model'}{model}}}\n{adapter}"
        f"prompts: {{train: {folder / 'data.jsonl'}, max_tokens: 512}}\nrewards: [{{kind: maths}}]\n"
        f"output: {{dir: {folder / 'out'}}}\ntrainer:\n  max_steps: 1{lines}\n"
    )
    return file


@pytest.mark.parametrize(
    ("trainer", "words"),
    [
        ({"vllm_mode": "server"}, "trainer.vllm_mode: has no effect without trainer.use_vllm: true"),
        ({"use_vllm": True, "vllm_mode": "both"}, 'trainer.vllm_mode: expected one of colocate, server, got "both"'),
        (SERVER | {"vllm_server_port": 0}, "trainer.vllm_server_port: expected "),
        ({"use_vllm": True, "vllm_gpu_memory_utilization": 1.5}, "trainer.vllm_gpu_memory_utilization: expected "),
        (
            {"use_vllm": True, "vllm_server_port": 8000},
            "trainer.vllm_server_port: is of trainer.vllm_mode: server, and that is colocate",
        ),
        (
            SERVER | {"vllm_gpu_memory_utilization": 0.5},
            "is of trainer.vllm_mode: colocate, and that is server; give --gpu-memory-utilization to vllm serve",
        ),
        (
            SERVER | {"vllm_server_base_url": "http://host:8000", "vllm_server_port": 8000},
            "trainer.vllm_server_base_url: names the server, and so does trainer.vllm_server_port; leave one",
        ),
        (
            {"use_vllm": True, "vllm_max_model_length": 1024, "max_completion_length": 1024},
            "is 1024, but prompts.max_tokens and trainer.max_completion_length make 1536",
        ),
        (
            {"use_vllm": True, "vllm_tensor_parallel_size": 3},
            "trainer.vllm_tensor_parallel_size: is 3 with 4 processes; allowed: a divisor of their number, 1, 2, 4",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainer: dict[str, Any], words: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(RecipeError) as found:
        load_recipe(write(tmp_path, trainer), (), GrpoRecipe)
    assert words in str(found.value) and "\n" not in str(found.value)


def test_codes_cannot_be_sent(tmp_path: Path) -> None:
    file = write(tmp_path, {"use_vllm": True}, ", quantization: nf4", "adapter: {targets: [attention]}\n")
    with pytest.raises(RecipeError, match="with the adapter merged, which those held in nf4 cannot be"):
        load_recipe(file, (), GrpoRecipe)


def test_both_modes_are_there_as_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = {}
    for file in (ROOT / "recipes").glob("grpo_*.yaml"):
        trainer = load_recipe(file, (), GrpoRecipe).trainer
        if trainer["use_vllm"]:
            found.setdefault(trainer["vllm_mode"], []).append(file)
    assert found.keys() == {"server", "colocate"}
    (server,) = found["server"]
    trainer, text = load_recipe(server, (), GrpoRecipe).trainer, server.read_text(encoding="utf-8")
    assert f"--port {trainer['vllm_server_port']} " in text
    # As many samples a step as the others have, from half of the GPUs.
    assert 4 * trainer["per_device_train_batch_size"] * trainer["gradient_accumulation_steps"] == 512
