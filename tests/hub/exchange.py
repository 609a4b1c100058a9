"""One request to the test Hub and its answer, over a real socket."""

import json
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

from .accounts import Account, find_account
from .faults import Fault, strike
from .received import Received
from .refusal import Dropped, Refusal

if TYPE_CHECKING:
    from .server import Hub

READ_BYTES = 1 << 16


@dataclass
class Reply:
    """An answer: bytes as they are, anything else as JSON."""

    body: Any = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    # Of the content where it is not sent, as to HEAD.
    length: int | None = None


@dataclass
class Request:
    """A request as the routes see it."""

    hub: "Hub"
    handler: BaseHTTPRequestHandler
    entry: Received
    query: dict[str, str]
    fault: Fault | None

    @property
    def method(self) -> str:
        return self.handler.command

    @property
    def base(self) -> str:
        return f"http://{self.handler.headers['Host']}"

    @property
    def account(self) -> Account | None:
        return find_account(self.handler.headers.get("Authorization"))

    def header(self, name: str) -> str:
        return self.handler.headers.get(name, "")

    def read(self) -> Iterator[bytes]:
        """Give the body as it arrives, at the hub's pace, and count it; a fault may break it off."""
        limit = self.fault.after_bytes if self.fault and self.fault.status is None else None
        for piece in self._pieces():
            self.entry.num_bytes += len(piece)
            if limit is not None and self.entry.num_bytes >= limit:
                raise Dropped
            if self.hub.bytes_per_s:
                time.sleep(len(piece) / self.hub.bytes_per_s)
            yield piece

    def body(self) -> bytes:
        return b"".join(self.read())

    def _pieces(self) -> Iterator[bytes]:
        stream = self.handler.rfile
        if self.header("Transfer-Encoding").lower() == "chunked":
            while size := int(stream.readline().split(b";")[0], 16):
                yield _take(stream.read(size), size)
                stream.readline()
            stream.readline()
            self.entry.expected = self.entry.num_bytes
            return
        left = int(self.header("Content-Length") or 0)
        while left:
            # read1 gives what is there: what arrived before a connection breaks is counted.
            piece = stream.read1(min(left, READ_BYTES))  # pyright: ignore[reportAttributeAccessIssue]
            yield _take(piece, 1)
            left -= len(piece)


def _take(piece: bytes, least: int) -> bytes:
    if len(piece) < least:
        raise Dropped
    return piece


Route = Callable[..., Reply]


class Exchange(BaseHTTPRequestHandler):
    """Answers requests with the routes of its hub."""

    protocol_version = "HTTP/1.1"
    hub: "Hub"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        entry = self.hub.journal.open(self.command, url.path, int(self.headers.get("Content-Length") or 0))
        fault = self.hub.faults.take(self.command, url.path)
        request = Request(self.hub, self, entry, dict(urllib.parse.parse_qsl(url.query)), fault)
        try:
            # One that breaks off in the body strikes while it is read.
            if fault and not fault.is_answer_lost and fault.after_bytes is None:
                if fault.status is not None:
                    request.body()
                strike(fault)
            reply = self.hub.answer(request, url.path)
            if fault:
                raise Dropped
        except Refusal as refusal:
            headers = {"X-Error-Message": refusal.message, "Connection": "close", **refusal.headers}
            if refusal.code:
                headers["X-Error-Code"] = refusal.code
            self.close_connection = True
            reply = Reply({"error": refusal.message}, refusal.status, headers)
        except (Dropped, ConnectionError):
            self.close_connection = True
            return
        entry.status = reply.status
        self._send(reply)

    do_POST = do_PUT = do_HEAD = do_DELETE = do_PATCH = do_GET

    def _send(self, reply: Reply) -> None:
        is_raw = isinstance(reply.body, bytes)
        body = reply.body if is_raw else json.dumps(reply.body).encode()
        headers = {"Content-Type": "application/octet-stream" if is_raw else "application/json", **reply.headers}
        try:
            self.send_response(reply.status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body) if reply.length is None else reply.length))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)
        except ConnectionError:
            self.close_connection = True
