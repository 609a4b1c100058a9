"""Publishing: what a folder holds is staged, described, inspected, and sent only if nothing stands against it."""

import errno
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from ..byte_progress import byte_progress, growth_progress
from ..errors import PublishError
from .adapter_check import WEIGHTS
from .eval_results import write_eval_results
from .findings import Finding
from .hub_account import open_target
from .large_files import PART_BYTES
from .local_files import LocalFile, check_unchanged, list_local_files
from .mend import mend
from .model_card import chosen_licence, write_card
from .preflight import Checks, Report, inspect
from .shards import read_shards
from .source import Source, find_source
from .staging import Form, stage
from .upload import Published, upload
from .upload_options import UploadOptions, check_options


@dataclass(frozen=True)
class PublishOptions:
    """How a folder is published; what goes to the Hub and how is as in `upload`.

    Attributes:
        form: of an adapter: merged into its base (with the adapter per expert beside it), as PEFT's, or per expert.
        base: the base's name on the Hub, in place of what the files say.
        licence: as the Hub names it; default: the card's, else the base's.
        fix: mend what is safe, in a copy.
        with_code: add the shim that loads the model with seeklet.
        answer: load the model and ask it something.
    """

    form: Form = "merged"
    base: str | None = None
    licence: str | None = None
    fix: bool = False
    with_code: bool = False
    answer: bool = True
    public: bool = False
    gated: Literal["auto", "manual"] | None = None
    revision: str | None = None
    create_pr: bool = False
    tag: str | None = None
    parent_commit: str | None = None
    message: str = "Publish with seeklet"


@dataclass
class Outcome:
    """What was found, and what was sent if it was.

    Attributes:
        report: of the pre-flight, after what was mended.
        card: the card's text.
        mended: what `--fix` did.
        published: where it is now; None after a dry run, or where something stands against it.
        sizes: bytes of each file that goes.
    """

    report: Report
    card: str
    mended: list[Finding] = field(default_factory=list)
    published: Published | None = None
    sizes: dict[str, int] = field(default_factory=dict)


def publish(
    folder: Path,
    repo_id: str,
    options: PublishOptions,
    *,
    dry_run: bool = False,
    console: Console | None = None,
    show: Callable[[Outcome], None] = lambda _: None,
) -> Outcome:
    """Return what came of publishing `folder` as `repo_id`; `show` is given it before anything is sent.

    The folder itself is never changed.

    Raises:
        PublishError: there is nothing to publish, or the upload failed.
        CheckpointError: the base of an adapter is damaged.
        OSError: the disk is full, or a file cannot be read.
    """
    check_options(UploadOptions(**_upload_settings(options), part_bytes=PART_BYTES), repo_id)
    source = find_source(folder, options.base, wants_adapter=options.form != "merged")
    console = console or Console()
    if not dry_run:
        # A token that is not there is told of before hours of reading.
        open_target(repo_id)
    with tempfile.TemporaryDirectory(prefix="seeklet-publish-") as place:
        staging = Path(place, repo_id.rpartition("/")[2] or "model")
        staging.mkdir()
        left_out = _stage(source, staging, options, console)
        linked = _list_linked(staging)
        outcome = _prepare(staging, source, repo_id, options, console)
        outcome.report.findings += left_out
        outcome.sizes = {name: (staging / name).stat().st_size for name in outcome.report.files}
        show(outcome)
        if not dry_run and outcome.report.is_fit:
            check_unchanged(linked)
            outcome.published = upload(
                staging, repo_id, outcome.report.files, **_upload_settings(options), console=console
            )
    return outcome


def _stage(source: Source, staging: Path, options: PublishOptions, console: Console) -> list[Finding]:
    is_merging = source.is_adapter and options.form == "merged"
    total = sum(file.stat().st_size for file in source.base_folder.glob("*.safetensors")) if source.base_folder else 0
    try:
        if not is_merging:
            return stage(source, staging, options.form, options.with_code)
        with growth_progress(console, "merged", staging.parent, total or None):
            return stage(source, staging, options.form, options.with_code)
    except OSError as problem:
        if problem.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise PublishError(
            f"{staging.parent}: no space left for what is to be published; free some, or set TMPDIR to a folder on "
            "another disk; nothing was sent"
        ) from None


def _list_linked(staging: Path) -> list[LocalFile]:
    """Return the weights that stay where they are, as they are before they are checked: a run may still go on."""
    originals = [path.resolve() for path in staging.rglob("*.safetensors") if path.is_symlink()]
    return [LocalFile(path.name, path, path.stat().st_size, path.stat().st_mtime_ns) for path in originals]


def _upload_settings(options: PublishOptions) -> dict[str, Any]:
    names = ("public", "gated", "revision", "create_pr", "tag", "parent_commit", "message")
    return {name: getattr(options, name) for name in names}


def _prepare(staging: Path, source: Source, repo_id: str, options: PublishOptions, console: Console) -> Outcome:
    licence = chosen_licence(staging, options.licence, source.base_licence)
    checks = Checks(
        source.base_folder,
        source.base_name,
        source.base_licence,
        licence,
        options.public,
        options.with_code,
        options.answer,
    )
    _check_weights_there(staging)
    # The card needs the hashes, which come with the inspection, and is inspected itself.
    write_card(staging, source, repo_id, licence, {})
    write_eval_results(staging, source)
    report, mended = _inspect(staging, checks, console), []
    if options.fix and (mended := mend(staging, report.findings, options.with_code)):
        report = _inspect(staging, checks, console)
    write_card(staging, source, repo_id, licence, report.hashes or _adapter_hash(staging))
    return Outcome(report, (staging / "README.md").read_text(encoding="utf-8"), mended)


def _inspect(staging: Path, checks: Checks, console: Console) -> Report:
    total = sum(file.stat().st_size for file in staging.glob("*.safetensors"))
    with byte_progress(console, "checked", total) as advance:
        return inspect(staging, checks, advance)


def _check_weights_there(staging: Path) -> None:
    if not any(path.is_file() for path in staging.rglob("*")):
        raise PublishError("the folder is empty; name one that holds a model, an adapter or a run")


def _adapter_hash(staging: Path) -> dict[str, str]:
    if not (staging / WEIGHTS).is_file() or read_shards(staging).tensors:
        return {}
    return {file.name: file.read_hash() for file in list_local_files(staging, [WEIGHTS])}
