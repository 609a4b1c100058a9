"""`seeklet data`: look at training data before a model does."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from ..errors import DataError
from .lines import Advance

app = typer.Typer(no_args_is_help=True)


@app.callback()
def data() -> None:
    """Look at training data before a model does."""


@app.command()
def check(
    files: Annotated[
        list[str],
        typer.Argument(
            help=".jsonl, .json, .csv, .tsv, .parquet files, or hub:owner/name[/config][@revision][:split]."
        ),
    ],
    format: Annotated[
        str,
        typer.Option(help="messages, prompt_completion, sharegpt, alpaca or question_answer; auto goes by the keys."),
    ] = "auto",
    columns: Annotated[
        str, typer.Option(help="Your names for the columns of the shape, such as question=Q,answer=A.", metavar="NAMES")
    ] = "",
    validation: Annotated[
        list[str] | None,
        typer.Option(help="A validation file: checked, also for what it shares with training. Can be repeated."),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="A model's folder or Hub id: counts tokens, and finds over-long rows and special tokens."),
    ] = None,
    chat_template: Annotated[
        str | None, typer.Option(help="A template of seeklet's by name, or a .jinja file, for --tokenizer to use.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=2, help="The longest row allowed; needs --tokenizer.")] = 2048,
    near_duplicates: Annotated[
        bool | None,
        typer.Option(
            "--near-duplicates/--no-near-duplicates",
            help="Look for rows that are nearly the same; by default among the first 200,000. Takes 400 bytes a row.",
        ),
    ] = None,
    scan: Annotated[bool, typer.Option(help="Look for secrets and personal data; costs up to half the speed.")] = True,
    show: Annotated[int, typer.Option(min=0, help="Problems of each kind to show; the rest are counted.")] = 20,
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Write the report as JSON too.", metavar="FILE", dir_okay=False)
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw lengths and turns as PNG.", metavar="FILE", dir_okay=False)
    ] = None,
) -> None:
    """Say what is in training data and everything that is wrong with it, line by line.

    Ends with code 0 when the data is fit for training (there may be warnings), with 2 when there are errors.

    Files of any size are read row by row. Without --tokenizer and with --no-scan and --no-near-duplicates, more than
    50,000 chat rows a second are checked on one core; tokenising takes about a second for 2,000 rows.

        seeklet data check support.jsonl

        seeklet data check calls.csv --columns question=Q,answer=A --tokenizer Qwen/Qwen2.5-1.5B-Instruct
    """
    # Imported here, so that --help and a mistyped option answer at once.
    from rich.console import Console

    from .check import check_data
    from .read import size_in_bytes
    from .settings import DataSettings
    from .summary import as_json, print_report

    settings = DataSettings(
        train=tuple(files),
        validation=tuple(validation or ()),
        format=format,  # pyright: ignore[reportArgumentType] checked by DataSettings
        columns=_parsed_columns(columns),
        chat_template=chat_template,
        max_tokens=max_tokens,
        near_duplicates=near_duplicates,
        scan=scan,
    )
    for path in filter(None, (json_out, plot)):
        # Said now, not after an hour of reading.
        if not path.parent.is_dir():
            raise DataError(f"{path}: there is no folder {path.parent}")
    tokens = None
    if tokenizer:
        from .token_check import load_token_check

        tokens = load_token_check(tokenizer, settings)
    with reading_progress(size_in_bytes([*files, *(validation or ())])) as advance:
        report = check_data(settings, tokens, advance=advance, per_kind=show)
    print_report(report, Console())
    if json_out:
        text = json.dumps(as_json(report), indent=2, ensure_ascii=False) + "\n"
        # File names need not be UTF-8; what is not becomes an escape that JSON knows.
        json_out.write_text(text, encoding="utf-8", errors="backslashreplace")
    if plot:
        from .check_plot import draw_check

        draw_check(report).savefig(plot)
    raise typer.Exit(2 if report.num_errors else 0)


@contextmanager
def reading_progress(num_bytes: int | None) -> Iterator[Advance]:
    """Show on the terminal, and only there, how much of `num_bytes` has been read; give the callback that is told."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    # On stderr, so that the report alone goes into a file.
    console = Console(stderr=True)
    parts = (TextColumn("reading"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*parts, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("reading", total=num_bytes)
        yield lambda number: progress.advance(bar, number)


def _parsed_columns(text: str) -> dict[str, str]:
    """Return `question=Q,answer=A` as a dict."""
    columns: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        name, equals, column = part.partition("=")
        if not (name and equals and column):
            raise DataError(f'--columns has "{part}"; allowed: pairs such as question=Q,answer=A')
        columns[name.strip()] = column
    return columns
