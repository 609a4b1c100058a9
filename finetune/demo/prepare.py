"""What the demo's pipeline starts from: problems as files, and two models that have learned nothing yet."""

import json
import random
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from seeklet.modeling import SeekletForCausalLM

from ..atomic_files import write_text
from .nano import student_config, teacher_config
from .task import ChainSums, Problem
from .tokenizer import build_tokenizer

# With half of them the model's most likely answer is one that thinks, with some seeds; with a third it is one that does
# not, and what reinforcement finds out shows in greedy answers, too.
THINKING_SHARE = 0.35


def prepare(folder: Path, seed: int, sizes: Mapping[str, int]) -> None:
    """Write the data files and models that `pipeline.yaml` names into `folder`.

    Args:
        folder: of the demo.
        seed: draws weights and problems.
        sizes: number of problems of each file: cold_start, prompts, rollout and test. Of these, only demonstrations and
            prompts to sample from share problems with each other; none is in test.
    """
    task = ChainSums(seed, sizes["test"])
    problems = iter(task.train(sum(sizes[name] for name in ("cold_start", "prompts", "rollout"))))
    rng = random.Random(seed)
    demonstrations = islice(problems, sizes["cold_start"])
    _write(folder / "cold_start.jsonl", (_conversation(each, rng.random() < THINKING_SHARE) for each in demonstrations))
    for name in ("prompts", "rollout"):
        _write(folder / f"{name}.jsonl", map(_question, islice(problems, sizes[name])))
    _write(folder / "test.jsonl", map(_question, task.test))
    tokenizer = build_tokenizer()
    torch.manual_seed(seed)
    for name, model in (
        ("teacher", SeekletForCausalLM(teacher_config())),
        ("student", LlamaForCausalLM(student_config())),
    ):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def _conversation(problem: Problem, thinks: bool) -> dict[str, Any]:
    said = {"role": "assistant", "content": problem.answer}
    if thinks:
        said["reasoning_content"] = problem.reasoning
    return {"messages": [{"role": "user", "content": problem.prompt}, said]}


def _question(problem: Problem) -> dict[str, Any]:
    return {"prompt": problem.prompt, "answer": problem.answer, "difficulty": f"{problem.terms} terms"}


def _write(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, "".join(json.dumps(row) + "\n" for row in rows))


def count_parameters(folder: Path) -> dict[str, int]:
    """Return the number of parameters of the models that `prepare` has written, by name."""
    counts = {}
    for name in ("teacher", "student"):
        # Without weights: a checkpoint repeats what modules share.
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder / name))
        counts[name] = model.num_parameters()
    return counts
