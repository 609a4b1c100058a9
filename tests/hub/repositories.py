"""Repositories of the test Hub: commits, references and objects, in a folder that outlives the server."""

import hashlib
import json
import os
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .accounts import Account
from .refusal import Refusal

MAIN = "refs/heads/main"


@dataclass
class Entry:
    """A file of a commit: git's hash of its content or of its LFS pointer, and where the content is."""

    oid: str
    size: int
    lfs: str | None = None
    xet: str | None = None


@dataclass
class Commit:
    """A tree by path, and where it came from."""

    tree: dict[str, Entry]
    parent: str | None
    title: str
    date: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime()))


@dataclass
class Repository:
    """One repository of one type."""

    kind: str
    name: str
    is_private: bool
    gated: str | bool = False
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    discussions: list[str] = field(default_factory=list)
    # Of an organization, only these may see it, where there are any.
    readers: list[str] | None = None

    @property
    def owner(self) -> str:
        return self.name.partition("/")[0]

    def find_ref(self, revision: str) -> tuple[str, str | None]:
        """Return the commit of a branch, tag, reference or commit, and the reference that it is."""
        for reference in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}"):
            if reference in self.refs:
                return self.refs[reference], reference
        if revision in self.commits:
            return revision, None
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def tree(self, revision: str = "main") -> dict[str, Entry]:
        return self.commits[self.find_ref(revision)[0]].tree

    def add_commit(self, tree: dict[str, Entry], parent: str | None, title: str) -> str:
        commit = hashlib.sha1(os.urandom(16)).hexdigest()
        self.commits[commit] = Commit(tree, parent, title)
        return commit

    def list_history(self, revision: str = "main") -> list[str]:
        """Return the commits from the newest to the first."""
        commit: str | None = self.find_ref(revision)[0]
        history = []
        while commit:
            history.append(commit)
            commit = self.commits[commit].parent
        return history


class Store:
    """All repositories and objects below one folder; what is saved there, a later server finds."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lock = threading.RLock()
        self.repositories: dict[str, Repository] = {}
        for folder in ("objects", "uploads"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        self._file = root / "repositories.json"
        if self._file.exists():
            self._load(json.loads(self._file.read_text()))

    def save(self) -> None:
        """Write every repository, replacing the file at once."""
        beside = self._file.with_suffix(".new")
        beside.write_text(json.dumps({key: asdict(repository) for key, repository in self.repositories.items()}))
        beside.replace(self._file)

    def add(self, repository: Repository) -> None:
        attributes = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
        first = repository.add_commit({".gitattributes": self.put_blob(attributes)}, None, "initial commit")
        repository.refs[MAIN] = first
        self.repositories[f"{repository.kind}:{repository.name}"] = repository
        self.save()

    def find(self, kind: str, name: str) -> Repository | None:
        return self.repositories.get(f"{kind}:{name}")

    def open(self, kind: str, name: str, account: Account | None, *, action: str = "read") -> Repository:
        """Return a repository for `action`, one of see, read and write; refuse as the Hub does."""
        repository = self.find(kind, name)
        is_reader = repository is not None and account is not None and account.may_read(repository.owner)
        if is_reader and repository and account and repository.readers is not None:
            is_reader = account.name in repository.readers
        if repository is None or (repository.is_private and not is_reader):
            raise Refusal(401 if account is None else 404, "Repository not found", "RepoNotFound")
        if action == "write" and (account is None or not account.may_write(repository.owner)):
            status = 401 if account is None else 403
            raise Refusal(status, "You don't have the rights to write to this repository")
        if action == "read" and repository.gated and not is_reader:
            raise Refusal(401 if account is None else 403, f"Access to {kind} {name} is restricted", "GatedRepo")
        return repository

    def object(self, oid: str) -> Path:
        return self.root / "objects" / oid

    def has(self, oid: str) -> bool:
        return self.object(oid).exists()

    def put_blob(self, content: bytes) -> Entry:
        oid = hash_blob(content)
        self.object(oid).write_bytes(content)
        return Entry(oid, len(content))

    def count_bytes(self) -> int:
        """Return the size of every object that is kept, for the quota."""
        return sum(path.stat().st_size for path in (self.root / "objects").iterdir())

    def _load(self, saved: dict[str, Any]) -> None:
        for key, fields in saved.items():
            commits = {
                oid: Commit(
                    {path: Entry(**entry) for path, entry in commit["tree"].items()},
                    commit["parent"],
                    commit["title"],
                    commit["date"],
                )
                for oid, commit in fields.pop("commits").items()
            }
            self.repositories[key] = Repository(**fields, commits=commits)


def hash_blob(content: bytes) -> str:
    """Return git's hash of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def point_to(oid: str, size: int) -> Entry:
    """Return the entry of a file in LFS: its git hash is that of the pointer."""
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n"
    return Entry(hash_blob(pointer.encode()), size, lfs=oid)
