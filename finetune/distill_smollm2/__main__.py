"""`make distill-smollm2`, or `python -m seeklet.finetune.distill_smollm2`: the command line of the example."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from seeklet.modeling import SeekletError

from ..evaluation.reasoning_report import summary_table
from .report import REPORT, RUN
from .run import STUDENT, run_distillation

INTERRUPTED = 130

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.command()
def distill(
    demo: Annotated[Path, typer.Option(help="Folder of `make demo`, whose traces are learned from.")] = Path(
        "runs/demo"
    ),
    out: Annotated[
        Path, typer.Option(help="Folder for all of it: model, run, report. An interrupted run in it goes on.")
    ] = Path("runs/distill_smollm2"),
    problems: Annotated[
        int, typer.Option(min=2, help="So many of the demo's held-out problems are tried, before and after.")
    ] = 128,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Keys of the pipeline to change for this run.", show_default=False
        ),
    ] = None,
) -> None:
    """Teach a real small model to reason, from what the demo's nano teacher wrote; on this machine's CPU, in minutes.

    SmolLM2-135M-Instruct, whose tokenizer is another than the teacher's, learns from the accepted traces of `make demo`
    as text: the running totals first, then the answer. It is measured on held-out problems before and after. It is the
    pipeline finetune/distill_smollm2/pipeline.yaml, carried out by what `seeklet run` calls.

    Read `runs/distill_smollm2/report.md` afterwards. A quick look at the whole way, without learning much:
    `--problems 4 stages.student.trainer.max_steps=4`
    """
    console = Console(highlight=False)
    try:
        findings = run_distillation(demo, out, problems, overrides or [], console)
    except KeyboardInterrupt:
        console.print("\nInterrupted: the same command goes on where it was.")
        raise typer.Exit(INTERRUPTED) from None
    except SeekletError as error:
        typer.echo(f"seeklet distill-smollm2: {error}", err=True)
        raise typer.Exit(2) from None
    except OSError as error:
        typer.echo(f"seeklet distill-smollm2: {error.filename or out}: {error.strerror or error}", err=True)
        raise typer.Exit(2) from None
    console.print(summary_table([findings.before, findings.after]))
    for label, name in (("report", REPORT), ("student", f"{RUN}/{STUDENT}/model")):
        console.print(f"{label}: {out / name}", markup=False, soft_wrap=True)
    failures = findings.failed_checks()
    for failure in failures:
        typer.echo(f"seeklet distill-smollm2: check failed: {failure}", err=True)
    if failures:
        raise typer.Exit(1)


if __name__ == "__main__":
    app(prog_name="python -m seeklet.finetune.distill_smollm2")
