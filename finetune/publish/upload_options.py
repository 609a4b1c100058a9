"""What an upload is asked to do besides sending files, and what does not go together."""

import re
from dataclasses import dataclass
from typing import Literal

from ..errors import PublishError

_REFERENCE = re.compile(r"(?!.*(?:\.\.|//|@\{))(?![-/.])[^\s~^:?*\[\\\x00-\x1f\x7f]{1,200}(?<![/.])")
_COMMIT = re.compile(r"[0-9a-f]{7,40}")


@dataclass(frozen=True)
class UploadOptions:
    """The options of `upload`, which says what they mean."""

    public: bool
    gated: Literal["auto", "manual"] | None
    revision: str | None
    create_pr: bool
    tag: str | None
    parent_commit: str | None
    message: str
    part_bytes: int


def check_options(options: UploadOptions, repo_id: str) -> None:
    """Check that the options go together.

    Raises:
        PublishError: they do not; names the option, its value and what is allowed.
    """
    if options.create_pr and options.revision not in (None, "main"):
        raise PublishError(f"{repo_id}: a pull request goes to main; leave out --revision or --create-pr")
    if options.create_pr and (options.tag or options.gated):
        raise PublishError(f"{repo_id}: a pull request changes no tags and no access; leave out --create-pr or these")
    if options.gated not in (None, "auto", "manual"):
        raise PublishError(f'{repo_id}: gated is "{options.gated}"; allowed: auto, manual')
    for option, name in (("--revision", options.revision), ("--tag", options.tag)):
        if name is not None and not _REFERENCE.fullmatch(name):
            raise PublishError(f'{repo_id}: {option} "{name}" is no name of a branch or tag in git')
    if options.parent_commit is not None and not _COMMIT.fullmatch(options.parent_commit):
        raise PublishError(
            f'{repo_id}: expected parent commit "{options.parent_commit}"; allowed: 7 to 40 digits of 0-9 and a-f'
        )
    if not options.message.strip():
        raise PublishError(f"{repo_id}: the commit needs a message")
