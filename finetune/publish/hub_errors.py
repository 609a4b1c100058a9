"""What the Hub refuses, in one line that says what to do; no token and no signed address is ever part of it."""

import errno
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import http_backoff

from ..errors import PublishError
from ..hub_reach import why_unreachable

GOES_ON = "what was sent is kept, and the same command goes on from there"
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{8,}|\bBearer\s+\S+")
_SIGNATURE = re.compile(r"\?[^\s'\"]*(?:[Ss]ignature|X-Amz|[Tt]oken)[^\s'\"]*")
_EXPIRED = re.compile(r"\bexpired\b", re.IGNORECASE)
# As hf_xet, which is Rust, tells of a full disk: no space, a quota, a limit on the size of files.
_DISK_FULL = re.compile(r"no space left|\(os error (?:28|122|27)\)", re.IGNORECASE)
_QUOTA = re.compile(r"storage (?:limit|quota)|quota|upgrade your plan", re.IGNORECASE)


@dataclass(frozen=True)
class Target:
    """A repository of the Hub, and the client that reaches it."""

    repo_id: str
    repo_type: str
    api: HfApi
    user: str = ""

    def __str__(self) -> str:
        prefix = "" if self.repo_type == "model" else f"{self.repo_type}s/"
        return f"{prefix}{self.repo_id}"


def hide_secrets(text: str) -> str:
    """Return `text` without tokens, those of this machine included, and without the signatures of addresses."""
    if (token := get_token()) and len(token) >= 4:
        text = text.replace(token, "hf_…")
    return _SIGNATURE.sub("?…", _TOKEN.sub("hf_…", text))


def advise_token(endpoint: str) -> str:
    """Return where a token is to be had, and where it goes."""
    # The variable comes before what is stored: a login would change nothing.
    goes = "set HF_TOKEN to it" if os.environ.get("HF_TOKEN") else "run: hf auth login"
    return f"make one with write access at {endpoint}/settings/tokens, then {goes}"


@contextmanager
def in_words(target: Target) -> Iterator[None]:
    """Turn what the Hub's libraries raise in the block into a `PublishError` of one line, and what they warn into none.

    Raises:
        PublishError: whatever the Hub, the network or the disk refused.
    """
    try:
        with _no_warnings_of_tries():
            yield
    except PublishError:
        raise
    # RuntimeError is how huggingface_hub and hf_xet tell of an upload that failed; an OSError is also its HTTP error.
    except (OSError, HTTPError, HFValidationError, RuntimeError, ValueError) as error:
        said = hide_secrets(describe(error, target))
        # The chain would carry addresses that are signed, and requests with their headers.
        raise PublishError(" ".join(said.split())) from None


@contextmanager
def _no_warnings_of_tries() -> Iterator[None]:
    """Keep from the terminal that huggingface_hub tries again, which it tells of with signed addresses."""
    logger = logging.getLogger(http_backoff.__module__)
    level = logger.level
    # Who asks for more than warnings gets them.
    if logger.getEffectiveLevel() == logging.WARNING:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def describe(error: BaseException, target: Target) -> str:
    """Return what went wrong with `target` and what to do."""
    while error.__cause__ is not None and not isinstance(error, HTTPError):
        error = error.__cause__
    if isinstance(error, OfflineModeIsEnabled):
        return f"{target}: HF_HUB_OFFLINE is set, so nothing is sent; unset it and run the same command again"
    if isinstance(error, HfHubHTTPError):
        return f"{target}: {_describe_answer(error, target)}"
    if isinstance(error, HTTPError):
        return f"{target}: {why_unreachable() or 'the connection to the Hub broke'}; {GOES_ON}"
    is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if is_full or _DISK_FULL.search(str(error)):
        where = getattr(error, "filename", None) or "the cache of huggingface_hub"
        return f"{where}: no space left on the disk; free some, or set HF_HOME to a folder on another one; {GOES_ON}"
    if isinstance(error, OSError):
        return f"{error.filename or target}: {error.strerror or error}"
    said = next(iter(str(error).strip().splitlines()), type(error).__name__)
    if why := why_unreachable():
        return f"{target}: {why}; {GOES_ON}"
    return f"{target}: the upload stopped: {said}; {GOES_ON}"


def _describe_answer(error: HfHubHTTPError, target: Target) -> str:
    status = error.response.status_code
    said = (error.server_message or error.response.headers.get("X-Error-Message", "")).strip().splitlines()
    reason = said[0].rstrip(".") if said else f"HTTP status {status}"
    match status:
        case 401 if _EXPIRED.search(reason):
            return f"the token has expired; {advise_token(target.api.endpoint)}"
        case 401 if not isinstance(error, RepositoryNotFoundError):
            return f"the Hub does not take the token; {advise_token(target.api.endpoint)}"
        case 402 | 403 if _QUOTA.search(reason):
            return f"the storage is full: {reason}; delete what is not needed, or publish under another account"
        case 403:
            who = f"the token of {target.user}" if target.user else "the token"
            where = f"{target.api.endpoint}/settings/tokens"
            return (
                f"{who} may not write here ({reason}); take one that may, from {where}, or offer it as a pull request"
            )
        case 401 | 404 if isinstance(error, RevisionNotFoundError):
            return f"there is no such branch, tag or commit ({reason})"
        case 401 | 404:
            return f"not found, or not for the eyes of this token ({reason}); check the name and the token"
        case 412:
            return (
                "somebody has committed meanwhile, and nothing was changed; look at it, then run the same command again"
            )
        case 413:
            return f"the Hub takes no request that large ({reason}); publish fewer files at once"
        case 429:
            return f"the Hub takes no more requests for now (rate limit); try again {_when(error)}; {GOES_ON}"
        case _ if status >= 500:
            return f"the Hub failed several times ({status}: {reason}); try again later; {GOES_ON}"
        case _:
            return f"the Hub refused ({status}: {reason})"


def _when(error: HfHubHTTPError) -> str:
    after = error.response.headers.get("Retry-After", "")
    return f"in {int(after):,} s" if after.isdigit() else "in five minutes"
