"""Files of a commit with their sizes and hashes."""

import json
import urllib.parse
from typing import Any

from .exchange import Reply, Request
from .refusal import Refusal
from .repositories import Entry
from .repository_routes import API


def describe_file(path: str, entry: Entry) -> dict[str, Any]:
    described: dict[str, Any] = {"type": "file", "oid": entry.oid, "size": entry.size, "path": path}
    if entry.lfs:
        described["lfs"] = {"oid": entry.lfs, "size": entry.size, "pointerSize": 134}
    if entry.xet:
        described["xetHash"] = entry.xet
    return described


def list_tree(request: Request, body: bytes, kind: str, name: str, revision: str, folder: str | None = None) -> Reply:
    repository = request.hub.store.open(kind, name, request.account)
    commit, _ = repository.find_ref(revision)
    prefix = f"{folder}/" if folder else ""
    is_recursive = request.query.get("recursive", "").lower() == "true"
    files, folders = [], set()
    for path, entry in sorted(repository.commits[commit].tree.items()):
        if not path.startswith(prefix):
            continue
        parts = path.removeprefix(prefix).split("/")
        depth = len(parts) if is_recursive else min(2, len(parts))
        folders |= {prefix + "/".join(parts[:end]) for end in range(1, depth)}
        if is_recursive or len(parts) == 1:
            files.append(describe_file(path, entry))
    if prefix and not files and not folders:
        raise Refusal(404, f"{prefix} does not exist", "EntryNotFound")
    listed = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": path} for path in sorted(folders)]
    return Reply(listed + files, headers={"X-Repo-Commit": commit})


def describe_paths(request: Request, body: bytes, kind: str, name: str, revision: str) -> Reply:
    tree = request.hub.store.open(kind, name, request.account).tree(revision)
    is_json = body.startswith(b"{")
    paths = json.loads(body)["paths"] if is_json else urllib.parse.parse_qs(body.decode()).get("paths", [])
    return Reply([describe_file(path, tree[path]) for path in paths if path in tree])


ROUTES = [
    ("GET", rf"{API}/tree/([^/]+)(?:/(.*))?", list_tree),
    ("POST", rf"{API}/paths-info/([^/]+)", describe_paths),
]
