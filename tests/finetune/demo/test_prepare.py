"""The demo's data: no problem that is measured is learned, and the template trains on what the assistant says."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from seeklet.finetune.demo.prepare import count_parameters, prepare
from seeklet.finetune.demo.task import write_reasoning
from seeklet.finetune.demo.tokenizer import VOCABULARY
from seeklet.modeling import SeekletForCausalLM

SIZES = {"cold_start": 400, "prompts": 40, "rollout": 60, "test": 30}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    prepare(folder, 0, SIZES)
    return folder


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_sizes_and_what_is_held_out(folder: Path) -> None:
    assert {name: len(read(folder / f"{name}.jsonl")) for name in SIZES} == SIZES
    asked = {name: {row["prompt"] for row in read(folder / f"{name}.jsonl")} for name in ("prompts", "rollout", "test")}
    shown = {row["messages"][0]["content"] for row in read(folder / "cold_start.jsonl")}
    assert not asked["test"] & (asked["prompts"] | asked["rollout"] | shown)
    assert not asked["prompts"] & asked["rollout"]
    for row in read(folder / "test.jsonl"):
        assert eval(row["prompt"]) == int(row["answer"])
        assert row["difficulty"] == f"{len(row['prompt']) // 2 + 1} terms"


def test_fewer_than_half_of_the_demonstrations_think(folder: Path) -> None:
    rows = read(folder / "cold_start.jsonl")
    thinking = 0
    for row in rows:
        asked, said = row["messages"]
        assert eval(asked["content"]) == int(said["content"])
        if "reasoning_content" in said:
            thinking += 1
            assert said["reasoning_content"] == write_reasoning(asked["content"])
    assert 0.3 < thinking / len(rows) < 0.5


def test_a_seed_gives_its_own_problems_and_weights_again(folder: Path, tmp_path: Path) -> None:
    prepare(tmp_path / "same", 0, SIZES)
    prepare(tmp_path / "other", 1, SIZES)
    for name in ("cold_start.jsonl", "test.jsonl", "teacher/model.safetensors", "student/model.safetensors"):
        assert (tmp_path / "same" / name).read_bytes() == (folder / name).read_bytes()
        assert (tmp_path / "other" / name).read_bytes() != (folder / name).read_bytes()


def test_models_are_those_of_the_issue(folder: Path) -> None:
    counts = count_parameters(folder)
    models = {name: AutoModelForCausalLM.from_pretrained(folder / name) for name in counts}
    assert counts == {name: sum(each.numel() for each in model.parameters()) for name, model in models.items()}
    assert counts["student"] <= 0.55 * counts["teacher"] and 400_000 < counts["teacher"] < 600_000
    assert isinstance(models["teacher"], SeekletForCausalLM)
    assert models["teacher"].config.n_routed_experts and models["teacher"].config.num_nextn_predict_layers == 1
    assert models["student"].config.model_type == "llama"


def test_what_is_trained_on_begins_with_the_reasoning(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "teacher")
    user = {"role": "user", "content": "1+2"}
    for said, trained in (
        ({"content": "3", "reasoning_content": "1+2=3"}, "<think>1+2=3</think>3<｜end▁of▁sentence｜>"),
        ({"content": "3"}, "<think></think>3<｜end▁of▁sentence｜>"),
    ):
        encoded: Any = tokenizer.apply_chat_template(
            [user, {"role": "assistant", **said}], return_dict=True, return_assistant_tokens_mask=True
        )
        pairs = zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
        assert "".join(VOCABULARY[token] for token, is_trained in pairs if is_trained) == trained
