"""A Hub for tests, on a port of this machine: the part of the Hub's HTTP API that huggingface_hub speaks."""

import re
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from . import (
    accounts_routes,
    commit_routes,
    discussion_routes,
    lfs_routes,
    reference_routes,
    repository_routes,
    resolve_routes,
    tree_routes,
    xet_routes,
)
from .exchange import Exchange, Reply, Request
from .faults import Faults
from .received import Journal
from .refusal import Refusal
from .repositories import Repository, Store

# Bodies of these arrive slowly, and others are answered meanwhile.
STREAMED = lfs_routes.STREAMED
ROUTES = [
    (method, re.compile(pattern), route)
    for module in (
        accounts_routes,
        lfs_routes,
        resolve_routes,
        repository_routes,
        reference_routes,
        tree_routes,
        discussion_routes,
        commit_routes,
        xet_routes,
    )
    for method, pattern, route in module.ROUTES
]


class Hub:
    """The state of a server: its store, what it was sent, what is to go wrong, and its limits."""

    def __init__(self, root: Path, *, part_bytes: int, has_xet: bool, bytes_per_s: float | None, quota: int | None):
        self.store = Store(root)
        self.journal = Journal()
        self.faults = Faults()
        # Larger objects go up in parts of this size.
        self.part_bytes = part_bytes
        self.has_xet = has_xet
        self.bytes_per_s = bytes_per_s
        self.quota = quota
        self.endpoint = ""

    @property
    def cas(self) -> Path:
        """The folder of the local Xet store."""
        return self.store.root / "cas"

    def repository(self, name: str, kind: str = "model") -> Repository:
        repository = self.store.find(kind, name)
        assert repository is not None, f"no {kind} {name}"
        return repository

    def answer(self, request: Request, path: str) -> Reply:
        """Return what the route for this path answers.

        Raises:
            Refusal: it refuses, or there is none.
        """
        for method, pattern, route in ROUTES:
            match = pattern.fullmatch(path)
            if match and request.method in method.split("|"):
                arguments = [None if group is None else urllib.parse.unquote(group) for group in match.groups()]
                if route in STREAMED:
                    return route(request, *arguments)
                body = request.body()
                with self.store.lock:
                    return route(request, body, *arguments)
        raise Refusal(404, f"no route for {request.method} {path}")


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that was killed leaves its connections broken.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def serve_hub(
    root: Path,
    *,
    part_bytes: int = 5_000_000,
    has_xet: bool = True,
    bytes_per_s: float | None = None,
    quota: int | None = None,
) -> Iterator[Hub]:
    """Serve the repositories in `root`, in threads of this process, and give the hub; its `endpoint` is its address."""
    hub = Hub(root, part_bytes=part_bytes, has_xet=has_xet, bytes_per_s=bytes_per_s, quota=quota)
    server = _Server(("127.0.0.1", 0), type("BoundExchange", (Exchange,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
