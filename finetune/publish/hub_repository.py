"""A repository before anything is sent: whether it is there, what it holds, who sees it."""

from dataclasses import dataclass, field
from typing import Any

from huggingface_hub.constants import REPO_TYPE_MODEL, REPO_TYPES_WITH_KERNEL
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

from ..errors import PublishError
from .hub_errors import Target, in_words

MAIN = "main"


@dataclass(frozen=True)
class Remote:
    """What a repository holds at one commit; `branches`, `tags` and `pull_requests` map names to commits."""

    head: str
    is_private: bool
    files: dict[str, RepoFile] = field(repr=False)
    branches: dict[str, str]
    tags: dict[str, str]
    pull_requests: dict[str, str]


def open_repository(target: Target, *, public: bool, is_new_allowed: bool) -> Remote:
    """Return the repository as it is on main; one that is not there is made, private.

    Raises:
        PublishError: it is public and `public` is not asked for, of another type, not the token's to write to, or not
            there although it must be (for a pull request).
    """
    with in_words(target):
        try:
            remote = read_remote(target)
        except RepositoryNotFoundError:
            _check_no_other_type(target)
            if not is_new_allowed:
                raise PublishError(
                    f"{target}: there is no such repository to offer a pull request to; publish without --create-pr"
                ) from None
            _create(target)
            remote = read_remote(target)
    if not remote.is_private and not public:
        raise PublishError(
            f"{target}: this repository is public, and all that goes there is; add --public if that is meant, make it "
            "private in its settings, or take another name"
        )
    return remote


def read_remote(target: Target, revision: str | None = None) -> Remote:
    """Return what the repository holds at a revision, by default main.

    Raises:
        huggingface_hub.errors.HfHubHTTPError: the Hub refused.
    """
    api = target.api
    where: dict[str, Any] = {"repo_id": target.repo_id, "repo_type": target.repo_type}
    info = api.repo_info(**where, revision=revision)
    refs = api.list_repo_refs(**where, include_pull_requests=True)
    head = info.sha or ""
    return Remote(
        head,
        bool(getattr(info, "private", False)),
        read_tree(target, head),
        {ref.name: ref.target_commit for ref in refs.branches},
        {ref.name: ref.target_commit for ref in refs.tags},
        {ref.ref: ref.target_commit for ref in refs.pull_requests or []},
    )


def read_tree(target: Target, revision: str) -> dict[str, RepoFile]:
    """Return every file of a commit, with its size and hashes, by its path."""
    listed = target.api.list_repo_tree(
        target.repo_id, repo_type=target.repo_type, revision=revision, recursive=True, expand=False
    )
    return {entry.path: entry for entry in listed if isinstance(entry, RepoFile)}


def _create(target: Target) -> None:
    try:
        # Public, if at all, once everything is there and compared.
        target.api.create_repo(target.repo_id, repo_type=target.repo_type, private=True)
    except HfHubHTTPError as error:
        if error.response.status_code != 409:
            raise
        raise PublishError(
            f"{target}: the name is taken by a repository that this token may not see; take another name, or ask its "
            "owner to let you in"
        ) from None


def _check_no_other_type(target: Target) -> None:
    for other in REPO_TYPES_WITH_KERNEL:
        if other == target.repo_type:
            continue
        try:
            target.api.repo_info(target.repo_id, repo_type=other)
        except HfHubHTTPError as error:
            if error.response.status_code not in (401, 403, 404):
                raise
            continue
        kind = "model" if target.repo_type == REPO_TYPE_MODEL else target.repo_type
        raise PublishError(f"{target.repo_id}: is a {other} on the Hub, not a {kind}; take another name")
