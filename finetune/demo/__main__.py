"""`make demo`, or `python -m seeklet.finetune.demo`: the command line of the demo."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from transformers.utils import logging

from seeklet.modeling import SeekletError

from .findings import DemoSettings
from .out_folder import filled_when_done
from .report import summary_table, write_report
from .run import run_demo

DEFAULTS = DemoSettings()
INTERRUPTED = 130

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.command()
def demo(
    out: Annotated[
        Path,
        typer.Option(help="Folder for report, figures and checkpoint. Those of an earlier run are replaced."),
    ] = Path("runs/demo"),
    seed: Annotated[
        int,
        typer.Option(min=0, help="Draws the initial weights and all problems. The same seed gives the same model."),
    ] = DEFAULTS.seed,
    steps: Annotated[
        int,
        typer.Option(min=1, help="At most this many optimiser steps; training stops earlier once it is accurate."),
    ] = DEFAULTS.steps,
    threads: Annotated[
        int,
        typer.Option(min=1, help="CPU threads. More than one is slower wherever other programs use the cores."),
    ] = DEFAULTS.threads,
    test_problems: Annotated[
        int,
        typer.Option(min=1, help="Held-out problems that accuracy is measured on, before and after training."),
    ] = DEFAULTS.test_problems,
    validation_problems: Annotated[
        int,
        typer.Option(min=1, help="Other held-out problems, which decide when training stops."),
    ] = DEFAULTS.validation_problems,
    draft_prompts: Annotated[
        int,
        typer.Option(min=1, help="Test problems that generation with and without MTP drafts is timed on."),
    ] = DEFAULTS.draft_prompts,
    draft_repeats: Annotated[
        int,
        typer.Option(min=1, help="How often each way of generating is timed."),
    ] = DEFAULTS.draft_repeats,
) -> None:
    """Teach a nano DeepSeek-V3 to reason, on this machine's CPU, in minutes.

    A model with V3's whole architecture (multi-head latent attention, mixture of experts, multi-token prediction) and
    half a million random parameters learns to solve sums such as 8-1+7+7-5 by writing out running totals. You see its
    accuracy on problems it never trained on before and after, how much faster it generates when its MTP module drafts
    tokens, and that what it saves is a checkpoint that plain transformers loads.

    Read `runs/demo/report.md` afterwards. A quick look at the whole way, without learning much:
    `--steps 50 --test-problems 64`
    """
    numbers = (test_problems, validation_problems, draft_prompts, draft_repeats)
    _carry_out(DemoSettings(seed, steps, threads, *numbers), out)


def _carry_out(settings: DemoSettings, out: Path) -> None:
    # Its bar for writing half a million weights would break into ours.
    logging.disable_progress_bar()
    console = Console(highlight=False)
    try:
        with filled_when_done(out) as folder:
            findings = run_demo(settings, folder, console)
            write_report(findings, folder)
    except KeyboardInterrupt:
        console.print("\nInterrupted: nothing was written.")
        raise typer.Exit(INTERRUPTED) from None
    except OSError as error:
        # The folder was refused, or the disk filled up meanwhile.
        typer.echo(f"seeklet demo: {error}", err=True)
        raise typer.Exit(2) from None
    except SeekletError as error:
        typer.echo(f"seeklet demo: {error}", err=True)
        raise typer.Exit(1) from None
    console.print(summary_table(findings, out))
    for failure in findings.failed_checks():
        typer.echo(f"seeklet demo: check failed: {failure}", err=True)
    if findings.failed_checks():
        raise typer.Exit(1)


if __name__ == "__main__":
    app(prog_name="python -m seeklet.finetune.demo")
