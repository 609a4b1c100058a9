"""Pull requests: a reference each, at the head of main when they begin."""

import json
import re
from typing import Any

from .exchange import Reply, Request
from .refusal import Refusal
from .repositories import MAIN, Repository
from .repository_routes import API


def open_pull_request(repository: Repository, title: str, commit: str) -> int:
    """Add a pull request and return its number."""
    repository.discussions.append(title)
    number = len(repository.discussions)
    repository.refs[f"refs/pr/{number}"] = commit
    return number


def list_discussions(request: Request, body: bytes, kind: str, name: str) -> Reply:
    repository = request.hub.store.open(kind, name, request.account)
    found = [_describe(repository, number + 1) for number in range(len(repository.discussions))]
    return Reply({"discussions": found, "count": len(found), "start": 0})


def add_discussion(request: Request, body: bytes, kind: str, name: str) -> Reply:
    repository = request.hub.store.open(kind, name, request.account)
    fields = json.loads(body)
    if not fields.get("pullRequest"):
        raise Refusal(400, "only pull requests here")
    number = open_pull_request(repository, fields["title"], repository.refs[MAIN])
    request.hub.store.save()
    return Reply({"num": number, "pullRequest": True})


def describe_discussion(request: Request, body: bytes, kind: str, name: str, number: str) -> Reply:
    repository = request.hub.store.open(kind, name, request.account)
    if not re.fullmatch(r"\d+", number) or not 0 < int(number) <= len(repository.discussions):
        raise Refusal(404, "Discussion not found")
    described = _describe(repository, int(number))
    changes = {"base": MAIN, "mergeCommitId": None}
    return Reply({**described, "events": [], "changes": changes, "filesWithConflicts": False, "diffUrl": None})


def _describe(repository: Repository, number: int) -> dict[str, Any]:
    return {
        "num": number,
        "title": repository.discussions[number - 1],
        "status": "open",
        "isPullRequest": True,
        "author": {"name": repository.owner},
        "createdAt": repository.commits[repository.refs[MAIN]].date,
        "repo": {"name": repository.name, "type": repository.kind},
    }


ROUTES = [
    ("GET", rf"{API}/discussions", list_discussions),
    ("POST", rf"{API}/discussions", add_discussion),
    ("GET", rf"{API}/discussions/([^/]+)", describe_discussion),
]
