"""Whether the Hub answers at all: its own library tries for half a minute, several times a command, before it says."""

import os
import ssl
import urllib.error
import urllib.request

from huggingface_hub import constants, is_offline_mode

# A slow line needs one for name, connection and handshake; without a network most machines say so at once.
_TIMEOUT_S = 5.0


def why_unreachable() -> str:
    """Return why the Hub cannot be reached, as a sentence without its end, or nothing where it answers.

    Nothing, too, where the libraries are told to stay offline (`HF_HUB_OFFLINE`): they do not ask then.
    """
    if is_offline_mode():
        return ""
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        # Whatever it answers, it is there.
        return ""
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        # Python's own certificates may be others than those that the libraries take.
        if isinstance(reason, ssl.SSLError):
            return ""
        said = getattr(reason, "strerror", None) or reason
        return f"the Hub ({constants.ENDPOINT}) cannot be reached: {said}"
    return ""


def is_cache_all(path: str) -> bool:
    """Return whether `path` is a name on the Hub that can only be in the cache: `local_files_only` then saves time."""
    return _is_name(path) and bool(why_unreachable())


def say_not_found(path: str, error: Exception) -> str:
    """Return the first line of what went wrong in loading `path`; or, where it could not be asked for, that."""
    if _is_name(path) and isinstance(error, OSError) and (why := why_unreachable()):
        return f"{why}, and the cache does not hold it; name a folder, or try again with a network"
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _is_name(path: str) -> bool:
    return not os.path.exists(os.path.expanduser(path))
