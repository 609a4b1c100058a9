"""Xet: hf_xet writes its chunks into a folder of this machine, and the Hub reads there what it was given."""

import struct
import time
from typing import TYPE_CHECKING

from .exchange import Reply, Request
from .quota import check_quota
from .refusal import Refusal
from .repository_routes import API

if TYPE_CHECKING:
    from .server import Hub

# A shard file of hf_xet 1.8: a header of 48 bytes, then per file its hash, flags and number of segments.
HEADER_BYTES = RECORD_BYTES = 48
END = b"\xff" * 32
HAS_VERIFICATION = 31
HAS_METADATA = 30


def give_token(request: Request, body: bytes, kind: str, name: str, action: str, revision: str) -> Reply:
    is_pull = bool(request.query.get("create_pr"))
    is_write = action == "write" and not is_pull
    request.hub.store.open(kind, name, request.account, action="write" if is_write else "read")
    if not request.hub.has_xet:
        raise Refusal(404, "Xet is not enabled")
    if action == "write":
        check_quota(request.hub, count_xet_bytes(request.hub) + 1)
    expires, address = int(time.time()) + 3600, f"local://{request.hub.cas}"
    headers = {"X-Xet-Cas-Url": address, "X-Xet-Token-Expiration": str(expires), "X-Xet-Access-Token": "xet"}
    return Reply({"casUrl": address, "exp": expires, "accessToken": "xet"}, headers=headers)


def count_xet_bytes(hub: "Hub") -> int:
    """Return how much is kept of what was sent as chunks."""
    folder = hub.cas / "xet" / "xorbs" / "xorbs"
    # A file may be renamed while it is listed.
    sizes = (path.stat().st_size for path in folder.glob("default.*") if path.suffix != ".tmp" and path.exists())
    return sum(sizes) if folder.is_dir() else 0


def find_xet_files(hub: "Hub") -> dict[str, str]:
    """Return the Xet hash of each file that was sent whole, by its sha256."""
    found = {}
    for shard in (hub.cas / "xet" / "xorbs" / "shards").glob("*.mdb"):
        content, at = shard.read_bytes(), HEADER_BYTES
        while content[at : at + 32] != END:
            file_hash = content[at : at + 32]
            flags, num_segments = struct.unpack("<II", content[at + 32 : at + 40])
            at += RECORD_BYTES + RECORD_BYTES * num_segments * (1 + (flags >> HAS_VERIFICATION & 1))
            if flags >> HAS_METADATA & 1:
                found[_in_hex(content[at : at + 32])] = _in_hex(file_hash)
                at += RECORD_BYTES
    return found


def _in_hex(value: bytes) -> str:
    """Return a hash as it is written: four little-endian numbers of 64 bits."""
    return "".join(value[at : at + 8][::-1].hex() for at in range(0, 32, 8))


ROUTES = [("GET", rf"{API}/xet-(read|write)-token/([^/]+)", give_token)]
