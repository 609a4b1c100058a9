"""Uploads and comparisons through huggingface_hub to a Hub over sockets: options, versions, what is seen by whom."""

import io
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, constants, hf_hub_download
from rich.console import Console

from seeklet.finetune.errors import PublishError
from seeklet.finetune.publish.upload import Published, upload
from seeklet.finetune.publish.verify import verify
from tests.finetune.publish.uploads import list_files, list_sizes, write_shards
from tests.hub.accounts import OTHER_TOKEN, WRITE_TOKEN
from tests.hub.faults import Fault
from tests.hub.repositories import hash_blob
from tests.hub.server import Hub

NAME = "alice/support-assistant"
SHARD = "model-00001-of-00002.safetensors"


def publish(folder: Path, name: str = NAME, **options: Any) -> Published:
    settings = {"token": WRITE_TOKEN, "part_bytes": 5_000_000, "console": Console(file=io.StringIO()), **options}
    return upload(folder, name, list_files(folder), **settings)


def list_remote(hub: Hub, revision: str = "main", name: str = NAME) -> dict[str, int]:
    tree = hub.repository(name).tree(revision)
    return {path: entry.size for path, entry in sorted(tree.items()) if path != ".gitattributes"}


@pytest.mark.parametrize("has_xet", [True, False])
def test_a_folder_is_published_private_and_compared(
    has_xet: bool, hub: Hub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not has_xet)
    sizes = list_sizes(folder)
    done = publish(folder)
    repository = hub.repository(NAME)
    assert repository.is_private and done.is_private and list_remote(hub) == sizes
    assert (done.url, done.commit) == (f"{hub.endpoint}/{NAME}", repository.refs["refs/heads/main"])
    assert done.num_bytes_sent == sum(sizes.values()) and done.num_bytes_kept == 0
    assert done.comparison.differences == [] and done.comparison.num_files == len(sizes)
    # Configs and the headers of shards only: 12 MB each would be the whole.
    assert sum(sizes[name] for name in sizes if name.endswith(".json")) < done.comparison.num_bytes_back < 1000
    assert len(repository.commits) == 2
    for name in sizes:
        found = hf_hub_download(NAME, name, token=WRITE_TOKEN, endpoint=hub.endpoint)
        assert Path(found).read_bytes() == (folder / name).read_bytes()
    again = publish(folder)
    assert (again.commit, again.num_bytes_sent, again.num_bytes_kept) == (done.commit, 0, sum(sizes.values()))


def test_only_the_files_named_go(hub: Hub, folder: Path) -> None:
    (folder / "optimizer.pt").write_bytes(b"pickle")
    upload(folder, NAME, ["config.json", "README.md"], token=WRITE_TOKEN)
    assert set(list_remote(hub)) == {"config.json", "README.md"}


def test_a_new_version_sends_what_changed_and_takes_old_weights_away(hub: Hub, folder: Path) -> None:
    publish(folder)
    (folder / SHARD).rename(folder / "model.safetensors")
    for name in ("model-00002-of-00002.safetensors", "model.safetensors.index.json"):
        (folder / name).unlink()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    second = publish(folder)
    assert second.removed == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    assert list_remote(hub) == list_sizes(folder)
    # The notebook beside the model is not the publisher's to delete.
    HfApi(endpoint=hub.endpoint, token=WRITE_TOKEN).upload_file(
        path_or_fileobj=b"{}", path_in_repo="usage.ipynb", repo_id=NAME
    )
    assert publish(folder).removed == [] and "usage.ipynb" in list_remote(hub)


def test_branch_tag_and_pull_request(hub: Hub, folder: Path) -> None:
    first = publish(folder, tag="v1")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    branched = publish(folder, revision="v2", tag="v2.0")
    refs = hub.repository(NAME).refs
    assert refs["refs/heads/main"] == refs["refs/tags/v1"] == first.commit
    assert refs["refs/heads/v2"] == refs["refs/tags/v2.0"] == branched.commit
    assert branched.url == f"{hub.endpoint}/{NAME}/tree/v2" and branched.num_bytes_sent < 1000
    offered = publish(folder, create_pr=True)
    assert offered.pull_request == offered.url == f"{hub.endpoint}/{NAME}/discussions/1"
    assert refs["refs/heads/main"] == first.commit and refs["refs/pr/1"] == offered.commit
    assert publish(folder, create_pr=True).pull_request == offered.pull_request
    (folder / "config.json").write_text('{"model_type": "qwen3"}')
    assert publish(folder, revision="refs/pr/1").commit == refs["refs/pr/1"] != offered.commit
    with pytest.raises(PublishError, match=f'a tag "v1" already, at {first.commit}; take another'):
        publish(folder, tag="v1")
    with pytest.raises(PublishError, match='"v1" is a tag, and a tag does not move'):
        publish(folder, revision="v1")
    assert refs["refs/heads/main"] == first.commit


def test_public_and_gated(hub: Hub, folder: Path) -> None:
    hub.faults.add(Fault("POST .*/commit/", status=403, message="no"))
    with pytest.raises(PublishError):
        publish(folder, public=True)
    # It would be public once everything is there.
    assert hub.repository(NAME).is_private
    assert not publish(folder, public=True, gated="auto").is_private
    assert not hub.repository(NAME).is_private and hub.repository(NAME).gated == "auto"
    (folder / "config.json").write_text("{}")
    with pytest.raises(PublishError, match="this repository is public, and all that goes there is; add --public"):
        publish(folder)
    assert not publish(folder, public=True).is_private


def test_expected_parent(hub: Hub, folder: Path) -> None:
    first = publish(folder)
    (folder / "config.json").write_text("{}")
    with pytest.raises(PublishError, match=f"main is at {first.commit}, and not at 0123456 as expected"):
        publish(folder, parent_commit="0123456")
    second = publish(folder, parent_commit=first.commit[:8])
    assert hub.repository(NAME).commits[second.commit].parent == first.commit


def test_somebody_commits_meanwhile(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(folder)
    write_shards(folder, num_shards=1, shard_bytes=8_000_000)
    repository = hub.repository(NAME)
    taken = hub.faults.take

    def interfere(method: str, path: str) -> Fault | None:
        if "/commit/" in path:
            tree = {**repository.tree(), "other.txt": hub.store.put_blob(b"other")}
            repository.refs["refs/heads/main"] = repository.add_commit(
                tree, repository.refs["refs/heads/main"], "other"
            )
        return taken(method, path)

    hub.faults.take = interfere
    with pytest.raises(PublishError, match="somebody has committed meanwhile, and nothing was changed"):
        publish(folder)
    assert "other.txt" in list_remote(hub) and "model-00001-of-00001.safetensors" not in list_remote(hub)


def test_a_commit_whose_answer_is_lost_is_made_once(hub: Hub, folder: Path) -> None:
    hub.faults.add(Fault("POST .*/commit/", is_answer_lost=True))
    done = publish(folder)
    assert len(hub.repository(NAME).commits) == 2 and list_remote(hub) == list_sizes(folder)
    assert done.commit == hub.repository(NAME).refs["refs/heads/main"]


def test_a_file_that_changes_on_the_way_is_not_committed(hub: Hub, folder: Path) -> None:
    taken = hub.faults.take

    def interfere(method: str, path: str) -> Fault | None:
        if "/preupload/" in path:
            os.utime(folder / SHARD, ns=(1, 1))
        return taken(method, path)

    hub.faults.take = interfere
    with pytest.raises(PublishError, match=f"{SHARD}: was changed on the way; nothing was committed"):
        publish(folder)
    assert list_remote(hub) == {}


def test_verify_finds_what_differs(hub: Hub, folder: Path) -> None:
    done = publish(folder)
    same = verify(folder, NAME, token=WRITE_TOKEN)
    assert same == done.comparison and same.differences == []
    content = bytearray((folder / SHARD).read_bytes())
    content[-1] ^= 1
    (folder / SHARD).write_bytes(content)
    (folder / "config.json").write_text(json.dumps({"model_type": "deepseek_v4"}))
    (folder / "README.md").unlink()
    (folder / "new.json").write_text("{}")
    assert verify(folder, NAME, token=WRITE_TOKEN).differences == [
        "README.md: is on the Hub, and not in the folder",
        "config.json: has another hash on the Hub than in the folder: model_type is deepseek_v3 on the Hub, and "
        "deepseek_v4 in the folder",
        f"{SHARD}: has another hash on the Hub than in the folder: the same tensors with other numbers",
    ]
    assert verify(folder, NAME, ["new.json"], token=WRITE_TOKEN).differences == ["new.json: is not on the Hub"]


def test_verify_reads_back(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that answers the right hash and gives other bytes."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    publish(folder)
    oid = hub.repository(NAME).tree()[SHARD].lfs
    assert oid
    content = bytearray(hub.store.object(oid).read_bytes())
    content[20] ^= 1
    hub.store.object(oid).write_bytes(content)
    hub.store.object(hash_blob((folder / "config.json").read_bytes())).write_bytes(b"{")
    reason = "what downloads is not what the folder holds, although the Hub's hash is right"
    assert sorted(verify(folder, NAME, token=WRITE_TOKEN).differences) == [
        f"config.json: {reason}",
        f"{SHARD}: {reason}",
    ]


def test_progress_in_lines(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seeklet.finetune.publish.transfer_progress.LINE_EVERY_S", 0)
    output = io.StringIO()
    publish(folder, console=Console(file=output, width=200))
    lines = output.getvalue().splitlines()
    assert all(re.fullmatch(r"  uploaded \d+ of 24 MB · [\d.]+ MB/s · \d:\d\d:\d\d left", line) for line in lines)
    assert lines[-1].startswith("  uploaded 24 of 24 MB")


def test_others_see_nothing(hub: Hub, folder: Path) -> None:
    publish(folder, "acme/nano")
    with pytest.raises(PublishError, match="not found, or not for the eyes of this token"):
        verify(folder, "acme/nano", token=OTHER_TOKEN)
