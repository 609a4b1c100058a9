"""The one commit that makes an upload seen, also where the Hub's answer to it is lost on the way."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.errors import HfHubHTTPError, HTTPError

from .hub_errors import Target
from .hub_repository import MAIN, Remote, read_remote
from .local_files import LocalFile
from .upload_options import UploadOptions
from .verify import is_same

_WEIGHTS = (".safetensors", ".safetensors.index.json")
_TRIES = 4
_FIRST_WAIT_S = 1.0
# A Hub that asks for more patience than this is told of instead.
_LONGEST_WAIT_S = 300.0
# An upload that was killed between its commit and the answer to it is looked for among so many of the newest.
_MAX_PULL_REQUESTS = 20


@dataclass(frozen=True)
class Commit:
    """A commit with the files, the address of its pull request if it is in one, and the weights that it removed."""

    oid: str
    pull_request: str | None
    removed: list[str]


def list_stale(base: Remote, local: Sequence[LocalFile]) -> list[str]:
    """Return the weights that are in the repository and are not of this version.

    A `model.safetensors` from before would be loaded in place of new shards.
    """
    names = {file.name for file in local}
    if not any(name.endswith(_WEIGHTS) for name in names):
        return []
    return sorted(name for name in base.files if name.endswith(_WEIGHTS) and name not in names)


def find_pull_request(target: Target, base: Remote, local: Sequence[LocalFile]) -> Commit | None:
    """Return the newest pull request that offers these very files: an upload may have been killed right after it."""
    numbers = sorted((int(ref.rpartition("/")[2]) for ref in base.pull_requests), reverse=True)
    for number in numbers[:_MAX_PULL_REQUESTS]:
        oid = base.pull_requests[f"refs/pr/{number}"]
        if oid != base.head and is_same(target, local, oid):
            return Commit(oid, f"{target.api.endpoint}/{target}/discussions/{number}", [])
    return None


def commit_files(
    target: Target,
    base: Remote,
    additions: Sequence[CommitOperationAdd],
    stale: Sequence[str],
    local: Sequence[LocalFile],
    options: UploadOptions,
) -> Commit:
    """Make the commit on top of `base`, and no other; stored files are named in it, small ones are part of it.

    Raises:
        huggingface_hub.errors.HfHubHTTPError: the Hub refused, also because somebody has committed meanwhile.
    """
    operations = [*(CommitOperationDelete(name) for name in stale), *additions]
    where: dict[str, Any] = {"repo_id": target.repo_id, "repo_type": target.repo_type}
    wait_s = _FIRST_WAIT_S
    for tries_left in reversed(range(_TRIES)):
        try:
            made = target.api.create_commit(
                **where,
                operations=operations,
                commit_message=options.message,
                revision=options.revision,
                create_pr=options.create_pr,
                parent_commit=base.head,
            )
        except HTTPError as error:
            pause_s = _pause(error, wait_s)
            if not tries_left or pause_s is None:
                raise
        else:
            return Commit(made.oid, made.pr_url, list(stale))
        time.sleep(pause_s)
        wait_s *= 2
        if found := _find_made(target, base, local, stale, options):
            return found
    raise AssertionError("the last try returns or raises")


def _pause(error: HTTPError, usual_s: float) -> float | None:
    """Return how long to wait before another try, as the Hub asks where it does; None where that is of no use."""
    if not isinstance(error, HfHubHTTPError) or error.response.status_code >= 500:
        return usual_s
    after = error.response.headers.get("Retry-After", "")
    if error.response.status_code != 429 or not after.isdigit() or int(after) > _LONGEST_WAIT_S:
        return None
    return float(after)


def _find_made(
    target: Target, base: Remote, local: Sequence[LocalFile], stale: Sequence[str], options: UploadOptions
) -> Commit | None:
    """Return the commit if it was made although no answer came."""
    now = read_remote(target, options.revision or MAIN)
    if options.create_pr:
        return find_pull_request(target, now, local)
    if now.head != base.head and is_same(target, local, now.head):
        return Commit(now.head, None, list(stale))
    return None
