"""`make company`, or `python -m seeklet.finetune.company`: the command line of the company example."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from seeklet.modeling import SeekletError

from ..evaluation.report import summary_table
from .findings import SHOWN
from .report import REPORT
from .run import run_company

INTERRUPTED = 130

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.command()
def company(
    out: Annotated[
        Path,
        typer.Option(
            help="Folder for all of it: model and data, the run, the report. An earlier run in it is replaced."
        ),
    ] = Path("runs/company"),
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Keys of the recipe to change for this run.", show_default=False),
    ] = None,
) -> None:
    """Teach a small open model to answer a firm's customers, on this machine's CPU, in minutes.

    SmolLM2-135M-Instruct learns from 503 real questions and answers of a building firm: the data is checked, a LoRA
    adapter is trained, the model is measured before and after on questions it was not trained on, and merged into a
    model that plain transformers loads. It is the recipe finetune/company/recipe.yaml, carried out by what `seeklet
    data check`, `seeklet train` and `seeklet evaluate` call.

    Read `runs/company/report.md` afterwards. A quick look at the whole way, without learning much:
    `trainer.max_steps=4 evaluation.num_examples=4`
    """
    console = Console(highlight=False)
    try:
        findings = run_company(out, overrides or [], console)
    except KeyboardInterrupt:
        console.print("\nInterrupted.")
        raise typer.Exit(INTERRUPTED) from None
    except (SeekletError, OSError) as error:
        typer.echo(f"seeklet company: {error}", err=True)
        raise typer.Exit(2) from None
    seconds = sum(stage.wall_s for stage in findings.stages)
    console.rule(f"[bold]Done in {seconds:.0f} s", align="left")
    console.print(summary_table(findings.evaluation, SHOWN))
    for label, name in (("report", REPORT), ("merged model", "run/merged")):
        console.print(f"{label}: {out / name}", markup=False, soft_wrap=True)
    failures = findings.failed_checks()
    for failure in failures:
        typer.echo(f"seeklet company: check failed: {failure}", err=True)
    if failures:
        raise typer.Exit(1)


if __name__ == "__main__":
    app(prog_name="python -m seeklet.finetune.company")
