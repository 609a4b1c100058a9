"""`seeklet publish`: a model, an adapter or a run, checked and sent to the Hub."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from .publish import Outcome


def publish(
    folder: Annotated[Path, typer.Argument(help="A model, an adapter, or a run (runs/NAME).", show_default=False)],
    repo: Annotated[str, typer.Argument(help="OWNER/NAME on the Hub.", show_default=False)],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Everything but the upload: what would go, the card, the findings.")
    ] = False,
    fix: Annotated[bool, typer.Option("--fix", help="Mend what is safe to mend, in a copy.")] = False,
    adapter_as: Annotated[
        Literal["merged", "peft", "per-expert"],
        typer.Option(help="What of an adapter is published: merged has the adapter per expert beside the whole model."),
    ] = "merged",
    base: Annotated[
        str | None, typer.Option(help="OWNER/NAME of the base, where the files name a folder of this machine.")
    ] = None,
    license: Annotated[
        str | None, typer.Option(help="As the Hub names it, such as apache-2.0. Default: the card's, else the base's.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="For everybody; a repository is private otherwise.")] = False,
    gated: Annotated[
        Literal["auto", "manual"] | None, typer.Option(help="People ask for access: granted at once, or by you.")
    ] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="As a pull request.")] = False,
    revision: Annotated[str | None, typer.Option(help="A branch, made if need be.")] = None,
    tag: Annotated[str | None, typer.Option(help="A name for the commit.")] = None,
    parent_commit: Annotated[str | None, typer.Option(help="What the branch must be at.")] = None,
    message: Annotated[str, typer.Option(help="Of the commit.")] = "Publish with seeklet",
    with_seeklet_code: Annotated[
        bool,
        typer.Option("--with-seeklet-code", help="Add a module that loads the model with seeklet where that is asked."),
    ] = False,
    answer: Annotated[
        bool, typer.Option("--answer/--no-answer", help="Load the model and ask it something before it goes.")
    ] = True,
) -> None:
    """Check a model and send it to the Hub, private unless --public.

    Nothing is sent while anything is wrong, and the folder is never changed. What goes loads in stock transformers,
    vLLM and SGLang, with no seeklet.

        seeklet publish runs/support/merged acme/support-assistant --dry-run
    """
    # Imported here, so that --help and a mistyped option answer at once.
    from rich.console import Console
    from transformers.utils.logging import disable_progress_bar

    from .hub_account import check_name
    from .publish import PublishOptions
    from .publish import publish as carry_out

    check_name(repo)
    disable_progress_bar()
    console = Console(highlight=False, markup=False, soft_wrap=True)
    options = PublishOptions(
        adapter_as,
        base,
        license,
        fix,
        with_seeklet_code,
        answer,
        public,
        gated,
        revision,
        create_pr,
        tag,
        parent_commit,
        message,
    )
    outcome = carry_out(
        folder, repo, options, dry_run=dry_run, console=console, show=lambda found: _show(found, repo, dry_run, console)
    )
    if not outcome.report.is_fit:
        raise typer.Exit(2)
    if outcome.published is not None:
        where = outcome.published.pull_request or outcome.published.url
        console.print(f"Published{' (private)' if outcome.published.is_private else ''}: {where}")


def _show(outcome: "Outcome", repo: str, dry_run: bool, console: "Console") -> None:
    from .findings import errors_of

    if dry_run:
        console.print(f"Would go to {repo}:")
        for name, size in outcome.sizes.items():
            console.print(f"  {size:>14,} B  {name}")
        console.print("\nThe card:\n")
        console.print(outcome.card)
    for finding in outcome.mended:
        console.print(f"mended: {finding.file}: {finding.where}: {finding.wrong}")
    for finding in outcome.report.findings:
        console.print(str(finding))
    errors = len(errors_of(outcome.report.findings))
    if errors:
        console.print(f"Not fit to publish: {errors} error{'s' if errors > 1 else ''}; nothing was sent.")
    else:
        warnings = len(outcome.report.findings)
        console.print(f"Fit to publish, with {warnings} warning{'' if warnings == 1 else 's'}.")
