"""An evaluation written down: `evaluation.json` for programs, `evaluation.md` with a figure for people, and a table."""

import json
from collections.abc import Collection, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from ..atomic_files import write_text
from ..published import public_name, without_folders
from .answers import final_answer
from .findings import Evaluation, HarnessScores, Side
from .generation import Answer
from .markdown import cell, literal, quote, table
from .measures import CONFIDENCE, RESAMPLES, Comparison, Estimate
from .plot import save_plot
from .scores import CHRF

MARKDOWN, JSON, PLOT = "evaluation.md", "evaluation.json", "evaluation.png"


def write_report(evaluation: Evaluation, folder: Path) -> Path:
    """Write the report and its figure into `folder`, which is made if it is not there; return the Markdown file."""
    folder.mkdir(parents=True, exist_ok=True)
    save_plot(evaluation.comparisons, folder / PLOT)
    write_text(folder / JSON, json.dumps(as_json(evaluation), indent=2, ensure_ascii=False) + "\n")
    write_text(folder / MARKDOWN, as_markdown(evaluation))
    return folder / MARKDOWN


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return the content of `evaluation.json`, which names no folder of this machine."""
    sides = {"before": evaluation.before, "after": evaluation.after}
    return {
        "models": {name: public_name(side.path) for name, side in sides.items() if side},
        "held_out": {"conversations": evaluation.num_conversations, "answered": len(evaluation.questions)},
        "measures": {comparison.measure.name: _measure_json(comparison) for comparison in evaluation.comparisons},
        "intervals": {"confidence": CONFIDENCE, "method": "paired bootstrap of examples", "resamples": RESAMPLES},
        "generation": {
            "greedy": True,
            "use_mtp": evaluation.settings["use_mtp"],
            **{
                name: {"seconds": side.answer_s, "tokens_per_s": side.tokens_per_s}
                for name, side in sides.items()
                if side and side.answers
            },
        },
        "lm_eval": {name: _harness_json(side.harness) for name, side in sides.items() if side and side.harness},
        "answers": [
            {
                "source": question.source,
                "messages": question.messages,
                "reference": question.reference,
                **{name: asdict(side.answers[index]) for name, side in sides.items() if side},
            }
            for index, question in enumerate(evaluation.questions)
        ],
        "settings": without_folders({"data": evaluation.data, "evaluation": evaluation.settings}),
        "versions": dict(evaluation.versions),
    }


def as_markdown(evaluation: Evaluation) -> str:
    """Return the content of `evaluation.md`, which names no folder of this machine."""
    before, after = evaluation.before, evaluation.after
    subject = f"`{public_name(before.path)}`"
    if after:
        subject += f" before training and `{public_name(after.path)}` after it"
    sections = [
        "# Evaluation",
        f"{subject}, on {evaluation.num_conversations:,} held-out conversations that training did not see.",
        table(comparison_columns(evaluation), [comparison_cells(comparison) for comparison in evaluation.comparisons]),
        f"![Each measure with its interval]({PLOT})",
        _explanation(evaluation),
    ]
    if before.harness:
        sections += ["## lm-evaluation-harness", _harness_table(before, after)]
    number = min(evaluation.settings["num_samples"], len(evaluation.questions))
    if number:
        sections += ["## Answers side by side", *(_sample(evaluation, index) for index in range(number))]
    sections += [
        "## Versions",
        table(("package", "version"), list(evaluation.versions.items())),
        f"All answers, and all figures in full, are in `{JSON}`.",
    ]
    return "\n\n".join(sections) + "\n"


def summary_table(evaluation: Evaluation, names: Collection[str] = ()) -> Table:
    """Return the figures as a table for the terminal; of `names` alone, if there are any.

    Narrow enough for 80 columns: with two models, intervals are those of the differences.
    """
    result = Table(title="Held-out conversations", title_justify="left")
    for index, column in enumerate(comparison_columns(evaluation)):
        result.add_column(column, justify="right" if index else "left")
    for comparison in evaluation.comparisons:
        if names and comparison.measure.name not in names:
            continue
        cells = comparison_cells(comparison)
        if comparison.after:
            label, *values, difference, verdict = cells
            cells = (label, *(value.partition(" ")[0] for value in values), difference, verdict)
        result.add_row(*cells)
    return result


def comparison_columns(evaluation: Evaluation) -> tuple[str, ...]:
    """Return the heads of the table of figures."""
    return ("", "model") if evaluation.after is None else ("", "before", "after", "difference", "")


def comparison_cells(comparison: Comparison) -> tuple[str, ...]:
    """Return one figure as a row of that table: its name, values with intervals, and a verdict."""
    digits = comparison.measure.digits
    cells = [comparison.measure.label, _estimate(comparison.before, digits)]
    if comparison.after and comparison.difference:
        difference = _estimate(comparison.difference, digits, sign="+")
        cells += [_estimate(comparison.after, digits), difference, comparison.verdict]
    return tuple(cells)


def _estimate(estimate: Estimate, digits: int, sign: str = "") -> str:
    value, low, high = (f"{number:{sign}.{digits}f}" for number in (estimate.value, estimate.low, estimate.high))
    return f"{value} ({low} to {high})"


def _explanation(evaluation: Evaluation) -> str:
    text = (
        f"In brackets the 95 % interval, by {RESAMPLES:,} bootstrap resamples of the held-out examples"
        f"{', the same for both models' if evaluation.after else ''}. Loss and perplexity are over the assistant's "
        "tokens, as in training."
    )
    if not evaluation.questions:
        return text
    settings, sides = evaluation.settings, [side for side in (evaluation.before, evaluation.after) if side]

    def each(values: Iterable[float]) -> str:
        return " and ".join(f"{value:.0f}" for value in values)

    length = sum(len(question.reference) for question in evaluation.questions)
    shares = each(100 * sum(len(final_answer(answer.text)) for answer in side.answers) / length for side in sides)
    num_cut = each(sum(not answer.finished for answer in side.answers) for side in sides)
    lengths = each(sum(answer.num_tokens for answer in side.answers) / len(side.answers) for side in sides)
    text += (
        f" The other figures are over {len(evaluation.questions):,} answers to held-out questions, greedy, of at most "
        f"{settings['max_new_tokens']} tokens ({lengths} on average, {num_cut} cut off; {shares} % as long as those in "
        f"the data), with reasoning left out of what is scored. Generating them ran at "
        f"{each(side.tokens_per_s for side in sides)} tokens a second, "
        f"{settings['batch_size']} at a time"
        f"{', with multi-token-prediction drafts' if settings['use_mtp'] else ''}."
    )
    if CHRF in evaluation.before.rows:
        text += " chrF counts what of the reference is found twice as much as what of the answer is, so it favours "
        text += "answers that are longer than those in the data; ROUGE weighs both alike."
    return text


def _sample(evaluation: Evaluation, index: int) -> str:
    question = evaluation.questions[index]
    turns = [
        f"**{message['role']}**\n\n{quote(str(message.get('content') or ''))}"
        for message in question.messages
        if message["role"] != "system"
    ]
    columns = {"before": evaluation.before, "after": evaluation.after}
    answers = {name: _answer(side.answers[index]) for name, side in columns.items() if side}
    side_by_side = table([*answers, "in the data"], [[*answers.values(), cell(question.reference)]], align="left")
    return "\n\n".join([f"### {index + 1}. {literal(question.source)}", *turns, side_by_side])


def _answer(answer: Answer) -> str:
    return cell(answer.text) + ("" if answer.finished else f" *(cut off after {answer.num_tokens} tokens)*")


def _harness_table(before: Side, after: Side | None) -> str:
    rows = []
    for task, metrics in before.harness.items():
        for metric, scores in metrics.items():
            later = [_harness_score(after.harness[task][metric])] if after else []
            rows.append([literal(task), literal(metric), _harness_score(scores), *later])
    return table(("task", "metric", "before", *(["after"] if after else [])), rows)


def _harness_score(score: tuple[float, float | None]) -> str:
    value, error = score
    return f"{value:.4f}" if error is None else f"{value:.4f} ± {error:.4f}"


def _harness_json(scores: HarnessScores) -> dict[str, Any]:
    return {
        task: {name: {"value": value, "standard_error": error} for name, (value, error) in metrics.items()}
        for task, metrics in scores.items()
    }


def _measure_json(comparison: Comparison) -> dict[str, Any]:
    parts = {"before": comparison.before, "after": comparison.after, "difference": comparison.difference}
    return {
        "label": comparison.measure.label,
        "higher_is_better": comparison.measure.higher_is_better,
        "num_examples": comparison.num_examples,
        **{name: asdict(estimate) for name, estimate in parts.items() if estimate},
        **({"verdict": comparison.verdict} if comparison.after else {}),
    }
