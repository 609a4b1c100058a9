"""The account that publishes: its token, and the repository it names."""

import re
from typing import Any

from huggingface_hub import HfApi, constants, get_token, is_offline_mode

from ..errors import PublishError
from ..hub_reach import why_unreachable
from .hub_errors import Target, advise_token, in_words

# As the Hub itself has it: letters, digits, dots, dashes and underscores, no two of `-` and `.` in a row.
_NAME = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9_][A-Za-z0-9._-]{0,95}(?<![-.])")


def check_name(repo_id: str) -> None:
    """Check that `repo_id` is OWNER/NAME as the Hub takes it.

    Raises:
        PublishError: it is not; says what is allowed.
    """
    parts = repo_id.split("/")
    if len(parts) != 2:
        raise PublishError(f'repository "{repo_id}": name the owner, too, as in acme/support-assistant')
    for part in parts:
        if not _NAME.fullmatch(part) or part.endswith(".git") or len(repo_id) > 96:
            raise PublishError(
                f'repository "{repo_id}": "{part}" is no name on the Hub; allowed: letters, digits, "-", "_" and ".", '
                'at most 96 in all, no "--" or "..", no "-" or "." at an end, no ".git"'
            )


def open_target(repo_id: str, repo_type: str = "model", *, token: str | None = None) -> Target:
    """Return the repository and a client for it that has shown its token; it need not exist yet.

    Raises:
        PublishError: the name is not one, the Hub is out of reach, or the token is missing, bad or for reading only.
    """
    check_name(repo_id)
    _check_online(repo_id, "nothing is sent")
    token = token or get_token()
    if token is None:
        raise PublishError(f"{repo_id}: there is no token for the Hub; {advise_token(constants.ENDPOINT)}")
    _check_reachable(repo_id, "nothing was sent")
    target = Target(repo_id, repo_type, HfApi(endpoint=constants.ENDPOINT, token=token, library_name="seeklet"))
    with in_words(target):
        account: dict[str, Any] = target.api.whoami()
    if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise PublishError(f"{repo_id}: the token is for reading only; {advise_token(constants.ENDPOINT)}")
    return Target(repo_id, repo_type, target.api, account.get("name", ""))


def open_for_reading(repo_id: str, repo_type: str = "model", *, token: str | None = None) -> Target:
    """Return the repository and a client that reads it, with the token of this machine where there is one.

    Raises:
        PublishError: the name is not one, or the Hub is out of reach.
    """
    check_name(repo_id)
    _check_online(repo_id, "nothing is compared")
    _check_reachable(repo_id, "nothing was compared")
    token = token or get_token()
    return Target(repo_id, repo_type, HfApi(endpoint=constants.ENDPOINT, token=token or False, library_name="seeklet"))


def _check_online(repo_id: str, hence: str) -> None:
    if is_offline_mode():
        raise PublishError(f"{repo_id}: HF_HUB_OFFLINE is set, so {hence}; unset it and run the same command again")


def _check_reachable(repo_id: str, hence: str) -> None:
    if why := why_unreachable():
        raise PublishError(f"{repo_id}: {why}; {hence}; try again with a network")
