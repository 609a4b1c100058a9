"""The measures a recipe asks for by name, and what each held-out example adds to them."""

import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import RecipeError
from ..own_code import working_folder_importable
from .answers import final_answer, is_exact_match
from .generation import Answer
from .measures import Array, Measure, mean_of_examples, percent_of_examples, perplexity, with_ones
from .questions import Question
from .text_scores import bleu_of_sums, bleu_statistics, chrf, rouge

LOSS = Measure("loss", "loss (nats per token)", False, 3, mean_of_examples)
PERPLEXITY = Measure("perplexity", "perplexity", False, 2, perplexity)
EXACT_MATCH = Measure("exact_match", "exact match (%)", True, 1, percent_of_examples)
ROUGE = {
    "rouge1": Measure("rouge1", "ROUGE-1 (F1, %)", True, 1, percent_of_examples),
    "rouge2": Measure("rouge2", "ROUGE-2 (F1, %)", True, 1, percent_of_examples),
    "rougeL": Measure("rougeL", "ROUGE-L (F1, %)", True, 1, percent_of_examples),
}
BLEU = Measure("bleu", "BLEU", True, 1, bleu_of_sums)
CHRF = Measure("chrf", "chrF (mean of answers)", True, 1, percent_of_examples)

# Called with the answer, the reference, and the messages before it; returns a number or a truth value.
Verifier = Callable[[str, str, list[dict[str, Any]]], float]


def likelihood_rows(losses: Array) -> dict[Measure, Array]:
    """Return loss and perplexity, from what `answer_losses` returns."""
    return {LOSS: losses, PERPLEXITY: losses}


def answer_rows(
    metrics: Sequence[str], verifiers: dict[str, Verifier], questions: Sequence[Question], answers: Sequence[Answer]
) -> dict[Measure, Array]:
    """Return what each answer adds to each measure that `metrics` names and that needs answers.

    Only what follows a model's reasoning counts. `verifiers` holds the function of each metric given by import path.
    """
    texts = [final_answer(answer.text, question.thinking) for answer, question in zip(answers, questions, strict=True)]
    references = [question.reference for question in questions]
    rows: dict[Measure, Array] = {}
    for metric in metrics:
        if metric == "exact_match":
            rows[EXACT_MATCH] = with_ones([is_exact_match(*pair) for pair in zip(texts, references, strict=True)])
        elif metric == "rouge":
            rows |= {ROUGE[name]: values for name, values in rouge(texts, references).items()}
        elif metric == "bleu":
            rows |= {BLEU: bleu_statistics(texts, references), CHRF: chrf(texts, references)}
        elif metric in verifiers:
            rows[Measure(metric, metric, True, 3, mean_of_examples)] = with_ones(
                [
                    _verdict(metric, verifiers[metric], text, question)
                    for text, question in zip(texts, questions, strict=True)
                ]
            )
    return rows


def import_verifiers(metrics: Sequence[str]) -> dict[str, Verifier]:
    """Return the functions that `metrics` names as `package.module:function`; the working folder is searched too.

    Raises:
        RecipeError: there is no such module or function, or it is not a function.
    """
    verifiers = {}
    for metric in metrics:
        if ":" not in metric:
            continue
        module_name, function_name = metric.split(":")
        try:
            with working_folder_importable():
                module = importlib.import_module(module_name)
        except ImportError as error:
            raise RecipeError(
                f'evaluation.metrics: "{metric}" cannot be imported ({error}); allowed: package.module:function, '
                "installed or in the folder the command is run in"
            ) from None
        function = getattr(module, function_name, None)
        if not callable(function):
            raise RecipeError(
                f'evaluation.metrics: "{metric}": {module.__name__} has no function "{function_name}"; allowed: a '
                "function(answer, reference, messages) that returns a number"
            )
        verifiers[metric] = function
    return verifiers


def _verdict(metric: str, verifier: Verifier, answer: str, question: Question) -> float:
    try:
        value = verifier(answer, question.reference, question.messages)
    except Exception as error:
        # The user's own code: the line they need is where in their data it failed, and on what.
        raise RecipeError(
            f"evaluation.metrics: {metric} failed for {question.source} with {type(error).__name__}: {error}"
        ) from error
    # bool is an int; NumPy's and torch's scalars convert, None and strings do not.
    if not hasattr(value, "__float__") or not math.isfinite(float(value)):
        raise RecipeError(
            f"evaluation.metrics: {metric} returned {value!r} for {question.source}; allowed: a finite number, or true "
            "or false"
        )
    return float(value)
