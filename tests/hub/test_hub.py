"""The test Hub answers huggingface_hub as the Hub does: what the tests of publishing rest on."""

import os
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, hf_hub_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import get_session

from tests.hub.accounts import EXPIRED_TOKEN, OTHER_TOKEN, READ_TOKEN, UNKNOWN_TOKEN, WRITE_TOKEN
from tests.hub.faults import Fault
from tests.hub.server import Hub, serve_hub

NAME = "alice/nano"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "model.safetensors").write_bytes(os.urandom(12_000_000))
    (folder / "inner" / "small.bin").write_bytes(os.urandom(1000))
    return folder


def read_back(api: HfApi, folder: Path, tmp_path: Path, revision: str = "main") -> None:
    """Compare what downloads with the folder."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        found = hf_hub_download(
            NAME, name, token=api.token, revision=revision, endpoint=api.endpoint, cache_dir=tmp_path / "cache"
        )
        assert Path(found).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("has_xet", [True, False])
def test_a_folder_goes_up_and_comes_back(
    has_xet: bool, hub: Hub, api: HfApi, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not has_xet)
    api.create_repo(NAME, private=True)
    api.upload_folder(repo_id=NAME, folder_path=folder)
    parts = [(part.num_bytes, part.is_whole, part.status) for part in hub.journal.parts()]
    whole = (5_000_000, True, 200)
    assert sorted(parts) == ([] if has_xet else [(1000, True, 200), (2_000_000, True, 200), whole, whole])
    tree = hub.repository(NAME).tree()
    assert {path: entry.size for path, entry in tree.items() if path != ".gitattributes"} == {
        "README.md": 21,
        "config.json": 2,
        "inner/small.bin": 1000,
        "model.safetensors": 12_000_000,
    }
    assert (tree["model.safetensors"].xet is not None) is has_xet
    read_back(api, folder, tmp_path)
    [info] = api.get_paths_info(NAME, ["model.safetensors"])
    assert isinstance(info, RepoFile) and info.size == 12_000_000


def test_ranges(hub: Hub, api: HfApi, folder: Path) -> None:
    api.create_repo(NAME)
    api.upload_folder(repo_id=NAME, folder_path=folder)
    content = (folder / "model.safetensors").read_bytes()
    address = f"{hub.endpoint}/{NAME}/resolve/main/model.safetensors"
    for asked, expected in (("0-7", content[:8]), ("11999990-", content[-10:]), ("5-11999999999", content[5:])):
        answer = get_session().get(address, headers={"Range": f"bytes={asked}"})
        assert answer.status_code == 206 and answer.content == expected
    assert get_session().get(address, headers={"Range": "bytes=12000000-"}).status_code == 416


def test_branches_tags_pull_requests_and_parents(hub: Hub, api: HfApi, folder: Path, tmp_path: Path) -> None:
    api.create_repo(NAME)
    first = hub.repository(NAME).refs["refs/heads/main"]
    api.create_branch(NAME, branch="v2")
    api.upload_folder(repo_id=NAME, folder_path=folder, revision="v2")
    api.create_tag(NAME, tag="v2.0", revision="v2")
    assert hub.repository(NAME).refs["refs/heads/main"] == first
    read_back(api, folder, tmp_path, "v2.0")
    added = CommitOperationAdd("a.txt", b"a")
    made = api.create_commit(NAME, [added], commit_message="a", create_pr=True)
    assert made.pr_num == 1 and set(hub.repository(NAME).tree("refs/pr/1")) == {".gitattributes", "a.txt"}
    assert set(hub.repository(NAME).tree()) == {".gitattributes"}
    refs = api.list_repo_refs(NAME, include_pull_requests=True)
    assert [ref.name for ref in refs.branches] == ["main", "v2"] and [ref.name for ref in refs.tags] == ["v2.0"]
    assert [ref.ref for ref in refs.pull_requests or []] == ["refs/pr/1"]
    assert [pull.num for pull in api.get_repo_discussions(NAME)] == [1]
    with pytest.raises(HfHubHTTPError, match="A commit has happened since"):
        api.create_commit(NAME, [CommitOperationAdd("b", b"b")], commit_message="b", revision="v2", parent_commit=first)
    api.create_commit(NAME, [CommitOperationDelete("inner/")], commit_message="c", revision="v2")
    assert sorted(entry.path for entry in api.list_repo_tree(NAME, revision="v2", recursive=True)) == [
        ".gitattributes",
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert api.list_repo_commits(NAME, revision="v2")[0].title == "c"


def test_who_may_what(hub: Hub, api: HfApi) -> None:
    api.create_repo(NAME, private=True)
    api.create_repo("acme/nano", private=True)
    assert api.whoami()["name"] == "alice"
    with pytest.raises(RepositoryNotFoundError):
        api.repo_info(NAME, token=OTHER_TOKEN)
    with pytest.raises(RepositoryNotFoundError):
        api.repo_info(NAME, token=False)
    api.update_repo_settings(NAME, private=False, gated="auto")
    api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id=NAME)
    assert api.repo_info(NAME, token=OTHER_TOKEN).sha
    with pytest.raises(GatedRepoError):
        hf_hub_download(NAME, "config.json", token=OTHER_TOKEN, endpoint=api.endpoint)
    for token, reason in (
        (READ_TOKEN, "rights"),
        (OTHER_TOKEN, "rights"),
        (UNKNOWN_TOKEN, "Invalid credentials"),
        (EXPIRED_TOKEN, "expired"),
    ):
        with pytest.raises(HfHubHTTPError, match=reason):
            api.create_repo("acme/other", token=token)
    with pytest.raises(HfHubHTTPError, match="already created"):
        api.create_repo(NAME)


def test_faults_and_what_was_received(hub: Hub, api: HfApi, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    api.create_repo(NAME)
    hub.faults.add(Fault("PUT /_lfs/.*/2$", after_bytes=1_000_000))
    hub.faults.add(Fault("PUT /_lfs/.*/3$", status=429, headers={"Retry-After": "0"}))
    hub.faults.add(Fault("POST .*/preupload/", status=503))
    api.upload_folder(repo_id=NAME, folder_path=folder)
    parts = hub.journal.find(r"PUT /_lfs/.*/\d$")
    assert [part.status for part in parts] == [200, None, 200, 429, 200]
    assert 1_000_000 <= parts[1].num_bytes < 5_000_000 and not parts[1].is_whole
    hub.faults.add(Fault("GET /api/whoami", status=500, times=1))
    with pytest.raises(HfHubHTTPError, match="working hard"):
        api.whoami()


def test_what_is_stored_outlives_the_server(hub: Hub, api: HfApi, folder: Path, tmp_path: Path) -> None:
    api.create_repo(NAME)
    api.upload_folder(repo_id=NAME, folder_path=folder)
    with serve_hub(hub.store.root) as second:
        later = HfApi(endpoint=second.endpoint, token=WRITE_TOKEN)
        read_back(later, folder, tmp_path)
        assert second.repository(NAME).refs == hub.repository(NAME).refs


def test_quota(hub: Hub, api: HfApi, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.quota = 5_000_000
    api.create_repo(NAME)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with pytest.raises(HfHubHTTPError, match="storage limit reached"):
        api.upload_folder(repo_id=NAME, folder_path=folder)
    assert hub.journal.parts() == []
