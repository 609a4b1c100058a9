"""Branches, tags and the history of a repository."""

import json

from .exchange import Reply, Request
from .refusal import Refusal
from .repository_routes import API


def list_references(request: Request, body: bytes, kind: str, name: str) -> Reply:
    refs = request.hub.store.open(kind, name, request.account).refs

    def below(prefix: str) -> list[dict[str, str]]:
        return [
            {"name": reference.removeprefix(prefix), "ref": reference, "targetCommit": commit}
            for reference, commit in refs.items()
            if reference.startswith(prefix)
        ]

    pulls = below("refs/pr/") if request.query.get("include_prs") else []
    return Reply({"branches": below("refs/heads/"), "tags": below("refs/tags/"), "converts": [], "pullRequests": pulls})


def list_commits(request: Request, body: bytes, kind: str, name: str, revision: str) -> Reply:
    repository = request.hub.store.open(kind, name, request.account)
    return Reply(
        [
            {
                "id": commit,
                "title": repository.commits[commit].title,
                "message": "",
                "date": repository.commits[commit].date,
                "authors": [{"user": repository.owner}],
            }
            for commit in repository.list_history(revision)
        ]
    )


def change_branch(request: Request, body: bytes, kind: str, name: str, branch: str) -> Reply:
    start = json.loads(body or b"{}").get("startingPoint", "main")
    return _change(request, kind, name, f"refs/heads/{branch}", start)


def change_tag(request: Request, body: bytes, kind: str, name: str, revision: str) -> Reply:
    tag = json.loads(body or b"{}").get("tag", revision)
    return _change(request, kind, name, f"refs/tags/{tag}", revision)


def _change(request: Request, kind: str, name: str, reference: str, start: str) -> Reply:
    repository = request.hub.store.open(kind, name, request.account, action="write")
    if request.method == "DELETE":
        repository.refs.pop(reference, None)
    elif reference in repository.refs:
        raise Refusal(409, "Reference already exists")
    else:
        repository.refs[reference] = repository.find_ref(start)[0]
    request.hub.store.save()
    return Reply({})


ROUTES = [
    ("GET", rf"{API}/refs", list_references),
    ("GET", rf"{API}/commits/([^/]+)", list_commits),
    ("POST|DELETE", rf"{API}/branch/([^/]+)", change_branch),
    ("POST|DELETE", rf"{API}/tag/([^/]+)", change_tag),
]
