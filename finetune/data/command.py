"""`seeklet data`: look at training data before a model does."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..atomic_files import replaced_file
from ..errors import DataError
from .lines import Advance

if TYPE_CHECKING:
    from .check import CheckReport
    from .settings import DataSettings
    from .token_check import TokenCheck

app = typer.Typer(no_args_is_help=True)


@app.callback()
def data() -> None:
    """Look at training data before a model does."""


_Files = Annotated[
    list[str],
    typer.Argument(help=".jsonl, .json, .csv, .tsv, .parquet files, or hub:owner/name[/config][@revision][:split]."),
]
_Format = Annotated[
    str, typer.Option(help="messages, prompt_completion, sharegpt, alpaca or question_answer; auto goes by the keys.")
]
_Columns = Annotated[
    str, typer.Option(help="Your names for the columns of the shape, such as question=Q,answer=A.", metavar="NAMES")
]
_Validation = Annotated[
    list[str] | None,
    typer.Option(help="A validation file: checked, also for what it shares with training. Can be repeated."),
]
_Tokenizer = Annotated[
    str | None,
    typer.Option(help="A model's folder or Hub id: counts tokens, and finds over-long rows and special tokens."),
]
_ChatTemplate = Annotated[
    str | None, typer.Option(help="A template of seeklet's by name, or a .jinja file, for --tokenizer to use.")
]
_MaxTokens = Annotated[
    int | None, typer.Option(min=2, help="The longest row allowed, 2048 if not given; needs --tokenizer.")
]
_NearDuplicates = Annotated[
    bool | None,
    typer.Option(
        "--near-duplicates/--no-near-duplicates",
        help="Look for rows that are nearly the same; by default among the first 200,000. Takes 400 bytes a row.",
    ),
]
_Scan = Annotated[bool, typer.Option(help="Look for secrets and personal data.")]
_Show = Annotated[int, typer.Option(min=0, help="Problems of each kind to show; the rest are counted.")]
_Json = Annotated[
    Path | None, typer.Option("--json", help="Write the report as JSON too.", metavar="FILE", dir_okay=False)
]
_Plot = Annotated[
    Path | None,
    typer.Option(help="Draw lengths and turns, as PNG or what FILE ends in.", metavar="FILE", dir_okay=False),
]


@app.command()
def check(
    files: _Files,
    format: _Format = "auto",
    columns: _Columns = "",
    validation: _Validation = None,
    tokenizer: _Tokenizer = None,
    chat_template: _ChatTemplate = None,
    max_tokens: _MaxTokens = None,
    near_duplicates: _NearDuplicates = None,
    scan: _Scan = True,
    show: _Show = 20,
    json_out: _Json = None,
    plot: _Plot = None,
) -> None:
    """Say what is in training data and everything that is wrong with it, line by line.

    Ends with code 0 when the data is fit for training (there may be warnings), with 2 when there are errors.

    Files of any size are read row by row; tokenising takes about a second for 2,000 rows.

        seeklet data check support.jsonl

        seeklet data check calls.csv --columns question=Q,answer=A --tokenizer Qwen/Qwen2.5-1.5B-Instruct
    """
    # Imported here, so that --help and a mistyped option answer at once.
    from rich.console import Console

    from .check import check_data
    from .read import size_in_bytes
    from .settings import DataSettings
    from .summary import print_report

    settings = DataSettings(
        train=tuple(files),
        validation=tuple(validation or ()),
        format=format,  # pyright: ignore[reportArgumentType] checked by DataSettings
        columns=_parsed_columns(columns),
        scan=scan,
        **_for_tokenizer(tokenizer, chat_template=chat_template, max_tokens=max_tokens),
    )
    _check_outputs(json_out, plot)
    tokens = _token_check(tokenizer, settings)
    with reading_progress(size_in_bytes([*files, *(validation or ())])) as advance:
        report = check_data(settings, tokens, near_duplicates=near_duplicates, advance=advance, per_kind=show)
    print_report(report, Console())
    _write(report, json_out, plot)
    raise typer.Exit(2 if report.num_errors else 0)


def _for_tokenizer(tokenizer: str | None, **options: Any) -> dict[str, Any]:
    """Return the options that are given, which without a tokenizer nothing would read."""
    given = {name: value for name, value in options.items() if value is not None}
    if given and tokenizer is None:
        names = " and ".join("--" + name.replace("_", "-") for name in given)
        raise DataError(f"{names}: needs --tokenizer, without which nothing is tokenised")
    return given


def _token_check(tokenizer: str | None, settings: "DataSettings") -> "TokenCheck | None":
    if tokenizer is None:
        return None
    # It imports transformers.
    from .token_check import load_token_check

    return load_token_check(tokenizer, settings)


def _check_outputs(json_out: Path | None, plot: Path | None) -> None:
    """Refuse now, not after an hour of reading, what could not be written then."""
    for path in filter(None, (json_out, plot)):
        if not path.parent.is_dir():
            raise DataError(f"{path}: there is no folder {path.parent}")
    if plot:
        from matplotlib.backend_bases import FigureCanvasBase

        known = FigureCanvasBase.get_supported_filetypes()
        if plot.suffix and plot.suffix[1:].lower() not in known:
            raise DataError(f'--plot {plot}: has the ending "{plot.suffix}"; allowed: {", ".join(sorted(known))}')


def _write(report: "CheckReport", json_out: Path | None, plot: Path | None) -> None:
    if json_out:
        from .summary import as_json

        text = json.dumps(as_json(report), indent=2, ensure_ascii=False) + "\n"
        # File names need not be UTF-8; what is not becomes an escape that JSON knows.
        with replaced_file(json_out) as beside:
            beside.write_text(text, encoding="utf-8", errors="backslashreplace")
    if plot:
        from .check_plot import draw_check

        with replaced_file(plot if plot.suffix else plot.with_suffix(".png")) as beside:
            draw_check(report).savefig(beside)


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
