"""`seeklet verify`: what a repository on the Hub holds, beside the folder that it was published from."""

from pathlib import Path
from typing import Annotated

import typer


def verify(
    folder: Annotated[Path, typer.Argument(help="What was published: a model, an adapter or a run.")],
    repo: Annotated[str, typer.Argument(help="OWNER/NAME on the Hub.")],
    revision: Annotated[str | None, typer.Option(help="A branch, tag, commit or refs/pr/N. Default: main.")] = None,
    fix: Annotated[bool, typer.Option("--fix", help="As publish --fix sends the folder, mended in a copy.")] = False,
) -> None:
    """Compare a repository on the Hub with the folder that it was published from.

    Every file by its hash; configs and the headers of weights are downloaded and compared, and nothing else is. Ends
    with 0 where they are the same, 1 where something differs, 2 where they cannot be compared.

        seeklet verify runs/support/merged acme/support-assistant
    """
    # Imported here, so that --help and a mistyped option answer at once.
    from rich.console import Console

    from .published_files import compare_published

    console = Console(highlight=False, markup=False, soft_wrap=True)
    found = compare_published(folder, repo, revision, console, fix=fix)
    for line in found.differences:
        console.print(f"differs: {line}")
    console.print(
        f"{repo} at {found.commit[:12]}: {found.num_files} files of {found.num_bytes:,} B compared by hash, "
        f"{found.num_bytes_back:,} B of configs and headers read back"
    )
    if found.differences:
        hint = "" if fix else "; where it was published with --fix, verify with --fix, too"
        console.print(f"{len(found.differences)} differ; publish again, or look at what was changed there{hint}.")
        raise typer.Exit(1)
    console.print("The same, but for what publishing writes itself: card, pictures, the adapter beside a merged model.")
