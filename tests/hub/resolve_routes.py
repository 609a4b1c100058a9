"""Downloads, whole or by range; what was sent as Xet chunks is put together once."""

import re

from hf_xet import XetFileInfo, XetSession  # pyright: ignore[reportAttributeAccessIssue]

from .exchange import Reply, Request
from .repositories import Entry

PATH = r"/(?:(datasets|spaces|kernels)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.*)"


def resolve(request: Request, body: bytes, kinds: str | None, name: str, revision: str, path: str) -> Reply:
    repository = request.hub.store.open((kinds or "models")[:-1], name, request.account)
    commit, _ = repository.find_ref(revision)
    entry = repository.commits[commit].tree.get(path)
    headers = {"X-Repo-Commit": commit}
    if entry is None:
        headers |= {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
        return Reply(b"Entry not found", 404, headers)
    headers |= {"ETag": f'"{entry.lfs or entry.oid}"', "Accept-Ranges": "bytes"}
    if entry.lfs:
        headers |= {"X-Linked-Etag": f'"{entry.lfs}"', "X-Linked-Size": str(entry.size)}
    if entry.xet:
        token = f"{request.base}/api/{kinds or 'models'}/{name}/xet-read-token/{commit}"
        headers |= {"X-Xet-Hash": entry.xet, "Link": f'<{token}>; rel="xet-auth"'}
    if request.method == "HEAD":
        return Reply(b"", 200, headers, length=entry.size)
    return _give(request, entry, headers)


def _give(request: Request, entry: Entry, headers: dict[str, str]) -> Reply:
    content = request.hub.store.object(entry.lfs or entry.oid)
    if entry.xet and not content.exists():
        address = f"local://{request.hub.cas}"
        session = XetSession()
        with session.new_file_download_group(endpoint=address, token="xet", token_expiry_unix_secs=2**40) as group:
            group.start_download_file(XetFileInfo(entry.xet, entry.size), str(content))
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", request.header("Range"))
    with content.open("rb") as file:
        if not match:
            return Reply(file.read(), 200, headers)
        first = int(match[1])
        last = min(int(match[2]) if match[2] else entry.size - 1, entry.size - 1)
        if first > last:
            return Reply(b"", 416, {**headers, "Content-Range": f"bytes */{entry.size}"})
        file.seek(first)
        headers["Content-Range"] = f"bytes {first}-{last}/{entry.size}"
        return Reply(file.read(last - first + 1), 206, headers)


ROUTES = [("GET|HEAD", PATH, resolve)]
