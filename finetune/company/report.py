"""The example's report: `report.md`, with figures, plots and a chat."""

from collections.abc import Iterator
from pathlib import Path

from ..atomic_files import write_text
from ..evaluation.markdown import literal, quote, table
from ..evaluation.report import MARKDOWN, comparison_cells, comparison_columns
from ..smollm2 import MODEL_CREDIT
from .findings import Findings
from .inputs import DATA_CREDIT

REPORT = "report.md"


def write_report(findings: Findings, folder: Path) -> None:
    """Write `report.md` into `folder`, which holds the run's own folder."""
    write_text(folder / REPORT, as_markdown(findings, folder))


def as_markdown(findings: Findings, folder: Path) -> str:
    """Return the content of `report.md`; files are named relative to `folder`."""
    evaluation, stock = findings.evaluation, findings.stock
    run = Path(findings.recipe.output.dir).relative_to(folder)
    sections = [
        "# A small model learns to answer a firm's customers",
        "SmolLM2-135M-Instruct was trained on this machine's CPU, by the recipe "
        f"[{run / 'recipe.yaml'}]({run / 'recipe.yaml'}), to answer the questions that a building firm is asked.",
        *(f"**CHECK FAILED: {failure}.**" for failure in findings.failed_checks()),
        table(comparison_columns(evaluation), map(comparison_cells, evaluation.comparisons)),
        f"On {evaluation.num_conversations} held-out questions, none of which was trained on; "
        f"{len(evaluation.questions)} of them were answered. Answers before and after, side by side: "
        f"[{run / MARKDOWN}]({run / MARKDOWN}).",
        "## A chat with the merged model",
        f"`{stock.model_class}` of transformers {stock.transformers} loaded `{run / 'merged'}` in a fresh process that "
        "never imported seeklet. Its losses on held-out conversations differ from those of the adapter on its base by "
        f"at most {findings.largest_loss_difference:.1e} nats.",
        *_chats(findings),
        *_plots(folder / run, folder),
        "## Where the time went",
        table(
            ("stage", "seconds", "seconds of CPU time"),
            [
                *((stage.name, f"{stage.wall_s:.0f}", f"{stage.cpu_s:.0f}") for stage in findings.stages),
                ("**all**", *(f"**{sum(column):.0f}**" for column in zip(*_seconds(findings), strict=True))),
            ],
        ),
        "## Where model and data are from",
        f"Questions and answers: {literal(DATA_CREDIT)}. Model: {MODEL_CREDIT}.",
    ]
    return "\n\n".join(sections) + "\n"


def _seconds(findings: Findings) -> list[tuple[float, float]]:
    return [(stage.wall_s, stage.cpu_s) for stage in findings.stages]


def _chats(findings: Findings) -> Iterator[str]:
    for messages in findings.stock.chats:
        for message in messages:
            if message["role"] != "system":
                yield f"**{message['role']}**\n\n{quote(message['content'])}"
        yield "---"


def _plots(run: Path, folder: Path) -> Iterator[str]:
    files = sorted(run.rglob("*.png"))
    if files:
        yield "## Plots"
    for file in files:
        yield f"![{file.stem.replace('_', ' ')}]({file.relative_to(folder)})"
