"""Large files: whole or in parts, each upload of parts with addresses of its own, as in object storage."""

import hashlib
import json
import secrets
import shutil

from .exchange import Reply, Request
from .quota import check_quota
from .refusal import Refusal


def batch(request: Request, body: bytes, kind: str | None, name: str) -> Reply:
    hub, fields = request.hub, json.loads(body)
    hub.store.open((kind or "models")[:-1], name, request.account, action="write")
    missing = [item for item in fields["objects"] if not hub.store.has(item["oid"])]
    check_quota(hub, sum(item["size"] for item in missing))
    objects = []
    for item in fields["objects"]:
        answer = {"oid": item["oid"], "size": item["size"]}
        if item in missing:
            verify = {"href": f"{request.base}/_lfs_verify", "header": {}}
            answer["actions"] = {"upload": _address(request, item["oid"], item["size"]), "verify": verify}
        objects.append(answer)
    return Reply({"transfer": "multipart", "objects": objects})


def _address(request: Request, oid: str, size: int) -> dict[str, object]:
    part_bytes = request.hub.part_bytes
    if size <= part_bytes:
        return {"href": f"{request.base}/_lfs/{oid}", "header": {}}
    # Parts that went to another upload of the same file are of no use to this one.
    upload = secrets.token_hex(8)
    folder = request.hub.store.root / "uploads" / upload
    folder.mkdir()
    (folder / "oid").write_text(oid)
    parts = {str(1 + n): f"{request.base}/_lfs/{oid}/{upload}/{1 + n}" for n in range(-(-size // part_bytes))}
    return {"href": f"{request.base}/_lfs_complete/{upload}", "header": {"chunk_size": str(part_bytes), **parts}}


def put_object(request: Request, oid: str) -> Reply:
    store = request.hub.store
    beside = store.root / "uploads" / f"{oid}.{secrets.token_hex(4)}"
    digest = hashlib.sha256()
    with beside.open("wb") as file:
        for piece in request.read():
            file.write(piece)
            digest.update(piece)
    if digest.hexdigest() != oid:
        beside.unlink()
        raise Refusal(400, "sha256 mismatch")
    beside.replace(store.object(oid))
    return Reply()


def put_part(request: Request, oid: str, upload: str, number: str) -> Reply:
    folder = request.hub.store.root / "uploads" / upload
    if not folder.exists():
        request.body()
        raise Refusal(403, "Request has expired")
    digest = hashlib.md5(usedforsecurity=False)
    beside = folder / f"{number}.{secrets.token_hex(4)}"
    with beside.open("wb") as file:
        for piece in request.read():
            file.write(piece)
            digest.update(piece)
    beside.replace(folder / number)
    return Reply(headers={"ETag": f'"{digest.hexdigest()}"'})


def complete(request: Request, body: bytes, upload: str) -> Reply:
    store, fields = request.hub.store, json.loads(body)
    folder = store.root / "uploads" / upload
    if not folder.exists():
        raise Refusal(404, "NoSuchUpload")
    oid = (folder / "oid").read_text()
    whole = folder / "whole"
    digest = hashlib.sha256()
    with whole.open("wb") as file:
        for part in fields["parts"]:
            path = folder / str(part["partNumber"])
            if not path.exists():
                raise Refusal(400, "InvalidPart")
            content = path.read_bytes()
            if part["etag"].strip('"') != hashlib.md5(content, usedforsecurity=False).hexdigest():
                raise Refusal(400, "InvalidPart")
            file.write(content)
            digest.update(content)
    if digest.hexdigest() != oid or fields["oid"] != oid:
        raise Refusal(400, "sha256 mismatch")
    whole.replace(store.object(oid))
    shutil.rmtree(folder)
    return Reply({"success": True})


def verify(request: Request, body: bytes) -> Reply:
    fields = json.loads(body)
    path = request.hub.store.object(fields["oid"])
    if not path.exists() or path.stat().st_size != fields["size"]:
        raise Refusal(404, "not uploaded")
    return Reply({})


STREAMED = {put_object, put_part}
ROUTES = [
    ("POST", r"/(?:(datasets|spaces|kernels)/)?([^/]+/[^/]+?)\.git/info/lfs/objects/batch", batch),
    ("PUT", r"/_lfs/([0-9a-f]{64})", put_object),
    ("PUT", r"/_lfs/([0-9a-f]{64})/([0-9a-f]+)/(\d+)", put_part),
    ("POST", r"/_lfs_complete/([0-9a-f]+)", complete),
    ("POST", r"/_lfs_verify", verify),
]
