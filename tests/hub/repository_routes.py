"""Making, describing, changing and deleting repositories."""

import json

from .exchange import Reply, Request
from .refusal import Refusal
from .repositories import Repository

API = r"/api/(model|dataset|space|kernel)s/([^/]+/[^/]+)"


def create(request: Request, body: bytes) -> Reply:
    account, fields = request.account, json.loads(body)
    if account is None:
        raise Refusal(401, "Invalid username or password.")
    owner, kind = fields.get("organization") or account.name, fields.get("type") or "model"
    if not account.may_write(owner):
        raise Refusal(403, f'You don\'t have the rights to create a {kind} under the namespace "{owner}"')
    name = f"{owner}/{fields['name']}"
    prefix = "" if kind == "model" else f"{kind}s/"
    url = f"{request.base}/{prefix}{name}"
    if request.hub.store.find(kind, name):
        return Reply({"error": f"You already created this {kind} repo", "url": url}, 409)
    is_private = fields.get("visibility") == "private" or bool(fields.get("private"))
    request.hub.store.add(Repository(kind, name, is_private))
    return Reply({"url": url, "name": name})


def delete(request: Request, body: bytes) -> Reply:
    account, fields = request.account, json.loads(body)
    owner = fields.get("organization") or (account.name if account else "")
    kind, name = fields.get("type") or "model", f"{owner}/{fields['name']}"
    request.hub.store.open(kind, name, account, action="write")
    del request.hub.store.repositories[f"{kind}:{name}"]
    request.hub.store.save()
    return Reply({})


def describe(request: Request, body: bytes, kind: str, name: str, revision: str | None = None) -> Reply:
    repository = request.hub.store.open(kind, name, request.account, action="see")
    commit, _ = repository.find_ref(revision or "main")
    tree = repository.commits[commit].tree
    siblings = []
    for path, entry in sorted(tree.items()):
        sizes = {"size": entry.size, "blobId": entry.oid} if request.query.get("blobs") else {}
        siblings.append({"rfilename": path, **sizes})
    date = repository.commits[commit].date
    return Reply(
        {
            "_id": "0" * 24,
            "id": name,
            "author": repository.owner,
            "sha": commit,
            "lastModified": date,
            "createdAt": date,
            "private": repository.is_private,
            "gated": repository.gated,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": siblings,
        }
    )


def change_settings(request: Request, body: bytes, kind: str, name: str) -> Reply:
    repository = request.hub.store.open(kind, name, request.account, action="write")
    fields = json.loads(body)
    if "private" in fields or "visibility" in fields:
        repository.is_private = fields.get("private", fields.get("visibility") == "private")
    if "gated" in fields:
        repository.gated = fields["gated"]
    request.hub.store.save()
    return Reply(fields)


def check_access(request: Request, body: bytes, kind: str, name: str, write: str | None) -> Reply:
    request.hub.store.open(kind, name, request.account, action="write" if write else "read")
    return Reply({})


ROUTES = [
    ("POST", r"/api/repos/create", create),
    ("DELETE", r"/api/repos/delete", delete),
    ("GET", API, describe),
    ("GET", rf"{API}/revision/([^/]+)", describe),
    ("PUT", rf"{API}/settings", change_settings),
    ("GET", rf"{API}/auth-check(/write)?", check_access),
]
