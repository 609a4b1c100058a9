"""Who a token belongs to."""

import json

from .exchange import Reply, Request
from .refusal import Refusal


def who_am_i(request: Request, body: bytes) -> Reply:
    account = request.account
    if account is None:
        raise Refusal(401, "Invalid username or password.")
    orgs = [{"type": "org", "name": name, "roleInOrg": role} for name, role in account.orgs.items()]
    token = {"displayName": "upload", "role": account.role}
    return Reply(
        {
            "type": "user",
            "id": account.name,
            "name": account.name,
            "orgs": orgs,
            "auth": {"type": "access_token", "accessToken": token},
        }
    )


def validate_card(request: Request, body: bytes) -> Reply:
    is_card = json.loads(body)["content"].startswith("---")
    warnings = [] if is_card else [{"message": "empty or missing yaml metadata in repo card"}]
    return Reply({"errors": [], "warnings": warnings})


ROUTES = [
    ("GET", r"/api/whoami-v2", who_am_i),
    ("POST", r"/api/validate-yaml", validate_card),
]
