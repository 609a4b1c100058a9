"""The demo from first to last: data and first models, the pipeline, and what is measured behind it."""

import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import torch
from rich.console import Console

from ..atomic_files import write_text
from ..attempts import Attempts
from ..card import versions
from ..evaluation.models import load_weights
from ..evaluation.reasoning_report import write_stages
from ..evaluation.reasoning_results import ReasoningReport
from ..pipeline import Pipeline, load_pipeline, run_pipeline
from ..pipeline.evaluate import evaluate_model
from ..pipeline.manifest import Manifest
from ..prompts.read import Prompt
from ..reasoning_stage import read_problems
from ..recipe import ReasoningRecipe, RolloutRecipe
from ..rewards import RewardSet
from ..run import without_bars
from ..run_folder import RunFolder, locked
from .drafts import DraftSpeed, measure_drafts
from .findings import COLD_START, GRPO, ON_POLICY, Example, Findings, StageFigures
from .out_folder import DATA, GREEDY, check_folder, goes_on, remove_demo, write_state
from .prepare import count_parameters, prepare
from .report import as_json, write_report
from .settings import PIPELINE, DemoSettings, write_pipeline
from .stock_reload import StockReload, reload_in_stock
from .task import write_reasoning

# Conversations whose logits are compared with stock's: about 1,400 positions.
RELOAD_PROBLEMS = 32
# Rows that rollouts with drafts are timed with: one, where a draft costs least; few; and as many as rollouts have.
DRAFT_ROWS, DRAFT_REPEATS = (1, 8, 64), 5
QUICK_DRAFT_ROWS, QUICK_DRAFT_REPEATS = (8,), 1


def run_demo(settings: DemoSettings, out: Path, console: Console) -> Findings:
    """Return what the demo found, carried out in the folder `out`; an interrupted one goes on.

    Raises:
        OutFolderError: the folder holds something else.
        TrainingError: another process works there, or a stage had to stop.
        SeekletError: as the stages.
        OSError: something cannot be written.
    """
    check_folder(out)
    # Stages name the folder, and may be carried out from elsewhere.
    folder = out.expanduser().resolve()
    torch.set_num_threads(settings.threads)
    with without_bars():
        resumed = _set_up(settings, folder, console)
        result = run_pipeline(folder / PIPELINE, resume=True, console=console)
        pipeline = load_pipeline(folder / PIPELINE)
        greedy = _evaluate_greedily(pipeline, folder / GREEDY, console)
        drafts, reload, problems = _measure_teacher(settings, pipeline, console)
    findings = Findings(
        settings=settings,
        stages=[
            StageFigures(each.name, each.kind, each.seconds, greedy.get(each.name), each.evaluation)
            for each in result.stages
        ],
        parameters=count_parameters(folder / DATA),
        drafts=drafts,
        reload=reload,
        examples=choose_examples(problems, greedy),
        seconds=time.time() - psutil.Process().create_time(),
        resumed=resumed,
        machine={"system": platform.system(), "processor": platform.machine(), "cores": _usable_cores()},
        versions=versions(),
    )
    write_report(findings, folder)
    write_state(folder, settings, [stage.name for stage in pipeline.stages], as_json(findings))
    return findings


def _set_up(settings: DemoSettings, folder: Path, console: Console) -> bool:
    """Return whether an interrupted demo goes on; else make the folder ready for the pipeline's first stage."""
    text = write_pipeline(settings, folder)
    with locked(RunFolder(folder)):
        if goes_on(folder, settings, text):
            console.print("An interrupted demo goes on.")
            return True
        if remove_demo(folder):
            console.print("What another demo left here was removed: it was done, or had other settings.")
        console.rule("problems, and models that have learned nothing")
        # Whatever ends this, the folder is known as a demo's from here on.
        write_state(folder, settings, [])
        prepare(folder / DATA, settings.seed, settings.sizes)
        write_text(folder / PIPELINE, text)
        write_state(folder, settings, [stage.name for stage in load_pipeline(folder / PIPELINE).stages])
        # A pipeline of which nothing is done: the folder may hold what the stages read, and all ways lead on from it.
        Manifest().write(folder)
        counts = count_parameters(folder / DATA)
        console.print(f"  parameters: {counts['teacher']:,} of the teacher, {counts['student']:,} of the student")
    return False


def _evaluate_greedily(pipeline: Pipeline, folder: Path, console: Console) -> dict[str, ReasoningReport]:
    """Return the figures of each stage's model when it takes the most likely tokens, on the pipeline's problems."""
    console.rule("greedy answers of all models")
    recipe = _evaluation(pipeline)
    settings = replace(recipe.evaluation, num_samples=1, temperature=0.0, pass_at=(), majority_at=())
    pipeline = replace(pipeline, evaluation=replace(recipe, evaluation=settings))
    reports = {}
    for stage in pipeline.stages:
        if stage.trains:
            console.print(stage.name)
            reports[stage.name] = evaluate_model(pipeline, stage, stage.name, folder / stage.name, console)
    write_stages(list(reports.values()), folder)
    return reports


def _measure_teacher(
    settings: DemoSettings, pipeline: Pipeline, console: Console
) -> tuple[list[DraftSpeed], StockReload, list[Prompt]]:
    """Return what drafts save and what stock transformers makes of the reinforced teacher, and the problems."""
    console.rule("the reinforced teacher: MTP drafts, and the checkpoint in stock transformers")
    teacher = pipeline.stage(GRPO).product
    recipe = _evaluation(pipeline)
    inputs, problems = read_problems(replace(recipe, model=replace(recipe.model, path=str(teacher))))
    model = load_weights(inputs.weights)
    maker = Attempts.by(model, inputs.tokenizer, RewardSet(recipe.rewards), recipe.evaluation)
    drafts = measure_drafts(
        model,
        inputs.tokenizer,
        [maker.encode(problem).ids for problem in problems],
        _rollout(pipeline).sampling.sampling,
        QUICK_DRAFT_ROWS if settings.quick else DRAFT_ROWS,
        QUICK_DRAFT_REPEATS if settings.quick else DRAFT_REPEATS,
        console,
    )
    conversations = [_solved(problem) for problem in problems[:RELOAD_PROBLEMS]]
    return drafts, reload_in_stock(model, inputs.tokenizer, teacher, conversations), problems


def choose_examples(problems: Sequence[Prompt], reports: Mapping[str, ReasoningReport]) -> list[Example]:
    """Return two problems that GRPO taught and one that is wrong at the end: the first of each kind, where there are.

    Where GRPO taught none, the first problem stands for them.
    """
    examples = [
        Example(
            prompt=str(problem.messages[-1]["content"]),
            answer=str(problem.columns["answer"]),
            said={
                name: (report.results[index].example["text"], report.results[index].example["is_right"])
                for name, report in reports.items()
            },
        )
        for index, problem in enumerate(problems)
    ]
    taught = [each for each in examples if each.said[GRPO][1] and not each.said[COLD_START][1]]
    shown = taught[:2] or examples[:1]
    wrong = [each for each in examples if not each.said[ON_POLICY][1] and each not in shown]
    return [*shown, *wrong[:1]]


def _evaluation(pipeline: Pipeline) -> ReasoningRecipe:
    assert pipeline.evaluation is not None, "the demo's pipeline has one"
    return pipeline.evaluation


def _rollout(pipeline: Pipeline) -> RolloutRecipe:
    [recipe] = [stage.recipe for stage in pipeline.stages if isinstance(stage.recipe, RolloutRecipe)]
    return recipe


def _solved(problem: Prompt) -> list[dict[str, str]]:
    """Return the conversation in which the problem is solved."""
    expression = str(problem.messages[-1]["content"])
    said = {
        "role": "assistant",
        "reasoning_content": write_reasoning(expression),
        "content": str(problem.columns["answer"]),
    }
    return [{"role": "user", "content": expression}, said]


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
