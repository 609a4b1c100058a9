"""A folder's files on the Hub: stored in parts, seen all at once in one commit, and compared with the folder.

Killed at any moment, an upload leaves the repository as it was, or complete; called again it sends what is missing.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import CommitOperationAdd
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from rich.console import Console

from ..errors import PublishError
from .commit import Commit, commit_files, find_pull_request, list_stale
from .hub_account import open_target
from .hub_errors import Target, in_words
from .hub_repository import MAIN, Remote, open_repository, read_remote, read_tree
from .large_files import PART_BYTES, store_file
from .local_files import LocalFile, check_unchanged, list_local_files
from .transfer_progress import Transfer, transfer_progress
from .upload_options import UploadOptions, check_options
from .verify import Comparison, compare, list_differences

# Smaller files go with the commit itself.
_IN_COMMIT_BYTES = 1_000_000


@dataclass(frozen=True)
class Published:
    """Where the files are now, and what it took: bytes that travelled and bytes that the Hub had already."""

    url: str
    commit: str
    pull_request: str | None
    comparison: Comparison
    num_bytes_sent: int
    num_bytes_kept: int
    removed: list[str]
    is_private: bool


def upload(
    folder: str | Path,
    repo_id: str,
    files: Sequence[str],
    *,
    repo_type: str = "model",
    public: bool = False,
    gated: Literal["auto", "manual"] | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    tag: str | None = None,
    parent_commit: str | None = None,
    message: str = "Publish with seeklet",
    token: str | None = None,
    part_bytes: int = PART_BYTES,
    console: Console | None = None,
) -> Published:
    """Publish `files`, paths relative to `folder`, as one commit of a repository, which is made, private, if it is new.

    On main, on the branch `revision` (made where it is missing) or as a pull request; `tag` then names the commit. With
    `public` the repository is seen by all once every hash is compared; `gated` lets people ask for access. Weights of
    an earlier version that are not among `files` go in the same commit. `parent_commit` is what the branch must be at.

    Raises:
        PublishError: a file, an option, the token, the repository, the network or the Hub stands against it; in one
            line, with what to do. No local file is ever changed.
    """
    options = UploadOptions(public, gated, revision, create_pr, tag, parent_commit, message, part_bytes)
    check_options(options, repo_id)
    local = list_local_files(Path(folder), files)
    target = open_target(repo_id, repo_type, token=token)
    repository = open_repository(target, public=public, is_new_allowed=not create_pr)
    base = _find_base(target, repository, options)
    num_bytes = sum(file.size for file in local)
    with _silent_bars(), transfer_progress(console or Console(), num_bytes) as transfer:
        with in_words(target):
            made = _store_and_commit(target, base, local, options, transfer)
            tree = read_tree(target, made.oid)
        transfer.name("comparing")
        comparison = compare(target, local, tree, made.oid)
    _check_same(target, comparison)
    with in_words(target):
        is_private = _open_to_others(target, repository, made, options)
    where = f"{target.api.endpoint}/{target}"
    url = where if (revision or MAIN) == MAIN else f"{where}/tree/{revision}"
    return Published(
        made.pull_request or url,
        made.oid,
        made.pull_request,
        comparison,
        transfer.num_sent,
        transfer.num_kept,
        made.removed,
        is_private,
    )


def _check_same(target: Target, comparison: Comparison) -> None:
    if comparison.differences:
        raise PublishError(
            f"{target}: commit {comparison.commit} is not what the folder holds: {'; '.join(comparison.differences)}; "
            "run the same command again"
        )


def _find_base(target: Target, repository: Remote, options: UploadOptions) -> Remote:
    """Return what the commit is to follow; checks that it may, and that the tag is free for it."""
    revision = options.revision
    base = repository
    if revision in repository.tags:
        raise PublishError(f'{target}: revision "{revision}" is a tag, and a tag does not move; name a branch')
    if revision in repository.branches or revision in repository.pull_requests:
        with in_words(target):
            base = read_remote(target, revision)
    elif revision and revision.startswith("refs/"):
        raise PublishError(f'{target}: there is no "{revision}"')
    if options.parent_commit and not base.head.startswith(options.parent_commit):
        raise PublishError(
            f"{target}: {revision or MAIN} is at {base.head}, and not at {options.parent_commit} as expected: somebody "
            "has committed; look at it, then name that commit"
        )
    if options.tag and base.tags.get(options.tag, base.head) != base.head:
        raise PublishError(
            f'{target}: there is a tag "{options.tag}" already, at {base.tags[options.tag]}; take another'
        )
    return base


def _store_and_commit(
    target: Target, base: Remote, local: Sequence[LocalFile], options: UploadOptions, transfer: Transfer
) -> Commit:
    stale = list_stale(base, local)
    if options.create_pr and (found := find_pull_request(target, base, local)):
        return found
    if not stale and not list_differences(local, base.files) and not _is_branch_missing(base, options):
        transfer.add(sum(file.size for file in local), is_sent=False)
        return Commit(base.head, None, [])
    if options.tag in base.tags:
        raise PublishError(f'{target}: there is a tag "{options.tag}" already, at {base.head}; take another')
    # Until the branch is there, what goes to it is stored by way of main.
    revision = options.revision if options.revision and not _is_branch_missing(base, options) else MAIN
    additions = []
    for file in local:
        if not list_differences([file], base.files):
            transfer.add(file.size, is_sent=False)
            continue
        addition = CommitOperationAdd(file.name, file.path)
        additions.append(addition)
        if file.size > _IN_COMMIT_BYTES:
            store_file(
                target,
                file,
                addition,
                transfer,
                revision=revision,
                create_pr=options.create_pr,
                part_bytes=options.part_bytes,
            )
    check_unchanged(local)
    transfer.name("committing")
    if options.revision and _is_branch_missing(base, options):
        target.api.create_branch(
            target.repo_id, repo_type=target.repo_type, branch=options.revision, revision=base.head, exist_ok=True
        )
    made = commit_files(target, base, additions, stale, local, options)
    for file in local:
        if file.size <= _IN_COMMIT_BYTES and any(addition.path_in_repo == file.name for addition in additions):
            transfer.add(file.size)
    return made


def _is_branch_missing(base: Remote, options: UploadOptions) -> bool:
    revision = options.revision
    return revision is not None and revision not in base.branches and revision not in base.pull_requests


def _open_to_others(target: Target, repository: Remote, made: Commit, options: UploadOptions) -> bool:
    """Tag the commit and let others see it, as asked; return whether the repository is private."""
    where: dict[str, Any] = {"repo_id": target.repo_id, "repo_type": target.repo_type}
    if options.tag and options.tag not in repository.tags:
        target.api.create_tag(**where, tag=options.tag, revision=made.oid)
    if options.gated:
        target.api.update_repo_settings(**where, gated=options.gated)
    if options.public and repository.is_private and not options.create_pr:
        target.api.update_repo_settings(**where, private=False)
        return False
    return repository.is_private


@contextmanager
def _silent_bars() -> Iterator[None]:
    """Keep huggingface_hub's own bars from the terminal, where there is one with the whole of it."""
    was_disabled = bool(are_progress_bars_disabled())
    disable_progress_bars()
    try:
        yield
    finally:
        if not was_disabled:
            enable_progress_bars()
