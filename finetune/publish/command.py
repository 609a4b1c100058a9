"""`seeklet publish`: a model, an adapter or a run, checked and sent to the Hub."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from .publish import Outcome, PublishOptions
    from .upload import Published

Folder = Annotated[Path, typer.Argument(help="A model, an adapter, or a run (runs/NAME).", show_default=False)]
Repo = Annotated[str, typer.Argument(help="OWNER/NAME on the Hub.", show_default=False)]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Everything but the upload: what would go, the card, the findings.")
]
Fix = Annotated[bool, typer.Option("--fix", help="Mend what is safe to mend, in a copy.")]
AdapterAs = Annotated[
    Literal["merged", "peft", "per-expert"],
    typer.Option(help="What of an adapter is published: merged has the adapter per expert beside the whole model."),
]
Base = Annotated[
    str | None, typer.Option(help="OWNER/NAME of the base, where the files name a folder of this machine.")
]
License = Annotated[
    str | None, typer.Option(help="As the Hub names it, such as apache-2.0. Default: the card's, else the base's.")
]
Public = Annotated[bool, typer.Option("--public", help="For everybody; a repository is private otherwise.")]
Gated = Annotated[
    Literal["auto", "manual"] | None, typer.Option(help="People ask for access: granted at once, or by you.")
]
CreatePr = Annotated[bool, typer.Option("--create-pr", help="As a pull request.")]
Revision = Annotated[str | None, typer.Option(help="A branch, made if need be.")]
Tag = Annotated[str | None, typer.Option(help="A name for the commit.")]
ParentCommit = Annotated[str | None, typer.Option(help="What the branch must be at.")]
Message = Annotated[str, typer.Option(help="Of the commit.")]
WithSeekletCode = Annotated[
    bool,
    typer.Option("--with-seeklet-code", help="Add a module that loads the model with seeklet where that is asked."),
]
Answer = Annotated[
    bool, typer.Option("--answer/--no-answer", help="Load the model and ask it something before it goes.")
]


def publish(
    folder: Folder,
    repo: Repo,
    dry_run: DryRun = False,
    fix: Fix = False,
    adapter_as: AdapterAs = "merged",
    base: Base = None,
    license: License = None,
    public: Public = False,
    gated: Gated = None,
    create_pr: CreatePr = False,
    revision: Revision = None,
    tag: Tag = None,
    parent_commit: ParentCommit = None,
    message: Message = "Publish with seeklet",
    with_seeklet_code: WithSeekletCode = False,
    answer: Answer = True,
) -> None:
    """Check a model and send it to the Hub, private unless --public.

    Nothing is sent while anything is wrong, and the folder is never changed. What goes loads in stock transformers,
    vLLM and SGLang, with no seeklet. Stopped on the way, the same command goes on where it was.

        seeklet publish runs/support/merged acme/support-assistant --dry-run
    """
    # Imported here, so that --help and a mistyped option answer at once.
    from .publish import PublishOptions

    options = PublishOptions(
        form=adapter_as,
        base=base,
        licence=license,
        fix=fix,
        with_code=with_seeklet_code,
        answer=answer,
        public=public,
        gated=gated,
        revision=revision,
        create_pr=create_pr,
        tag=tag,
        parent_commit=parent_commit,
        message=message,
    )
    _carry_out(folder, repo, options, dry_run)


def _carry_out(folder: Path, repo: str, options: "PublishOptions", dry_run: bool) -> None:
    from rich.console import Console
    from transformers.utils.logging import disable_progress_bar

    from .hub_account import check_name
    from .publish import publish as carry_out

    check_name(repo)
    disable_progress_bar()
    console = Console(highlight=False, markup=False, soft_wrap=True)
    outcome = carry_out(
        folder, repo, options, dry_run=dry_run, console=console, show=lambda found: _show(found, repo, dry_run, console)
    )
    if not outcome.report.is_fit:
        raise typer.Exit(2)
    if outcome.published is not None:
        _say_published(outcome.published, console)


def _say_published(published: "Published", console: "Console") -> None:
    seen = " (private)" if published.is_private else ""
    compared = published.comparison
    console.print(
        f"{compared.num_files} files of {compared.num_bytes:,} B: {published.num_bytes_sent:,} B sent, "
        f"{published.num_bytes_kept:,} B there already; compared with the folder by hash"
    )
    if published.removed:
        console.print(f"Weights of an earlier version left with it: {', '.join(published.removed)}")
    console.print(f"Published{seen}: {published.url}")


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
