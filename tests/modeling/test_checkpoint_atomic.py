"""A save that is killed, fails, or runs beside others leaves a whole checkpoint and every other file."""

import errno
import json
import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tqdm.auto import tqdm

from seeklet.modeling import atomic_directory, checkpoint_save
from seeklet.modeling.atomic_directory import replaced_directory
from tests.modeling.nano import build_ours
from tests.modeling.tensors import assert_same, load

NUM_KILLS = 25
# As many as it takes to find either model; each leaves the one or the other with no small probability.
MIN_MODEL_KILLS, MAX_MODEL_KILLS = 8, 60
SAVE_TIMEOUT_S = 60
FILES = ["model-1.safetensors", "model-2.safetensors", "config.json"]


def is_weights(name: str) -> bool:
    return name.startswith("model-")


def save(target: Path, generation: int, files: list[str] = FILES) -> None:
    with replaced_directory(target, is_weights, "config.json") as staging:
        for name in files:
            (staging / name).write_text(f"{generation}\n" * 1000)


def generations(target: Path) -> set[str]:
    """Return what the files of the checkpoint say; one value when they belong together."""
    return {line for name in FILES for line in (target / name).read_text().split()}


# Runs only the file under test, without torch, so that many processes can be killed in little time.
WRITER = """
import importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("atomic_directory", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
if sys.argv[3] == "renames":
    class Nothing: pass
    module.ctypes.CDLL = lambda *args, **kwargs: Nothing()
module._sync = lambda path: None
print("ready", flush=True)
for generation in range(1, 10**9):
    with module.replaced_directory(sys.argv[2], lambda n: n.startswith("model-"), "config.json") as staging:
        for name in ["model-1.safetensors", "model-2.safetensors", "config.json"]:
            (staging / name).write_text(f"{generation}\\n" * 1000)
"""


@pytest.mark.parametrize("means", ["exchange", "renames"])
def test_a_killed_save_leaves_a_whole_checkpoint(tmp_path: Path, means: str) -> None:
    target = tmp_path / "checkpoint"
    save(target, 0)
    (target / "tokenizer.json").write_text("kept")
    (target / "runs" / "deep").mkdir(parents=True)
    (target / "runs" / "deep" / "events").write_text("kept, too")
    command = [sys.executable, "-c", WRITER, atomic_directory.__file__, str(target), means]
    seen = set()
    for _ in range(NUM_KILLS):
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            time.sleep(random.uniform(0, 0.02))
            process.send_signal(signal.SIGKILL)
        if means == "renames":
            # Between two renames the old checkpoint is whole, but beside; the next save puts it back first.
            atomic_directory.clean_up(target)
        found = generations(target)
        assert len(found) == 1
        assert (target / "tokenizer.json").read_text() == "kept"
        assert (target / "runs" / "deep" / "events").read_text() == "kept, too"
        seen |= found
    assert len(seen) > 1, "no save ever ended before the kill"
    save(target, 7)
    assert generations(target) == {"7"}
    assert sorted(os.listdir(tmp_path)) == ["checkpoint"]
    assert sorted(os.listdir(target)) == sorted([*FILES, "runs", "tokenizer.json"])


def test_a_model_killed_while_it_is_saved(tmp_path: Path) -> None:
    """The same with save_pretrained itself: two models take turns, and one of them must be there, whole."""
    # The pool of a second thread would not survive the fork.
    torch.set_num_threads(1)
    target = tmp_path / "checkpoint"
    models = [build_ours(seed=seed, num_nextn_predict_layers=seed) for seed in (0, 1)]
    start = time.perf_counter()
    models[1].save_pretrained(target)
    save_s = time.perf_counter() - start
    found = set()
    for kill in range(MAX_MODEL_KILLS):
        # At a random moment of the first, second or third save of this process.
        kill_while_saving(models, target, num_saved=kill % 3, delay_s=random.uniform(0, save_s))
        loaded = load(target)
        depth = loaded.config.num_nextn_predict_layers
        assert_same(loaded.state_dict(), models[depth].state_dict())
        found.add(depth)
        if kill + 1 >= MIN_MODEL_KILLS and len(found) > 1:
            break
    assert found == {0, 1}, "the kill left the same model each time"
    models[0].save_pretrained(target)
    assert os.listdir(tmp_path) == ["checkpoint"]


def kill_while_saving(models: list[Any], target: Path, num_saved: int, delay_s: float) -> None:
    """Save the models in turn in a process of its own; kill it `delay_s` after it has ended `num_saved` saves."""
    saved, report = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            # A lock of its own: killed with the one shared by all processes in its hand, nobody could draw a bar again.
            tqdm.set_lock(threading.RLock())
            for turn in range(10**9):
                models[turn % 2].save_pretrained(target, max_shard_size="50KB" if turn % 2 else "5GB")
                os.write(report, b".")
        finally:
            os._exit(1)
    os.close(report)
    try:
        for _ in range(num_saved):
            assert select.select([saved], [], [], SAVE_TIMEOUT_S)[0], "the process does not save"
            assert os.read(saved, 1) == b".", "saving failed"
        time.sleep(delay_s)
    finally:
        os.close(saved)
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def test_a_save_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, other = build_ours(), build_ours(seed=1)
    model.save_pretrained(tmp_path / "m")

    def full(*args, **kwargs):
        yield from ()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint_save, "write_file", full)
    with pytest.raises(OSError, match="No space left"):
        other.save_pretrained(tmp_path / "m")
    assert os.listdir(tmp_path) == ["m"]
    assert_same(load(tmp_path / "m").state_dict(), model.state_dict())


def test_what_others_write_meanwhile_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainer's other processes write their random state into the folder while the first saves the model."""
    save(tmp_path / "m", 0)
    exchange = atomic_directory._exchange

    def slow(staging: Path, target: Path) -> None:
        (target / "rng_state_1.pth").write_text("rank 1")
        exchange(staging, target)

    monkeypatch.setattr(atomic_directory, "_exchange", slow)
    save(tmp_path / "m", 1)
    assert generations(tmp_path / "m") == {"1"}
    assert (tmp_path / "m" / "rng_state_1.pth").read_text() == "rank 1"


def refuse_exchange(staging: Path, target: Path) -> None:
    pytest.fail("the directory was exchanged")


CANNOT: dict[str, Callable[[Path, pytest.MonkeyPatch], None]] = {
    "the working directory": lambda target, patch: patch.chdir(target),
    "a folder above the working directory": lambda target, patch: patch.chdir(target / "sub"),
    "a mount point": lambda target, patch: patch.setattr(os.path, "ismount", lambda path: True),
    "no hard links": lambda target, patch: patch.setattr(
        os, "link", lambda *a, **k: (_ for _ in ()).throw(OSError(errno.EPERM, "no"))
    ),
}


@pytest.mark.parametrize("why", CANNOT)
def test_where_directories_cannot_be_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    target = tmp_path / "m"
    save(target, 0, [*FILES, "model-3.safetensors"])
    (target / "sub").mkdir()
    (target / "tokenizer.json").write_text("kept")
    before = target.stat().st_ino
    monkeypatch.setattr(atomic_directory, "_exchange", refuse_exchange)
    CANNOT[why](target, monkeypatch)
    save(target, 1)
    assert generations(target) == {"1"}
    assert target.stat().st_ino == before
    assert sorted(os.listdir(target)) == sorted([*FILES, "sub", "tokenizer.json"])
    assert os.listdir(tmp_path) == ["m"]


def test_an_empty_folder_stays_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Trainer makes it; there is nothing to lose, and others may write into it."""
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "rng_state_1.pth").write_text("rank 1")
    monkeypatch.setattr(atomic_directory, "_exchange", refuse_exchange)
    save(tmp_path / "m", 1)
    assert sorted(os.listdir(tmp_path / "m")) == sorted([*FILES, "rng_state_1.pth"])


def test_the_old_config_goes_first_and_the_new_one_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "m", 0)
    monkeypatch.setattr(os.path, "ismount", lambda path: True)
    states = []
    replace = os.replace

    def watch(source: Path, there: Path) -> None:
        states.append((Path(there).name, (tmp_path / "m" / "config.json").exists()))
        replace(source, there)

    monkeypatch.setattr(os, "replace", watch)
    save(tmp_path / "m", 1)
    assert states == [("model-1.safetensors", False), ("model-2.safetensors", False), ("config.json", False)]


def test_a_link_is_followed_and_permissions_stay(tmp_path: Path) -> None:
    save(tmp_path / "real", 0)
    (tmp_path / "real").chmod(0o750)
    (tmp_path / "link").symlink_to("real")
    save(tmp_path / "link", 1)
    assert (tmp_path / "link").is_symlink()
    assert generations(tmp_path / "real") == {"1"}
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o750


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("precious")
    with pytest.raises(NotADirectoryError, match="a file stands where the directory should"):
        build_ours().save_pretrained(tmp_path / "m")
    assert (tmp_path / "m").read_text() == "precious"


def test_only_leftovers_of_dead_processes_are_removed(tmp_path: Path) -> None:
    target = tmp_path / "m"
    alive = atomic_directory._beside(target, tmp_path, "saving")
    dead = Path(str(alive).replace(f"-{os.getpid()}-", "-4194999-"))
    elsewhere = tmp_path / dead.name.replace("saving-", "saving-another-host-")
    for folder in (alive, dead, elsewhere, tmp_path / ".m.backup"):
        folder.mkdir()
    save(target, 0)
    assert sorted(os.listdir(tmp_path)) == sorted([alive.name, elsewhere.name, ".m.backup", "m"])


def test_a_save_over_the_checkpoint_it_was_loaded_from(tmp_path: Path) -> None:
    model = build_ours(num_nextn_predict_layers=1)
    model.save_pretrained(tmp_path / "m", max_shard_size="50KB")
    (tmp_path / "m" / "tokenizer.json").write_text(json.dumps({"kept": True}))
    loaded = load(tmp_path / "m")
    loaded.save_pretrained(tmp_path / "m")
    assert_same(load(tmp_path / "m").state_dict(), model.state_dict())
    names = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
    assert sorted(os.listdir(tmp_path / "m")) == names
