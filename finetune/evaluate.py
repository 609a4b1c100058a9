"""A recipe's model on held-out conversations, before and after training: figures, answers side by side, a report."""

import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from .evaluation.findings import Evaluation, Side
from .evaluation.generation import generate_answers
from .evaluation.harness import check_harness, run_harness
from .evaluation.held_out import HeldOut, read_held_out
from .evaluation.likelihood import answer_losses
from .evaluation.models import check_one_process, check_trained, find_trained, is_adapter, load_model, load_tokenizer
from .evaluation.progress import row_progress
from .evaluation.questions import end_tokens
from .evaluation.report import summary_table, write_report
from .evaluation.scores import Verifier, answer_rows, import_verifiers, likelihood_rows
from .lora.files import load_adapter
from .recipe import Recipe
from .training_model import check_drafts

PACKAGES = ("seeklet", "transformers", "peft", "torch", "rouge-score", "sacrebleu")


def evaluate(
    recipe: Recipe,
    *,
    after: Path | None = None,
    before_only: bool = False,
    out: Path | None = None,
    console: Console | None = None,
) -> Evaluation:
    """Return what the recipe's model does on the held-out conversations, before training and after it.

    `after` is the folder of a trained adapter or model; None takes what training left in `output.dir`, and
    `before_only` leaves it out. `evaluation.md`, `evaluation.png` and `evaluation.json` go to `out`, or else to
    `output.dir`. What can be checked is checked before a model is loaded.

    Raises:
        RecipeError: there is nothing trained, a metric cannot be imported or fails, a task of lm-evaluation-harness
            cannot run.
        DataError: the data cannot be used, or nothing is held out.
    """
    console = console or Console(highlight=False)
    output = Path(recipe.output.dir).expanduser()
    trained = None if before_only else after or find_trained(output)
    verifiers = _check(recipe, trained)
    tokenizer = load_tokenizer(recipe.model)
    held_out = read_held_out(recipe, tokenizer)
    sides = []
    for path, model in _models(recipe, trained):
        console.print(f"{'After' if sides else 'Before'} training: {path}", markup=False, soft_wrap=True)
        sides.append(measure(model, path, tokenizer, held_out, recipe, verifiers, console))
        # Let go of it before the next one is loaded: two whole models may not fit where one does.
        del model
    evaluation = Evaluation(
        before=sides[0],
        after=sides[1] if trained else None,
        num_conversations=len(held_out.scored),
        questions=held_out.questions,
        data=asdict(recipe.data),
        settings=asdict(recipe.evaluation),
        versions={package: version(package) for package in PACKAGES},
    )
    report = write_report(evaluation, out or output)
    console.print(summary_table(evaluation))
    console.print(f"Answers side by side: {report}", markup=False, soft_wrap=True)
    return evaluation


def _models(recipe: Recipe, trained: Path | None) -> Iterator[tuple[str, Any]]:
    """Yield the model before training and, unless `trained` is None, after it; each with its path."""
    model: Any = load_model(recipe.model)
    yield recipe.model.path, model
    if trained is None:
        return
    if is_adapter(trained):
        yield str(trained), load_adapter(model, trained).eval()
        return
    del model
    yield str(trained), load_model(recipe.model, trained)


def measure(
    model: Any,
    path: str,
    tokenizer: PreTrainedTokenizerBase,
    held_out: HeldOut,
    recipe: Recipe,
    verifiers: dict[str, Verifier],
    console: Console,
) -> Side:
    """Return what one model does on the held-out conversations; `path` is what the report calls it."""
    settings = recipe.evaluation
    check_drafts(model, settings.use_mtp, "evaluation.use_mtp")
    with row_progress(console, "held-out loss", len(held_out.scored)) as advance:
        rows = likelihood_rows(answer_losses(model, held_out.scored, settings.batch_size, advance))
    start = time.perf_counter()
    answers = []
    if held_out.questions:
        with row_progress(console, "answers", len(held_out.questions)) as advance:
            answers = generate_answers(
                model,
                tokenizer,
                [question.prompt_ids for question in held_out.questions],
                max_new_tokens=settings.max_new_tokens,
                batch_size=settings.batch_size,
                end_tokens=end_tokens(tokenizer, model.generation_config, held_out.last_trained_tokens),
                stop=settings.stop,
                use_mtp=settings.use_mtp,
                on_rows=advance,
            )
    answer_s = time.perf_counter() - start
    if set(settings.metrics) - {"loss"}:
        rows |= answer_rows(settings.metrics, verifiers, held_out.questions, answers)
    harness = {}
    if settings.lm_eval:
        console.print(f"  lm-evaluation-harness: {', '.join(settings.lm_eval)}")
        harness = run_harness(model, tokenizer, settings.lm_eval, settings.lm_eval_limit, settings.batch_size)
    return Side(path, rows, answers, answer_s, harness)


def _check(recipe: Recipe, trained: Path | None) -> dict[str, Verifier]:
    """Return the recipe's own metrics, after checking what can be checked without data and models."""
    check_one_process()
    check_harness(recipe.evaluation.lm_eval)
    if trained:
        check_trained(trained)
    return import_verifiers(recipe.evaluation.metrics)
