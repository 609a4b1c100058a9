"""Parts of large files over LFS, for a Hub or a machine without Xet: which are there is noted, and only the others go.

huggingface_hub begins a file again whose upload broke off. Here the addresses of its parts and what the store answered
are kept in `HF_HOME`, readable by the user only, until the file is complete; addresses that ran out are asked for anew.
A note is one line of addresses, written at once, and a line for each part that is there, added as soon as the store
answers: writing the whole anew takes as long as a small part does, and what a killed process had not noted goes again.
"""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any, TypedDict

from huggingface_hub import CommitOperationAdd, constants
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.lfs import LFS_HEADERS, lfs_upload, post_lfs_batch_info
from huggingface_hub.utils import build_hf_headers, fix_hf_endpoint_in_url, hf_raise_for_status, http_backoff

from ..atomic_files import replaced_file
from ..errors import PublishError
from .hub_errors import Target
from .local_files import LocalFile

# The store refuses an address that ran out with one of these.
_RUN_OUT = (400, 403, 404, 410)


class Note(TypedDict):
    """An upload that has begun: where its parts go, and the tags of those that are there, by their numbers."""

    part_bytes: int
    addresses: dict[str, str]
    complete: str
    tags: dict[str, str]


def send_lfs(
    target: Target,
    revision: str,
    file: LocalFile,
    add: Callable[[int, bool], None],
    *,
    num_threads: int,
) -> None:
    """Store the content of `file`; `add` is told of bytes and whether they travelled now.

    Raises:
        huggingface_hub.errors.HfHubHTTPError: the Hub or its store refused.
        PublishError: the Hub's answer is not understood.
    """
    path = _find_note(target, file)
    for _ in range(2):
        note = _read_note(path)
        is_resumed = note is not None
        if note is None:
            action = _ask(target, revision, file)
            if action is None:
                return add(file.size, False)
            header = action["upload"].get("header") or {}
            if "chunk_size" not in header:
                operation = CommitOperationAdd(file.name, file.path)
                operation.upload_info.sha256 = bytes.fromhex(file.read_hash())
                batch = {"oid": file.sha256, "size": file.size, "actions": action}
                lfs_upload(operation, batch, headers=_headers(target), endpoint=target.api.endpoint)
                return add(file.size, True)
            addresses = {number: address for number, address in header.items() if number.isdigit()}
            note = Note(
                part_bytes=int(header["chunk_size"]), addresses=addresses, complete=action["upload"]["href"], tags={}
            )
            _write_note(path, note)
        try:
            _send_parts(target, file, note, path, add, num_threads)
        except HfHubHTTPError as error:
            if error.response.status_code not in _RUN_OUT:
                raise
            path.unlink(missing_ok=True)
            if not is_resumed:
                raise
            # What was counted goes again.
            add(-sum(_size(file, note, number) for number in note["tags"]), False)
        else:
            path.unlink(missing_ok=True)
            return
    raise PublishError(f"{file.path}: the store refuses its own addresses; run the same command again")


def _send_parts(
    target: Target, file: LocalFile, note: Note, path: Path, add: Callable[[int, bool], None], num_threads: int
) -> None:
    lock = Lock()
    for number in note["tags"]:
        add(_size(file, note, number), False)

    def send(number: str) -> None:
        size = _size(file, note, number)
        with file.path.open("rb") as stream:
            stream.seek((int(number) - 1) * note["part_bytes"])
            part = stream.read(size)
        answer = http_backoff("PUT", note["addresses"][number], content=part)
        hf_raise_for_status(answer)
        with lock:
            note["tags"][number] = answer.headers["ETag"]
            _add_tag(path, number, answer.headers["ETag"])
        add(size, True)

    missing = sorted(note["addresses"].keys() - note["tags"].keys(), key=int)
    with ThreadPoolExecutor(num_threads) as pool:
        futures = [pool.submit(send, number) for number in missing]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    parts = [{"partNumber": int(number), "etag": note["tags"][number]} for number in sorted(note["tags"], key=int)]
    where = fix_hf_endpoint_in_url(note["complete"], target.api.endpoint)
    hf_raise_for_status(http_backoff("POST", where, json={"oid": file.sha256, "parts": parts}, headers=LFS_HEADERS))


def _ask(target: Target, revision: str, file: LocalFile) -> dict[str, Any] | None:
    """Return what the Hub wants done with the file; nothing where it has the content."""
    operation = CommitOperationAdd(file.name, file.path)
    operation.upload_info.sha256 = bytes.fromhex(file.read_hash())
    actions, errors, _ = post_lfs_batch_info(
        [operation.upload_info],
        token=None,
        repo_type=target.repo_type,
        repo_id=target.repo_id,
        revision=revision,
        endpoint=target.api.endpoint,
        headers=_headers(target),
    )
    if errors:
        raise PublishError(f"{file.path}: the Hub refused it: {errors[0]['error']['message']}")
    return actions[0].get("actions")


def _headers(target: Target) -> dict[str, str]:
    return build_hf_headers(token=target.api.token, library_name="seeklet")


def _size(file: LocalFile, note: Note, number: str) -> int:
    return min(note["part_bytes"], file.size - (int(number) - 1) * note["part_bytes"])


def _find_note(target: Target, file: LocalFile) -> Path:
    """Return where the note of an upload is: one for each content and repository."""
    place = f"{target.repo_type}--{target.repo_id.replace('/', '--')}"
    return Path(constants.HF_HOME) / "seeklet" / "uploads" / place / f"{file.read_hash()}.jsonl"


def _read_note(path: Path) -> Note | None:
    try:
        first, *others = path.read_text(encoding="utf-8").splitlines()
        note: Note = json.loads(first)
    except (FileNotFoundError, ValueError):
        return None
    for line in others:
        try:
            number, tag = json.loads(line)
        except ValueError:
            # The line that was being written when the machine went down.
            continue
        note["tags"][number] = tag
    return note


def _write_note(path: Path, note: Note) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(path) as beside:
        # The addresses are as good as a key for as long as they last.
        beside.touch(mode=0o600)
        beside.write_text(json.dumps(note) + "\n", encoding="utf-8")


def _add_tag(path: Path, number: str, tag: str) -> None:
    with path.open("a", encoding="utf-8") as note:
        note.write(json.dumps([number, tag]) + "\n")
