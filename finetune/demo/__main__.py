"""`make demo`, or `python -m seeklet.finetune.demo`: the command line of the demo."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from seeklet.modeling import SeekletError

from ..errors import RecipeError
from ..pipeline.settings import REPORT
from .findings import GRPO
from .out_folder import MARKDOWN
from .report import summary_table, target_table
from .run import run_demo
from .settings import DemoSettings

DEFAULTS = DemoSettings()
INTERRUPTED = 130

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.command()
def demo(
    out: Annotated[
        Path,
        typer.Option(help="Folder for all of it. An interrupted demo in it goes on; one that is done is replaced."),
    ] = Path("runs/demo"),
    seed: Annotated[
        int,
        typer.Option(min=0, help="Draws the initial weights and all problems. The same seed gives the same models."),
    ] = DEFAULTS.seed,
    threads: Annotated[
        int,
        typer.Option(min=1, help="CPU threads. More than one is slower wherever other programs use the cores."),
    ] = DEFAULTS.threads,
    quick: Annotated[
        bool, typer.Option("--quick", help="The whole way in a few steps a stage, under a minute; it teaches nothing.")
    ] = DEFAULTS.quick,
) -> None:
    """DeepSeek-R1's whole recipe on a nano model, on this machine's CPU, in minutes.

    A teacher with V3's architecture (multi-head latent attention, mixture of experts, multi-token prediction) and half
    a million random parameters is shown sums such as 8-1+7+7-5, less than half of them with the running totals written
    out. Reinforced for right answers alone, it finds out that thinking pays. What it writes then, sieved, teaches a
    student of half its size, which at last is corrected on its own answers.

    Read `runs/demo/demo.md` afterwards. Stopped with Ctrl-C or killed, the same command goes on where it was.
    """
    settings, console = DemoSettings(seed, threads, quick), Console(highlight=False)
    try:
        findings = run_demo(settings, out, console)
    except KeyboardInterrupt:
        console.print("\nInterrupted: the same command goes on where it was.")
        raise typer.Exit(INTERRUPTED) from None
    except SeekletError as error:
        typer.echo(f"seeklet demo: {error}", err=True)
        # What was asked for cannot be done; else, what was begun did not end well.
        raise typer.Exit(2 if isinstance(error, OSError | RecipeError) else 1) from None
    except OSError as error:
        where = error.filename or out
        typer.echo(f"seeklet demo: {where}: {error.strerror or error}", err=True)
        raise typer.Exit(2) from None
    console.print(summary_table(findings))
    console.print(target_table(findings))
    for label, name in (("report", MARKDOWN), ("all stages", REPORT), ("teacher", f"{GRPO}/model")):
        console.print(f"{label}: {out / name}", markup=False, soft_wrap=True)
    failures = findings.failed_checks()
    for failure in failures:
        typer.echo(f"seeklet demo: check failed: {failure}", err=True)
    if failures:
        raise typer.Exit(1)


if __name__ == "__main__":
    app(prog_name="python -m seeklet.finetune.demo")
