"""Uploads killed with SIGKILL at random moments: the repository shows all or nothing, and little goes twice."""

import itertools
import time
from collections import Counter
from pathlib import Path

import pytest

from seeklet.finetune.publish.large_files import NUM_THREADS
from tests.finetune.publish.uploads import UploadProcess, draw_moments, list_files, list_sizes, write_shards
from tests.hub.accounts import WRITE_TOKEN
from tests.hub.faults import Fault
from tests.hub.repositories import Repository
from tests.hub.server import Hub, serve_hub
from tests.hub.xet_routes import count_xet_bytes

NAME = "alice/killed"
PART_BYTES = 2_000_000
NUM_KILLS = 4
# hf_xet adds a footer to each object, and sends the chunks at the seams of parts again with the whole file.
SEAM_BYTES = 300_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    write_shards(folder, num_shards=3, shard_bytes=20_000_000)
    (folder / "config.json").write_text("{}")
    return folder


def count_whole_parts(hub: Hub) -> Counter[str]:
    """Return how often each part arrived whole, once what a killed process left in sockets is read."""
    while any(part.status is None and part.num_bytes < part.expected for part in hub.journal.parts()[-NUM_THREADS:]):
        known = sum(part.num_bytes for part in hub.journal.parts())
        time.sleep(0.2)
        if sum(part.num_bytes for part in hub.journal.parts()) == known:
            break
    return Counter(part.path for part in hub.journal.parts() if part.is_whole)


def test_over_lfs(folder: Path, tmp_path: Path) -> None:
    sizes = list_sizes(folder)
    total = sum(sizes.values())
    with serve_hub(tmp_path / "hub", part_bytes=PART_BYTES, bytes_per_s=20e6) as hub:
        settings = {"has_xet": False, "part_bytes": PART_BYTES}
        is_killed = 0
        counts = [Counter[str]()]
        for moment in draw_moments(total, NUM_KILLS, seed=1):
            run = UploadProcess(hub, tmp_path, folder, NAME, WRITE_TOKEN, **settings)
            is_killed += run.kill_when(lambda at=moment: sum(part.num_bytes for part in hub.journal.parts()) >= at)
            if repository := hub.store.find("model", NAME):
                assert set(repository.tree()) == {".gitattributes"}
            counts.append(count_whole_parts(hub))
        num_sent, num_kept = UploadProcess(hub, tmp_path, folder, NAME, WRITE_TOKEN, **settings).finish()
        counts.append(count_whole_parts(hub))
        assert is_killed == NUM_KILLS
        assert {name: entry.size for name, entry in hub.repository(NAME).tree().items() if name in sizes} == sizes
        assert num_sent + num_kept == total and num_kept > 0
        # The store may have the one part of each thread that was on its way: the process did not live to note it.
        for before, after in itertools.pairwise(counts):
            assert sum((after - before)[path] for path in before) <= NUM_THREADS + 1
        # No note is left, nor a part in an upload that nobody completes.
        assert list((tmp_path / "home" / "seeklet").rglob("*.json*")) == []
        assert [path.name for path in (hub.store.root / "uploads").iterdir() if path.is_dir()] == []


def test_over_xet(folder: Path, tmp_path: Path) -> None:
    sizes = list_sizes(folder)
    total = sum(sizes.values())
    with serve_hub(tmp_path / "hub") as hub:
        is_killed = 0
        for moment in draw_moments(total, NUM_KILLS, seed=2):
            run = UploadProcess(hub, tmp_path, folder, NAME, WRITE_TOKEN, has_xet=True, part_bytes=PART_BYTES)
            is_killed += run.kill_when(lambda at=moment: count_xet_bytes(hub) >= at)
            if repository := hub.store.find("model", NAME):
                assert set(repository.tree()) == {".gitattributes"}
        stored = count_xet_bytes(hub)
        last = UploadProcess(hub, tmp_path, folder, NAME, WRITE_TOKEN, has_xet=True, part_bytes=PART_BYTES)
        num_sent, num_kept = last.finish()
        assert is_killed == NUM_KILLS
        assert {name: entry.size for name, entry in hub.repository(NAME).tree().items() if name in sizes} == sizes
        assert num_sent + num_kept == total and num_kept > 0
        # What was on its way when it was killed, in each thread, and one part; the ends of files are no part.
        assert num_sent - max(0, total - stored) <= (NUM_THREADS + 1) * PART_BYTES + total % PART_BYTES
        num_parts = total // PART_BYTES
        assert count_xet_bytes(hub) - total <= (num_parts + NUM_KILLS * NUM_THREADS) * SEAM_BYTES


@pytest.mark.parametrize("is_pull", [False, True])
def test_killed_after_the_commit_before_its_answer(is_pull: bool, folder: Path, tmp_path: Path) -> None:
    with serve_hub(tmp_path / "hub") as hub:
        if is_pull:
            hub.store.add(Repository("model", NAME, is_private=True))
        settings = {"has_xet": True, "part_bytes": PART_BYTES, "is_pull": is_pull}
        # The commit is carried out, and the process waits for an answer that does not come.
        hub.faults.add(Fault("POST .*/commit/", is_answer_lost=True))
        run = UploadProcess(hub, tmp_path, folder, NAME, WRITE_TOKEN, **settings)
        reference = "refs/pr/1" if is_pull else "refs/heads/main"

        def is_committed() -> bool:
            repository = hub.store.find("model", NAME)
            return repository is not None and len(repository.commits) == 2

        assert run.kill_when(is_committed)
        made = hub.repository(NAME).refs[reference]
        again = UploadProcess(hub, tmp_path, folder, NAME, WRITE_TOKEN, **settings)
        assert again.finish()[0] == 0
        assert hub.repository(NAME).refs[reference] == made and len(hub.repository(NAME).commits) == 2
        assert set(hub.repository(NAME).tree(reference)) == {".gitattributes", *list_files(folder)}
