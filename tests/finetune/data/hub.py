"""A Hub that serves the files of folders as data sets, over real HTTP: what `datasets` asks for when it streams."""

import hashlib
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serve_datasets(datasets: dict[str, dict[str, bytes]]) -> Iterator[str]:
    """Serve files by data set and path; give the endpoint."""

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            self.answer()

        do_HEAD = do_POST = do_GET

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
            if match := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
                content = datasets.get(match[1], {}).get(match[2])
                return self.file(content) if content is not None else self.refuse("EntryNotFound")
            match = re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(?:/([^/]+))?(?:/([^/]+))?(?:/(.*))?", path)
            if not match or match[1] not in datasets:
                return self.refuse("RepoNotFound")
            files = datasets[match[1]]
            kind, revision, folder = match[2] or "revision", match[3] or "main", match[4] or ""
            if revision not in ("main", COMMIT):
                return self.refuse("RevisionNotFound")
            if kind == "revision":
                siblings = [{"rfilename": name} for name in files]
                return self.json({"id": match[1], "sha": COMMIT, "private": False, "tags": [], "siblings": siblings})
            if kind == "tree":
                return self.json([entry(name, files[name]) for name in files if name.startswith(folder)])
            if kind == "paths-info":
                fields = urllib.parse.parse_qs(body.decode()) if body[:1] != b"{" else json.loads(body)
                return self.json([entry(name, files[name]) for name in fields["paths"] if name in files])
            return self.refuse("EntryNotFound")

        def json(self, value: object) -> None:
            self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def refuse(self, code: str) -> None:
            self.send(404, b"{}", {"X-Error-Code": code, "X-Error-Message": f"Not found: {self.path}"})

        def file(self, content: bytes) -> None:
            headers = {
                "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
                "X-Repo-Commit": COMMIT,
                "Accept-Ranges": "bytes",
            }
            if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                start, end = int(match[1]), min(int(match[2] or len(content)), len(content) - 1)
                headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
                self.send(206, content[start : end + 1], headers)
            else:
                self.send(200, content, headers)

        def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def entry(name: str, content: bytes) -> dict[str, object]:
    return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
