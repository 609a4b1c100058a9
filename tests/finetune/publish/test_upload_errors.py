"""What stands against an upload: one line that says what to do, nothing published, no local file touched."""

import hashlib
import io
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _http
from rich.console import Console

from seeklet.finetune.errors import PublishError
from seeklet.finetune.publish.upload import upload
from tests.finetune.publish.uploads import UploadProcess, list_files
from tests.hub.accounts import EXPIRED_TOKEN, OTHER_TOKEN, READ_TOKEN, UNKNOWN_TOKEN, WRITE_TOKEN
from tests.hub.faults import Fault
from tests.hub.repositories import Repository
from tests.hub.server import Hub

NAME = "alice/nano"


def hash_folder(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in list_files(folder)}


@pytest.fixture
def untouched(folder: Path) -> Iterator[Path]:
    """Give the folder, and see that it is as it was at the end."""
    before = hash_folder(folder)
    yield folder
    assert hash_folder(folder) == before


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let huggingface_hub and the commit try again at once: half a minute of waiting shows nothing."""
    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)


def refuse(folder: Path, name: str = NAME, token: str | None = WRITE_TOKEN, **options: Any) -> str:
    """Return what is said of an upload that fails, in one line."""
    console = Console(file=io.StringIO())
    with pytest.raises(PublishError) as caught:
        upload(folder, name, list_files(folder), token=token, part_bytes=5_000_000, console=console, **options)
    said = str(caught.value)
    assert "\n" not in said and "hf_a" not in said and "hf_b" not in said
    return said


def test_tokens(hub: Hub, untouched: Path) -> None:
    tokens = f"{hub.endpoint}/settings/tokens"
    assert refuse(untouched, token=None) == (
        f"{NAME}: there is no token for the Hub; make one with write access at {tokens}, then run: hf auth login"
    )
    assert refuse(untouched, token=UNKNOWN_TOKEN) == (
        f"{NAME}: the Hub does not take the token; make one with write access at {tokens}, then run: hf auth login"
    )
    assert refuse(untouched, token=EXPIRED_TOKEN) == (
        f"{NAME}: the token has expired; make one with write access at {tokens}, then run: hf auth login"
    )
    assert refuse(untouched, token=READ_TOKEN) == (
        f"{NAME}: the token is for reading only; make one with write access at {tokens}, then run: hf auth login"
    )
    assert hub.store.repositories == {}


def test_no_right_to_write(hub: Hub, untouched: Path) -> None:
    assert refuse(untouched, token=OTHER_TOKEN) == (
        f"{NAME}: the token of bob may not write here (You don't have the rights to create a model under the namespace "
        f'"alice"); take one that may, from {hub.endpoint}/settings/tokens, or offer it as a pull request'
    )
    hub.store.add(Repository("model", NAME, is_private=False))
    said = refuse(untouched, token=OTHER_TOKEN, public=True)
    assert "the token of bob may not write here (You don't have the rights to write to this repository)" in said
    assert set(hub.repository(NAME).tree()) == {".gitattributes"}


@pytest.mark.parametrize("kind", ["dataset", "space"])
def test_repository_of_another_type(kind: str, hub: Hub, untouched: Path) -> None:
    hub.store.add(Repository(kind, NAME, is_private=True))
    assert refuse(untouched) == f"{NAME}: is a {kind} on the Hub, not a model; take another name"
    assert list(hub.store.repositories) == [f"{kind}:{NAME}"]


def test_name_taken_by_what_may_not_be_seen(hub: Hub, untouched: Path) -> None:
    hub.store.add(Repository("model", "acme/nano", is_private=True, readers=["carol"]))
    assert refuse(untouched, "acme/nano") == (
        "acme/nano: the name is taken by a repository that this token may not see; take another name, or ask its owner "
        "to let you in"
    )


BAD_NAMES = (
    "nano|a/b/c|acme/|acme/na no|acme/-nano|acme/nano.|acme/a--b|acme/a..b|acme/nano.git|acme/nänö|../nano|a/b\n"
)


@pytest.mark.parametrize("name", [*BAD_NAMES.split("|"), f"acme/{'n' * 97}"])
def test_names(name: str, hub: Hub, untouched: Path) -> None:
    with pytest.raises(PublishError, match=r"is no name on the Hub; allowed: letters|name the owner, too"):
        upload(untouched, name, ["config.json"], token=WRITE_TOKEN)
    assert hub.journal.find(".") == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"create_pr": True, "revision": "v2"}, "a pull request goes to main"),
        ({"create_pr": True, "tag": "v2"}, "a pull request changes no tags"),
        ({"revision": "a b"}, '--revision "a b" is no name of a branch or tag'),
        ({"tag": "..x"}, '--tag "..x" is no name'),
        ({"gated": "yes"}, 'gated is "yes"; allowed: auto, manual'),
        ({"parent_commit": "main"}, 'expected parent commit "main"; allowed: 7 to 40 digits'),
        ({"message": " "}, "the commit needs a message"),
        ({"revision": "refs/pr/7"}, 'there is no "refs/pr/7"'),
    ],
)
def test_options(options: dict[str, Any], said: str, hub: Hub, untouched: Path) -> None:
    assert said in refuse(untouched, **options)


def test_a_pull_request_to_nothing(hub: Hub, untouched: Path) -> None:
    assert "there is no such repository to offer a pull request to" in refuse(untouched, create_pr=True)
    assert hub.store.repositories == {}


def test_files(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for files, said in (
        ([], "there is nothing to publish"),
        (["../secret"], "is no path within the folder"),
        (["absent.json"], "no such file"),
    ):
        with pytest.raises(PublishError, match=said):
            upload(folder, NAME, files, token=WRITE_TOKEN)
    monkeypatch.setattr("seeklet.finetune.publish.local_files.MAX_SHARD_GB", 0.01)
    assert '0.0 GB in one file; allowed: 0.01 GB; save the model again with max_shard_size="0.01GB"' in refuse(folder)
    assert hub.journal.find(".") == []


def test_offline(hub: Hub, untouched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    assert refuse(untouched) == (
        f"{NAME}: the Hub ({address}) cannot be reached: Connection refused; nothing was sent; try again with a network"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert refuse(untouched) == (
        f"{NAME}: HF_HUB_OFFLINE is set, so nothing is sent; unset it and run the same command again"
    )


@pytest.mark.parametrize("has_xet", [True, False])
def test_quota(has_xet: bool, hub: Hub, untouched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not has_xet)
    hub.quota = 2_000_000
    if has_xet:
        # The Hub refuses the key to the chunk store where nothing more may be stored.
        hub.quota = 0
    assert refuse(untouched) == (
        f"{NAME}: the storage is full: Private repository storage limit reached, please upgrade your plan to increase "
        "your private storage limit; delete what is not needed, or publish under another account"
    )
    assert set(hub.repository(NAME).tree()) == {".gitattributes"}


def test_rate_limit(hub: Hub, untouched: Path, no_waiting: None) -> None:
    for path in ("GET /api/whoami", "POST .*/preupload/", "POST .*/commit/"):
        hub.faults.add(Fault(path, status=429, message="Too many requests", headers={"Retry-After": "37"}, times=9))
        assert refuse(untouched) == (
            f"{NAME}: the Hub takes no more requests for now (rate limit); try again in 37 s; what was sent is kept, "
            "and the same command goes on from there"
        )
        hub.faults.clear()
    upload(untouched, NAME, list_files(untouched), token=WRITE_TOKEN)


@pytest.mark.parametrize("path", ["PUT /_lfs/.*/2$", "POST .*/info/lfs/", "POST .*/commit/", "GET .*/tree/"])
@pytest.mark.parametrize("status", [500, 503, None])
def test_the_hub_fails_mid_way(
    path: str, status: int | None, hub: Hub, untouched: Path, no_waiting: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    hub.faults.add(Fault(path, status=status, times=99))
    said = refuse(untouched)
    reason = "Internal Error - We're working hard to fix this as soon as possible!"
    broken = f"the Hub failed several times ({status}: {reason}); try again later"
    assert said.startswith(f"{NAME}: {broken if status else 'the connection to the Hub broke'}; ")
    assert said.endswith("what was sent is kept, and the same command goes on from there")
    assert set(hub.repository(NAME).tree()) == {".gitattributes"}
    hub.faults.clear()
    before = [part.path for part in hub.journal.parts() if part.status == 200]
    upload(untouched, NAME, list_files(untouched), token=WRITE_TOKEN)
    after = [part.path for part in hub.journal.parts() if part.status == 200]
    assert len(set(after)) == len(after) and set(before) <= set(after)


def test_addresses_that_ran_out_are_asked_for_again(
    hub: Hub, untouched: Path, no_waiting: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    hub.faults.add(Fault("PUT /_lfs/.*/2$", status=500, times=99))
    refuse(untouched)
    hub.faults.clear()
    for upload_folder in (hub.store.root / "uploads").iterdir():
        upload_folder.rename(upload_folder.with_name("gone"))
    done = upload(untouched, NAME, list_files(untouched), token=WRITE_TOKEN)
    assert done.comparison.differences == []


def test_disk_full(hub: Hub, untouched: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk: the notes of an upload cannot be written."""
    settings = {"has_xet": False, "part_bytes": 5_000_000, "max_file_bytes": 64}
    said = UploadProcess(hub, tmp_path, untouched, NAME, WRITE_TOKEN, **settings).refusal()
    assert "no space left on the disk; free some" in said
    assert "set HF_HOME" in said and set(hub.repository(NAME).tree()) == {".gitattributes"}
