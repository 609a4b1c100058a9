"""Who may do what on the test Hub: tokens, and the users and roles behind them."""

from dataclasses import dataclass, field
from typing import Literal

from .refusal import Refusal


@dataclass(frozen=True)
class Account:
    """A user with one token; `orgs` maps organizations to what the user may do there."""

    name: str
    role: Literal["write", "read"] = "write"
    is_expired: bool = False
    orgs: dict[str, Literal["write", "read"]] = field(default_factory=dict)

    def may_write(self, owner: str) -> bool:
        return self.role == "write" and (owner == self.name or self.orgs.get(owner) == "write")

    def may_read(self, owner: str) -> bool:
        return owner == self.name or owner in self.orgs


# Split, so that no scan for secrets takes them for real ones. None of them was ever a token of the Hub.
WRITE_TOKEN = "hf_" + "aliceWRITEaliceWRITEaliceWRITE0000"
READ_TOKEN = "hf_" + "aliceREADaliceREADaliceREAD0000000"
OTHER_TOKEN = "hf_" + "bobWRITEbobWRITEbobWRITEbobWRITE00"
EXPIRED_TOKEN = "hf_" + "aliceEXPIREDaliceEXPIREDalice00000"
UNKNOWN_TOKEN = "hf_" + "nobodynobodynobodynobodynobody0000"
ACCOUNTS = {
    WRITE_TOKEN: Account("alice", orgs={"acme": "write", "readers": "read"}),
    READ_TOKEN: Account("alice", "read"),
    OTHER_TOKEN: Account("bob"),
    EXPIRED_TOKEN: Account("alice", is_expired=True),
}


def find_account(authorization: str | None) -> Account | None:
    """Return whose token a request carries, or nothing where it carries none.

    Raises:
        Refusal: the token is unknown or expired.
    """
    if authorization is None:
        return None
    account = ACCOUNTS.get(authorization.removeprefix("Bearer ").strip())
    if account is None:
        raise Refusal(401, "Invalid credentials in Authorization header")
    if account.is_expired:
        raise Refusal(401, 'User Access Token "upload" is expired')
    return account
