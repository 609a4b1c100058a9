"""Commits: which files go up as large ones, and all changes at once, a line of JSON each."""

import base64
import json
from typing import Any

from .discussion_routes import open_pull_request
from .exchange import Reply, Request
from .quota import check_quota
from .refusal import Refusal
from .repositories import Entry, Repository, point_to
from .repository_routes import API
from .xet_routes import find_xet_files

LARGE_SUFFIXES = (".safetensors", ".bin", ".gguf", ".pt", ".model", ".parquet", ".arrow", ".png")
LARGE_BYTES = 10_000_000


def prepare(request: Request, body: bytes, kind: str, name: str, revision: str) -> Reply:
    action = "read" if request.query.get("create_pr") else "write"
    repository = request.hub.store.open(kind, name, request.account, action=action)
    tree = repository.tree(revision)
    files = []
    for file in json.loads(body)["files"]:
        is_large = file["path"].endswith(LARGE_SUFFIXES) or file["size"] > LARGE_BYTES
        described = {"path": file["path"], "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False}
        if known := tree.get(file["path"]):
            described["oid"] = known.lfs or known.oid
        files.append(described)
    return Reply({"files": files})


def commit(request: Request, body: bytes, kind: str, name: str, revision: str) -> Reply:
    is_pull = bool(request.query.get("create_pr"))
    repository = request.hub.store.open(kind, name, request.account, action="read" if is_pull else "write")
    head, reference = repository.find_ref(revision)
    lines = [json.loads(line) for line in body.split(b"\n") if line.strip()]
    header = lines[0]["value"]
    expected = header.get("parentCommit")
    if expected and not head.startswith(expected):
        raise Refusal(412, "A commit has happened since. Please refresh and try again.")
    if reference is None and not is_pull:
        raise Refusal(400, "cannot commit to a detached commit")
    check_quota(request.hub, sum(len(line["value"].get("content", "")) * 3 // 4 for line in lines[1:]))
    tree = dict(repository.commits[head].tree)
    for line in lines[1:]:
        _apply(request, tree, line["key"], line["value"])
    made = repository.add_commit(tree, head, header["summary"])
    answer = {"success": True, "commitOid": made, "commitUrl": f"{request.base}/{name}/commit/{made}"}
    if is_pull:
        number = open_pull_request(repository, header["summary"], made)
        answer["pullRequestUrl"] = f"{request.base}/{name}/discussions/{number}"
    else:
        _move(repository, reference, made)
    request.hub.store.save()
    return Reply(answer)


def _move(repository: Repository, reference: str | None, made: str) -> None:
    assert reference is not None
    repository.refs[reference] = made


def _apply(request: Request, tree: dict[str, Entry], key: str, value: dict[str, Any]) -> None:
    path = value["path"]
    if key == "file":
        tree[path] = request.hub.store.put_blob(base64.b64decode(value["content"]))
    elif key == "lfsFile":
        entry = point_to(value["oid"], value["size"])
        if not request.hub.store.has(value["oid"]):
            entry.xet = find_xet_files(request.hub).get(value["oid"])
            if entry.xet is None:
                raise Refusal(400, f"LFS object {value['oid']} not found")
        tree[path] = entry
    elif key == "deletedFile":
        if path not in tree:
            raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
        del tree[path]
    elif key == "deletedFolder":
        for inside in [other for other in tree if other.startswith(path.rstrip("/") + "/")]:
            del tree[inside]


ROUTES = [
    ("POST", rf"{API}/preupload/([^/]+)", prepare),
    ("POST", rf"{API}/commit/([^/]+)", commit),
]
