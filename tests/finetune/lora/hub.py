"""A Hub of one repository, to read from: what huggingface_hub asks for when it downloads files of a model."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MODEL = "acme/base"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder: Path
    asked: list[str]

    def do_GET(self) -> None:
        if self.path.startswith(f"/api/models/{MODEL}"):
            sizes = {file.name: file.stat().st_size for file in sorted(self.folder.iterdir())}
            tree = [{"type": "file", "oid": COMMIT, "size": size, "path": name} for name, size in sizes.items()]
            about = {"id": MODEL, "sha": COMMIT, "siblings": [{"rfilename": name} for name in sizes]}
            self._answer(json.dumps(tree if "/tree/" in self.path else about).encode())
            return
        name = self.path.removeprefix(f"/{MODEL}/resolve/{COMMIT}/")
        if not (self.folder / name).is_file():
            self.send_error(404)
            return
        if self.command == "GET":
            self.asked.append(name)
        body = (self.folder / name).read_bytes()
        self._answer(body, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(body).hexdigest()}"'})

    do_HEAD = do_GET

    def _answer(self, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def serving(folder: Path):
    """Serve the files in `folder` as the model `MODEL`; gives the address, and a list that files sent are added to."""
    asked: list[str] = []
    handler = type("Handler", (_Handler,), {"folder": folder, "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
