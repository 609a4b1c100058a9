"""What the Hub holds beside what the folder holds: hashes of every file, and headers and config as they come back."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_url
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff

from .differences import LENGTH_BYTES, count_bytes_to_read, explain
from .hub_account import open_for_reading
from .hub_errors import Target, in_words
from .hub_repository import read_remote, read_tree
from .local_files import LocalFile, list_local_files

# Files of the Hub's own making.
OF_THE_HUB = frozenset({".gitattributes"})


@dataclass(frozen=True)
class Comparison:
    """Files compared, the bytes that were read back, and what differs, a line each: nothing, where all is well."""

    commit: str
    num_files: int
    num_bytes: int
    num_bytes_back: int
    differences: list[str]


def verify(
    folder: str | Path,
    repo_id: str,
    files: Sequence[str] | None = None,
    *,
    revision: str | None = None,
    repo_type: str = "model",
    token: str | None = None,
    ignored: Collection[str] = (),
    advance: Callable[[int], None] = lambda _: None,
) -> Comparison:
    """Compare `files` of `folder`, by default all that the repository holds, with a revision of it, by default main.

    Every file's hash is compared with that which the Hub keeps; config files and the headers of safetensors are
    downloaded and compared byte for byte. No token is needed for what everybody sees. A JSON file that differs only in
    keys in `ignored` does not count as different; `advance` is told of bytes that were compared.

    Raises:
        PublishError: a file or the repository cannot be read.
    """
    target = open_for_reading(repo_id, repo_type, token=token)
    with in_words(target):
        remote = read_remote(target, revision)
    folder = Path(folder)
    names = sorted(remote.files.keys() - OF_THE_HUB) if files is None else files
    here = [name for name in names if (folder / name).is_file()]
    gone = [f"{name}: is on the Hub, and not in the folder" for name in names if name not in here]
    local = list_local_files(folder, here) if here else []
    for file in local:
        file.read_hash()
        advance(file.size)
    found = compare(target, local, remote.files, remote.head, ignored)
    return Comparison(found.commit, found.num_files, found.num_bytes, found.num_bytes_back, gone + found.differences)


def compare(
    target: Target,
    local: Sequence[LocalFile],
    remote: Mapping[str, RepoFile],
    commit: str,
    ignored: Collection[str] = (),
) -> Comparison:
    """Return how the files of `commit` differ from the local ones, JSON files in other keys than those in `ignored`.

    Raises:
        PublishError: what is to be read back cannot be.
    """
    differences = list_differences(local, remote)
    num_back = 0
    for file in local:
        if file.name not in remote:
            continue

        def read(length: int, name: str = file.name) -> bytes:
            nonlocal num_back
            with in_words(target):
                back = read_back(target, name, commit, length) if length else b""
            num_back += len(back)
            return back

        if reason := differences.get(file.name):
            if said := explain(file.path, remote[file.name].size, read, ignored):
                differences[file.name] = f"{reason}: {said}"
            else:
                del differences[file.name]
        elif not _is_as_read_back(file, read):
            differences[file.name] = "what downloads is not what the folder holds, although the Hub's hash is right"
    lines = [f"{name}: {reason}" for name, reason in differences.items()]
    return Comparison(commit, len(local), sum(file.size for file in local), num_back, lines)


def list_differences(local: Sequence[LocalFile], remote: Mapping[str, RepoFile]) -> dict[str, str]:
    """Return, by name, why a file on the Hub is not the local one, by its size and hash."""
    found = {}
    for file in local:
        there = remote.get(file.name)
        if there is None:
            found[file.name] = "is not on the Hub"
        elif there.size != file.size:
            found[file.name] = f"has {there.size:,} bytes on the Hub, and {file.size:,} in the folder"
        elif not _has_hash(file, there):
            found[file.name] = "has another hash on the Hub than in the folder"
    return found


def read_back(target: Target, name: str, commit: str, length: int) -> bytes:
    """Return the first `length` bytes of a file, asking for no more.

    Raises:
        huggingface_hub.errors.HfHubHTTPError: the Hub refused.
    """
    address = hf_hub_url(
        target.repo_id, name, repo_type=target.repo_type, revision=commit, endpoint=target.api.endpoint
    )
    headers = {
        **build_hf_headers(token=target.api.token, library_name="seeklet"),
        "Range": f"bytes=0-{length - 1}",
        "Accept-Encoding": "identity",
    }
    answer = http_backoff("GET", address, headers=headers, follow_redirects=True)
    hf_raise_for_status(answer)
    return answer.content[:length]


def is_same(target: Target, local: Sequence[LocalFile], commit: str) -> bool:
    """Return whether a commit holds exactly these files, whatever else it holds that is no weight."""
    return not list_differences(local, read_tree(target, commit))


def _has_hash(file: LocalFile, there: RepoFile) -> bool:
    if there.lfs is not None:
        return there.lfs.sha256 == file.read_hash()
    return there.blob_id == file.read_blob_hash()


def _is_as_read_back(file: LocalFile, read: Callable[[int], bytes]) -> bool:
    with file.path.open("rb") as stream:
        length = count_bytes_to_read(file.name, file.size, lambda: stream.read(LENGTH_BYTES))
        stream.seek(0)
        return stream.read(length) == read(length)
