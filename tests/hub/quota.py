"""How much the test Hub lets a user store."""

from typing import TYPE_CHECKING

from .refusal import Refusal

if TYPE_CHECKING:
    from .server import Hub

MESSAGE = "Private repository storage limit reached, please upgrade your plan to increase your private storage limit."


def check_quota(hub: "Hub", num_bytes: int) -> None:
    """Refuse as the Hub does where so many more bytes are too many."""
    if hub.quota is not None and hub.store.count_bytes() + num_bytes > hub.quota:
        raise Refusal(403, MESSAGE)
