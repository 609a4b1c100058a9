"""The company example, from the first look at the data to a chat with the merged model: a recipe, carried out."""

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from ..cpu_dtype import is_fast_in_bf16
from ..data.check import check_data
from ..data.summary import print_report
from ..data.token_check import load_token_check
from ..evaluate import evaluate
from ..evaluation.held_out import read_held_out
from ..evaluation.models import load_tokenizer
from ..evaluation.scores import LOSS
from ..recipe import load_recipe
from ..run_folder import RunFolder
from ..sft import train
from ..smollm2 import MODEL_FOLDER, unpack_model
from .findings import Findings, Stage, find_shared_questions
from .inputs import RECIPE, copy_data
from .report import write_report
from .stock import chat_in_stock

NUM_CHATS = 3
# Held-out conversations that the merged model is compared on.
NUM_COMPARED = 8


def run_company(out: Path, overrides: Sequence[str], console: Console) -> Findings:
    """Return what the example found, carried out in the folder `out`; its report is written there.

    `overrides` change the recipe, as `KEY=VALUE`. What an earlier run unpacked is used again.
    """
    stages: list[Stage] = []
    model, data = out / MODEL_FOLDER, out / "faq.csv"
    with _stage("unpack the model and the data", stages, console):
        unpack_model(model)
        copy_data(data)
    own = [f"model.path={model}", f"data.train={data}", f"output.dir={out / 'run'}"]
    recipe = load_recipe(RECIPE, [*own, f"trainer.bf16={str(is_fast_in_bf16()).lower()}", *overrides])
    remove_earlier_run(RunFolder(Path(recipe.output.dir)))
    with _stage("check the data", stages, console):
        checked = check_data(recipe.data, load_token_check(recipe.model.path, recipe.data))
        print_report(checked, console)
    with _stage("train", stages, console):
        trained = train(recipe, console=console)
        assert trained.merged is not None
    with _stage("evaluate", stages, console):
        evaluation = evaluate(recipe, console=console)
        assert evaluation.after is not None
    with _stage("chat with the merged model in stock transformers", stages, console):
        rows = read_held_out(recipe, load_tokenizer(recipe.model)).scored[:NUM_COMPARED]
        questions = [str(question.messages[-1]["content"]) for question in evaluation.questions[:NUM_CHATS]]
        max_new_tokens = recipe.evaluation.max_new_tokens
        stock = chat_in_stock(trained.merged, rows, recipe.data.system or "", questions, max_new_tokens)
    expected = evaluation.after.rows[LOSS][:NUM_COMPARED, 0].tolist()
    findings = Findings(
        recipe=recipe,
        data=checked,
        evaluation=evaluation,
        stock=stock,
        largest_loss_difference=stock.largest_difference(expected),
        shared_questions=find_shared_questions(recipe.data),
        stages=stages,
    )
    write_report(findings, out)
    return findings


def remove_earlier_run(folder: RunFolder) -> None:
    """Remove the folder of an earlier run of the example, and only of one: it has a recipe in it."""
    if folder.recipe.is_file():
        shutil.rmtree(folder.path)


@contextmanager
def _stage(name: str, stages: list[Stage], console: Console) -> Iterator[None]:
    console.rule(f"[bold]{len(stages) + 1}. {name}", align="left")
    start, cpu_start = time.monotonic(), _cpu_s()
    yield
    stages.append(Stage(name, time.monotonic() - start, _cpu_s() - cpu_start))


def _cpu_s() -> float:
    """Return the CPU time of this process and of those that it has started and that are done."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
