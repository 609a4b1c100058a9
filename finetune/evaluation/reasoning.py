"""How well a model reasons: pass@1 as DeepSeek-R1's paper measures it, pass@k, maj@k, length and form."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from ..attempts import Attempt, Attempts, Sampler, batch_seed
from ..errors import DataError
from ..prompts.read import Prompt
from ..published import public_name, without_folders
from ..reasoning import is_well_formed, parse
from ..rewards import RewardSet
from .answers import normalise
from .pass_at import majority_at_k, pass_at_k
from .progress import row_progress
from .reasoning_report import write_reasoning_report
from .reasoning_results import ProblemResult, ReasoningReport, estimate_figures
from .reasoning_settings import ReasoningEvaluationSettings


def evaluate_reasoning(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Prompt],
    rewards: RewardSet,
    settings: ReasoningEvaluationSettings,
    *,
    name: str = "model",
    folder: Path | None = None,
    sampler: Sampler | None = None,
    console: Console | None = None,
) -> ReasoningReport:
    """Return how well a model does at problems; written into `folder`, if it is given, as JSON, Markdown and a figure.

    Args:
        model: samples, unless there is a `sampler`.
        tokenizer: the model's.
        problems: at least one.
        rewards: tell which attempts are right; see `attempts.is_right`.
        settings: see there.
        name: what the report calls the model, or the stage of its training.
        folder: is made if it is not there.
        sampler: another engine that samples.
        console: shows the progress.

    Raises:
        RecipeError: no reward tells what is right.
        DataError: there is no problem, or the chat template refuses one.
        TrainingError: too many attempts could not be scored.
        OSError: the report cannot be written.
    """
    if not problems:
        raise DataError("there are no problems to evaluate on; allowed: at least one")
    maker = Attempts.by(model, tokenizer, rewards, settings, sampler)
    encoded = [maker.encode(problem) for problem in problems]
    results: dict[int, ProblemResult] = {}
    with row_progress(console or Console(quiet=True), "sampling, problems", len(problems)) as advance:
        for start, batch in _batches([len(each.ids) for each in encoded], settings):
            chosen = [problems[index] for index in batch]
            seed = batch_seed(settings.seed, start)
            made = maker.make(chosen, [encoded[index] for index in batch], settings.num_samples, seed)
            for index, attempts in zip(batch, made, strict=True):
                results[index] = judge_problem(problems[index], attempts, settings)
            advance(len(batch))
    report = summarise(name, [results[index] for index in range(len(problems))], settings)
    if folder is not None:
        write_reasoning_report(report, folder)
    return report


def _batches(lengths: Sequence[int], settings: ReasoningEvaluationSettings) -> Iterator[tuple[int, list[int]]]:
    """Yield batches of problems, by number and with where they begin; those of similar length share one."""
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    size = max(1, settings.batch_size // settings.num_samples)
    for start in range(0, len(order), size):
        yield start, order[start : start + size]


def judge_problem(problem: Prompt, attempts: Sequence[Attempt], settings: ReasoningEvaluationSettings) -> ProblemResult:
    """Return the figures of one problem, shares from 0 to 1."""
    completions = [parse(attempt.text) for attempt in attempts]
    right, number = [attempt.is_right for attempt in attempts], len(attempts)
    # A completion that was cut off has no answer, whatever it had said.
    answers = [
        normalise(each.answer) if attempt.finished else "" for attempt, each in zip(attempts, completions, strict=True)
    ]
    figures = {
        "pass@1": pass_at_k(number, sum(right), 1),
        **{f"pass@{k}": pass_at_k(number, sum(right), k) for k in settings.pass_at or (number,) if k > 1},
        **{
            f"maj@{k}": majority_at_k(answers, right, k, settings.seed)
            for k in settings.majority_at or (number,)
            if k > 1
        },
        "tokens": fmean(attempt.num_tokens for attempt in attempts),
        "well_formed": fmean(attempt.finished and is_well_formed(attempt.text) for attempt in attempts),
        "reasoned": fmean(bool(each.reasoning) for each in completions),
        "cut_off": fmean(not attempt.finished for attempt in attempts),
        "not_scored": fmean(bool(attempt.reasons) for attempt in attempts),
    }
    difficulty = problem.columns.get(settings.difficulty) if settings.difficulty else None
    return ProblemResult(
        source=str(problem.source._replace(file=public_name(problem.source.file))),
        messages=problem.messages,
        difficulty=None if difficulty is None else str(difficulty),
        figures=figures,
        num_right=sum(right),
        example=_example(attempts),
    )


def summarise(name: str, results: Sequence[ProblemResult], settings: ReasoningEvaluationSettings) -> ReasoningReport:
    """Return the figures of all problems, and of those of each difficulty, with 95 % intervals.

    Problems are drawn anew with replacement, each with the mean over its samples: the interval says what other problems
    of the kind would give.
    """
    labels = sorted({result.difficulty for result in results if result.difficulty is not None}, key=_natural)
    return ReasoningReport(
        name=name,
        num_problems=len(results),
        num_samples=settings.num_samples,
        figures=estimate_figures(results),
        by_difficulty={
            label: (len(chosen), estimate_figures(chosen))
            for label in labels
            if (chosen := [result for result in results if result.difficulty == label])
        },
        results=list(results),
        settings=without_folders(asdict(settings)),
    )


def _example(attempts: Sequence[Attempt]) -> Mapping[str, Any]:
    """Return the attempt that the report shows: the first one, which is as good as any."""
    first = attempts[0]
    return {"text": first.text, "num_tokens": first.num_tokens, "is_right": first.is_right}


def _natural(label: str) -> tuple[int, float, str]:
    """Return a key by which 2 comes before 10, and numbers before texts."""
    try:
        return 0, float(label), ""
    except ValueError:
        return 1, 0.0, label
